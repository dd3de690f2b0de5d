"""The disk under a running server turns read-only, fills up or goes away: callers are told which, nothing acknowledged is lost,
searches go on, and so does storing as soon as the disk lets it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.disk_life import TROUBLES

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("unshare", "mkfs.ext4", "chattr")


@pytest.fixture
def mounting(tmp_path: Path) -> list[str]:
    """How to run a command that may mount a disk image, which takes root and loop devices."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"no {', '.join(missing)} here")
    if os.geteuid():
        pytest.skip("only root may mount a disk image")
    point, image = tmp_path / "point", tmp_path / "image"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(2**20)
    unshare = ["unshare", "--mount"]
    try_it = f'mkfs.ext4 -q -F "{image}" && mount -o loop "{image}" "{point}"'
    done = subprocess.run([*unshare, "sh", "-ec", try_it], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk image can be mounted here: {done.stderr.strip().splitlines()[-1:]}")
    return unshare


@pytest.mark.parametrize("trouble", list(TROUBLES))
def test_the_disk_under_a_running_server(mounting: list[str], tmp_path: Path, trouble: str) -> None:
    command = [*mounting, sys.executable, "-m", "tests.faults.disk_life", trouble, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "fine"
