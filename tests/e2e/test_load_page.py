"""docs/load.md: its benchmarks run, at a tiny size, on a tiny encoder; what they print is not judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.e2e.test_readme import blocks
from tests.encoders import make_bundle

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "benchmarks/serve.py": ["--seconds", "0.4", "--overload", "1.5", "--rounds", "1"],
    "benchmarks/soak.py": ["--minutes", "0.03"],
}


def run(script: str, bundle: Path) -> str:
    command = [sys.executable, str(ROOT / script), "--bundle", str(bundle), *TINY[script]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_page_names_the_benchmarks() -> None:
    (commands,) = blocks("sh", (ROOT / "docs/load.md").read_text())
    assert [line.split()[1] for line in commands.splitlines() if line] == list(TINY)


def test_serve(tmp_path: Path) -> None:
    printed = run("benchmarks/serve.py", make_bundle(tmp_path / "bundle"))
    for target in (
        "saturated over bare",
        "lone p50",
        "goodput at 400 %",
        "memory at 400 %",
        "interactive p95 with bulk",
    ):
        assert target in printed


def test_soak(tmp_path: Path) -> None:
    printed = run("benchmarks/soak.py", make_bundle(tmp_path / "bundle"))
    assert printed.count("searches_per_s") == 20
    assert "'failed': {}" in printed
