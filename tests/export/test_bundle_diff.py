"""`passerby bundle diff`: values, weights and descriptors of two bundles, against figures computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from passerby.errors import DataLossError
from passerby_export.bundle_diff import BundleDiff, compare_weights, diff, scope_of
from passerby_export.cli import bundle as command
from passerby_export.encoder_weights import read_weights
from passerby_export.samples import SYNTHETIC, sample_snippets
from passerby_model.bundle import Bundle, Calibration, CalibrationPoint, describe_file, read_manifest
from typer.testing import CliRunner

from tests.encoders import make_bundle, projection
from tests.export.networks import PRECISIONS


def edit(root: Path, **values: Any) -> Path:
    content = json.loads((root / "bundle.json").read_text()) | values
    (root / "bundle.json").write_text(json.dumps(content))
    return root


def changes(found: BundleDiff) -> dict[str, tuple[object, object]]:
    return {f"{change.section}: {change.key}": (change.a, change.b) for change in found.changes}


def test_a_bundle_and_its_copy_do_not_differ(tmp_path: Path) -> None:
    root = make_bundle(tmp_path / "a")
    found = diff(root, root)
    assert found.same_fingerprint
    assert found.changes == ()
    assert (found.weights.equal, found.weights.changed, found.weights.scopes[0].relative_l2) == (1, (), 0)
    assert found.descriptors is not None
    assert found.descriptors.least_cosine == pytest.approx(1)
    assert found.descriptors.relative_l2 == 0


def test_other_weights_are_found_and_measured(tmp_path: Path) -> None:
    a, b = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    found = diff(a, b)
    assert not found.same_fingerprint
    assert {"model: fingerprint", "artefacts: fp32 onnx: encoder.onnx"} <= set(changes(found))
    weights = [projection(4, 8, seed).astype(np.float64) for seed in (0, 1)]
    (tensor,) = found.weights.changed
    lengths = [np.linalg.norm(values) for values in weights]
    assert (tensor.name, tensor.shape_a, tensor.shape_b) == ("weights", (12, 8), (12, 8))
    assert tensor.relative_l2 == pytest.approx(np.linalg.norm(weights[0] - weights[1]) / max(lengths))

    input = read_manifest(a).input
    snippets = np.concatenate([sample_snippets(2, input, kind) for kind in SYNTHETIC])
    colours = (snippets / 255).mean(axis=(2, 3)).reshape(4, 12)
    one, other = (colours @ values for values in weights)
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert found.descriptors is not None
    assert (found.descriptors.frames, found.descriptors.snippets) == (SYNTHETIC, 4)
    assert found.descriptors.least_cosine == pytest.approx(cosines.min(), abs=1e-5)
    assert found.descriptors.mean_cosine == pytest.approx(cosines.mean(), abs=1e-5)


def test_every_value_that_changed_is_named(tmp_path: Path) -> None:
    points = (CalibrationPoint(fmr=0.01, threshold=0.2, fnmr=0.5, errors=40),)
    measured: dict[str, Any] = {"metric": "squared_euclidean", "data": ("street",), "protocol": "all", "points": points}
    block = Calibration(clip_scheme="dense", genuine_pairs=100, impostor_pairs=4000, **measured)
    a = edit(
        make_bundle(tmp_path / "a"), created="", training={"config": {"lr": 0.1, "seed": 1}, "best": {"mAP": 70.5}}
    )
    b = edit(
        make_bundle(tmp_path / "b", calibration=block),
        created="",
        name="new",
        training={"config": {"lr": 0.2, "seed": 1}, "best": {"mAP": 71.5}},
        tools={"onnx": "1.19"},
    )
    artefacts = json.loads((b / "bundle.json").read_text())["artefacts"]
    artefacts[0]["parity"]["rows"][1]["cosine"] = 0.9995
    edit(b, artefacts=artefacts)
    found = diff(a, b)
    assert found.same_fingerprint
    assert {key: value for key, value in changes(found).items() if not key.startswith("calibration")} == {
        "model: name": ("tiny", "new"),
        "parity, worst of all rows: fp32 onnx on openvino: cosine": (1.0, 0.9995),
        "tools: onnx": (None, "1.19"),
        "training: config.lr": (0.1, 0.2),
        "training: best.mAP": (70.5, 71.5),
    }
    assert changes(found)["calibration: FMR 0.01: threshold"] == (None, 0.2)
    assert changes(found)["calibration: impostor_pairs"] == (None, 4000)


def test_an_artefact_of_one_side_is_one_line(tmp_path: Path) -> None:
    a, b = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b")
    (b / "encoder.fp16.onnx").write_bytes((b / "encoder.onnx").read_bytes())
    content = json.loads((b / "bundle.json").read_text())
    half = content["artefacts"][0] | {"precision": "fp16", "files": ["encoder.fp16.onnx"]}
    files = content["files"] | {"encoder.fp16.onnx": describe_file(b / "encoder.fp16.onnx").model_dump()}
    edit(b, artefacts=[*content["artefacts"], half], files=files, created="")
    edit(a, created="")
    assert changes(diff(a, b)) == {"artefacts: fp16 onnx": (None, "encoder.fp16.onnx, 0.0 MB")}


@pytest.mark.parametrize(
    ("other", "problem"), [({"dim": 4}, "descriptors have other sizes"), ({"snippet_length": 2}, "take other snippets")]
)
def test_descriptors_that_cannot_be_compared(tmp_path: Path, other: dict[str, int], problem: str) -> None:
    found = diff(make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", **other))  # type: ignore[arg-type]
    assert found.descriptors is None
    assert problem in found.not_compared
    (tensor,) = found.weights.changed
    assert tensor.shape_a != tensor.shape_b
    assert tensor.relative_l2 is None


def test_unproven_bundles_are_compared_and_damaged_ones_refused(tmp_path: Path) -> None:
    a, b = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", parity_passed=False)
    proven = changes(diff(a, b))["parity, worst of all rows: fp32 onnx on openvino: proven"]
    assert proven == (True, False)
    (b / "encoder.onnx").write_bytes(b"short")
    with pytest.raises(DataLossError, match=r"b/encoder\.onnx"):
        diff(a, b)


def test_weights_by_module() -> None:
    one, two = np.ones((2, 2), np.float32), np.full((2, 2), 2, np.float32)
    a = {"encoder.cosam.4.reduce.weight": one, "encoder.cosam.4.reduce.bias": one, "encoder.head.w": one}
    b = {"encoder.cosam.4.reduce.weight": two, "encoder.cosam.4.reduce.bias": one, "encoder.tail.w": one}
    found = compare_weights(a, b)
    assert (found.equal, found.only_a, found.only_b) == (1, ("encoder.head.w",), ("encoder.tail.w",))
    scopes = {s.scope: (s.equal, s.changed, s.only_a, s.only_b, s.relative_l2) for s in found.scopes}
    assert scopes == {
        # |a - b| = 2, |a| = sqrt(8), |b| = sqrt(20)
        "encoder.cosam.4": (1, 1, 0, 0, pytest.approx(2 / 20**0.5)),
        "encoder.head": (0, 0, 1, 0, 0),
        "encoder.tail": (0, 0, 0, 1, 0),
    }
    assert found.changed[0].relative_l2 == pytest.approx(0.5)
    assert [scope_of(name) for name in ("model/fc", "w", "a.b.c.d.e")] == ["model", "w", "a.b.c"]


# What rounding alone may do: half a step of the format, for weights of about one size; int8 a step of 1/127 of the largest.
ROUNDING = {"fp32": 0, "fp16": 2**-11, "w8": 0.02, "bf16": 2**-8, "int8": 0.02}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_decoded_from_every_format(all_precisions: Bundle, precision: str) -> None:
    root = all_precisions.root
    exact = read_weights(root / "encoder.onnx")
    conv = exact["encoder.backbone.layer1.0.conv1.weight"]
    for artefact in (a for a in all_precisions.manifest.artefacts if a.precision == precision):
        found = read_weights(root / artefact.file)
        if artefact.format == "onnx":
            assert found.keys() == exact.keys()
        by_layer = "encoder/backbone.layer1/0/bn1/Conv/WithoutBiases:1"  # NNCF drops the names
        decoded = found[by_layer if by_layer in found else "encoder.backbone.layer1.0.conv1.weight"]
        assert decoded.dtype == np.float32
        assert np.linalg.norm(decoded - conv) <= ROUNDING[precision] * np.linalg.norm(conv)
        assert (precision == "fp32") == np.array_equal(decoded, conv)
        kept = "encoder.cosam.4.summary.0.weight"
        np.testing.assert_array_equal(found[kept], exact[kept])


def test_the_command_writes_tables_and_json(tmp_path: Path) -> None:
    a, b = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    shown = CliRunner().invoke(command, ["diff", str(a), str(b)])
    assert shown.exit_code == 0, shown.output
    for part in ("two fingerprints", "0 tensors equal, 1 changed", "12x8", "cosine >= "):
        assert part in shown.stdout
    plain = CliRunner().invoke(command, ["diff", str(a), str(b), "--json"])
    assert plain.exit_code == 0
    content = json.loads(plain.stdout)
    assert content["weights"]["changed"][0]["name"] == "weights"
    assert content["descriptors"]["snippets"] == 4
    same = CliRunner().invoke(command, ["diff", str(a), str(a)])
    assert same.exit_code == 0
    assert "bundle.json: no difference" in same.stdout


def test_snippets_come_from_the_bundles(all_precisions: Bundle) -> None:
    found = diff(all_precisions.root, all_precisions.root)
    assert found.descriptors is not None
    assert (found.descriptors.frames, found.descriptors.snippets) == (("drawn", "noise", "smooth"), 6)
