"""A disk that is full, a folder that is read-only: said plainly, nothing half done, and all is well once it is over.

The limit on the size of a file (RLIMIT_FSIZE) works everywhere; a small tmpfs of its own needs user namespaces.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Fills the disk, tries what else writes, makes room, and finds all acknowledged tracklets. `room` is set by the test.
FILL = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np
from passerby.errors import PasserbyError
from passerby_server.gallery.embedded import open_galleries
from passerby_server.gallery.types import ModelSpace, NewTracklet, SearchQuery, TrackletFilter

folder = Path(sys.argv[1])
galleries = open_galleries(folder)
galleries.create_gallery("g", "", ModelSpace("f", 2048, "squared_euclidean"))

def vector(number):
    return np.random.default_rng(number).normal(size=2048).astype(np.float32)

def ingest(number):
    tracklet = NewTracklet(f"t{number}", "c", identity_id=f"<person-{number}>")
    galleries.ingest("g", tracklet, vector(number), "f", bytes(20_000), f"r{number}")

stored = [0, 1, 2]
for number in stored:
    ingest(number)
FILL_UP
reasons = set()
for number in range(3, 500):
    try:
        ingest(number)
        stored.append(number)
    except PasserbyError as error:
        reasons.add(error.reason)
        break
else:
    raise SystemExit("the disk did not fill up")
try:
    galleries.erase_identity("g", "<person-1>", force=True, request_id="e1")
    print("erased although full")
except PasserbyError as error:
    reasons.add(error.reason)
print(sorted(reasons))
assert galleries.search("g", SearchQuery(vector(2), "f", 1))[0].tracklet.tracklet_id == "t2"
MAKE_ROOM
assert galleries.erase_identity("g", "<person-1>", force=True, request_id="e1").tracklet_count == 1
ingest(number)
galleries.close()
again = open_galleries(folder)
names = [item.tracklet_id for item in again.list_tracklets("g", TrackletFilter(), 1000).items]
assert names == [f"t{n}" for n in [*stored, number] if n != 1], names
again.close()
content = b"".join(path.read_bytes() for path in folder.iterdir())
assert b"<person-1>" not in content and vector(1).tobytes()[:200] not in content
print("fine", len(names))
"""


def _run(script: str, folder: Path, *before: str) -> list[str]:
    done = subprocess.run(
        [*before, sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_files_that_cannot_grow(tmp_path: Path) -> None:
    limit = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = max(path.stat().st_size for path in folder.iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, resource.RLIM_INFINITY))
"""
    lift = "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))"
    lines = _run(FILL.replace("FILL_UP", limit).replace("MAKE_ROOM", lift), tmp_path / "data")
    assert lines[0] == "['STORAGE_FULL']"
    assert lines[1].startswith("fine")


@pytest.fixture
def namespace(tmp_path: Path) -> tuple[Path, list[str]]:
    """A mount point, and how to run a command that may mount there."""
    point = tmp_path / "mount"
    point.mkdir()
    unshare = [shutil.which("unshare") or "", "-Urm"]
    if not unshare[0] or subprocess.run([*unshare, "mount", "-t", "tmpfs", "t", point], check=False).returncode:
        pytest.skip("no user namespace to mount a small tmpfs in")
    return point, unshare


def test_a_full_tmpfs(namespace: tuple[Path, list[str]]) -> None:
    point, unshare = namespace
    script = FILL.replace("FILL_UP", "").replace("MAKE_ROOM", 'os.system(f"mount -o remount,size=64m {folder.parent}")')
    mount = ["sh", "-ec", f'mount -t tmpfs -o size=2m t "{point}"; exec "$@"', "sh"]
    lines = _run(script, point / "data", *unshare, *mount)
    assert lines[0] == "['STORAGE_FULL']"
    assert lines[1].startswith("fine")


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "with-galleries"])
def test_a_read_only_folder_is_refused_with_a_reason(namespace: tuple[Path, list[str]], filled: bool) -> None:
    point, unshare = namespace
    script = """
import os, sys
from pathlib import Path
from passerby.errors import PasserbyError
from passerby_server.gallery.embedded import open_galleries
folder = Path(sys.argv[1])
if FILLED:
    open_galleries(folder).close()
assert os.system(f"mount -o remount,ro {folder}") == 0
for _ in range(2):
    try:
        open_galleries(folder)
    except PasserbyError as error:
        print(error.reason, error.message)
"""
    mount = ["sh", "-ec", f'mount -t tmpfs t "{point}"; exec "$@"', "sh"]
    lines = _run(script.replace("FILLED", str(filled)), point, *unshare, *mount)
    assert len(lines) == 2
    assert all(line.startswith("STORE_NOT_WRITABLE") and "Read-only" in line for line in lines)
