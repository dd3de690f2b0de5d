"""Bulk ingest: bounded, lazy, every tracklet answered once, through broken streams and bad items."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from passerby.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    from_status,
)
from passerby.v1 import tracklet_service_pb2
from passerby_client import Client, tracklet_request

from tests.clients.faulty import Faults

Request = tracklet_service_pb2.IngestTrackletRequest
CROP = np.zeros((8, 4, 3), dtype=np.uint8)


def make(number: int, pixels: np.ndarray = CROP) -> Request:
    return tracklet_request("g", [pixels], camera="1", tracklet_id=f"t{number}", request_id=f"r{number}")


def test_each_item_is_answered_once_with_its_own_status(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.item_errors.append(InvalidArgumentError("broken frame"))
    results = list(client.bulk_ingest(make(i) for i in range(20)))
    assert sorted(result.request_id for result in results) == sorted(f"r{i}" for i in range(20))
    refused = [result for result in results if result.HasField("status")]
    assert [from_status(result.status).message for result in refused] == ["broken frame"]
    assert len(faults.stored) == 19


def test_nothing_in_nothing_out(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    assert list(client.bulk_ingest([])) == []
    assert not faults.seen


def test_an_endless_source_is_taken_lazily_and_bounded(faulty: tuple[Client, Faults]) -> None:
    client, _ = faulty
    taken = itertools.count()
    latest = [0]

    def source() -> Iterator[Request]:
        for number in taken:
            latest[0] = number + 1
            yield make(number)

    results = client.bulk_ingest(source(), max_in_flight=4)
    assert latest[0] == 0
    for consumed in range(1, 30):
        next(results)
        time.sleep(0.002)
        assert latest[0] <= consumed + 4
    results.close()  # type: ignore[attr-defined]


def test_a_server_that_does_not_answer_is_not_flooded(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.hold.clear()
    latest = [0]

    def source() -> Iterator[Request]:
        for number in range(50):
            latest[0] = number + 1
            yield make(number)

    results = client.bulk_ingest(source(), max_in_flight=5)
    threading.Timer(0.5, faults.hold.set).start()
    first = next(results)
    assert first.HasField("tracklet")
    assert latest[0] <= 6
    assert len(list(results)) == 49


def test_requests_that_cross_the_end_of_an_idle_stream_are_sent_again(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.errors["BulkIngestTracklets"].append(DeadlineExceededError("silent", reason="STREAM_IDLE"))
    results = list(client.bulk_ingest(make(i) for i in range(5)))
    assert [result.HasField("tracklet") for result in results] == [True] * 5
    assert len(faults.requests("BulkIngestTracklets")) == 2


def test_a_broken_stream_is_resumed_and_nothing_is_stored_twice(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.break_after = 3
    results = list(client.bulk_ingest((make(i) for i in range(12)), max_in_flight=4))
    assert sorted(result.request_id for result in results) == sorted(f"r{i}" for i in range(12))
    assert all(result.HasField("tracklet") for result in results)
    assert len(faults.stored) == 12
    assert len(faults.requests("BulkIngestTracklets")) == 2
    assert len(faults.requests("item")) > 12


def test_a_stream_that_cannot_be_opened_ends_the_run(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.errors["BulkIngestTracklets"].extend([UnavailableError("down")] * 9)
    with pytest.raises(UnavailableError, match="down"):
        list(client.bulk_ingest([make(0)]))
    assert len(faults.requests("BulkIngestTracklets")) == 4


def test_a_refused_stream_is_not_retried(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.errors["BulkIngestTracklets"].append(UnauthenticatedError("who are you?"))
    with pytest.raises(UnauthenticatedError):
        list(client.bulk_ingest([make(0)]))
    assert len(faults.requests("BulkIngestTracklets")) == 1


def test_an_item_that_a_full_server_puts_off_is_sent_again(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.item_errors.extend([ResourceExhaustedError("full", retry_delay=0.05), UnavailableError("full")])
    results = list(client.bulk_ingest(make(i) for i in range(3)))
    assert all(result.HasField("tracklet") for result in results)
    assert len(faults.requests("item")) == 5


def test_a_tracklet_too_large_for_a_message_is_streamed_on_its_own(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    large = np.zeros((1100, 1100, 3), dtype=np.uint8)
    results = list(client.bulk_ingest([make(0), make(1, large), make(2)]))
    assert {result.request_id: result.tracklet.frame_count for result in results} == {"r0": 1, "r1": 1, "r2": 1}
    assert len(faults.requests("StreamTracklet")) == 0  # 3.5 MiB still fits

    giant = tracklet_request("g", [large, large], camera="1", request_id="giant")
    faults.errors["StreamTracklet"].append(InvalidArgumentError("no"))
    results = list(client.bulk_ingest([make(3), giant]))
    assert {result.request_id: result.WhichOneof("result") for result in results} == {
        "r3": "tracklet",
        "giant": "status",
    }


def test_an_error_of_the_source_arrives_after_the_results_of_what_was_sent(faulty: tuple[Client, Faults]) -> None:
    client, _ = faulty

    def source() -> Iterator[Request]:
        yield make(0)
        yield make(1)
        raise OSError("disk gone")

    results = client.bulk_ingest(source())
    assert {next(results).request_id, next(results).request_id} == {"r0", "r1"}
    with pytest.raises(OSError, match="disk gone"):
        next(results)


def test_silence_ends_the_run(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.hold.clear()
    with pytest.raises(DeadlineExceededError, match="2 tracklets are unanswered"):
        list(client.bulk_ingest([make(0), make(1)], quiet_timeout=1.0))


def test_a_long_tracklet_that_takes_its_time_is_no_silence(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.delay = 1.0
    large = np.zeros((1024, 1024, 3), dtype=np.uint8)
    request = tracklet_request("g", [large, large], camera="1", request_id="large")
    [result] = client.bulk_ingest([request], quiet_timeout=0.2)
    assert result.tracklet.frame_count == 2


def test_a_request_without_an_id_is_given_one_and_a_repeated_id_is_refused(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    anonymous = make(0)
    anonymous.request_id = ""
    (result,) = client.bulk_ingest([anonymous])
    assert len(result.request_id) == 36
    faults.hold.clear()
    with pytest.raises(InvalidArgumentError, match="two tracklets"):
        list(client.bulk_ingest([make(1), make(1)]))


def test_nothing_is_left_behind(faulty: tuple[Client, Faults], left_behind: Callable[[], list[str]]) -> None:
    client, _ = faulty
    results = client.bulk_ingest((make(i) for i in itertools.count()), max_in_flight=3)
    next(results)
    assert left_behind()
    results.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and left_behind():
        time.sleep(0.02)
    assert not left_behind()
