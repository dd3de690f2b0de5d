"""Compressed and partly searched indexes: candidates from FAISS, ranks from the stored descriptors; growing into a
kind in the background; all of it against brute force, and with many threads at once."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from passerby.errors import InvalidArgumentError, UnavailableError
from passerby_model.metrics import unit_rows
from passerby_server.gallery import approximate, building, kinds, maintenance, recall, tuning, turns
from passerby_server.gallery.approximate import ApproximateIndex, scan
from passerby_server.gallery.descriptors import Remembered
from passerby_server.gallery.embedded import EmbeddedGalleries
from passerby_server.gallery.index import Neighbours, search_pool
from passerby_server.gallery.kinds import EXACT, IndexKind
from passerby_server.gallery.types import ModelSpace, NewTracklet, Rerank, TrackletFilter

from tests.server.gallery.brute import Entry, ranking
from tests.server.gallery.filling import ask, ids

WIDTH = 16
KINDS = ["fp16", "int8", "IVF8,SQ8", "IVF8,Flat;nprobe=2", "HNSW8", "PCA8,IVF4,SQ8"]


def clustered(count: int, seed: int = 0, people: int = 20, width: int = WIDTH):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((people, width), np.float32)
    return centres[rng.integers(people, size=count)] + 0.3 * rng.standard_normal((count, width), np.float32)


def stored_from(vectors):
    """What an index reads descriptors from: a dictionary in place of the store."""

    def stored(wanted):
        kept = [n for n in wanted.tolist() if n in vectors]
        return np.array(kept, np.int64), np.array([vectors[n] for n in kept], np.float32).reshape(len(kept), WIDTH)

    return stored


def filled(text, metric, vectors):
    kind = kinds.parse(text)
    assert kind is not None
    rows = np.array(list(vectors.values()))
    sample = unit_rows(rows) if metric == "cosine" else rows
    index = ApproximateIndex(metric, kinds.trained(kind, metric, sample))
    index.add(np.array(list(vectors), np.int64), rows)
    if kind.lists and not kind.parameters:
        index.effort = kind.lists // 2
    return index


@pytest.fixture
def no_scan(monkeypatch):
    """Few allowed descriptors are searched for in the index too, not compared one by one."""
    monkeypatch.setattr(approximate, "SCAN_ROWS", 5)
    monkeypatch.setattr(approximate, "GRAPH_SCAN_ROWS", 5)


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
@pytest.mark.parametrize("text", KINDS)
def test_answers_are_full_exact_in_distance_and_near_in_recall(text, metric, no_scan):
    vectors = dict(zip(range(3, 1803, 3), clustered(600), strict=True))
    index, stored = filled(text, metric, vectors), stored_from(vectors)
    everyone = np.array(list(vectors))
    hits = expected = 0
    for number, query in enumerate(clustered(40, seed=1)):
        allowed = [None, everyone[::2], everyone[::20], everyone[5:7]][number % 4]
        found = index.search(query, 10, allowed, stored)
        truth = scan(query, everyone if allowed is None else allowed, 10, stored, metric)
        assert len(found.ids) == len(truth.ids)
        assert allowed is None or set(found.ids) <= set(allowed)
        assert (np.diff(found.distances) >= 0).all()
        same = scan(query, np.sort(found.ids), 10, stored, metric)  # each with its exact distance
        np.testing.assert_array_equal(found.ids, same.ids)
        np.testing.assert_array_equal(found.distances, same.distances)
        hits, expected = hits + len(set(found.ids) & set(truth.ids)), expected + len(truth.ids)
    assert hits / expected > (0.9 if "IVF" in text else 0.99)


@pytest.mark.parametrize(("text", "most"), [("int8", 20), ("PQ4x4", 84), ("PCA12,SQ8", 84)])
def test_candidates_are_read_as_far_as_the_codes_may_mislead(text, most, no_scan):
    """84 candidates of 10 nearest: fine codes need few of them, coarse ones more; the answer is that of all 84."""
    vectors = dict(enumerate(clustered(2000, people=200)))
    index, stored = filled(text, "squared_euclidean", vectors), stored_from(vectors)
    read: list[int] = []

    def counting(wanted):
        read.extend(wanted.tolist())
        return stored(wanted)

    counts = []
    for query in clustered(40, seed=1, people=200):
        read.clear()
        found = index.search(query, 10, None, counting)
        counts.append(len(read))
        assert len(read) == len(set(read))
        candidates = np.sort(index._candidates(query, 84, None, widest=False).ids)
        np.testing.assert_array_equal(found.ids, scan(query, candidates, 10, stored, "squared_euclidean").ids)
    assert 14 <= np.mean(counts) <= most
    assert not text.startswith("PQ") or np.mean(counts) > 60


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
@pytest.mark.parametrize("text", ["fp16", "int8", "PCA8,SQ8", "IVF14,SQ8", "PCA8,IVF14,SQ8"])
def test_one_search_on_several_threads_finds_what_one_thread_finds(text, metric, monkeypatch):
    monkeypatch.setattr(approximate, "MIN_PART_BYTES", 1)
    vectors = dict(zip(range(3, 1803, 3), clustered(600), strict=True))
    alone, together = filled(text, metric, vectors), filled(text, metric, vectors)
    parts = []
    with search_pool(3) as pool:
        together.share(pool)
        divided = together._divided

        def counting(*arguments):
            parts.append(len(divided(*arguments)))
            return divided(*arguments)

        monkeypatch.setattr(together, "_divided", counting)
        for index in (alone, together):
            index.remove(np.arange(3, 1803, 21))
            index.effort = 6
        for count in (5, 84, 800):  # the last: more than there are
            for query, allowed in itertools.product(clustered(5, seed=1), (None, np.arange(3, 1803, 6))):
                expected = alone._candidates(query, count, allowed, widest=False)
                found = together._candidates(query, count, allowed, widest=False)
                np.testing.assert_array_equal(found.ids, expected.ids)
                np.testing.assert_array_equal(found.distances, expected.distances)
    inverted = "IVF" in text
    assert parts == ([3, 3] if inverted else [3, 1]) * 15
    assert len(alone._candidates(query, 800, None, widest=True).ids) == len(alone)


def test_lists_to_probe_are_found_though_tracklets_are_deleted_meanwhile():
    vectors = dict(enumerate(clustered(600)))
    index = filled("IVF14,SQ8", "squared_euclidean", vectors)

    def stored(ids):
        kept = ids[ids % 7 != 0]
        return kept, np.array([vectors[number] for number in kept.tolist()], np.float32)

    trials = tuning.Trials(np.arange(100), stored_from(vectors), "squared_euclidean")
    trials._stored = stored
    for numbers in np.split(np.arange(600), 6):
        trials.see(*stored_from(vectors)(numbers))
    assert tuning.tune(index, IndexKind("IVF14,SQ8"), trials, threading.Event()) == 1.0
    assert 1 <= index.effort <= 14


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
def test_trials_know_the_exact_neighbours_of_all_that_they_have_seen(metric):
    vectors = dict(zip(range(3, 1803, 3), clustered(600, people=200), strict=True))
    vectors |= dict.fromkeys(range(2000, 2020), vectors[3])  # more copies than neighbours are asked for
    stored, numbers = stored_from(vectors), np.array(list(vectors))
    trials = tuning.Trials(numbers[::31], stored, metric)
    for some in np.array_split(numbers, 7):
        trials.see(*stored(some))
    for own, neighbours in zip(trials._ids, trials._neighbours, strict=True):
        others = numbers[numbers != own]
        found = scan(vectors[int(own)], np.sort(neighbours), 10, stored, metric)
        truth = scan(vectors[int(own)], others, 10, stored, metric)
        np.testing.assert_allclose(found.distances, truth.distances, rtol=1e-5, atol=1e-6)
    index = filled("IVF8,SQ8", metric, vectors)
    index.effort = 8
    assert trials.recall(index, threading.Event()) == 1.0
    index.effort = 1
    assert trials.recall(index, threading.Event()) < 1.0


def test_a_search_waits_for_its_turn_and_not_for_ever(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.05)
    order, taken, done = [], threading.Event(), threading.Event()

    def holder():
        with turns.turn():
            taken.set()
            done.wait(10)
            order.append("first")

    thread = threading.Thread(target=holder)
    thread.start()
    taken.wait(10)
    start = time.monotonic()
    with turns.turn():  # goes on although the other still has the turn
        assert time.monotonic() - start >= 0.05
    monkeypatch.setattr(turns, "PATIENCE", 10.0)
    threading.Timer(0.05, done.set).start()
    with turns.turn():  # the one that had given up must not have freed it
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


class _Reaching:
    """An index that finds a stored descriptor itself always, its ten nearest others with `needed` lists only."""

    effort = 0

    def __init__(self, needed: int) -> None:
        self._needed = needed

    def search(self, query, k, allowed, stored):
        own = int(query[0])
        others = own + 1000 + np.arange(10 if self.effort >= self._needed else 9)
        return Neighbours(np.array([own, *others])[:k], np.arange(1 + len(others), dtype=np.float32)[:k])


@pytest.mark.parametrize("needed", [1, 2, 3, 16, 17, 37, 63, 64])
def test_few_more_lists_are_probed_than_stored_descriptors_need_to_find_others(needed):
    vectors = {number: np.full(WIDTH, number, np.float32) for number in range(20)}
    index: Any = _Reaching(needed)
    trials = tuning.Trials(np.arange(20), stored_from(vectors), "squared_euclidean")
    trials.see(*stored_from(vectors)(np.arange(20)))
    tuning.tune(index, IndexKind("IVF64,SQ8"), trials, threading.Event())
    assert needed <= index.effort <= max(needed * 9 / 8, needed + 1)


def test_a_candidate_that_was_deleted_meanwhile_shortens_no_answer(no_scan):
    vectors = dict(enumerate(clustered(600)))
    index = filled("int8", "squared_euclidean", vectors)
    query = clustered(1, seed=1)[0]
    nearest = index.search(query, 40, None, stored_from(vectors)).ids
    for number in nearest[:30].tolist():
        del vectors[number]
    found = index.search(query, 10, None, stored_from(vectors))
    np.testing.assert_array_equal(found.ids, nearest[30:40])


def test_reranking_reads_no_descriptor_twice():
    vectors = dict(enumerate(clustered(100)))
    stored, read = stored_from(vectors), []

    def counting(wanted):
        read.extend(wanted.tolist())
        return stored(wanted)

    remembered = Remembered(counting)
    remembered(np.array([3, 7, 50]))
    remembered(np.array([1, 9, 200]))
    ids, descriptors = remembered(np.array([1, 7, 50]))
    assert read == [3, 7, 50, 1, 9, 200]
    np.testing.assert_array_equal(descriptors, [vectors[n] for n in (1, 7, 50)])
    assert ids.tolist() == [1, 7, 50]
    assert remembered(np.array([7, 8]))[0].tolist() == [7, 8]


@pytest.mark.parametrize("text", KINDS)
def test_removed_descriptors_never_come_back(text, no_scan):
    vectors = dict(enumerate(clustered(400)))
    index, stored = filled(text, "squared_euclidean", vectors), stored_from(vectors)
    gone = np.arange(0, 400, 3)
    index.remove(np.append(gone, 999))  # what was never there is passed over
    for number in gone[:20].tolist():
        found = index.search(vectors[number], 25, None, stored)
        assert len(found.ids) == 25
        assert not set(found.ids) & set(gone.tolist())
    assert len(index) == 400 - len(gone)
    assert index.worn == ("HNSW" in text)
    index.add(np.array([1000]), clustered(1, seed=9))
    vectors[1000] = clustered(1, seed=9)[0]
    assert index.search(vectors[1000], 1, None, stored).ids.tolist() == [1000]


def test_equal_distances_come_in_storing_order(no_scan):
    vectors = dict.fromkeys(range(50), np.ones(WIDTH, np.float32))
    index = filled("fp16", "squared_euclidean", vectors)
    found = index.search(np.zeros(WIDTH, np.float32), 10, None, stored_from(vectors))
    assert found.distances.tolist() == [float(WIDTH)] * 10
    assert (np.diff(found.ids) > 0).all()


def test_what_faiss_does_not_find_is_read_from_the_store(no_scan):
    vectors = dict(enumerate(clustered(600)))
    index, stored = filled("IVF8,SQ8", "squared_euclidean", vectors), stored_from(vectors)
    index.effort = 1
    assert len(index.search(vectors[0], 590, None, stored).ids) == 590


@pytest.mark.parametrize(
    "text", ["", "IVF", "galaxy", "IDMap,SQ8", "IVF16,PQ8,RFlat", "IVF4,SQ8;nprob=2", "SQ3", "NSG16", "NNDescent8"]
)
def test_impossible_kinds_are_refused(text):
    with pytest.raises(InvalidArgumentError) as caught:
        kinds.parse(text)
    assert caught.value.reason == "INDEX_KIND"
    assert not any(inside in caught.value.message for inside in ("std::", "faiss::", ".cpp", "failed:"))


def test_the_automatic_choice_follows_the_size_and_does_not_waver():
    assert kinds.parse("auto") is None
    assert kinds.choose(kinds.AUTO_ROWS - 1, EXACT, 2048) == EXACT
    at_100k = kinds.choose(kinds.AUTO_ROWS, EXACT, 2048)
    assert str(at_100k) == "IVF1024,SQ8"
    assert at_100k.training_rows <= kinds.AUTO_ROWS
    at_200k = kinds.choose(200_000, at_100k, 2048)
    assert str(at_200k) == "PCA256,IVF2048,SQ8"
    for kind in (at_100k, at_200k):
        assert kinds.choose(kinds.AUTO_ROWS - 1, kind, 2048) == kind
        assert kinds.choose(200_000, kind, 2048, at_200k) == kind  # where it misses too many neighbours
        assert kinds.choose(200_000, kind, 511) == kind
        assert str(kinds.choose(1_000_000, kind, 2048)) == ("PCA256,IVF4096,SQ8" if kind == at_100k else str(at_200k))
        assert kinds.choose(kinds.AUTO_ROWS // 2 - 1, kind, 2048) == EXACT
    assert str(kinds.choose(1_000_000, EXACT, 2048)) == "PCA256,IVF4096,SQ8"
    assert str(kinds.choose(1_000_000, EXACT, 511)) == "IVF4096,SQ8"


# In a gallery


@pytest.fixture
def grown(tmp_path, monkeypatch):
    """Opens galleries of one kind whose background work is done when the test says so."""
    monkeypatch.setattr(approximate, "SCAN_ROWS", 5)
    monkeypatch.setattr(approximate, "GRAPH_SCAN_ROWS", 5)
    opened = []

    def open_(kind, metric="squared_euclidean"):
        galleries = EmbeddedGalleries(tmp_path, threads=2, index=kind, maintained=False)
        opened.append(galleries)
        if not galleries.list_galleries(1).items:
            galleries.create_gallery("g", "", ModelSpace("f", WIDTH, metric))
        return galleries

    yield open_
    for galleries in opened:
        galleries.close()


def put_all(galleries, vectors, first=0):
    entries = []
    for number, vector in enumerate(vectors, first):
        tracklet = NewTracklet(f"t{number}", f"c{number % 3}", identity_id=f"p{number % 7}")
        entries.append(Entry(tracklet, vector))
        galleries.ingest("g", tracklet, vector, "f", b"")
    return entries


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
@pytest.mark.parametrize("kind", ["int8", "IVF4,SQ8", "HNSW8"])
def test_a_gallery_grows_into_its_kind_and_answers_as_before(grown, kind, metric):
    galleries = grown(kind, metric)
    entries = put_all(galleries, clustered(300))
    exact = [galleries.search("g", ask(e.descriptor, 5, "f")) for e in entries[:10]]
    assert str(galleries.index_kind("g")) == "exact"
    galleries.maintain()
    assert str(galleries.index_kind("g")) == str(kinds.parse(kind))
    assert [galleries.search("g", ask(e.descriptor, 5, "f")) for e in entries[:10]] == exact
    entries += put_all(galleries, clustered(30, seed=2), first=300)
    for entry in [entries.pop(n) for n in (310, 200, 100, 0)]:
        galleries.delete_tracklet("g", entry.tracklet.tracklet_id)
    where = TrackletFilter(exclude_camera_ids=frozenset({"c1"}))
    for entry in entries[::29]:
        query = ask(entry.descriptor, 3, "f", filter=where)
        assert ids(galleries.search("g", query)) == [name for name, _ in ranking(entries, query, metric)[:3]]
        groups = galleries.search("g", replace(query, group_by_identity=True, rerank=Rerank(5, 2, 0.3, 40)))
        assert len(groups) == 3


def test_too_few_tracklets_stay_exact(grown):
    galleries = grown("IVF64,SQ8")
    put_all(galleries, clustered(300))
    galleries.maintain()
    assert str(galleries.index_kind("g")) == "exact"


def test_a_kind_that_cannot_be_built_leaves_the_exact_index(grown, caplog):
    galleries = grown("PCA512,SQ8")  # more values than there are
    entries = put_all(galleries, clustered(300))
    galleries.maintain()
    galleries.maintain()
    assert str(galleries.index_kind("g")) == "exact"
    assert ids(galleries.search("g", ask(entries[0].descriptor, 1, "f"))) == ["t0"]
    assert sum("stays with its exact index" in message for message in caplog.messages) == 1


def test_the_automatic_choice_is_followed_up_and_down(grown, monkeypatch):
    monkeypatch.setattr(kinds, "AUTO_ROWS", 350)
    monkeypatch.setattr(kinds, "POINTS_PER_CENTROID", 4)
    galleries = grown("auto")
    entries = put_all(galleries, clustered(360))
    galleries.maintain()
    assert str(galleries.index_kind("g")) == "IVF64,SQ8"
    for entry in entries[:200]:
        galleries.delete_tracklet("g", entry.tracklet.tracklet_id)
    galleries.maintain()
    assert str(galleries.index_kind("g")) == "exact"
    assert ids(galleries.search("g", ask(entries[300].descriptor, 1, "f"))) == ["t300"]


@pytest.mark.parametrize(("rank", "kind"), [(3, "PCA4,IVF64,SQ8"), (WIDTH, "IVF64,SQ8")])
@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
def test_components_are_compared_where_they_miss_no_neighbours(grown, monkeypatch, rank, kind, metric):
    for name, value in {"AUTO_ROWS": 350, "REDUCED_ROWS": 400, "REDUCED": 4, "POINTS_PER_CENTROID": 4}.items():
        monkeypatch.setattr(kinds, name, value)
    monkeypatch.setattr(approximate, "MORE_CANDIDATES", 5)
    rng = np.random.default_rng(0)
    to_width = rng.normal(size=(rank, WIDTH))
    vectors = (rng.normal(size=(420, rank)) @ to_width + 5.0).astype(np.float32)
    galleries = grown("auto", metric)
    entries = put_all(galleries, vectors[:360])
    galleries.maintain()
    assert str(galleries.index_kind("g")) == "IVF64,SQ8"
    entries += put_all(galleries, vectors[360:], first=360)
    galleries.maintain()
    assert str(galleries.index_kind("g")) == kind
    (live_index,) = galleries._live.values()
    live_index.index.effort = 64
    for entry in entries[::40]:
        query = ask(entry.descriptor, 5, "f")
        assert ids(galleries.search("g", query)) == [name for name, _ in ranking(entries, query, metric)[:5]]


def test_writes_during_a_build_are_in_the_new_index(grown, monkeypatch):
    galleries = grown("IVF4,SQ8")
    entries = put_all(galleries, clustered(300))
    original = building.build

    def build(*arguments, **options):
        index = original(*arguments, **options)
        entries.extend(put_all(galleries, clustered(5, seed=7), first=300))
        for number in (1, 302):
            galleries.delete_tracklet("g", f"t{number}")
        return index

    monkeypatch.setattr(building, "build", build)
    galleries.maintain()
    assert str(galleries.index_kind("g")) == "IVF4,SQ8"
    assert ids(galleries.search("g", ask(entries[304].descriptor, 1, "f"))) == ["t304"]
    for number in (1, 302):
        assert ids(galleries.search("g", ask(entries[number].descriptor, 1, "f"))) != [f"t{number}"]
    assert galleries.stats("g").tracklet_count == 303


def test_live_queries_are_repeated_exactly_in_idle_time(grown, monkeypatch):
    monkeypatch.setattr(recall, "SHARE", 1.0)
    monkeypatch.setattr(recall, "IDLE_SECONDS", 3600.0)
    galleries = grown("IVF4,SQ8")
    entries = put_all(galleries, clustered(300))
    galleries.maintain()
    assert galleries.recall("g").value is None
    (live_index,) = galleries._live.values()
    live_index.index.effort = 4  # all lists
    queries = clustered(12, seed=4)
    where = TrackletFilter(camera_ids=frozenset({"c1"}))
    for query in queries:
        galleries.search("g", ask(query, 20, "f"))
        galleries.search("g", ask(query, 20, "f", filter=where))
    galleries.delete_tracklet("g", ids(galleries.search("g", ask(queries[0], 1, "f")))[0])
    put_all(galleries, [queries[0]], first=300)  # the nearest of all, but later than the query
    galleries.maintain()
    assert galleries.recall("g").queries == 0  # not idle yet
    monkeypatch.setattr(recall, "IDLE_SECONDS", 0.0)
    galleries.maintain()
    good = galleries.recall("g")
    assert (good.queries, good.value) == (25, 1.0)
    live_index.index.effort = 1
    monkeypatch.setattr(approximate, "MORE_CANDIDATES", -20)  # as many candidates as hits
    for query in clustered(30, seed=5):
        galleries.search("g", ask(query, 20, "f"))
    galleries.maintain()
    worse = galleries.recall("g")
    assert worse.queries == 55
    assert 0.3 < (worse.value or 0.0) < 1.0
    assert len(entries) == 300


def test_a_damaged_gallery_keeps_no_other_from_its_index(grown, monkeypatch, caplog):
    monkeypatch.setattr(recall, "SHARE", 1.0)
    monkeypatch.setattr(recall, "IDLE_SECONDS", 0.0)
    galleries = grown("int8")
    put_all(galleries, clustered(300))
    galleries.maintain()
    galleries.create_gallery("h", "", ModelSpace("f", WIDTH, "squared_euclidean"))
    for number, vector in enumerate(clustered(300, seed=3)):
        galleries.ingest("h", NewTracklet(f"u{number}", "c"), vector, "f", b"")
    galleries.search("g", ask(clustered(1, seed=9)[0], 3, "f"))
    galleries._store.write(
        lambda connection: connection.execute("UPDATE descriptors SET checksum = 1 WHERE vector_id < 9")
    )
    galleries.maintain()
    assert [str(galleries.index_kind(name)) for name in "gh"] == ["SQ8", "SQ8"]
    galleries.maintain()
    assert sum("one gallery is not looked after" in message for message in caplog.messages) == 1


def test_a_store_that_is_busy_for_a_moment_puts_an_end_to_no_index(tmp_path, monkeypatch):
    monkeypatch.setattr(maintenance, "PERIOD", 0.01)
    build, busy = building.build, [UnavailableError("busy", reason="STORE_BUSY")]

    def busy_once(*rest, **options):
        if busy:
            raise busy.pop()
        return build(*rest, **options)

    monkeypatch.setattr(building, "build", busy_once)
    galleries = EmbeddedGalleries(tmp_path, threads=2, index="int8")
    galleries.create_gallery("g", "", ModelSpace("f", WIDTH, "squared_euclidean"))
    put_all(galleries, clustered(300))
    deadline = time.monotonic() + 30
    while str(galleries.index_kind("g")) != "SQ8" and time.monotonic() < deadline:
        time.sleep(0.01)
    kind = str(galleries.index_kind("g"))
    galleries.close()
    assert (kind, busy) == ("SQ8", [])


class _Mob:
    """Threads that add, search and delete, each sure of its own tracklets, while indexes are built and switched."""

    def __init__(self, galleries) -> None:
        self.galleries = galleries
        self.failures: list[BaseException] = []
        self.kept: dict[str, Any] = {}
        self.done = threading.Event()

    def guard(self, work, number):
        try:
            work(number, np.random.default_rng(number))
        except BaseException as error:  # noqa: BLE001 - shown by the test, not by a dying thread
            self.failures.append(error)

    def write(self, number, rng):
        for turn in range(12):
            name, vector = f"w{number}-{turn}", rng.normal(size=WIDTH).astype(np.float32)
            self.galleries.ingest("g", NewTracklet(name, f"c{turn % 3}", identity_id="w"), vector, "f", b"")
            where = TrackletFilter(identity_ids=frozenset({"w"}))
            for query in (ask(vector, 1, "f"), ask(vector, 1, "f", filter=where)):
                hit = self.galleries.search("g", query)[0]  # what was acknowledged is found
                assert (hit.tracklet.tracklet_id, hit.distance) == (name, 0.0)
            if turn % 2:
                self.galleries.delete_tracklet("g", name)
                assert ids(self.galleries.search("g", ask(vector, 1, "f"))) != [name]
            else:
                self.kept[name] = vector

    def search(self, number, rng):
        while not self.done.is_set():
            where = TrackletFilter(camera_ids=frozenset({f"c{number}"}))
            hits = self.galleries.search("g", ask(rng.normal(size=WIDTH), 10, "f", filter=where))
            assert len({hit.tracklet.tracklet_id for hit in hits}) == 10

    def rebuild(self, number, rng):
        while not self.done.is_set():
            for live_index in list(self.galleries._live.values()):
                live_index.kind = IndexKind("turned")  # whatever it is, another one is wanted
            self.galleries.maintain()
            self.done.wait(0.1)


@pytest.mark.parametrize("kind", ["int8", "IVF4,SQ8", "HNSW32"])
def test_adding_searching_deleting_and_switching_at_once(grown, kind):
    galleries = grown(kind)
    put_all(galleries, clustered(300))
    mob = _Mob(galleries)
    writers = [threading.Thread(target=mob.guard, args=(mob.write, n)) for n in range(3)]
    others = [threading.Thread(target=mob.guard, args=(work, n)) for n, work in enumerate([mob.search])]
    others.append(threading.Thread(target=mob.guard, args=(mob.rebuild, 0)))
    for thread in (*writers, *others):
        thread.start()
    for thread in writers:
        thread.join()
    mob.done.set()
    for thread in others:
        thread.join()
    assert mob.failures == []
    assert galleries.stats("g").tracklet_count == 300 + len(mob.kept)
    for name, vector in mob.kept.items():
        assert ids(galleries.search("g", ask(vector, 1, "f"))) == [name]
