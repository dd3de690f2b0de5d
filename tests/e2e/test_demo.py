"""`make demo` without its installation: the real program, with a tiny bundle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from tests.encoders import make_bundle

ROOT = Path(__file__).resolve().parents[2]


def demo(out: Path, bundle: Path) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks/demo.py"), "--out", str(out), "--bundle", str(bundle)]


def test_demo_prints_a_table_and_figures_and_draws_a_picture_also_after_an_interrupted_one(tmp_path: Path) -> None:
    out, bundle = tmp_path / "demo", make_bundle(tmp_path / "bundle", masks=(4, 5))
    with subprocess.Popen(demo(out, bundle), stdout=subprocess.DEVNULL, start_new_session=True) as interrupted:
        while not (out / "street").exists() and interrupted.poll() is None:
            time.sleep(0.02)
        os.killpg(interrupted.pid, signal.SIGKILL)  # with the command that it runs, as a closed terminal would
    assert not (out / "result.png").exists()
    done = subprocess.run(demo(out, bundle), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = re.search(r"^rank-1 (\d+\.\d)   mAP (\d+\.\d)$", done.stdout, re.MULTILINE)
    assert figures
    assert 0 < float(figures[2]) <= 100
    assert "$ passerby search" in done.stdout
    with Image.open(out / "result.png") as picture:
        assert picture.width > 500


def test_demo_deletes_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    street = tmp_path / "street/street.json"  # looks like a demo's, and is none
    street.parent.mkdir()
    street.write_text("mine")
    done = subprocess.run(demo(tmp_path, tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        f"{tmp_path} was not made by the demo: name another folder with --out, or delete it yourself\n"
    )
    assert street.read_text() == "mine"
