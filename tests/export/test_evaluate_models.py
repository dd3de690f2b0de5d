"""One network as a checkpoint, as a bundle and behind a server: the same descriptors, figures and masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from passerby.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from passerby_export import evaluate_models
from passerby_export.bundle import seal
from passerby_export.evaluate import Options, evaluate
from passerby_export.evaluate_models import EvaluatedModel, open_model
from passerby_model import checkpoint
from passerby_model.bundle import Artefact, MaskOutput, Parity, ParityRow
from passerby_model.datasets import read
from passerby_model.descriptors import ClipScheme
from passerby_model.encoder import Classifier
from passerby_model.protocol import Rerank
from passerby_model.street import StreetConfig, write

from tests.encoders import make_bundle
from tests.export.networks import SMALL, SMALL_INPUT, Network, random_encoder
from tests.server.live import running

KINDS = ("checkpoint", "bundle", "server")
SCHEMES = (ClipScheme(3), ClipScheme(3, max_frames=4), ClipScheme(3, max_snippets=2))


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tracklets of 1 to 8 frames: shorter and longer than a snippet of 3, with and without a padded end."""
    folder = tmp_path_factory.mktemp("street") / "street"
    write(StreetConfig(identities=8, cameras=3, frames=(1, 8), height=64, width=32, seed=5), folder, masks=True)
    return folder


@pytest.fixture(scope="module")
def models(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EvaluatedModel]]:
    folder = tmp_path_factory.mktemp("model")
    metadata: dict[str, object] = {"config": {"data": [{"path": "/somewhere/people"}]}}
    classifier = Classifier(network.encoder, 3)
    checkpoint.save(folder / "final.pt", checkpoint.Checkpoint(SMALL, 3, classifier.state_dict(), metadata))
    sealed(folder / "bundle", network, metadata)
    with (
        running(folder / "bundle", folder / "data") as server,
        open_model(str(folder / "final.pt"), threads=1, device="cpu") as first,
        open_model(str(folder / "bundle"), threads=1) as second,
        open_model(f"127.0.0.1:{server.port}") as third,
    ):
        yield dict(zip(KINDS, (first, second, third), strict=True))


def sealed(folder: Path, network: Network, training: dict[str, object]) -> None:
    """The network's bundle without the time that its parity check takes; that is tested elsewhere."""
    folder.mkdir()
    onnx.save(network.graph, folder / "encoder.onnx")
    runtimes = ("onnxruntime", "openvino")
    rows = tuple(
        ParityRow(
            runtime=runtime,
            snippets=1,
            relative_l2=0.0,
            cosine=1.0,
            max_relative_l2=1e-4,
            min_cosine=0.999,
            passed=True,
        )
        for runtime in runtimes
    )
    artefact = Artefact(
        precision="fp32",
        format="onnx",
        files=("encoder.onnx",),
        runtimes=runtimes,
        parity=Parity(reference="itself", rows=rows, passed=True),
    )
    masks = ((block, *SMALL.map_size(block)) for block in SMALL.cosam)
    seal(
        folder,
        [artefact],
        name="small",
        architecture=SMALL.name,
        input=SMALL_INPUT,
        descriptor_dim=network.encoder.descriptor_size,
        metric="squared_euclidean",
        masks=tuple(MaskOutput(name=f"mask_cosam{b}", block=b, height=h, width=w) for b, h, w in masks),
        training=training,
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_descriptors_agree(models: dict[str, EvaluatedModel], street: Path, scheme: ClipScheme) -> None:
    tracklets = read(street).tracklets
    found = {kind: model.embed(tracklets, scheme) for kind, model in models.items()}
    spread = found["checkpoint"].std(axis=0).mean()
    for kind in KINDS[1:]:
        np.testing.assert_allclose(found[kind], found["checkpoint"], atol=1e-3 * spread)
    np.testing.assert_allclose(found["server"], found["bundle"], rtol=1e-5, atol=1e-6)


def test_figures_agree(models: dict[str, EvaluatedModel], street: Path) -> None:
    options = Options(rerank=Rerank(5, 3, 0.3), open_set=True, attributes=("all",), max_rank=10)
    reports = {kind: evaluate(model, [street], options) for kind, model in models.items()}
    expected = reports["checkpoint"]
    assert [result.queries for result in expected.results] == [24, 24]
    assert 0.1 < expected.results[0].mean_average_precision < 0.99
    for report in reports.values():
        for result, wanted in zip(report.results, expected.results, strict=True):
            assert result.mean_average_precision == pytest.approx(wanted.mean_average_precision, abs=1e-6)
            assert result.cmc == wanted.cmc
            assert replace(result, model="", mean_average_precision=0, attributes=()) == replace(
                wanted, model="", mean_average_precision=0, attributes=()
            )
            assert [row.rank1 for row in result.attributes] == [row.rank1 for row in wanted.attributes]
        figures, wanted_figures = report.open_set[0].figures, expected.open_set[0].figures
        assert figures.genuine_pairs == wanted_figures.genuine_pairs == 24
        for point, wanted_point in zip(figures.verification, wanted_figures.verification, strict=True):
            assert point.errors == wanted_point.errors
            assert (point.threshold or 0) == pytest.approx(wanted_point.threshold or 0, rel=1e-3)


def test_masks_agree(models: dict[str, EvaluatedModel]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 32, 3), np.uint8)
    expected = models["checkpoint"].encode(pixels)[1]
    assert set(expected) == {4, 5}
    for kind in KINDS[1:]:
        masks = models[kind].encode(pixels)[1]
        assert {block: mask.shape for block, mask in masks.items()} == {b: m.shape for b, m in expected.items()}
        for block, mask in masks.items():
            np.testing.assert_allclose(mask, expected[block], atol=1e-4)


def test_each_says_what_it_is(models: dict[str, EvaluatedModel]) -> None:
    shown = {kind: model.description for kind, model in models.items()}
    assert [shown[kind].kind for kind in KINDS] == list(KINDS)
    assert shown["bundle"].fingerprint == shown["server"].fingerprint != shown["checkpoint"].fingerprint
    assert {each.architecture for each in shown.values()} == {SMALL.name}
    assert {(each.snippet_length, each.height, each.width) for each in shown.values()} == {(3, 64, 32)}
    assert shown["checkpoint"].trained_on == shown["bundle"].trained_on == ("people",)
    assert shown["checkpoint"].runtime.startswith("PyTorch")
    assert shown["bundle"].runtime == shown["server"].runtime == "openvino, fp32"


def test_a_long_tracklet_goes_to_the_server_in_parts(
    models: dict[str, EvaluatedModel], street: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracklets = [max(read(street).tracklets, key=lambda tracklet: len(tracklet.frames))]
    whole = models["server"].embed(tracklets, ClipScheme(3))
    assert len(list(evaluate_models._messages(tracklets[0], ClipScheme(3)))) == 1
    monkeypatch.setattr(evaluate_models, "MESSAGE_BYTES", 1)
    assert [len(part) for part in evaluate_models._messages(tracklets[0], ClipScheme(3))] == [3, 3, 3]
    np.testing.assert_allclose(models["server"].embed(tracklets, ClipScheme(3)), whole, rtol=1e-6)


def test_an_unreadable_frame_is_named(models: dict[str, EvaluatedModel], street: Path, tmp_path: Path) -> None:
    tracklet = read(street).tracklets[0]
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    broken = replace(tracklet, frames=(tmp_path / "broken.jpg",))
    absent = replace(tracklet, frames=(tmp_path / "absent.jpg",))
    for kind, model in models.items():
        with pytest.raises(InvalidArgumentError, match=tracklet.key if kind == "server" else r"broken\.jpg"):
            model.embed([broken], ClipScheme(3))
        with pytest.raises(NotFoundError, match=r"absent\.jpg"):
            model.embed([absent], ClipScheme(3))


def test_weights_that_are_not_numbers_are_refused(street: Path, tmp_path: Path) -> None:
    state = Classifier(random_encoder(SMALL), 3).state_dict()
    state["encoder.backbone.layer4.0.conv1.weight"][0] = np.nan
    checkpoint.save(tmp_path / "nan.pt", checkpoint.Checkpoint(SMALL, 3, state))
    with (
        open_model(str(tmp_path / "nan.pt"), threads=1, device="cpu") as model,
        pytest.raises(FailedPreconditionError, match=r"not finite for 24 of 24 tracklets, first 0000/c1/t1"),
    ):
        evaluate(model, [street])


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no checkpoint, no bundle, and not HOST:PORT"):
        open_model(str(tmp_path / "absent"))
    with pytest.raises(NotFoundError, match="is no bundle"):
        open_model(str(tmp_path))
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(InvalidArgumentError, match="not a checkpoint"):
        open_model(str(tmp_path / "text.pt"))
    with pytest.raises(UnavailableError, match=r"no passerby server answers at 127\.0\.0\.1:1"):
        open_model("127.0.0.1:1", timeout=1)
    with pytest.raises(FailedPreconditionError, match="no parity report"):
        open_model(str(make_bundle(tmp_path / "unverified", parity_passed=None)))
