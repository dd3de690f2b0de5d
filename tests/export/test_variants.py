"""Variants by name: checkpoint to bundle to runtime, equal to PyTorch in descriptors and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_export import export as stage
from passerby_export.export import Options
from passerby_export.inspection import not_in_tensorrt
from passerby_export.onnx_export import check_graph
from passerby_model import checkpoint as checkpoints
from passerby_model.backends import BackendName, base, open_backend
from passerby_model.bundle import open_bundle
from passerby_model.encoder import Architecture, Classifier
from torch import nn

from tests.export.networks import random_encoder

# Every aggregation, N in 1, 2, 4, 8, both forms, all places of COSAM, and networks of other makes: with strides of 2x2,
# with maps as (h, w, C).
VARIANTS = [
    ("resnet18+cosam45+rnn", 2),
    ("resnet18+cosam2345+ta", 8),
    ("se_resnet50+cosam45+tp", 4),
    ("resnet50+cosam35-paper+ta", 3),
    ("convnext_atto+cosam45+tp", 2),
    ("resnet18+none+tp", 1),
    ("test_mambaout+cosam35+rnn", 4),
]


RUNTIMES: tuple[BackendName, ...] = ("onnxruntime", "openvino")


@pytest.mark.parametrize(("name", "length"), VARIANTS, ids=[name for name, _ in VARIANTS])
def test_a_variant_is_served_as_pytorch_computes_it(
    name: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batches of 1 to 4; all sizes that a server makes are another test's (test_artefacts.py).
    monkeypatch.setattr(base, "DEFAULT_BATCH_FRAMES", 4 * length)
    architecture = Architecture.parse(name, snippet_length=length, height=64, width=32)
    encoder = random_encoder(architecture)
    for key, value in encoder.named_parameters():
        if key.endswith("gamma"):  # of ConvNeXt's residual branches: starts as good as zero
            nn.init.uniform_(value, 0.5, 1.0)
    model = Classifier(encoder, 3)
    checkpoints.save(tmp_path / "best.pt", checkpoints.Checkpoint(architecture, 3, model.state_dict()))
    stage.export(tmp_path / "best.pt", tmp_path / "bundle", Options(("fp32", "fp16")))

    bundle = open_bundle(tmp_path / "bundle")
    for artefact in bundle.manifest.artefacts:
        assert not_in_tensorrt(onnx.load(bundle.root / artefact.file)) == [], artefact.file
    check_graph(onnx.load(bundle.root / "encoder.fp16.onnx"), blocks=architecture.cosam)
    assert (bundle.manifest.architecture, bundle.manifest.descriptor_dim) == (name, encoder.descriptor_size)
    sizes = [(mask.block, mask.height, mask.width) for mask in bundle.manifest.masks]
    assert sizes == [(block, *architecture.map_size(block)) for block in architecture.cosam]
    snippets = np.random.default_rng(5).integers(0, 256, (3, length, 64, 32, 3), dtype=np.uint8)
    expected = stage.torch_reference(encoder)(snippets)
    for runtime in RUNTIMES:
        got = open_backend(bundle, runtime, precision="fp32").encode(snippets)
        error = np.linalg.norm(got.descriptors - expected.descriptors, axis=1)
        assert (error <= 1e-4 * np.linalg.norm(expected.descriptors, axis=1)).all(), runtime
        assert got.masks.keys() == expected.masks.keys() == set(architecture.cosam)
        for block, mask in expected.masks.items():
            assert mask.shape == (3, length, *architecture.map_size(block))
            np.testing.assert_allclose(got.masks[block], mask, atol=1e-4, err_msg=f"{runtime}, COSAM_{block}")


def test_a_checkpoint_of_another_architecture_gets_no_bundle(tmp_path: Path) -> None:
    architecture = Architecture.parse("resnet18+none+tp", snippet_length=1, height=64, width=32)
    state = Classifier(random_encoder(architecture), 3).state_dict()
    checkpoints.save(tmp_path / "best.pt", checkpoints.Checkpoint(architecture, 3, state))
    with pytest.raises(InvalidArgumentError, match=r"best\.pt was trained as resnet18\+none\+tp .* not as resnet34"):
        stage.export(
            tmp_path / "best.pt",
            tmp_path / "bundle",
            architecture=Architecture.parse("resnet34+none+tp", snippet_length=1, height=64, width=32),
        )
    other = Architecture.parse("resnet34+none+tp", snippet_length=1, height=64, width=32)
    checkpoints.save(tmp_path / "wrong.pt", checkpoints.Checkpoint(other, 3, state))
    with pytest.raises(
        InvalidArgumentError,
        match=r"do not fit resnet34\+none\+tp .*missing: encoder\.backbone\.layer1\.2\.conv1\.weight",
    ):
        stage.export(tmp_path / "wrong.pt", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing\.pt: no such checkpoint"):
        stage.export(tmp_path / "nothing.pt", tmp_path / "bundle")
    architecture = Architecture.parse("resnet18+none+tp", snippet_length=1, height=64, width=32)
    for options in (Options(("int8",), calibration=tmp_path / "nowhere"), Options(labelled=tmp_path / "nowhere")):
        with pytest.raises(NotFoundError, match="nowhere"):
            stage.export_encoder(random_encoder(architecture), tmp_path / "bundle", options)
    assert list(tmp_path.iterdir()) == []
