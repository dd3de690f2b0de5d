"""Travel windows and the time budget of re-ranking, over gRPC and on galleries."""

from __future__ import annotations

import time
from datetime import timedelta

import numpy as np
import pytest
from passerby.errors import InvalidArgumentError
from passerby.names import tracklet_name
from passerby.v1 import search_service_pb2 as search_v1
from passerby_model import neighbours
from passerby_model import rerank as rerank_module
from passerby_model.rerank import k_reciprocal, shortlist_rerank
from passerby_server import convert
from passerby_server.gallery.embedded import open_galleries
from passerby_server.gallery.pace import LateError, Pace
from passerby_server.gallery.types import ModelSpace, NewTracklet, Rerank
from passerby_server.sections import Limits

from tests.server.gallery.filling import ask, at, ids

LIMITS = Limits()


def window(camera="c2", least=0.0, most=60.0):
    made = search_v1.TravelWindow(camera_id=camera)
    made.min_time.FromNanoseconds(int(least * 1e9))
    made.max_time.FromNanoseconds(int(most * 1e9))
    return made


def timed(*windows, start=0, end=1):
    request = search_v1.SearchTrackletsRequest(travel_windows=windows)
    request.query_start_time.FromDatetime(at(start))
    request.query_end_time.FromDatetime(at(end))
    return request


def test_windows_are_about_the_querys_time():
    request = timed(window("c2", 30, 90), window("c3"))
    first, second = convert.travel_windows(request, convert.query_times(request), LIMITS)
    assert (first.camera_id, first.shortest.total_seconds(), first.longest.total_seconds()) == ("c2", 30.0, 90.0)
    assert (second.start_time, second.end_time) == (at(0), at(1))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (search_v1.SearchTrackletsRequest(travel_windows=[window()]), "travel_windows"),
        (timed(window("")), "travel_windows[0].camera_id"),
        (timed(window(least=61)), "travel_windows[0].max_time"),
        (timed(window(least=-1)), "travel_windows[0].max_time"),
        (timed(search_v1.TravelWindow(camera_id="c")), "travel_windows[0].max_time"),
        (timed(window(), window()), "travel_windows"),
        (timed(window(), start=2, end=1), "query_end_time"),
    ],
    ids=["no-time", "no-camera", "least-above-most", "negative", "no-most", "twice", "ends-before-it-starts"],
)
def test_impossible_windows_are_refused(request_, field):
    with pytest.raises(InvalidArgumentError) as caught:
        convert.travel_windows(request_, convert.query_times(request_), LIMITS)
    assert field in [violation.field for violation in caught.value.violations]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """60 tracklets of 8 values in a gallery, and their descriptors."""
    galleries = open_galleries(tmp_path_factory.mktemp("crowd"), threads=1)
    galleries.create_gallery("g", "", ModelSpace("f", 8, "squared_euclidean"))
    vectors = np.random.default_rng(3).standard_normal((60, 8), np.float32)
    for number, vector in enumerate(vectors):
        galleries.ingest("g", NewTracklet(f"t{number}", "c"), vector, "f", b"")
    yield galleries, vectors
    galleries.close()


def test_late_reranking_is_left_out_and_the_plain_order_comes(crowd):
    galleries, vectors = crowd
    plain = galleries.search("g", ask(vectors[0], 10, "f"))
    late = galleries.search("g", ask(vectors[0], 10, "f", rerank=Rerank(shortlist_size=60, budget=1e-9)))
    assert late == plain
    in_time = galleries.search("g", ask(vectors[0], 60, "f", rerank=Rerank(shortlist_size=60, budget=60.0)))
    assert all(hit.reranked_distance is not None for hit in in_time)


def test_reranking_gives_up_between_two_steps(crowd, monkeypatch):
    galleries, vectors = crowd
    original = neighbours.nearest_columns

    def slow(*arguments):
        time.sleep(0.3)
        return original(*arguments)

    monkeypatch.setattr(rerank_module, "nearest_columns", slow)
    monkeypatch.setattr(rerank_module, "_encode", None)  # never reached
    query = ask(vectors[0], 10, "f", rerank=Rerank(shortlist_size=60, budget=0.2))
    assert ids(galleries.search("g", query)) == ids(galleries.search("g", ask(vectors[0], 10, "f")))


def test_a_shortlist_of_everything_is_the_full_method_of_that_query(crowd):
    galleries, vectors = crowd
    query = vectors[7] + np.float32(0.1)
    hits = galleries.search("g", ask(query, 60, "f", rerank=Rerank(shortlist_size=60, budget=60.0)))
    difference = vectors[:, None, :] - vectors[None, :, :]
    within = np.sqrt((difference**2).sum(axis=2))
    across = np.sqrt(((vectors - query) ** 2).sum(axis=1))[None, :]
    full = k_reciprocal(across, np.zeros((1, 1), np.float32), within)[0]
    by_name = {hit.tracklet.tracklet_id: hit.reranked_distance for hit in hits}
    np.testing.assert_allclose([by_name[f"t{n}"] for n in range(60)], full, rtol=0, atol=1e-5)


def test_pace_is_learned_and_one_slow_moment_is_forgotten():
    def slow(check):
        time.sleep(0.05)
        check()

    pace = Pace()
    assert pace.within(10.0, 100, lambda check: "done") == "done"
    with pytest.raises(LateError):
        pace.within(0.02, 100, slow)
    skipped = 0
    while pace.expected(100) > 0.002:
        with pytest.raises(LateError):
            pace.within(0.002, 100, lambda check: check())
        skipped += 1
    assert 0 < skipped < 60
    assert pace.within(0.002 + 10.0, 100, lambda check: 5) == 5


def test_check_is_called_between_the_steps_of_reranking():
    calls = []
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((30, 8), np.float32)
    with_check = shortlist_rerank(rows[0], rows[1:], check=lambda: calls.append(1))
    assert len(calls) >= 3
    np.testing.assert_array_equal(with_check, shortlist_rerank(rows[0], rows[1:]))


def test_over_grpc_the_answer_says_what_was_left_out(client):
    gallery = "search-options"
    client.create_gallery(gallery)
    for number in range(3):
        frames = [np.full((64, 32, 3), 40 * number, np.uint8)] * 2
        seen = {"start_time": at(5 * number), "end_time": at(5 * number + 1)}
        client.ingest_tracklet(gallery, frames, camera=f"c{number}", tracklet_id=f"t{number}", **seen)
    name = tracklet_name(gallery, "t0")
    options = search_v1.RerankOptions(k1=2, k2=1)
    options.time_budget.FromNanoseconds(1)
    answer = client.search(gallery, tracklet=name, rerank=options)
    assert (answer.reranked, answer.rerank_skipped, len(answer.hits)) == (False, True, 2)
    options.time_budget.FromSeconds(60)
    answer = client.search(gallery, tracklet=name, rerank=options)
    assert (answer.reranked, answer.rerank_skipped) == (True, False)
    # t1 begins 4 minutes after the query's end, t2 9 minutes: only the window of c1 leaves that out.
    windows = {"c1": (timedelta(), timedelta(minutes=3)), "c2": (timedelta(minutes=9), timedelta(minutes=10))}
    answer = client.search(gallery, tracklet=name, travel_windows=windows)
    assert [hit.tracklet.name for hit in answer.hits] == [tracklet_name(gallery, "t2")]
    query = client.embed([np.zeros((64, 32, 3), np.uint8)] * 2).tracklet_descriptor
    with pytest.raises(InvalidArgumentError, match="query_start_time"):
        client.search(gallery, descriptor=query, travel_windows=windows)
    answer = client.search(gallery, descriptor=query, travel_windows=windows, query_time=(at(0), at(1)))
    assert {hit.tracklet.name for hit in answer.hits} == {tracklet_name(gallery, "t0"), tracklet_name(gallery, "t2")}
