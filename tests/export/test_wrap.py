"""`passerby bundle wrap`: foreign models become bundles that compute what the model computes, at any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
from passerby.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from passerby_export.spec import WrapSpec, load_spec
from passerby_export.wrap import wrap
from passerby_model.backends import BackendKind, open_backend
from passerby_model.backends.openvino_package import openvino_core
from passerby_model.bundle import open_bundle

from tests.export.conftest import VALUES, by_hand, foreign_onnx

SPECS = Path(__file__).resolve().parents[2] / "bundles/specs"


def encode(root: Path, frames: np.ndarray, kind: BackendKind = "auto") -> np.ndarray:
    return open_backend(open_bundle(root), kind).encode(frames[:, None]).descriptors


@pytest.mark.parametrize(
    ("weights", "name", "values", "runtimes"),
    [
        ("person-reidentification-retail-0277-fp16", "person-reidentification-retail-0277", 256, {"openvino"}),
        ("osnet_x0_25_msmt17", "osnet_x0_25_msmt17", 512, {"openvino", "onnxruntime"}),
    ],
    ids=["retail-0277-ir", "osnet-onnx"],
)
def test_public_model_with_its_checked_in_spec(
    shared: Path, tmp_path: Path, weights: str, name: str, values: int, runtimes: set[str]
) -> None:
    suffix = ".xml" if runtimes == {"openvino"} else ".onnx"
    model = shared / "data/weights" / weights / f"{name}{suffix}"
    manifest = wrap(model, tmp_path / "bundle", load_spec(SPECS / f"{name}.yaml", {}))
    opened = open_bundle(tmp_path / "bundle").manifest
    assert opened == manifest
    assert (manifest.descriptor_dim, manifest.metric, manifest.input.snippet_length) == (values, "cosine", 1)
    assert manifest.parity is not None
    assert {(row.runtime, row.snippets) for row in manifest.parity.rows} == {
        (runtime, batch) for runtime in runtimes for batch in range(1, 33)
    }
    assert max(row.relative_l2 for row in manifest.parity.rows) < 1e-4
    frame = np.random.default_rng(1).integers(0, 256, (1, 1, 256, 128, 3), dtype=np.uint8)
    descriptor = open_backend(open_bundle(tmp_path / "bundle")).encode(frame).descriptors
    assert np.linalg.norm(descriptor) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("opset", [9, 12, 13, 18])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_colour_range_mean_and_std_by_hand(
    tmp_path: Path, frames: np.ndarray, layout: str, opset: int, kind: BackendKind
) -> None:
    """BGR, -1..1, mean and std of each channel: against arithmetic in numpy that shares no code with the wrapper."""
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    model = foreign_onnx(tmp_path / "foreign.onnx", layout=layout, opset=opset)
    spec = WrapSpec.model_validate(
        {
            "name": "f",
            "layout": layout,
            "colour": "BGR",
            "range": (-1, 1),
            "mean": mean,
            "std": std,
            "metric": "euclidean",
        }
    )
    manifest = wrap(model, tmp_path / "bundle", spec)
    assert (manifest.metric, manifest.descriptor_dim) == ("squared_euclidean", VALUES)
    expected = by_hand(frames, model, prepare=lambda f: (f[..., ::-1] / 127.5 - 1 - np.array(mean)) / np.array(std))
    np.testing.assert_allclose(encode(tmp_path / "bundle", frames, kind), expected, rtol=1e-4, atol=1e-4)


def test_cosine_descriptors_have_length_one(tmp_path: Path, frames: np.ndarray) -> None:
    model = foreign_onnx(tmp_path / "foreign.onnx")
    wrap(model, tmp_path / "bundle", WrapSpec(name="f", range=(0, 1)))
    expected = by_hand(frames, model, prepare=lambda f: f / 255)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encode(tmp_path / "bundle", frames), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "reshape"),
    [("n", None), (1, (1, 8)), (1, (1, -1)), (1, (-1, 8)), (1, (0, -1)), (4, (4, 8))],
    ids=["open", "1x8", "1x-1", "-1x8", "0x-1", "fixed-4"],
)
def test_a_fixed_batch_becomes_open(
    tmp_path: Path, frames: np.ndarray, batch: int | str, reshape: tuple[int, ...] | None
) -> None:
    model = foreign_onnx(tmp_path / "foreign.onnx", batch=batch, reshape=reshape)
    spec = WrapSpec(name="f", range=(0, 1), metric="euclidean")
    wrap(model, tmp_path / "bundle", spec)
    expected = by_hand(frames, model, prepare=lambda f: f / 255)
    for count in (1, 2, 3, 5):
        np.testing.assert_allclose(encode(tmp_path / "bundle", frames[:count]), expected[:count], rtol=1e-4, atol=1e-4)


def test_a_batch_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    model = foreign_onnx(tmp_path / "foreign.onnx", channels_first=True)
    with pytest.raises(FailedPreconditionError, match=r"foreign\.onnx cannot be made to take any batch size") as caught:
        wrap(model, tmp_path / "bundle", WrapSpec(name="f"))
    assert caught.value.reason == "BATCH_NOT_OPEN"
    assert not (tmp_path / "bundle").exists()


def test_a_model_that_mixes_frames_of_a_batch_is_refused(tmp_path: Path) -> None:
    """Reduced over the batch axis, a batch gives other descriptors than single frames: parity finds it."""
    import onnx
    from onnx import helper

    path = foreign_onnx(tmp_path / "foreign.onnx", batch="n")
    model = onnx.load(path)
    model.graph.node[0].input[0] = "centred"
    mean = helper.make_node("ReduceMean", ["image"], ["average"], axes=[0], keepdims=1)
    half = helper.make_node("Sum", ["image", "average"], ["centred"])
    nodes = [mean, half, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    with pytest.raises(FailedPreconditionError, match="batch 2 of noise") as caught:
        wrap(path, tmp_path / "bundle", WrapSpec(name="f", range=(0, 1)))
    assert caught.value.reason == "PARITY_FAILED"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign.onnx"]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_openvino_ir_with_fixed_batch_and_reshape(tmp_path: Path, frames: np.ndarray, layout: str) -> None:
    source = foreign_onnx(tmp_path / "foreign.onnx", layout=layout)
    openvino.save_model(openvino_core().read_model(source), tmp_path / "foreign.xml", compress_to_fp16=False)
    spec = WrapSpec.model_validate(
        {
            "name": "f",
            "layout": layout,
            "colour": "BGR",
            "range": (0, 1),
            "mean": (0.4, 0.5, 0.6),
            "metric": "euclidean",
        }
    )
    manifest = wrap(tmp_path / "foreign.xml", tmp_path / "bundle", spec)
    assert (manifest.format, manifest.encoder) == ("openvino", "encoder.xml")
    assert set(manifest.files) == {"encoder.xml", "encoder.bin", "reference.npz"}
    assert manifest.artefacts[0].files == ("encoder.xml", "encoder.bin")
    expected = by_hand(frames, source, prepare=lambda f: f[..., ::-1] / 255 - np.array([0.4, 0.5, 0.6]))
    np.testing.assert_allclose(encode(tmp_path / "bundle", frames), expected, rtol=1e-4, atol=1e-4)


def test_same_model_gives_same_fingerprint_and_other_spec_another(tmp_path: Path) -> None:
    model = foreign_onnx(tmp_path / "foreign.onnx")
    first = wrap(model, tmp_path / "a", WrapSpec(name="f"))
    assert wrap(model, tmp_path / "b", WrapSpec(name="f")).fingerprint == first.fingerprint
    assert wrap(model, tmp_path / "c", WrapSpec(name="f", colour="BGR")).fingerprint != first.fingerprint


def test_output_has_to_be_chosen_among_several(tmp_path: Path) -> None:
    model = foreign_onnx(tmp_path / "foreign.onnx", second_output=True)
    with pytest.raises(InvalidArgumentError, match="2 outputs: choose one with --output: feature, p"):
        wrap(model, tmp_path / "bundle", WrapSpec(name="f"))
    with pytest.raises(InvalidArgumentError, match="no output 'x'; there are: feature, p"):
        wrap(model, tmp_path / "bundle", WrapSpec(name="f", output="x"))
    # (B, 8, 1, 1) is flattened.
    assert wrap(model, tmp_path / "bundle", WrapSpec(name="f", output="p")).descriptor_dim == 8


def test_wrong_layout_suggests_the_other(tmp_path: Path) -> None:
    model = foreign_onnx(tmp_path / "foreign.onnx", layout="NHWC")
    with pytest.raises(InvalidArgumentError, match="1x32x16x3, not NCHW with 3 channels; use --layout NHWC"):
        wrap(model, tmp_path / "bundle", WrapSpec(name="f"))


def test_wrong_height_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="height 32, not 64"):
        wrap(foreign_onnx(tmp_path / "foreign.onnx"), tmp_path / "bundle", WrapSpec(name="f", height=64))


@pytest.mark.parametrize("name", ["broken.onnx", "broken.xml", "model.pt"])
def test_what_is_no_model_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not a model")
    (tmp_path / "broken.bin").write_bytes(b"")
    with pytest.raises(InvalidArgumentError, match=name):
        wrap(tmp_path / name, tmp_path / "bundle", WrapSpec(name="f"))
    assert not (tmp_path / "bundle").exists()


def test_missing_model_and_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing\.onnx: no such model"):
        wrap(tmp_path / "nothing.onnx", tmp_path / "bundle", WrapSpec(name="f"))
    (tmp_path / "alone.xml").write_text("<net/>")
    with pytest.raises(InvalidArgumentError, match=r"alone\.bin is missing"):
        wrap(tmp_path / "alone.xml", tmp_path / "bundle", WrapSpec(name="f"))


def test_existing_bundle_is_replaced_with_force_only(tmp_path: Path) -> None:
    model = foreign_onnx(tmp_path / "foreign.onnx")
    first = wrap(model, tmp_path / "bundle", WrapSpec(name="f"))
    with pytest.raises(AlreadyExistsError, match="--force"):
        wrap(model, tmp_path / "bundle", WrapSpec(name="f", colour="BGR"))
    assert open_bundle(tmp_path / "bundle").fingerprint == first.fingerprint
    second = wrap(model, tmp_path / "bundle", WrapSpec(name="f", colour="BGR"), force=True)
    assert open_bundle(tmp_path / "bundle").fingerprint == second.fingerprint != first.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "foreign.onnx"]
