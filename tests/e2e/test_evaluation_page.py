"""docs/evaluation.md is run: its commands in order, on a small street, with the server that they start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from passerby_model.bundle import open_bundle
from passerby_model.protocol import PROTOCOLS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/evaluation.md").read_text()
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "2",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def block_with(text: str) -> str:
    (found,) = [block for block in blocks("sh") if text in block]
    return found


def run(script: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        ["bash", "-eu", "-c", script],
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's first block, with as few people as its later ones need."""
    folder = tmp_path_factory.mktemp("evaluation-page")
    (folder / "bundles").symlink_to(ROOT / "bundles")
    first = block_with("passerby street")
    printed = run(first.replace("--identities 20", "--identities 4").replace("--frames 8", "--frames 4"), folder)
    assert re.search(r"^ street +test +all-vs-all +12 +12 ", printed, re.MULTILINE)
    return folder


def test_attributes(folder: Path) -> None:
    printed = run(block_with("--attributes"), folder)
    assert re.search(r"^ street +test +distance +(backpack|hat) +(no|yes) ", printed, re.MULTILINE)


def test_calibration_and_the_server_that_decides(folder: Path) -> None:
    printed = run(block_with("--calibrate"), folder)
    calibration = open_bundle(folder / "my-bundle").manifest.calibration
    assert calibration is not None
    assert printed.count(f"FMR {calibration.points[-1].fmr:g}: distance <= ") == 2  # evaluate, show
    command = [*block_with("passerby serve").split(), "--address", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = re.match(r"passerby is serving on (\S+) ", process.stdout.readline())
            assert ready
            run("passerby gallery create street", folder, PASSERBY_SERVER=ready[1])
            found = run(block_with("passerby search"), folder, PASSERBY_SERVER=ready[1])
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
    assert "decision" in found
    assert "uncertain" in found  # too few true pairs for a `no match`


def test_report(folder: Path) -> None:
    run(block_with("--out report"), folder)
    named = set(re.findall(r"`(report\.\w+)`", PAGE))
    assert named == {"report.html", "report.json"}
    assert all((folder / "report" / name).stat().st_size > 1000 for name in named)
    report = json.loads((folder / "report/report.json").read_text())
    assert report["results"][0]["name"].startswith("all-vs-all, plain AP, squared Euclidean distance, dense")
    assert report["attention"]["street"]["cosam4"]["frames"] == 48


def test_the_table_names_every_protocol() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE)) == set(PROTOCOLS)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
