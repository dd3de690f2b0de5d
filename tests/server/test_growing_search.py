"""Streams of growing tracks: their limits, silence, shutdown, order, and what stays in memory."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from passerby.errors import DeadlineExceededError, InvalidArgumentError, ResourceExhaustedError, UnavailableError
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as v1
from passerby_server import growing

from tests.server.live import LiveServer, refused, running
from tests.server.pictures import crops, raw, sequence

Request = v1.StreamSearchTrackletsRequest
FRAMES = [raw(crop) for crop in crops(12)]


def header(gallery: str, **options: object) -> Request:
    search = v1.SearchTrackletsRequest(parent=gallery)
    return Request(header=Request.Header(search=search, **options))  # type: ignore[arg-type]


def stream(gallery: str, frames: list[resources.Frame]) -> list[Request]:
    return [header(gallery), *(Request(frame=frame) for frame in frames)]


def waiting(messages: list[Request], over: threading.Event) -> Iterator[Request]:
    """The messages, and then silence until the test is over."""
    yield from messages
    over.wait(30)


@pytest.fixture
def over() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([Request(frame=FRAMES[0])], "header"),
        ([Request()], "header"),
        ([header("g"), header("g")], "frame"),
        ([header("g"), Request()], "frame"),
    ],
    ids=["no-header", "nothing", "two-headers", "empty"],
)
def test_messages_out_of_order(live: LiveServer, gallery: str, messages: list[Request], field: str) -> None:
    for message in messages:
        if message.WhichOneof("payload") == "header":
            message.header.search.parent = gallery
    error = refused(lambda: list(live.search.StreamSearchTracklets(iter(messages), timeout=20)))
    assert (type(error), error.reason) == (InvalidArgumentError, "STREAM_ORDER")
    assert [violation.field for violation in error.violations] == [field]


def test_a_query_in_the_header_is_refused(live: LiveServer, gallery: str) -> None:
    first = header(gallery)
    first.header.search.tracklet = f"{gallery}/tracklets/t"
    error = refused(lambda: list(live.search.StreamSearchTracklets(iter([first]), timeout=20)))
    assert error.reason == "QUERY_TWICE"
    assert [violation.field for violation in error.violations] == ["header.search.tracklet"]


def test_the_gallery_of_the_ingest_is_that_of_the_search(live: LiveServer, gallery: str) -> None:
    first = header(gallery)
    first.header.ingest.parent = live.new_gallery()
    first.header.ingest.tracklet.camera_id = "1"
    error = refused(lambda: list(live.search.StreamSearchTracklets(iter([first]), timeout=20)))
    assert [violation.field for violation in error.violations] == ["header.ingest.parent"]


def test_a_track_whose_frames_stop_coming_is_given_up(bundle: Path, tmp_path: Path, over: threading.Event) -> None:
    with running(bundle, tmp_path / "data", limits={"stream_idle_seconds": 1.0, "max_frames": 8}) as hasty:
        gallery = hasty.new_gallery()
        call = hasty.search.StreamSearchTracklets(waiting(stream(gallery, FRAMES[:5]), over), timeout=60)
        assert next(call).frame_count == 4  # answered at once; the fifth waits for its snippet
        error = refused(lambda: next(call))
        assert (type(error), error.reason) == (DeadlineExceededError, "STREAM_IDLE")
        assert hasty.on_loop(lambda: hasty.server.guard.streams) == 0
        too_long = refused(lambda: list(hasty.search.StreamSearchTracklets(iter(stream(gallery, FRAMES)), timeout=20)))
        assert too_long.reason == "TOO_MANY_FRAMES"


def test_a_frame_above_the_message_limit_is_refused(bundle: Path, tmp_path: Path) -> None:
    large = raw(crops(1, height=256, width=128)[0])  # 96 KiB
    with running(
        bundle, tmp_path / "data", limits={"max_message_bytes": 64 * 1024, "max_frame_bytes": 64 * 1024}
    ) as server:
        messages = stream(server.new_gallery(), [*FRAMES[:4], large])
        error = refused(lambda: list(server.search.StreamSearchTracklets(iter(messages), timeout=20)))
    assert (type(error), error.reason) == (ResourceExhaustedError, "MESSAGE_TOO_LARGE")


def test_a_stream_is_sent_away_when_the_server_drains(bundle: Path, tmp_path: Path, over: threading.Event) -> None:
    with running(bundle, tmp_path / "data") as server:
        messages = waiting(stream(server.new_gallery(), FRAMES[:4]), over)
        call = server.search.StreamSearchTracklets(messages, timeout=60)
        assert next(call).frame_count == 4
        server.on_loop(server.server.stop)
        error = refused(lambda: next(call))
        assert (type(error), error.reason) == (UnavailableError, "SHUTTING_DOWN")


def test_streams_are_counted_and_a_caller_that_goes_away_frees_its_place(
    bundle: Path, tmp_path: Path, over: threading.Event
) -> None:
    with running(bundle, tmp_path / "data", limits={"max_streams": 1}) as server:
        gallery = server.new_gallery()
        call = server.search.StreamSearchTracklets(waiting(stream(gallery, FRAMES[:4]), over), timeout=60)
        next(call)
        error = refused(lambda: list(server.search.StreamSearchTracklets(iter(stream(gallery, FRAMES)), timeout=20)))
        assert isinstance(error, ResourceExhaustedError)
        call.cancel()
        deadline = time.monotonic() + 20
        while server.on_loop(lambda: server.server.guard.streams) and time.monotonic() < deadline:
            time.sleep(0.02)
        *_, last = server.search.StreamSearchTracklets(iter(stream(gallery, FRAMES)), timeout=20)
        assert last.last


def test_a_caller_that_does_not_read_is_not_read_from_for_ever(
    live: LiveServer, gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an answer is being made, at most a batch of frames, or so many bytes, is read ahead."""
    live.ingest(gallery, sequence(crops(2)))
    searching, go_on = threading.Event(), threading.Event()
    galleries = type(live.server.runtime.loaded.galleries)
    search = galleries.search

    def held(*args, **kwargs):
        searching.set()
        go_on.wait(30)
        return search(*args, **kwargs)

    monkeypatch.setattr(galleries, "search", held)
    monkeypatch.setattr(growing, "_AHEAD_BYTES", 64 * 1024)
    held_back: list[int] = []

    class Watched(growing._Reader):
        async def _read_ahead(self) -> None:
            readers.append(self)
            await super()._read_ahead()

    readers: list[growing._Reader] = []
    monkeypatch.setattr(growing, "_Reader", Watched)
    large = [raw(crop) for crop in crops(4, height=128, width=64)] * 20  # 24 KiB each, 80 of them
    answers: queue.SimpleQueue[v1.StreamSearchTrackletsResponse] = queue.SimpleQueue()

    def read() -> None:
        for answer in live.search.StreamSearchTracklets(iter(stream(gallery, large)), timeout=60):
            answers.put(answer)

    thread = threading.Thread(target=read)
    thread.start()
    assert searching.wait(20)
    time.sleep(0.5)  # in which all 80 would be read
    held_back.append(readers[0]._read.qsize())
    assert live.on_loop(lambda: readers[0]._bytes) < 64 * 1024 + 2 * 24 * 1024 + 1024
    go_on.set()
    thread.join(30)
    assert 0 < held_back[0] <= 4
    found = [answers.get_nowait() for _ in range(answers.qsize())]
    assert (found[-1].last, found[-1].frame_count) == (True, 80)


def test_frames_that_come_faster_than_answers_are_taken_together(
    live: LiveServer, gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    galleries = type(live.server.runtime.loaded.galleries)
    search = galleries.search

    def slow(*args, **kwargs):
        time.sleep(0.1)
        return search(*args, **kwargs)

    monkeypatch.setattr(galleries, "search", slow)
    messages = stream(gallery, FRAMES * 4)
    counts = [answer.frame_count for answer in live.search.StreamSearchTracklets(iter(messages), timeout=60)]
    assert counts[-1] == 48
    assert len(counts) < 12  # of twelve snippets


def test_a_deadline_ends_the_stream(live: LiveServer, gallery: str, over: threading.Event) -> None:
    call = live.search.StreamSearchTracklets(waiting(stream(gallery, FRAMES[:4]), over), timeout=0.7)
    next(call)
    with pytest.raises(grpc.RpcError) as ended:
        next(call)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_many_streams_that_are_cancelled_leave_nothing_behind(
    live: LiveServer, gallery: str, over: threading.Event
) -> None:
    for _ in range(4):
        calls = [
            live.search.StreamSearchTracklets(waiting(stream(gallery, FRAMES[: count + 1]), over), timeout=60)
            for count in range(8)
        ]
        for call in calls:
            call.cancel()
    deadline = time.monotonic() + 20
    while live.on_loop(lambda: live.server.guard.streams) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert live.on_loop(lambda: live.server.guard.streams) == 0
    *_, last = live.search.StreamSearchTracklets(iter(stream(gallery, FRAMES)), timeout=20)
    assert (last.last, last.frame_count) == (True, 12)
    assert live.on_loop(lambda: live.server.runtime.loaded.encoder.batcher.admitted) == 0
