"""Snapshots of an index: used when they are sound and fit, never otherwise; gone with what is erased."""

from __future__ import annotations

import errno
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import faiss
import numpy as np
import pytest
from passerby_server.gallery import approximate, building, kinds, maintenance, shelf, snapshot
from passerby_server.gallery.descriptors import StoppedError
from passerby_server.gallery.embedded import EmbeddedGalleries
from passerby_server.gallery.live import LiveIndex
from passerby_server.gallery.snapshot import Header, Snapshot
from passerby_server.gallery.types import ModelSpace

from tests.server.gallery.filling import ask, ids
from tests.server.gallery.test_index_kinds import WIDTH, clustered, put_all

KEY = b"k" * 32
NEVER = threading.Event()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder whose galleries a test opens as often as it likes; snapshots are written at once."""
    monkeypatch.setattr(approximate, "SCAN_ROWS", 5)
    monkeypatch.setattr(kinds, "MIN_TRAINING_ROWS", 40)
    monkeypatch.setattr(kinds, "POINTS_PER_CENTROID", 10)
    monkeypatch.setattr(shelf, "INTERVAL", 0.0)
    opened = []

    class Home:
        folder = tmp_path / "data"
        vectors = clustered(80)

        def open(self, kind="IVF4,SQ8", *, maintained=False):
            self.close()
            opened.append(EmbeddedGalleries(self.folder, threads=2, index=kind, maintained=maintained))
            return opened[-1]

        def filled(self, kind="IVF4,SQ8"):
            galleries = self.open(kind)
            galleries.create_gallery("g", "", ModelSpace("f", WIDTH, "squared_euclidean"))
            put_all(galleries, self.vectors)
            galleries.maintain()
            return galleries

        def close(self):
            if opened:
                opened.pop().close()

        def files(self):
            return sorted(self.folder.glob("index-*"))

    home = Home()
    yield home
    home.close()


def nearest(galleries, vector):
    return ids(galleries.search("g", ask(vector, 1, "f")))


def test_a_start_takes_the_snapshot_and_catches_up(home, monkeypatch):
    galleries = home.filled()
    assert [path.stat().st_mode & 0o777 for path in home.files()] == [0o600]
    new = clustered(3, seed=5)
    put_all(galleries, new, first=80)
    monkeypatch.setattr(building, "build", None)  # nothing is trained again
    again = home.open()
    assert str(again.index_kind("g")) == "IVF4,SQ8"
    assert nearest(again, home.vectors[17]) == ["t17"]
    assert nearest(again, new[2]) == ["t82"]
    again.maintain()
    assert len(again._live[1].index) == 83


def test_a_flipped_bit_anywhere_or_a_short_file_is_never_used(home):
    home.filled()
    home.close()
    (path,) = home.files()
    good = path.read_bytes()
    key = home.open()._snapshot_key
    home.close()
    assert snapshot.read(path, key) is not None
    flips = [*random.Random(1).sample(range(8 * len(good)), 60), 0, 8 * len(good) - 1]
    damaged = [good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :] for bit in flips]
    damaged += [good[:length] for length in (0, 5, 31, 32, 40, len(good) // 2, len(good) - 1)] + [good + b"\0"]
    for content in damaged:
        path.write_bytes(content)
        assert snapshot.read(path, key) is None
    galleries = home.open()
    assert str(galleries.index_kind("g")) == "exact"
    assert nearest(galleries, home.vectors[17]) == ["t17"]
    assert home.files() == []
    galleries.maintain()
    assert str(galleries.index_kind("g")) == "IVF4,SQ8"


def test_another_stores_snapshot_is_never_used(home, tmp_path):
    home.filled()
    home.close()
    (path,) = home.files()
    strange = shutil.copy(path, tmp_path / "strange")
    shutil.rmtree(home.folder)
    home.filled()
    home.close()
    shutil.copy(strange, path)
    assert str(home.open().index_kind("g")) == "exact"


def test_another_kind_or_a_gallery_that_is_gone_leaves_no_snapshot(home):
    home.filled()
    assert str(home.open("int8").index_kind("g")) == "SQ8"
    assert home.files() == []
    galleries = home.open("IVF4,SQ8")
    galleries.maintain()
    assert len(home.files()) == 1
    galleries.delete_gallery("g", force=True)
    assert home.files() == []
    stray = home.folder / "index-77.snapshot.new"
    home.close()
    stray.write_bytes(b"left by a crash")
    home.open()
    assert not stray.exists()


def test_a_store_set_back_to_an_earlier_state_does_not_take_a_later_snapshot(home, tmp_path):
    galleries = home.filled()
    home.close()
    shutil.copytree(home.folder, tmp_path / "backup")
    (tmp_path / "backup" / home.files()[0].name).unlink()
    galleries = home.open()
    galleries.delete_tracklet("g", "t79")
    put_all(galleries, clustered(20, seed=8), first=80)
    galleries.maintain()
    home.close()
    (later,) = home.files()
    shutil.copy(later, tmp_path / "later")
    shutil.rmtree(home.folder)
    shutil.copytree(tmp_path / "backup", home.folder)
    shutil.copy(tmp_path / "later", later)
    galleries = home.open()
    assert str(galleries.index_kind("g")) == "exact"
    assert nearest(galleries, home.vectors[79]) == ["t79"]


def test_deleting_takes_the_snapshot_along_and_it_comes_back_without(home):
    galleries = home.filled()
    before = home.files()[0].read_bytes()
    receipt = galleries.delete_tracklet("g", "t17")
    assert home.files() == []
    assert receipt is None or "index-1.snapshot" in receipt.rewritten_files
    galleries.maintain()
    (path,) = home.files()
    assert len(path.read_bytes()) < len(before)
    again = home.open()
    assert str(again.index_kind("g")) == "IVF4,SQ8"
    assert nearest(again, home.vectors[17]) != ["t17"]


def test_a_stop_leaves_a_snapshot_where_a_deletion_has_taken_it(home, monkeypatch):
    """Else a gallery that is deleted from all the time would be trained anew at every start."""
    monkeypatch.setattr(maintenance, "PERIOD", 600.0)
    home.filled()
    galleries = home.open(maintained=True)
    (before,) = home.files()
    size = before.stat().st_size
    galleries.delete_tracklet("g", "t17")
    assert home.files() == []
    home.close()
    assert home.files() == [before]
    assert before.stat().st_size < size
    monkeypatch.setattr(building, "build", None)
    again = home.open()
    assert str(again.index_kind("g")) == "IVF4,SQ8"
    assert nearest(again, home.vectors[17]) != ["t17"]


@pytest.mark.parametrize("why", ["slow", "full"])
def test_a_stop_does_not_wait_long_for_a_snapshot(home, monkeypatch, why):
    original = snapshot.write

    def write(path, key, made, stop):
        if why == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        assert stop.wait(30)
        original(path, key, made, stop)

    monkeypatch.setattr(maintenance, "PERIOD", 600.0)
    monkeypatch.setattr(maintenance, "CLOSING_SECONDS", 0.1)
    home.filled()
    home.open(maintained=True).delete_tracklet("g", "t17")
    monkeypatch.setattr(snapshot, "write", write)
    home.close()
    assert home.files() == []
    assert nearest(home.open(), home.vectors[18]) == ["t18"]


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
@pytest.mark.parametrize("kind", ["IVF4,SQ8", "IVF4_HNSW8,SQ8", "PCA16,IVF4,SQ8"])
def test_a_centroid_is_nobodys_descriptor(home, metric, kind):
    """K-means gives who is unlike all others a centroid of their own, which stays when they are erased."""
    alone = np.zeros(WIDTH, np.float32)
    alone[3:5] = -40.0, 30.0
    if metric == "cosine":
        alone /= 50.0
    galleries = home.open(kind)
    galleries.create_gallery("g", "", ModelSpace("f", WIDTH, metric))
    put_all(galleries, [*home.vectors, alone])
    galleries.maintain()
    galleries.delete_tracklet("g", "t80")
    galleries.maintain()
    (path,) = home.files()
    content = path.read_bytes()
    assert alone[3:5].tobytes() not in content
    found = snapshot.read(path, galleries._snapshot_key)
    assert found is not None
    index = faiss.deserialize_index(found.codes)
    ivf = kinds.inverted_file(index)
    centroids = faiss.downcast_index(ivf.quantizer).reconstruct_n(0, ivf.nlist)
    nearest = ((centroids[:, None] - centroids[None]) ** 2).sum(axis=2)
    assert np.isfinite(centroids).all()
    assert (np.sort(nearest, axis=1)[:, 1] > 0).all()  # still different places


def test_a_crash_between_delete_and_the_end_of_the_snapshot(home, tmp_path):
    galleries = home.filled()
    (path,) = home.files()
    shutil.copy(path, tmp_path / "kept")
    galleries.delete_tracklet("g", "t17")
    home.close()
    shutil.copy(tmp_path / "kept", path)  # as if the server had died before it could delete it
    again = home.open()
    assert home.files() == []
    assert str(again.index_kind("g")) == "IVF4,SQ8"
    assert nearest(again, home.vectors[17]) != ["t17"]


def test_a_delete_while_a_snapshot_is_written_wins(home, monkeypatch):
    original = snapshot.write

    def write(path, *rest):
        original(path, *rest)
        galleries.delete_tracklet("g", "t17")

    monkeypatch.setattr(snapshot, "write", write)
    galleries = home.open()
    galleries.create_gallery("g", "", ModelSpace("f", WIDTH, "squared_euclidean"))
    put_all(galleries, home.vectors)
    galleries.maintain()
    assert home.files() == []


@pytest.mark.parametrize("moment", ["built", "saved"])
def test_a_gallery_that_is_deleted_while_its_index_is_tended_leaves_no_snapshot(home, monkeypatch, moment):
    """One background thread tends all galleries: one that is deleted meanwhile has its turn coming still."""
    owner, name = {"built": (building, "build"), "saved": (LiveIndex, "save")}[moment]
    original = getattr(owner, name)

    def meanwhile(*rest, **options):
        built = original(*rest, **options) if moment == "built" else None
        galleries.delete_gallery("g", force=True)
        return built or original(*rest, **options)

    monkeypatch.setattr(owner, name, meanwhile)
    galleries = home.open()
    galleries.create_gallery("g", "", ModelSpace("f", WIDTH, "squared_euclidean"))
    put_all(galleries, home.vectors)
    galleries.maintain()
    assert galleries.list_galleries(9).items == ()
    assert home.files() == []


WRITER = """
import sys, threading, numpy as np
from pathlib import Path
from passerby_server.gallery.files import put_in_place
from passerby_server.gallery.snapshot import Header, Snapshot, write
path = Path(sys.argv[1])
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    header = Header(1, "f", "cosine", 4, "SQ8", "", 0, 1000, turn, turn)
    codes = np.full(1_000_000, turn % 251, np.uint8)
    write(path.with_name(path.name + ".new"), b"k" * 32, Snapshot(header, np.arange(1000), codes), threading.Event())
    put_in_place(path.with_name(path.name + ".new"), path)
"""


def test_killed_while_writing_the_old_one_or_the_new_one_is_there(tmp_path):
    path = tmp_path / "index-1.snapshot"
    turns = []
    for wait in (0.05, 0.12, 0.2):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if path.exists():
            found = snapshot.read(path, KEY)
            assert found is not None
            assert set(found.codes.tolist()) == {found.header.sequence % 251}
            turns.append(found.header.sequence)
    assert turns


def test_stopping_leaves_nothing_half_written(tmp_path):
    stop = threading.Event()
    stop.set()
    header = Header(1, "f", "cosine", 4, "SQ8", "", 0, 1, 1, 1)
    with pytest.raises(StoppedError):
        snapshot.write(tmp_path / "s", KEY, Snapshot(header, np.arange(1), np.zeros(9, np.uint8)), stop)
    assert list(tmp_path.iterdir()) == []
