"""docs/attention.md is run: its commands on a small street, its program; its figures are those of the results."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/attention.md").read_text()
SAMPLE = json.loads((ROOT / "benchmarks/results/attention-sample.json").read_text())


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attention-page")
    (folder / "bundles").symlink_to(ROOT / "bundles")
    return folder


def test_commands_and_program(folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    script = re.sub(r"--identities \d+", "--identities 3", "".join(blocks("sh")))
    script = re.sub(r"--cameras \d+", "--cameras 2", script)
    done = subprocess.run(
        ["bash", "-eu", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "centre prior" in done.stdout
    for name in ("sheet.jpg", "look.jpg"):
        assert (folder / name).stat().st_size > 20_000
    (program,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert [0 < float(figure) < 1 for figure in done.stdout.split()] == [True] * 3


def test_figures_are_those_of_the_results() -> None:
    rows = re.findall(
        r"^\| (COSAM_\d|centre prior) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE
    )
    names = {"COSAM_4": "cosam4", "COSAM_5": "cosam5", "centre prior": "centre_prior"}
    assert [row[0] for row in rows] == list(names)
    for name, *figures in rows:
        measured = SAMPLE[names[name]]
        assert figures == [f"{measured[key]:.3f}" for key in ("auc", "frame_auc", "iou", "frame_iou")]
    assert f"{SAMPLE['cosam4']['coverage']:.2f} here" in PAGE
    bound = float(re.findall(r"at most ([\d.]+) in the table", PAGE)[0])
    assert all(SAMPLE[name]["auc_error"] <= bound for name in names.values())


def test_common_background_is_what_was_measured() -> None:
    result = json.loads((ROOT / "benchmarks/results/street-background.json").read_text())
    found = {row["frames_apart"]: (row["background"], row["person"]) for row in result["figures"]}
    stated = re.findall(
        r"(0\.\d\d) from frame to frame in the background and (0\.\d\d).*?(0\.\d\d) and (0\.\d\d)", PAGE
    )[0]
    assert stated == tuple(f"{value:.2f}" for gap in (1, 8) for value in found[gap])


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
