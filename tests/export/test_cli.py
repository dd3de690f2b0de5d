"""`passerby bundle wrap | show | verify` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from passerby.errors import DataLossError, InvalidArgumentError
from passerby_export.cli import bundle
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
