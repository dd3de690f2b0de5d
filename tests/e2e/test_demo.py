"""`make demo` without its installation: the real program, with a tiny bundle."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.encoders import make_bundle

ROOT = Path(__file__).resolve().parents[2]


def test_demo_prints_a_table_and_figures_and_draws_a_picture(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", masks=(4, 5))
    command = [
        sys.executable,
        str(ROOT / "benchmarks/demo.py"),
        "--out",
        str(tmp_path / "demo"),
        "--bundle",
        str(bundle),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = re.search(r"^rank-1 (\d+\.\d)   mAP (\d+\.\d)$", done.stdout, re.MULTILINE)
    assert figures
    assert 0 < float(figures[2]) <= 100
    assert "$ passerby search" in done.stdout
    with Image.open(tmp_path / "demo/result.png") as picture:
        assert picture.width > 500


def test_demo_deletes_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    command = [sys.executable, str(ROOT / "benchmarks/demo.py"), "--out", str(tmp_path), "--bundle", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert (tmp_path / "precious").read_text() == "mine"
