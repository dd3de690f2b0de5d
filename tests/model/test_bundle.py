"""A bundle that is not what its bundle.json says is refused, each time with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from passerby.errors import DataLossError, FailedPreconditionError, NotFoundError, PasserbyError
from passerby_model.bundle import (
    Artefact,
    Calibration,
    CalibrationPoint,
    Input,
    Manifest,
    Parity,
    ParityRow,
    describe_file,
    fingerprint_of,
    manifest_bytes,
    open_bundle,
    read_manifest,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A good bundle (of two files; what is in them does not matter here)."""
    root = tmp_path / "bundle"
    root.mkdir()
    for name in ("encoder.xml", "encoder.bin"):
        (root / name).write_bytes(name.encode() * 100)
    files = {name: describe_file(root / name) for name in ("encoder.xml", "encoder.bin")}
    input = Input(snippet_length=4, height=256, width=128)
    row = ParityRow(
        runtime="openvino",
        snippets=2,
        frames="noise",
        relative_l2=1e-6,
        cosine=1.0,
        max_relative_l2=1e-4,
        min_cosine=0.999999,
        passed=True,
    )
    manifest = Manifest(
        name="n",
        architecture="a",
        artefacts=(
            Artefact(
                precision="fp32",
                format="openvino",
                files=("encoder.xml", "encoder.bin"),
                runtimes=("openvino",),
                parity=Parity(reference="PyTorch", rows=(row,), passed=True),
            ),
        ),
        input=input,
        descriptor_dim=8,
        metric="cosine",
        files=files,
        fingerprint=fingerprint_of(files=files, input=input, descriptor_dim=8, metric="cosine", architecture="a"),
    )
    (root / "bundle.json").write_bytes(manifest_bytes(manifest))
    return root


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change bundle.json as an editor would."""
    content = json.loads((root / "bundle.json").read_text())
    change(content)
    (root / "bundle.json").write_text(json.dumps(content))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def fail_row(content: dict[str, Any]) -> None:
    content["artefacts"][0]["parity"]["rows"][0] |= {"passed": False, "cosine": 0.9}


def test_a_good_bundle_opens(root: Path) -> None:
    bundle = open_bundle(root)
    assert bundle.encoder_path == root / "encoder.xml"
    assert len(bundle.fingerprint) == 64


REFUSED: dict[str, tuple[Callable[[Path], object], type[PasserbyError], str, str]] = {
    "no folder": (lambda r: r.rename(r.with_name("x")), NotFoundError, "BUNDLE_NOT_FOUND", "bundle wrap"),
    "flipped byte": (lambda r: flip(r / "encoder.bin"), DataLossError, "BUNDLE_DAMAGED", r"encoder\.bin differs"),
    "cut short": (
        lambda r: cut(r / "encoder.bin"),
        DataLossError,
        "BUNDLE_DAMAGED",
        r"encoder\.bin differs from its checksum in bundle\.json: it has 1099 bytes instead of 1100, cut short; copy the bundle again",
    ),
    "missing file": (
        lambda r: (r / "encoder.bin").unlink(),
        NotFoundError,
        "BUNDLE_INCOMPLETE",
        r"encoder\.bin is missing",
    ),
    "no json": (lambda r: (r / "bundle.json").write_text("{"), DataLossError, "BUNDLE_DAMAGED", "is damaged"),
    "json of another kind": (
        lambda r: (r / "bundle.json").write_text("[]"),
        DataLossError,
        "BUNDLE_DAMAGED",
        "damaged",
    ),
    "not text": (
        lambda r: (r / "bundle.json").write_bytes(b"\xff\xfe\x00"),
        DataLossError,
        "BUNDLE_DAMAGED",
        "damaged",
    ),
    "newer schema": (
        lambda r: edit(r, lambda c: c.update(schema_version=3)),
        FailedPreconditionError,
        "BUNDLE_SCHEMA_VERSION",
        "schema version 3, this passerby reads 1 to 2; it was made by a newer one: pip install --upgrade passerby$",
    ),
    "newer schema of a known version": (
        lambda r: edit(r, lambda c: c.update(schema_version=3, tools={"passerby": "1.4.2"})),
        FailedPreconditionError,
        "BUNDLE_SCHEMA_VERSION",
        r"made by passerby 1\.4\.2: pip install --upgrade 'passerby>=1\.4\.2'",
    ),
    "newer schema of an odd version": (
        lambda r: edit(r, lambda c: c.update(schema_version=3, tools={"passerby": "1; rm -r /"})),
        FailedPreconditionError,
        "BUNDLE_SCHEMA_VERSION",
        "pip install --upgrade passerby$",
    ),
    "older schema than the first": (
        lambda r: edit(r, lambda c: c.update(schema_version=0)),
        FailedPreconditionError,
        "BUNDLE_SCHEMA_VERSION",
        r"schema version 0, .*`passerby export CHECKPOINT \S+/bundle --force`",
    ),
    "no schema version": (
        lambda r: edit(r, lambda c: c.pop("schema_version")),
        DataLossError,
        "BUNDLE_DAMAGED",
        "schema_version",
    ),
    "unknown key": (lambda r: edit(r, lambda c: c.update(extra=1)), DataLossError, "BUNDLE_DAMAGED", "extra"),
    "metric edited": (
        lambda r: edit(r, lambda c: c.update(metric="squared_euclidean")),
        DataLossError,
        "BUNDLE_DAMAGED",
        "was edited",
    ),
    "snippet length edited": (
        lambda r: edit(r, lambda c: c["input"].update(snippet_length=8)),
        DataLossError,
        "BUNDLE_DAMAGED",
        "was edited",
    ),
    "file dropped from the list": (
        lambda r: edit(r, lambda c: c["files"].pop("encoder.bin")),
        DataLossError,
        "BUNDLE_DAMAGED",
        r"encoder\.bin' has no checksum",
    ),
    "weights that the list leaves out": (
        lambda r: (r / "encoder.data").write_bytes(b"weights"),
        FailedPreconditionError,
        "BUNDLE_UNLISTED_FILE",
        r"does not list encoder\.data.*move it out",
    ),
    "folder that the list leaves out": (
        lambda r: (r / ".cache").mkdir(),
        FailedPreconditionError,
        "BUNDLE_UNLISTED_FILE",
        r"does not list \.cache",
    ),
    "encoder without checksum": (
        lambda r: edit(r, lambda c: c["artefacts"][0].update(files=["other.xml"])),
        DataLossError,
        "BUNDLE_DAMAGED",
        r"other\.xml",
    ),
    "path out of the bundle": (
        lambda r: edit(r, lambda c: c["files"].update({"../../etc/passwd": c["files"]["encoder.bin"]})),
        DataLossError,
        "BUNDLE_DAMAGED",
        "leads out",
    ),
    "no parity report": (
        lambda r: edit(r, lambda c: c["artefacts"][0].update(parity=None)),
        FailedPreconditionError,
        "BUNDLE_UNVERIFIED",
        "no parity report",
    ),
    "empty parity report": (
        lambda r: edit(r, lambda c: c["artefacts"][0]["parity"].update(rows=[])),
        FailedPreconditionError,
        "BUNDLE_UNVERIFIED",
        "no parity report",
    ),
    "failed row": (
        lambda r: edit(r, fail_row),
        FailedPreconditionError,
        "BUNDLE_UNVERIFIED",
        "openvino, batch 2 of noise: .*cosine 0.9",
    ),
    "marked as failed": (
        lambda r: edit(r, lambda c: c["artefacts"][0]["parity"].update(passed=False)),
        FailedPreconditionError,
        "BUNDLE_UNVERIFIED",
        "marked as failed",
    ),
    "row beyond its limit but marked as passed": (
        lambda r: edit(r, lambda c: c["artefacts"][0]["parity"]["rows"][0].update(cosine=0.5)),
        FailedPreconditionError,
        "BUNDLE_UNVERIFIED",
        "cosine 0.5",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_reason(root: Path, case: str) -> None:
    damage, error, reason, message = REFUSED[case]
    damage(root)
    with pytest.raises(error, match=message) as caught:
        open_bundle(root)
    assert caught.value.reason == reason


@pytest.mark.parametrize("case", ["no parity report", "failed row"])
def test_unverified_is_served_on_demand(root: Path, case: str) -> None:
    REFUSED[case][0](root)
    assert open_bundle(root, allow_unverified=True).manifest.name == "n"


def test_damage_is_refused_even_on_demand(root: Path) -> None:
    flip(root / "encoder.bin")
    with pytest.raises(DataLossError):
        open_bundle(root, allow_unverified=True)


def calibrate(root: Path, **changes: Any) -> Calibration:
    """Put a calibration into a bundle, sealed for it; what it says does not matter here."""
    manifest = read_manifest(root)
    values: dict[str, Any] = {
        "metric": manifest.metric,
        "data": ("street",),
        "protocol": "all-vs-all",
        "clip_scheme": "dense",
        "genuine_pairs": 10,
        "impostor_pairs": 1000,
        "points": (
            CalibrationPoint(fmr=0.01, threshold=0.2, fnmr=0.5, errors=9),
            CalibrationPoint(fmr=0.1, threshold=0.4, fnmr=0.3, errors=9),
        ),
    }
    sealed = Calibration(**values | changes).sealed(manifest.fingerprint)
    (root / "bundle.json").write_bytes(manifest_bytes(manifest.model_copy(update={"calibration": sealed})))
    return sealed


def test_a_calibration_leaves_the_fingerprint_alone(root: Path) -> None:
    before = open_bundle(root).fingerprint
    sealed = calibrate(root)
    bundle = open_bundle(root)
    assert bundle.manifest.calibration == sealed
    assert bundle.fingerprint == before


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["calibration"]["points"][0].update(threshold=0.1),
        lambda c: c["calibration"].update(impostor_pairs=10**6),
        lambda c: c["calibration"].update(sha256=""),
        lambda c: c["calibration"].update(sha256="0" * 64),
    ],
    ids=["threshold", "pairs", "no-checksum", "wrong-checksum"],
)
def test_an_edited_calibration_is_refused(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    calibrate(root)
    edit(root, change)
    with pytest.raises(DataLossError, match="set `calibration` to null"):
        open_bundle(root, allow_unverified=True)
    edit(root, lambda c: c.update(calibration=None))
    assert open_bundle(root).manifest.calibration is None


def test_the_calibration_of_another_model_is_refused(root: Path) -> None:
    other = calibrate(root).model_copy(update={"sha256": ""}).sealed("f" * 64)
    edit(root, lambda c: c.update(calibration=other.model_dump(mode="json")))
    with pytest.raises(DataLossError, match="another model's"):
        open_bundle(root)


@pytest.mark.parametrize(
    "wrong",
    [
        {"metric": "squared_euclidean"},
        {"version": 2},
        {"points": ()},
        {
            "points": (
                CalibrationPoint(fmr=0.1, threshold=0.4, fnmr=0.3, errors=9),
                CalibrationPoint(fmr=0.2, threshold=0.3, fnmr=0.2, errors=9),
            )
        },
    ],
    ids=["metric", "version", "no-points", "threshold-falls"],
)
def test_a_calibration_that_makes_no_sense_is_refused(root: Path, wrong: dict[str, Any]) -> None:
    good = calibrate(root)
    content = good.model_copy(update=wrong)
    edit(root, lambda c: c.update(calibration=content.sealed(c["fingerprint"]).model_dump(mode="json")))
    with pytest.raises(DataLossError):
        open_bundle(root)


def test_the_point_for_a_rate_never_promises_more(root: Path) -> None:
    calibration = calibrate(root)
    assert calibration.point_for(0.005) is None
    assert [point.fmr for rate in (0.01, 0.099, 0.1, 0.5) if (point := calibration.point_for(rate))] == [
        0.01,
        0.01,
        0.1,
        0.1,
    ]


def test_an_unlisted_file_is_refused_even_on_demand(root: Path) -> None:
    (root / "encoder.data").write_bytes(b"weights")
    with pytest.raises(FailedPreconditionError, match="does not list"):
        open_bundle(root, allow_unverified=True)


def test_what_a_file_manager_leaves_behind_is_no_harm(root: Path) -> None:
    (root / ".DS_Store").write_bytes(b"\0")
    assert open_bundle(root).manifest.name == "n"


def as_version_1(content: dict[str, Any]) -> None:
    artefact = content.pop("artefacts")[0]
    content.update(schema_version=1, encoder=artefact["files"][0])
    content.update({key: artefact[key] for key in ("format", "precision", "parity")})
    for row in content["parity"]["rows"]:
        del row["cost_volume_error"], row["max_cost_volume_error"]
    del content["parity"]["ranking"]


def test_a_bundle_of_the_first_schema_is_the_same_bundle(root: Path) -> None:
    now = open_bundle(root)
    edit(root, as_version_1)
    before = json.loads((root / "bundle.json").read_text())
    assert before["schema_version"] == 1
    assert open_bundle(root).manifest == now.manifest
    edit(root, lambda c: c["parity"]["rows"][0].update(cosine=0.5))
    with pytest.raises(FailedPreconditionError, match=r"cosine 0\.5"):
        open_bundle(root)


@pytest.mark.parametrize(
    "damage", [{"parity": {"rows": [1]}}, {"files": 3}, {"parity": None, "format": "tflite"}], ids=str
)
def test_a_damaged_bundle_of_the_first_schema_is_refused(root: Path, damage: dict[str, Any]) -> None:
    edit(root, as_version_1)
    edit(root, lambda c: c.update(damage))
    with pytest.raises(DataLossError, match=r"bundle\.json is damaged"):
        open_bundle(root)


def test_every_artefact_needs_its_proof(root: Path) -> None:
    def twice(content: dict[str, Any]) -> None:
        content["artefacts"].append(content["artefacts"][0] | {"precision": "bf16", "parity": None})

    edit(root, twice)
    with pytest.raises(FailedPreconditionError, match=r"encoder\.xml \(bf16\) has no parity report for openvino"):
        open_bundle(root)
    opened = open_bundle(root, allow_unverified=True)
    assert [artefact.precision for artefact in opened.manifest.artefacts] == ["fp32", "bf16"]


def test_the_other_artefacts_do_not_change_the_fingerprint(root: Path) -> None:
    before = open_bundle(root).fingerprint
    (root / "encoder.int8.onnx").write_bytes(b"other")

    def add(content: dict[str, Any]) -> None:
        content["files"]["encoder.int8.onnx"] = describe_file(root / "encoder.int8.onnx").model_dump()
        content["artefacts"].append(
            content["artefacts"][0] | {"precision": "int8", "format": "onnx", "files": ["encoder.int8.onnx"]}
        )

    edit(root, add)
    assert open_bundle(root).fingerprint == before
    (root / "encoder.int8.onnx").write_bytes(b"changed")
    with pytest.raises(DataLossError, match=r"encoder\.int8\.onnx differs"):
        open_bundle(root)
