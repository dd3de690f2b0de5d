"""Galleries against a brute-force model of the truth: random histories, filters, groups; and many threads at once."""

from __future__ import annotations

import tempfile
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from passerby.errors import NotFoundError
from passerby_model.rerank import shortlist_rerank
from passerby_server.gallery import index as index_module
from passerby_server.gallery.embedded import open_galleries
from passerby_server.gallery.types import ModelSpace, NewTracklet, Rerank, TrackletFilter, TravelWindow

from tests.server.gallery.brute import Entry, grouped, ranking
from tests.server.gallery.filling import ask, at, ids

D = 3
# A coarse grid: equal distances and identical descriptors are common.
VECTORS = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=D, max_size=D)
CAMERAS, PEOPLE = ["c0", "c1", "c2"], ["", "p0", "p1", "p2", "p3"]
TIMES = st.none() | st.tuples(st.integers(0, 5), st.integers(0, 3)).map(lambda t: (at(t[0]), at(t[0] + t[1])))
TRACKLETS = st.tuples(VECTORS, st.sampled_from(CAMERAS), st.sampled_from(PEOPLE), TIMES, st.sampled_from(["x", "y"]))
TRAVEL = st.builds(
    lambda camera, least, more, start, length: TravelWindow(
        camera, timedelta(minutes=least), timedelta(minutes=least + more), at(start), at(start + length)
    ),
    st.sampled_from(CAMERAS), st.integers(0, 3), st.integers(0, 4), st.integers(0, 6), st.integers(0, 2),
)  # fmt: skip
FILTERS = st.builds(
    TrackletFilter,
    camera_ids=st.sets(st.sampled_from(CAMERAS), max_size=2).map(frozenset),
    exclude_camera_ids=st.sets(st.sampled_from(CAMERAS), max_size=1).map(frozenset),
    start_time=st.none() | st.integers(0, 8).map(at),
    end_time=st.none() | st.integers(0, 8).map(at),
    labels=st.sampled_from([{}, {}, {"k": "x"}]),
    identity_ids=st.sets(st.sampled_from(PEOPLE[1:]), max_size=2).map(frozenset),
    travel=st.just(()) | st.tuples(TRAVEL),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ingest"), TRACKLETS),
        st.tuples(st.just("delete"), st.integers(0, 100)),
        st.tuples(st.just("assign"), st.tuples(st.integers(0, 100), st.sampled_from(PEOPLE))),
    ),
    min_size=8,
    max_size=60,
)


def _apply(galleries, entries: list[Entry], steps) -> None:
    """Runs the steps on the galleries and on the model."""
    for number, (action, value) in enumerate(steps):
        if action == "ingest":
            vector, camera, identity, times, label = value
            start, end = times or (None, None)
            tracklet = NewTracklet(f"t{number}", camera, start, end, identity, {"k": label})
            entries.append(Entry(tracklet, np.array(vector, np.float32)))
            galleries.ingest("g", tracklet, entries[-1].descriptor, "f", b"")
        elif entries and action == "delete":
            galleries.delete_tracklet("g", entries.pop(value % len(entries)).tracklet.tracklet_id)
        elif entries:
            entry = entries[value[0] % len(entries)]
            entry.tracklet = replace(entry.tracklet, identity_id=value[1])
            galleries.assign_identity("g", entry.tracklet.tracklet_id, value[1])


@pytest.fixture(scope="module", params=["squared_euclidean", "cosine"])
def fresh(request):
    """Galleries that are emptied for each example: opening a folder each time would take the longest part."""
    with tempfile.TemporaryDirectory() as folder:
        galleries = open_galleries(Path(folder), threads=2)

        def empty():
            if galleries.list_galleries(1).items:
                galleries.delete_gallery("g", force=True)
            galleries.create_gallery("g", "", ModelSpace("f", D, request.param))
            return galleries, request.param

        yield empty
        galleries.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=STEPS,
    vector=VECTORS,
    where=FILTERS,
    top_k=st.integers(1, 12),
    left_out=st.integers(0, 25),
    shard=st.sampled_from([5, 1000]),
)
def test_search_equals_brute_force(fresh, steps, vector, where, top_k, left_out, shard):
    galleries, metric = fresh()
    entries: list[Entry] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "MIN_SHARD_ROWS", shard)
        patch.setattr(index_module, "SHARD_BYTES", 0)
        galleries.delete_gallery("g", force=True)
        galleries.create_gallery("g", "", ModelSpace("f", D, metric))
        _apply(galleries, entries, steps)
    query = ask(vector, top_k, "f", filter=where, exclude_tracklet_id=f"t{left_out}" if left_out < 20 else "")
    expected = ranking(entries, query, metric)
    hits = galleries.search("g", query)
    assert len(hits) == min(top_k, len(expected))
    np.testing.assert_allclose([hit.distance for hit in hits], [d for _, d in expected[:top_k]], rtol=1e-6, atol=1e-7)
    # Distances that are equal but for the last bit of float64 may stand in either order.
    near = dict(expected)
    np.testing.assert_allclose([near[name] for name in ids(hits)], [d for _, d in expected[:top_k]], rtol=0, atol=1e-7)
    if metric == "squared_euclidean":  # exact on this grid
        assert ids(hits) == [name for name, _ in expected[:top_k]]
        identity_of = {entry.tracklet.tracklet_id: entry.tracklet.identity_id for entry in entries}
        found = galleries.search("g", replace(query, group_by_identity=True))
        groups = [(hit.tracklet.tracklet_id, [s.tracklet_id for s in hit.siblings]) for hit in found]
        assert groups == grouped([name for name, _ in expected], identity_of, top_k)


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
def test_reranked_search_equals_the_method_on_everything(tmp_path, metric):
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(12, 32))
    who = rng.integers(12, size=150)
    vectors = (centres[who] + 0.7 * rng.normal(size=(150, 32))).astype(np.float32)
    galleries = open_galleries(tmp_path)
    galleries.create_gallery("g", "", ModelSpace("f", 32, metric))
    for number, vector in enumerate(vectors):
        galleries.ingest("g", NewTracklet(f"t{number}", "c", identity_id=f"p{who[number]}"), vector, "f", b"")
    query = (centres[0] + 0.7 * rng.normal(size=32)).astype(np.float32)
    expected = shortlist_rerank(query, vectors, metric)
    hits = galleries.search("g", ask(query, 150, "f", rerank=Rerank(shortlist_size=150)))
    by_name = {hit.tracklet.tracklet_id: float(hit.reranked_distance or 0.0) for hit in hits}
    np.testing.assert_allclose([by_name[f"t{n}"] for n in range(150)], expected, rtol=0, atol=1e-5)
    groups = galleries.search("g", ask(query, 12, "f", rerank=Rerank(shortlist_size=150), group_by_identity=True))
    assert {hit.tracklet.identity_id for hit in groups} == {f"p{n}" for n in set(who.tolist())}
    best = {f"p{n}": min(by_name[f"t{m}"] for m in np.flatnonzero(who == n)) for n in set(who.tolist())}
    assert [hit.reranked_distance for hit in groups] == sorted(best.values())
    galleries.close()


class _Mob:
    """Threads that add, search and delete at once, each sure of its own tracklets."""

    def __init__(self, galleries, rounds: int) -> None:
        self.galleries = galleries
        self.rounds = rounds
        self.failures: list[BaseException] = []
        self.kept: dict[str, np.ndarray] = {}
        self.stop = threading.Event()

    def run(self) -> None:
        writers = [threading.Thread(target=self._guard, args=(self._write, n)) for n in range(4)]
        searchers = [threading.Thread(target=self._guard, args=(self._search, n)) for n in range(3)]
        for thread in (*writers, *searchers):
            thread.start()
        for thread in writers:
            thread.join()
        self.stop.set()
        for thread in searchers:
            thread.join()

    def _guard(self, work, number) -> None:
        try:
            work(number, np.random.default_rng(number))
        except BaseException as error:  # noqa: BLE001 - shown by the test, not by a dying thread
            self.failures.append(error)

    def _write(self, number, rng) -> None:
        for turn in range(self.rounds):
            name, vector = f"w{number}-{turn}", rng.normal(size=16).astype(np.float32)
            camera = f"c{turn % 3}"
            self.galleries.ingest("g", NewTracklet(name, camera, identity_id=f"p{turn % 9}"), vector, "f", b"")
            where = TrackletFilter(camera_ids=frozenset({camera}))
            hit = self.galleries.search("g", ask(vector, 1, "f", filter=where))[0]  # what was acknowledged is found
            assert (hit.tracklet.tracklet_id, hit.distance) == (name, 0.0)
            if turn % 2:
                self.galleries.delete_tracklet("g", name)
                with pytest.raises(NotFoundError):
                    self.galleries.get_tracklet("g", name)
                assert ids(self.galleries.search("g", ask(vector, 1, "f"))) != [name]
            else:
                self.kept[name] = vector

    def _search(self, number, rng) -> None:
        while not self.stop.is_set():
            where = TrackletFilter(camera_ids=frozenset({f"c{number}"}))
            query = ask(rng.normal(size=16), 10, "f", filter=where, group_by_identity=bool(number % 2))
            hits = self.galleries.search("g", replace(query, rerank=Rerank(5, 2, 0.3, 20) if number == 2 else None))
            assert len(hits) == (3 if number % 2 else 10)  # 9 people over 3 cameras; 10 tracklets were there before
            assert len({hit.tracklet.tracklet_id for hit in hits}) == len(hits)
            order = [hit.distance if hit.reranked_distance is None else hit.reranked_distance for hit in hits]
            assert order == sorted(order)


def test_adding_searching_and_deleting_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "SHARD_BYTES", 0)
    monkeypatch.setattr(index_module, "MIN_SHARD_ROWS", 16)  # shards come and go all the time
    galleries = open_galleries(tmp_path, threads=2)
    galleries.create_gallery("g", "", ModelSpace("f", 16, "squared_euclidean"))
    for number in range(90):
        vector = np.full(16, 50.0 + number, np.float32)
        tracklet = NewTracklet(f"before{number}", f"c{number % 3}", identity_id=f"p{number % 9}")
        galleries.ingest("g", tracklet, vector, "f", b"")
    mob = _Mob(galleries, rounds=40)
    mob.run()
    assert mob.failures == []
    assert galleries.stats("g").tracklet_count == 90 + len(mob.kept) == 90 + 4 * 20
    for restart in (False, True):
        if restart:
            galleries.close()
            galleries = open_galleries(tmp_path)
        for name, vector in mob.kept.items():
            assert ids(galleries.search("g", ask(vector, 1, "f"))) == [name]
    galleries.close()


def test_a_query_that_is_equally_far_from_everything_copies_no_gallery():
    rows, size = 20_000, 256  # 20 MB
    with ThreadPoolExecutor(1) as pool:
        index = index_module.ExactIndex(size, "cosine", pool)
        index.add(np.arange(rows), np.random.default_rng(0).random((rows, size), np.float32))
        tracemalloc.start()
        try:
            found = index.search(np.zeros(size, np.float32), 3)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert found.ids.tolist() == [0, 1, 2]
    assert found.distances.tolist() == [1.0, 1.0, 1.0]
    assert peak < 10e6
