"""docs/models.md is run: its commands and its Python, and its tables are held against what is refused."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from passerby.errors import InvalidArgumentError
from passerby_export.cli import export as export_app
from passerby_model import backbones, checkpoint
from passerby_model.bundle import open_bundle
from passerby_model.encoder import Architecture, Classifier, TrackletEncoder
from typer.testing import CliRunner

from tests.e2e.test_readme import blocks, run

PAGE = (Path(__file__).resolve().parents[2] / "docs/models.md").read_text()


@pytest.mark.timeout(900)
def test_a_network_of_timm_from_street_to_bundle(tmp_path: Path) -> None:
    script, _ = blocks("sh", PAGE)
    printed = run(script, tmp_path, timeout=800)
    assert "convnext_atto+cosam45+tp" in printed
    assert "COSAM_4 4x2, COSAM_5 2x1" in printed


def test_python_of_names(capsys: pytest.CaptureFixture[str]) -> None:
    program, _ = blocks("python", PAGE)
    exec(compile(program, "docs/models.md", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out == "resnet34+cosam45+tp 1 (8, 4) (8, 4)\n"


def test_a_checkpoint_of_the_authors_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's command with single frames: the parity check runs the network at its full size."""
    architecture = Architecture.parse("resnet50+none+tp")
    state = Classifier(TrackletEncoder(architecture), 5).state_dict()
    reference = checkpoint.export_reference(checkpoint.Checkpoint(architecture, 5, state))
    torch.save({"state_dict": reference, "epoch": 800}, tmp_path / "best_model.pth.tar")
    monkeypatch.chdir(tmp_path)
    _, command = blocks("sh", PAGE)
    words = shlex.split(command)
    assert words[:2] + words[-2:] == ["passerby", "export", "--snippet-length", "4"]
    done = CliRunner().invoke(export_app, [*words[2:-1], "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert open_bundle(tmp_path / "reference-bundle").manifest.architecture == "resnet50+none+tp"

    _, program = blocks("python", PAGE)
    exec(compile(program, "docs/models.md", "exec"), {})  # noqa: S102
    back = torch.load(tmp_path / "back.pth.tar", weights_only=True)["state_dict"]
    assert back.keys() == reference.keys()
    assert all(torch.equal(back[key], value) for key, value in reference.items())


def test_what_the_page_calls_refused_is_refused() -> None:
    table = PAGE.partition("| refused | why |")[2].partition("## ImageNet")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    patterns = [pattern for cell in cells[:5] for pattern in re.findall(r"`([^`]+)`", cell)]
    assert {"vit_*", "hrnet*", "legacy_seresnet50"} <= set(patterns)
    for pattern in patterns:
        names = timm.list_models(pattern)
        assert names, pattern
        with pytest.raises(InvalidArgumentError):
            backbones.read(names[0], 256, 128)
