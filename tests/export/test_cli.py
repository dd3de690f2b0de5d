"""`passerby bundle wrap | show | verify` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from passerby.errors import DataLossError, InvalidArgumentError
from passerby_export.bundle_view import artefact_lines, record_lines
from passerby_export.cli import bundle
from passerby_model.bundle import Bundle
from typer.testing import CliRunner

from tests.export.conftest import foreign_onnx

FLAGS = ["--layout", "NHWC", "--colour", "BGR", "--range", "-1,1", "--mean", "0.1,0.2,0.3", "--std", "1,2,3"]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(bundle, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


def test_wrap_show_and_verify(tmp_path: Path) -> None:
    model = foreign_onnx(tmp_path / "foreign.onnx", layout="NHWC")
    target = tmp_path / "bundle"
    written = run("wrap", model, target, *FLAGS)
    assert f"{target}: foreign, 6 values, cosine" in written
    assert "fp32         encoder.onnx" in written
    assert "parity passed against foreign.onnx frame by frame" in written
    shown = run("show", target)
    assert "1 frames of 32x16, uint8 RGB" in shown
    rows = [line.split(maxsplit=1) for line in shown.splitlines()]
    assert ["range", "-1, 1"] in rows
    assert ["colour", "BGR"] in rows
    assert "{" not in shown
    manifest = json.loads(run("show", target, "--json"))
    assert manifest["training"]["spec"]["range"] == [-1, 1]
    assert manifest["fingerprint"] in written
    verified = run("verify", target)
    assert "onnxruntime, batch 32 of drawn, fp32" in verified
    assert "onnxruntime, batch 32 of smooth, fp32" in verified
    assert verified.endswith("whole, and right on this machine\n")
    assert json.loads(run("verify", target, "--json"))["passed"] is True


def test_verify_and_show_refuse_a_damaged_bundle(tmp_path: Path) -> None:
    run("wrap", foreign_onnx(tmp_path / "foreign.onnx"), tmp_path / "bundle")
    with (tmp_path / "bundle/encoder.onnx").open("ab") as stream:
        stream.write(b"x")
    for command in ("show", "verify"):
        with pytest.raises(DataLossError, match=r"encoder\.onnx differs"):
            run(command, tmp_path / "bundle")


@pytest.mark.parametrize("flag", [("--mean", "1,2"), ("--range", "low,high"), ("--layout", "HWC")], ids=lambda f: f[0])
def test_wrong_flags_are_explained(tmp_path: Path, flag: tuple[str, str]) -> None:
    model = foreign_onnx(tmp_path / "foreign.onnx")
    with pytest.raises(InvalidArgumentError, match=flag[0].strip("-")):
        run("wrap", model, tmp_path / "bundle", *flag)


def test_a_training_record_is_shown_in_rows() -> None:
    record = {
        "checkpoint": "final.pt",
        "config": {
            "lr": 3e-4,
            "amp": None,
            "compile": False,
            "data": [{"path": "street", "split": None}],
            "erase": {"x": 1},
        },
        "best": None,
    }
    assert list(record_lines(record)) == [
        "  checkpoint  final.pt",
        "  config",
        "    lr       0.0003",
        "    compile  no",
        "    data     path street",
        "    erase    x 1",
    ]


def test_limits_are_shown_as_they_are(all_precisions: Bundle) -> None:
    (int8,) = [a for a in all_precisions.manifest.artefacts if a.file == "encoder.int8.onnx"]
    assert int8.parity is not None
    assert "(at most 1.5e-01)" in int8.parity.rows[0].describe()
    assert "masks" in int8.parity.rows[0].describe()
    assert "(at most 2.5e-01)" in int8.parity.rows[0].describe()
    lines = "\n".join(artefact_lines(all_precisions.manifest))
    queries = int8.parity.ranking[0].queries
    assert f"ranking of {queries} queries of street" in lines
