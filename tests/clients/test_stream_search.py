"""A search with a track that still grows, by both kinds of client, against a real server."""

from __future__ import annotations

import inspect
import itertools
import queue
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from passerby.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from passerby.v1 import resources_pb2
from passerby_client import Client, RetryPolicy, tracklet_header
from passerby_client._requests import SearchOptions

from tests.clients.conftest import MakeClient

SNIPPET = 4
TEN = datetime(2026, 11, 21, 10, tzinfo=UTC)


def noise(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 32, 16, 3), dtype=np.uint8))


@pytest.fixture
def crowd(client: Client, gallery: str) -> str:
    """A gallery of twelve tracklets that all differ."""
    for number in range(12):
        client.ingest_tracklet(gallery, noise(5, seed=number), camera=str(number % 3), tracklet_id=f"t{number}")
    return gallery


def paced(frames: list[np.ndarray], answers: queue.SimpleQueue[Any]) -> Iterator[np.ndarray]:
    """The frames, those after each snippet only once the snippet before has been answered."""
    for number, frame in enumerate(frames):
        if number and number % SNIPPET == 0:
            answers.get(timeout=20)
        yield frame


@pytest.mark.parametrize("count", [1, 4, 11, 40], ids=lambda count: f"{count}-frames")
@pytest.mark.parametrize(
    "options",
    [{}, {"rerank": True}, {"group_by_identity": True, "top_k": 3}, {"cameras": ["1"], "thumbnails": True}],
    ids=lambda options: "+".join(options) or "plain",
)
def test_the_last_answer_is_that_of_a_search_with_all_frames(
    client: Client, crowd: str, count: int, options: dict[str, Any]
) -> None:
    frames = noise(count, seed=3)
    answers = list(client.stream_search(crowd, iter(frames), **options))
    assert [answer.last for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert answers[-1].search == client.search(crowd, frames=frames, **options)
    assert answers[-1].frame_count == count


def test_each_snippet_is_answered_with_the_mean_so_far_while_the_track_grows(client: Client, crowd: str) -> None:
    frames, answered = noise(18, seed=3), queue.SimpleQueue[Any]()
    counts = []
    for answer in client.stream_search(crowd, paced(frames, answered), top_k=12):
        counts.append(answer.frame_count)
        assert answer.search == client.search(crowd, frames=frames[: answer.frame_count], top_k=12)
        answered.put(None)
    assert counts == [4, 8, 12, 16, 18]


def test_answers_come_after_so_many_frames_or_so_much_time(client: Client, crowd: str) -> None:
    def counts(**pace: Any) -> list[int]:
        answered = queue.SimpleQueue[Any]()
        for _ in range(20):
            answered.put(None)  # frames come as fast as they can be sent
        return [a.frame_count for a in client.stream_search(crowd, paced(noise(40), answered), **pace)]

    sparse = counts(answer_frames=16)
    assert sparse[-1] == 40
    assert all(later - earlier >= 16 for earlier, later in itertools.pairwise(sparse[:-1]))
    assert len(counts(answer_interval=timedelta(hours=1))) == 2  # the first and the last


def test_the_track_is_stored_in_the_end_under_its_id_and_only_once(client: Client, crowd: str) -> None:
    header = tracklet_header(camera="7", tracklet_id="grown", identity="ann", labels={"coat": "red"})
    timed = [(frame, TEN + timedelta(seconds=i)) for i, frame in enumerate(noise(10, seed=99))]
    answers = list(client.stream_search(crowd, timed, ingest=header))
    assert not any(answer.HasField("tracklet") for answer in answers[:-1])
    stored = answers[-1].tracklet
    assert (stored.name.rpartition("/")[2], stored.frame_count, stored.identity_id) == ("grown", 10, "ann")
    assert stored.start_time.ToDatetime(tzinfo=UTC) == TEN
    assert stored.end_time.ToDatetime(tzinfo=UTC) == TEN + timedelta(seconds=9)
    assert "grown" not in [hit.tracklet.name.rpartition("/")[2] for hit in answers[-1].search.hits]  # searched before
    descriptor = client.get_tracklet(stored.name, descriptor=True).tracklet_descriptor
    assert descriptor == client.embed([frame for frame, _ in timed]).tracklet_descriptor
    *_, again = client.stream_search(crowd, timed, ingest=header)
    assert again.tracklet == stored
    assert client.gallery_stats(crowd).tracklet_count == 13
    with pytest.raises(AlreadyExistsError):
        list(client.stream_search(crowd, timed, ingest=tracklet_header(camera="7", tracklet_id="grown")))


def test_travel_windows_use_the_times_of_the_frames(client: Client, people: str) -> None:
    # bob was seen at 10:01 by camera 1 and at 10:02 by camera 2, each for 5 s.
    timed = [(frame, TEN + timedelta(minutes=5, seconds=i)) for i, frame in enumerate(noise(6))]
    near = {"1": (timedelta(0), timedelta(minutes=4)), "2": (timedelta(0), timedelta(minutes=4))}
    *_, last = client.stream_search(people, timed, travel_windows=near)
    assert {hit.tracklet.name.rpartition("/")[2] for hit in last.search.hits} == {"bob-1", "bob-2"}
    with pytest.raises(InvalidArgumentError, match=r"header\.search\.travel_windows: need query_start_time"):
        list(client.stream_search(people, noise(6), travel_windows=near))


def test_a_track_that_is_given_up_is_not_stored(client: Client, crowd: str) -> None:
    answered = queue.SimpleQueue[Any]()
    answers = client.stream_search(crowd, paced(noise(20), answered), ingest=tracklet_header(camera="1"))
    assert next(answers).frame_count == SNIPPET
    answers.close()  # type: ignore[attr-defined]
    answered.put(None)
    assert client.gallery_stats(crowd).tracklet_count == 12


def test_an_error_of_the_source_is_raised_and_nothing_stored(client: Client, crowd: str) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from noise(6)
        raise OSError("camera gone")

    with pytest.raises(OSError, match="camera gone"):
        list(client.stream_search(crowd, source(), ingest=tracklet_header(camera="1")))
    assert client.gallery_stats(crowd).tracklet_count == 12
    with pytest.raises(InvalidArgumentError, match=r"frame: .*uint8"):
        list(client.stream_search(crowd, [np.zeros((4, 4), np.uint8)]))


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"top_k": 0}, InvalidArgumentError, r"header\.search\.top_k: 0 is not between"),
        ({"answer_frames": 0}, InvalidArgumentError, r"header\.answer_frames"),
        ({"answer_interval": timedelta(seconds=-1)}, InvalidArgumentError, r"header\.answer_interval"),
        ({"exclude_query_camera": True}, InvalidArgumentError, r"header\.search\.query_camera_id"),
        ({"ingest": tracklet_header(camera="")}, InvalidArgumentError, r"header\.ingest\.tracklet\.camera_id"),
        ({"false_match_rate": 0.01}, FailedPreconditionError, "calibration"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_said_at_its_place(
    client: Client, crowd: str, options: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        list(client.stream_search(crowd, noise(4), **options))


def test_no_frames_no_gallery_no_server(client: Client, gallery: str, make_client: MakeClient) -> None:
    with pytest.raises(InvalidArgumentError, match="no frames"):
        list(client.stream_search(gallery, []))
    with pytest.raises(NotFoundError):
        list(client.stream_search("there-is-none", noise(4)))
    with (
        make_client("127.0.0.1:1", retry=RetryPolicy(attempts=1)) as lost,
        pytest.raises(UnavailableError, match="start one with `passerby serve`"),
    ):
        list(lost.stream_search("g", noise(4)))


def test_frames_that_cannot_be_read_end_the_stream(client: Client, gallery: str) -> None:
    frames: list[Any] = [*noise(5), resources_pb2.Frame(encoded=b"no image")]
    with pytest.raises(InvalidArgumentError, match=r"frame\[5\]"):
        list(client.stream_search(gallery, frames))


def test_a_closed_client_says_so_at_once(make_client: MakeClient, address: str) -> None:
    with make_client(address) as closed:
        pass
    with pytest.raises(FailedPreconditionError, match="client is closed"):
        closed.stream_search("g", noise(4))


def test_it_takes_the_options_of_search() -> None:
    other = {"self", "gallery", "frames", "descriptor", "tracklet", "timeout"}
    assert set(inspect.signature(Client.search).parameters) - other == set(SearchOptions.__annotations__)
