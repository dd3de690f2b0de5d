"""What seldom happens at once: a search between a delete and the index's turn, work in the background that fails."""

from __future__ import annotations

import errno
import hmac
import sqlite3
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from passerby.errors import UnavailableError
from passerby_server.gallery import approximate, building, kinds, maintenance, rows, shelf, snapshot
from passerby_server.gallery.embedded import EmbeddedGalleries
from passerby_server.gallery.index import search_pool
from passerby_server.gallery.live import LiveIndex
from passerby_server.gallery.store import Store
from passerby_server.gallery.types import (
    GalleryOptions,
    ModelSpace,
    NewTracklet,
    RetentionRule,
    TrackletFilter,
    TravelWindow,
)
from passerby_server.upkeep import Upkeep

from tests.server.gallery.filling import START, ask, ids
from tests.server.gallery.test_index_kinds import WIDTH, clustered, filled, put_all, stored_from


@pytest.fixture
def open_(tmp_path, monkeypatch):
    """Opens galleries whose background work is done when the test says so; small ones get approximate indexes."""
    monkeypatch.setattr(approximate, "SCAN_ROWS", 5)
    monkeypatch.setattr(approximate, "GRAPH_SCAN_ROWS", 5)
    monkeypatch.setattr(kinds, "MIN_TRAINING_ROWS", 40)
    monkeypatch.setattr(shelf, "INTERVAL", 0.0)
    opened = []

    def open_(kind, metric="squared_euclidean"):
        opened.append(EmbeddedGalleries(tmp_path / "data", threads=2, index=kind, maintained=False))
        opened[-1].create_gallery("g", "", ModelSpace("f", WIDTH, metric))
        return opened[-1]

    yield open_
    for galleries in opened:
        galleries.close()


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
@pytest.mark.parametrize("kind", ["exact", "int8", "HNSW8"])
def test_a_search_after_all_is_erased_and_before_the_index_knows(open_, monkeypatch, kind, metric):
    galleries, vectors = open_(kind, metric), clustered(60)
    put_all(galleries, vectors)
    galleries.maintain()
    found = []
    original = LiveIndex.remove

    def remove(live, *gone):
        searcher = threading.Thread(target=lambda: found.append(galleries.search("g", ask(vectors[0], 3, "f"))))
        searcher.start()
        searcher.join(0.3)  # an exact index does not answer before it knows
        original(live, *gone)
        threads.append(searcher)

    threads: list[threading.Thread] = []
    monkeypatch.setattr(LiveIndex, "remove", remove)
    galleries.set_retention("g", [RetentionRule("", timedelta(microseconds=1))])
    assert galleries.apply_retention() == 60
    for searcher in threads:
        searcher.join()
    assert found == [()]


def test_a_delete_just_before_a_snapshot_of_a_graph_is_not_in_it(open_, tmp_path, monkeypatch):
    """A graph keeps what was removed until it is built anew: no file may."""
    galleries, vectors = open_("HNSW8,Flat"), clustered(60)
    put_all(galleries, vectors)
    original = Store.paused

    @contextmanager
    def paused(store):
        if galleries.index_kind("g") != kinds.EXACT and galleries.stats("g").tracklet_count == 60:
            galleries.delete_tracklet("g", "t17")
        with original(store):
            yield

    monkeypatch.setattr(Store, "paused", paused)
    galleries.maintain()
    assert galleries.stats("g").tracklet_count == 59
    files = [path for path in (tmp_path / "data").iterdir() if path.name.startswith("index-")]
    assert [path.name for path in files if vectors[17].tobytes() in path.read_bytes()] == []


def test_filters_may_name_as_many_values_as_the_limits_allow(open_):
    galleries = open_("exact")
    put_all(galleries, clustered(9))
    query, now = clustered(1)[0], datetime.now(UTC)
    names = [f"n{number}" for number in range(1000)]
    windows = tuple(TravelWindow(name, timedelta(0), timedelta(1), now, now) for name in names)
    everything = TrackletFilter(travel=windows, exclude_camera_ids=frozenset(names))
    assert len(galleries.search("g", ask(query, 20, "f", filter=everything))) == 9
    labels = TrackletFilter(labels=dict.fromkeys(names, "x"), camera_ids=frozenset(["c1", *names]), travel=windows)
    assert galleries.search("g", ask(query, 20, "f", filter=labels)) == ()


def test_one_gallery_whose_index_fails_keeps_nothing_from_the_others(open_, monkeypatch, caplog):
    galleries = open_("int8")
    put_all(galleries, clustered(60))
    galleries.create_gallery("h", "", ModelSpace("f", WIDTH, "squared_euclidean"))
    for number, vector in enumerate(clustered(60, seed=1)):
        galleries.ingest("h", NewTracklet(f"t{number}", "c"), vector, "f", b"")
    original, tried = building.build, []

    def build(kind, gallery_key, *rest, **options):
        tried.append(gallery_key)
        if gallery_key == 1:
            raise ValueError("shapes (3,) (4,)")
        return original(kind, gallery_key, *rest, **options)

    monkeypatch.setattr(building, "build", build)
    galleries.maintain()
    galleries.maintain()
    assert [str(galleries.index_kind(name)) for name in "gh"] == ["exact", "SQ8"]
    assert tried == [1, 2]  # a training that fails is not repeated at every look
    assert "cannot be built" in caplog.text
    monkeypatch.setattr(LiveIndex, "save", lambda live, *_: 1 / 0 if live is galleries._live[1] else saved.append(live))
    saved: list[LiveIndex] = []
    galleries.maintain()
    assert saved == [galleries._live[2]]
    assert "ZeroDivisionError" in caplog.text


def test_a_snapshot_that_cannot_be_put_in_place_is_tried_again_later(open_, tmp_path, monkeypatch, caplog):
    galleries = open_("int8")
    put_all(galleries, clustered(60))
    tried = []

    def put_in_place(written, path):
        tried.append(path)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shelf, "put_in_place", put_in_place)
    monkeypatch.setattr(shelf, "INTERVAL", 600.0)
    galleries.maintain()
    galleries.maintain()
    assert len(tried) == 1
    assert "Input/output error" in caplog.text
    assert list((tmp_path / "data").glob("index-*")) == []


def test_an_index_that_a_delete_did_not_reach_is_rebuilt(open_, monkeypatch):
    galleries, vectors = open_("exact"), clustered(60)
    put_all(galleries, vectors)
    with monkeypatch.context() as patch:
        patch.setattr(LiveIndex, "remove", lambda *_: None)
        galleries.delete_tracklet("g", "t17")
    assert len(galleries.search("g", ask(vectors[17], 60, "f"))) == 59
    assert ids(galleries.search("g", ask(vectors[18], 1, "f"))) == ["t18"]


def test_retention_of_a_gallery_that_was_replaced_during_the_sweep_takes_the_names_too(open_):
    galleries = open_("exact")
    galleries.set_retention("g", [RetentionRule("", timedelta(days=1))])
    entry = NewTracklet("left", "c", START, START)
    galleries.ingest("g", entry, clustered(1)[0], "f", b"")
    galleries.create_gallery("n", "", ModelSpace("f", WIDTH, "cosine"), options=GalleryOptions(follows="g"))
    with galleries._store.read() as connection:
        seen = rows.get_gallery(connection, "g")  # as a sweep that began before
    galleries.replace_gallery("g", "n", "old", allow_missing=True)
    assert galleries._expire(seen, RetentionRule("", timedelta(days=1))) == 1
    entries = [entry for name in ("g", "old") for entry in galleries.list_audit(name, "", "", 100).items]
    assert [entry.tracklet_id for entry in entries if entry.tracklet_id == "left"] == []
    assert [entry.gallery_id for entry in entries if entry.action == "ApplyRetention"] == ["old"]


def test_one_damaged_gallery_keeps_no_retention_from_the_others(open_, tmp_path, caplog):
    galleries = open_("exact")
    galleries.create_gallery("h", "", ModelSpace("f", WIDTH, "squared_euclidean"))
    for name in "gh":
        galleries.set_retention(name, [RetentionRule("", timedelta(days=1))])
        galleries.ingest(name, NewTracklet("old", "c", START, START), clustered(1)[0], "f", b"")
    with sqlite3.connect(tmp_path / "data" / "gallery.db") as damaging:
        damaging.execute("UPDATE retention SET keep = keep + 1 WHERE gallery_key = 1")
    assert galleries.apply_retention() == 1
    assert "gallery 1 is damaged: its retention is not applied" in caplog.text
    assert [galleries.stats(name).tracklet_count for name in "gh"] == [1, 0]


@pytest.mark.parametrize("how", ["delete", "erase", "retention", "gallery"])
def test_a_snapshot_that_cannot_be_deleted_is_told_of_and_goes_later(open_, tmp_path, monkeypatch, caplog, how):
    """What a folder that became read-only does: the database is open and takes the delete, its files stay."""
    galleries, vectors = open_("int8"), clustered(60)
    put_all(galleries, vectors)
    galleries.maintain()
    (snapshot,) = (tmp_path / "data").glob("index-*")
    before = snapshot.read_bytes()
    name = "00000000-0000-4000-8000-000000000001"
    work = {
        "delete": lambda: galleries.delete_tracklet("g", "t7", request_id=name),
        "erase": lambda: galleries.erase_identity("g", "p0", force=True, request_id=name),
        "gallery": lambda: galleries.delete_gallery("g", force=True, request_id=name),
        "retention": galleries.apply_retention,
    }[how]

    def drop_snapshots(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(shelf, "drop_snapshots", drop_snapshots)
        if how == "retention":
            galleries.set_retention("g", [RetentionRule("", timedelta(microseconds=1))])
            assert work() == 60
        for _ in range({"retention": 0, "gallery": 1}.get(how, 2)):  # the second time as a repetition
            with pytest.raises(UnavailableError) as caught:
                work()
            assert caught.value.reason == "REWRITE_BLOCKED"
    assert caplog.text.count("cannot be deleted (Permission denied)") == 1
    assert snapshot.exists()
    if how == "gallery":  # nobody looks after it until the next start
        assert galleries.list_galleries(9).items == ()
        galleries._prepare_snapshots()
        assert not snapshot.exists()
        return
    assert "t7" not in ids(galleries.search("g", ask(vectors[7], 60, "f")))
    galleries.maintain()
    assert before not in [path.read_bytes() for path in (tmp_path / "data").glob("index-*")]
    if how != "retention":
        work()


@pytest.mark.parametrize("text", ["IVF14,SQ8", "IVF14_HNSW8,SQ8"])
@pytest.mark.parametrize("probed", [1, 2, 3, 14])
def test_fewer_lists_than_threads(text, probed, monkeypatch):
    """Few large lists on a machine with many processors: each thread needs a list of its own."""
    monkeypatch.setattr(approximate, "MIN_PART_BYTES", 1)
    monkeypatch.setattr(approximate, "SCAN_ROWS", 5)
    vectors = dict(enumerate(clustered(600)))
    alone, together = (filled(text, "squared_euclidean", vectors) for _ in range(2))
    with search_pool(4) as pool:
        together.share(pool)
        alone.effort = together.effort = probed
        for query in clustered(20, seed=1):
            expected = alone.search(query, 10, None, stored_from(vectors))
            found = together.search(query, 10, None, stored_from(vectors))
            np.testing.assert_array_equal(found.ids, expected.ids)


@pytest.mark.parametrize("what", ["tracklets", "gallery"])
def test_what_is_erased_while_its_index_is_trained_is_no_fault_of_the_kind(open_, monkeypatch, caplog, what):
    galleries = open_("int8")
    put_all(galleries, clustered(60))
    original = building._sample

    def sample(*rest):
        if what == "gallery":
            galleries.delete_gallery("g", force=True)
        else:
            for number in range(60):
                galleries.delete_tracklet("g", f"t{number}")
        return original(*rest)

    with monkeypatch.context() as patch:
        patch.setattr(building, "_sample", sample)
        galleries.maintain()
    assert caplog.text == ""
    if what == "tracklets":
        put_all(galleries, clustered(60))
        galleries.maintain()
        assert str(galleries.index_kind("g")) == "SQ8"


def test_an_audit_that_cannot_be_tidied_keeps_no_rewrite_from_its_time(open_, monkeypatch, caplog):
    galleries = open_("exact")
    put_all(galleries, clustered(2))
    galleries.delete_tracklet("g", "t0")
    rewritten = threading.Event()
    original = Store.rewrite

    def rewrite(store):
        original(store)
        rewritten.set()

    monkeypatch.setattr(Store, "rewrite", rewrite)
    monkeypatch.setattr(galleries, "expire_audit", lambda _: 1 / 0)
    with galleries._store.read() as connection:
        due = connection.execute("SELECT value FROM upkeep WHERE name = 'rewrite_due'").fetchone()[0]
    monkeypatch.setattr(rows, "now", lambda: due)
    upkeep = Upkeep(galleries, 600, timedelta(days=1))
    assert rewritten.wait(10)
    upkeep.close()
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("what", ["codes", "header"])
def test_a_snapshot_of_another_faiss_or_passerby_keeps_no_server_from_starting(open_, tmp_path, caplog, what):
    """Signed with the store's key, and yet nothing that this one reads: after an update, or the way back."""
    galleries, vectors = open_("int8"), clustered(60)
    put_all(galleries, vectors)
    galleries.maintain()
    (path,) = (tmp_path / "data").glob("index-*")
    key = galleries._snapshot_key
    galleries.close()
    found = snapshot.read(path, key)
    assert found is not None
    if what == "codes":
        found.codes[:4] = np.frombuffer(b"IxZZ", np.uint8)
        snapshot.write(path, key, found, threading.Event())
    else:
        content = path.read_bytes()[:-32].replace(b'"effort"', b'"labour"')
        path.write_bytes(content + hmac.digest(key, content, "sha256"))
    again = EmbeddedGalleries(tmp_path / "data", threads=2, index="int8", maintained=False)
    assert ids(again.search("g", ask(vectors[17], 1, "f"))) == ["t17"]
    again.close()
    assert not path.exists()
    assert "built from the store" in caplog.text


def test_an_automatic_choice_of_which_one_is_too_coarse_and_the_other_too_large_is_made_once(open_, monkeypatch):
    for name, value in (("AUTO_ROWS", 50), ("REDUCED_ROWS", 50), ("REDUCED", 4), ("POINTS_PER_CENTROID", 1)):
        monkeypatch.setattr(kinds, name, value)
    galleries, tried = open_("auto"), []
    put_all(galleries, clustered(60))

    def build(kind, *_, **__):
        tried.append(str(kind))
        raise building.CoarseError if kind.reduced else MemoryError

    monkeypatch.setattr(building, "build", build)
    for _ in range(3):
        galleries.maintain()
    assert tried == ["PCA4,IVF32,SQ8", "IVF32,SQ8"]
    assert str(galleries.index_kind("g")) == "exact"


def test_a_write_that_comes_after_the_end_is_told_so(open_):
    galleries = open_("exact")
    galleries.close()
    with pytest.raises(UnavailableError) as caught:
        galleries.set_retention("g", [])
    assert caught.value.reason == "SHUTTING_DOWN"


def test_a_kind_that_is_refused_since_keeps_no_server_from_starting(open_, tmp_path, caplog):
    galleries = open_("int8")
    put_all(galleries, clustered(60))
    galleries._store.write(lambda connection: connection.execute("UPDATE galleries SET index_kind = 'NSG16'") and None)
    galleries.close()
    again = EmbeddedGalleries(tmp_path / "data", threads=2, index="int8", maintained=False)
    again.maintain()
    assert str(again.index_kind("g")) == "SQ8"
    assert "gallery 1 has the server's kind of index" in caplog.text
    again.close()


@pytest.mark.parametrize("text", ["IVF4,RQ2x4", "IVF4,PQ4x4fs", "RQ4x4", "LSH", "IVF4_HNSW8,SQ8"])
def test_filters_of_kinds_that_faiss_cannot_filter(text, monkeypatch):
    monkeypatch.setattr(approximate, "SCAN_ROWS", 5)
    vectors = dict(enumerate(clustered(600)))
    index, stored = filled(text, "squared_euclidean", vectors), stored_from(vectors)
    allowed = np.arange(0, 600, 3)
    for number in allowed[:20].tolist():
        found = index.search(vectors[number], 10, allowed, stored)
        assert len(found.ids) == 10
        assert set(found.ids.tolist()) <= set(allowed.tolist())
        assert found.ids[0] == number


def test_looks_that_fail_come_further_apart(open_, monkeypatch):
    galleries, waits, sound = open_("exact"), [], iter([True, False, False, False, True, True])

    class Stop:
        def wait(self, seconds):
            waits.append(seconds)
            return len(waits) == 7

    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "LONGEST_PERIOD", 10.0)
        patch.setattr(galleries, "maintain", lambda: next(sound))
        patch.setattr(galleries, "_stop", Stop())
        thread = threading.Thread(target=galleries._maintain_forever)
        thread.start()
        thread.join()
    assert waits == [2.0, 2.0, 4.0, 8.0, 10.0, 2.0, 2.0]
