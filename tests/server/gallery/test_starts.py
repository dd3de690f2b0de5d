"""Starts without a snapshot: no more memory than the wanted kind is to take, the same answers, and an end when asked."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from passerby.errors import DataLossError, UnavailableError
from passerby_server.gallery import approximate, building, embedded, kinds, rows, shelf
from passerby_server.gallery.embedded import EmbeddedGalleries
from passerby_server.gallery.index import ExactIndex
from passerby_server.gallery.types import ModelSpace, NewTracklet

from tests.server.gallery.brute import ranking
from tests.server.gallery.filling import ask, ids
from tests.server.gallery.test_index_kinds import WIDTH, clustered, put_all

COUNT = 400


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A gallery of COUNT tracklets, which are many here, without a snapshot; opened as often as a test likes."""
    monkeypatch.setattr(approximate, "SCAN_ROWS", 5)
    monkeypatch.setattr(kinds, "POINTS_PER_CENTROID", 4)
    monkeypatch.setattr(kinds, "START_ROWS", COUNT - 50)
    monkeypatch.setattr(kinds, "AUTO_ROWS", COUNT - 50)
    monkeypatch.setattr(shelf, "INTERVAL", 0.0)

    class Home:
        folder = tmp_path

        def __init__(self) -> None:
            self.galleries = EmbeddedGalleries(tmp_path, threads=2, index="exact", maintained=False)
            self.galleries.create_gallery("g", "", ModelSpace("f", WIDTH, "squared_euclidean"))
            self.entries = put_all(self.galleries, clustered(COUNT))

        def open(self, kind, stop=None):
            self.galleries.close()
            self.galleries = EmbeddedGalleries(tmp_path, threads=2, index=kind, maintained=False, stop=stop)
            return self.galleries

        def snapshots(self):
            return len(list(tmp_path.glob("index-*")))

    home = Home()
    yield home
    home.galleries.close()


def check_answers(galleries, entries):
    for query in (ask(vector, 10, "f") for vector in clustered(5, seed=1)):
        assert ids(galleries.search("g", query)) == [
            name for name, _ in ranking(entries, query, "squared_euclidean")[:10]
        ]


@pytest.mark.parametrize(
    ("kind", "then"), [("auto", "IVF64,SQ8"), ("IVF8,SQ8;nprobe=8", "IVF8,SQ8;nprobe=8"), ("fp16", "SQfp16")]
)
def test_what_is_to_be_compressed_is_never_exact_at_a_start(home, monkeypatch, kind, then):
    monkeypatch.setattr(ExactIndex, "add", None)
    galleries = home.open(kind)
    assert str(galleries.index_kind("g")) == "SQ8"
    check_answers(galleries, home.entries)
    galleries.maintain()
    assert str(galleries.index_kind("g")) == then
    assert home.snapshots() == 1


def test_int8_is_filled_once(home, monkeypatch):
    galleries = home.open("int8")
    assert str(galleries.index_kind("g")) == "SQ8"
    check_answers(galleries, home.entries)
    monkeypatch.setattr(building, "build", None)  # nothing is trained again
    galleries.maintain()
    assert home.snapshots() == 1
    assert str(home.open("int8").index_kind("g")) == "SQ8"


def test_few_tracklets_and_those_that_stay_exact_are_exact_at_once(home, monkeypatch):
    assert str(home.open("exact").index_kind("g")) == "exact"
    monkeypatch.setattr(kinds, "START_ROWS", COUNT + 1)
    monkeypatch.setattr(kinds, "AUTO_ROWS", COUNT + 1)
    for kind in ("auto", "IVF8,SQ8"):
        assert str(home.open(kind).index_kind("g")) == "exact"
    monkeypatch.setattr(kinds, "MIN_TRAINING_ROWS", COUNT + 1)
    assert str(home.open("int8").index_kind("g")) == "exact"


def test_a_kind_that_is_not_built_yet_leaves_no_snapshot_of_the_one_before(home, monkeypatch):
    monkeypatch.setattr(kinds, "POINTS_PER_CENTROID", 100)
    galleries = home.open("IVF8,SQ8")  # needs 800
    galleries.maintain()
    assert str(galleries.index_kind("g")) == "SQ8"
    assert home.snapshots() == 0
    check_answers(galleries, home.entries)


def test_an_index_that_failed_is_filled_again_in_the_same_way(home, monkeypatch):
    galleries = home.open("auto")
    monkeypatch.setattr(galleries._live[1].index, "remove", None)
    galleries.delete_tracklet("g", "t7")
    monkeypatch.setattr(ExactIndex, "add", None)
    del home.entries[7]
    check_answers(galleries, home.entries)
    assert str(galleries.index_kind("g")) == "SQ8"
    assert not galleries._live[1].stale


def test_a_damaged_descriptor_is_said_at_searches_until_it_is_deleted(home):
    home.galleries.close()
    with sqlite3.connect(home.folder / "gallery.db") as connection:
        connection.execute("UPDATE descriptors SET descriptor = zeroblob(length(descriptor)) WHERE vector_id = 301")
    connection.close()
    galleries = home.open("auto")
    query = ask(clustered(1)[0], 10, "f")
    with pytest.raises(DataLossError) as caught:
        galleries.search("g", query)
    assert caught.value.reason == "DESCRIPTOR_DAMAGED"
    assert "t300" in caught.value.message
    galleries.delete_tracklet("g", "t300")
    del home.entries[300]
    check_answers(galleries, home.entries)
    assert str(galleries.index_kind("g")) == "SQ8"


@pytest.mark.parametrize("kind", ["auto", "exact"])
def test_a_start_ends_early_when_it_is_no_longer_wanted(home, kind):
    stop = threading.Event()
    stop.set()
    with pytest.raises(UnavailableError) as caught:
        home.open(kind, stop)
    assert caught.value.reason == "SHUTTING_DOWN"
    home.open(kind).search("g", ask(clustered(1)[0], 1, "f"))  # and leaves the folder to the next


def test_a_rebuild_ends_with_the_galleries(home, monkeypatch):
    """Closing waits for searches under way, one of which may be filling an index."""
    galleries = home.open("auto")
    galleries._live[1].stale = True
    fill, started = building.build, threading.Event()
    caught = []

    def build(*rest, **options):
        started.set()
        galleries._stop.wait(30)
        return fill(*rest, **options)

    def search():
        try:
            galleries.search("g", ask(clustered(1)[0], 1, "f"))
        except UnavailableError as error:
            caught.append(error.reason)

    monkeypatch.setattr(building, "build", build)
    thread = threading.Thread(target=search)
    thread.start()
    assert started.wait(30)
    galleries.close()
    thread.join()
    assert caught == ["SHUTTING_DOWN"]


WIDE, MANY = 8192, 2000
PEAK = """
import sys
from pathlib import Path
from passerby_server.gallery import kinds
from passerby_server.gallery.embedded import open_galleries
kinds.START_ROWS = 1000
galleries = open_galleries(Path(sys.argv[1]), index=sys.argv[2])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
galleries.close()
"""


def test_the_peak_of_memory_at_a_start(tmp_path: Path) -> None:
    galleries = EmbeddedGalleries(tmp_path, index="exact", maintained=False)
    galleries.create_gallery("g", "", ModelSpace("f", WIDE, "squared_euclidean"))
    vectors = np.random.default_rng(0).standard_normal((MANY, WIDE), np.float32)

    def store(connection: sqlite3.Connection) -> None:  # in one transaction: many times faster
        gallery = rows.get_gallery(connection, "g")
        for number, vector in enumerate(vectors):
            new = embedded._insert(connection, gallery, f"t{number}", NewTracklet(f"t{number}", "c"))
            rows.put_descriptor(connection, new, vector)

    galleries._store.write(store)
    galleries.close()

    def peak(kind: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path), kind], capture_output=True, text=True, check=True, timeout=100
        )
        return int(done.stdout) * 1024

    assert peak("exact") - peak("IVF64,SQ8") > MANY * WIDE * 2  # of 4 bytes a value, one is left, and its growth
