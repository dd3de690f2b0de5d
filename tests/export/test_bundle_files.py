"""Real bundles with real damage: each file by name. What verify makes of them, and of bundles of the first schema."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from passerby.errors import DataLossError, FailedPreconditionError, NotFoundError, PasserbyError
from passerby_export import verify as stage
from passerby_export.calibrate import write_calibration
from passerby_export.openvino_ir import read_model, save_ir
from passerby_export.parity import make_samples, make_trials
from passerby_export.reference import read_reference, write_reference
from passerby_export.samples import Tracklets, read_tracklets
from passerby_export.spec import WrapSpec
from passerby_export.verify import verify
from passerby_export.wrap import wrap
from passerby_model import datasets
from passerby_model.backends import Encoded, open_artefact, open_backend
from passerby_model.bundle import Calibration, CalibrationPoint, Input, describe_file, open_bundle
from passerby_model.datasets import Tracklet, TrackletDataset

from tests.encoders import make_bundle
from tests.export.conftest import foreign_onnx

FILES = ("encoder.xml", "encoder.bin", "reference.npz")


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrapped")
    save_ir(read_model(foreign_onnx(folder / "foreign.onnx")), folder / "foreign.xml")
    wrap(folder / "foreign.xml", folder / "bundle", WrapSpec(name="f"))
    return folder / "bundle"


@pytest.fixture
def root(wrapped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(wrapped, tmp_path / "bundle"))


def test_the_same_ir_has_the_same_fingerprint(wrapped: Path, tmp_path: Path) -> None:
    again = wrap(wrapped.parent / "foreign.xml", tmp_path / "again", WrapSpec(name="f"))
    assert again.fingerprint == open_bundle(wrapped).fingerprint


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], type[PasserbyError], str]] = {
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-7]), DataLossError, r"has \d+ bytes instead of \d+, cut short"),
    "emptied": (lambda p: p.write_bytes(b""), DataLossError, r"has 0 bytes instead of \d+, cut short"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"\n"), DataLossError, "too many"),
    "tampered": (flip, DataLossError, "damaged or changed after export"),
    "missing": (Path.unlink, NotFoundError, "is missing: the bundle is incomplete"),
    "a-folder": (into_folder, NotFoundError, "is missing"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(root: Path, name: str, damage: str) -> None:
    open_bundle(root)
    change, error, message = DAMAGE[damage]
    change(root / name)
    with pytest.raises(error, match=f"^{root}/{name} .*{message}.*copy the bundle again"):
        open_bundle(root)


@pytest.mark.parametrize("size", [0, 1, 200, -2], ids=lambda size: f"{size}-bytes")
def test_a_cut_bundle_json_is_named(root: Path, size: int) -> None:
    path = root / "bundle.json"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataLossError, match=r"/bundle\.json is damaged: .*; copy the bundle again"):
        open_bundle(root)


def test_an_extra_file_is_named(root: Path) -> None:
    (root / "encoder.onnx.data").write_bytes(b"weights")
    with pytest.raises(FailedPreconditionError, match=r"does not list encoder\.onnx\.data"):
        open_bundle(root)


def as_first_schema(root: Path) -> None:
    """As passerby wrote it then: one encoder, said at the top; nothing to repeat the proof with."""
    content = json.loads((root / "bundle.json").read_text())
    (artefact,) = content.pop("artefacts")
    parity = {key: value for key, value in artefact["parity"].items() if key != "ranking"}
    content |= {"schema_version": 1, "encoder": artefact["files"][0], "format": artefact["format"]}
    content |= {"precision": artefact["precision"], "parity": parity}
    del content["files"][content.pop("reference")]
    (root / "reference.npz").unlink()
    (root / "bundle.json").write_text(json.dumps(content))


def test_a_bundle_of_the_first_schema_needs_no_migration(root: Path) -> None:
    snippets = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 16, 3), dtype=np.uint8)
    fingerprint, before = open_bundle(root).fingerprint, open_backend(open_bundle(root)).encode(snippets)
    as_first_schema(root)
    assert open_bundle(root).fingerprint == fingerprint
    np.testing.assert_array_equal(open_backend(open_bundle(root)).encode(snippets).descriptors, before.descriptors)
    report = verify(root)
    assert report.passed
    assert report.reference == "itself, one snippet at a time on openvino"
    point = CalibrationPoint(fmr=0.1, threshold=0.4, fnmr=0.3, errors=9)
    measured: dict[str, Any] = {"data": ("street",), "protocol": "pairs", "clip_scheme": "dense"}
    block = Calibration(metric="cosine", genuine_pairs=9, impostor_pairs=99, points=(point,), **measured)
    write_calibration(root, block)
    assert json.loads((root / "bundle.json").read_text())["schema_version"] == 2
    assert open_bundle(root).fingerprint == fingerprint


def test_verify_goes_on_to_what_the_server_would_fall_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_bundle(tmp_path / "bundle")

    def without_openvino(bundle: Any, artefact: Any, runtime: Any) -> Any:
        if runtime == "openvino":
            raise FailedPreconditionError("no OpenVINO", reason="BACKEND_LOAD")
        return open_artefact(bundle, artefact, runtime)

    monkeypatch.setattr(stage, "open_artefact", without_openvino)
    assert {row.runtime for row in verify(root, precision="fp32").rows} == {"onnxruntime"}
    assert {row.runtime for row in verify(root).rows} == {"onnxruntime"}
    with pytest.raises(FailedPreconditionError, match=r"no runtime here can load .*no OpenVINO"):
        verify(root, "openvino")


def test_a_precision_without_limits_is_explained(tmp_path: Path) -> None:
    root = make_bundle(tmp_path / "bundle")
    content = json.loads((root / "bundle.json").read_text())
    content["artefacts"][0]["precision"] = "fp4"
    (root / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(FailedPreconditionError, match=r"precision 'fp4'.* knows fp32, fp16"):
        verify(root)


@pytest.mark.parametrize("kind", ["empty", "cut", "array", "text"])
def test_a_reference_that_proves_nothing_is_refused(root: Path, kind: str) -> None:
    """Its checksum made to match: only what is in it gives it away."""
    path = root / "reference.npz"
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:500])
    else:
        with path.open("wb") as stream:
            if kind == "empty":
                np.savez(stream)
            elif kind == "array":
                np.save(stream, np.zeros(3))
            else:
                stream.write(b"no archive")
    content = json.loads((root / "bundle.json").read_text())
    content["files"]["reference.npz"] = describe_file(path).model_dump()
    (root / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(DataLossError, match=r"reference\.npz is no reference"):
        verify(root)


@pytest.mark.parametrize("name", ["drawn", "noise", "smooth"])
def test_tracklets_of_people_never_get_into_the_bundle(tmp_path: Path, name: str) -> None:
    """Not even those of a folder that is called like made-up frames."""
    input = Input(snippet_length=16, height=64, width=32)
    frames = np.full((2, 16, 64, 32, 3), 77, np.uint8)
    one = np.zeros(2, np.int64)
    samples = make_samples(input, Tracklets(name, frames, np.arange(2), one, one))
    assert set(samples) == {f"data set {name}", "drawn", "noise", "smooth"}
    assert next(iter(samples)) == f"data set {name}"  # the most real ones meet all batch sizes
    trials = make_trials(lambda s: Encoded(s.mean(axis=(1, 2, 3)).astype(np.float32)), samples)
    kept = read_reference(tmp_path / write_reference(tmp_path, trials))
    assert [trial.frames for trial in kept] == ["drawn", "noise", "smooth"]
    assert not any((trial.snippets == 77).all() for trial in kept)


def test_a_set_of_nobody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    junk = Tracklet("00-1", "1", "0001", (tmp_path / "frame.jpg",))
    found = TrackletDataset(tmp_path, "mars", (junk,))
    monkeypatch.setattr(datasets, "read", lambda *_args, **_kw: found)
    with pytest.raises(PasserbyError, match="only junk and distractors"):
        read_tracklets(tmp_path, Input(snippet_length=4, height=64, width=32))
