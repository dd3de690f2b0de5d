"""Streams whose caller falls silent are ended; a slow caller, and one that waits for its answers, are not."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from passerby.errors import DeadlineExceededError
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import tracklet_service_pb2 as v1
from passerby_client import Client, tracklet_request

from tests.encoders import make_bundle
from tests.server.live import LiveServer, refused, running
from tests.server.pictures import crops, encoded, sequence

IDLE_SECONDS = 2.0
FRAMES = sequence(crops(2))


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that gives silent streams two seconds."""
    bundle, data = make_bundle(tmp_path_factory.mktemp("bundle")), tmp_path_factory.mktemp("data")
    with running(bundle, data, limits={"stream_idle_seconds": IDLE_SECONDS}) as server:
        yield server


def stored(server: LiveServer, gallery: str) -> int:
    return len(server.tracklets.ListTracklets(v1.ListTrackletsRequest(parent=gallery), timeout=20).tracklets)


def header(gallery: str) -> v1.StreamTrackletRequest:
    tracklet = resources.Tracklet(camera_id="1")
    return v1.StreamTrackletRequest(header=v1.StreamTrackletRequest.Header(parent=gallery, tracklet=tracklet))


def item(gallery: str) -> v1.BulkIngestTrackletsRequest:
    request = v1.IngestTrackletRequest(
        parent=gallery, tracklet=resources.Tracklet(camera_id="1"), frames=FRAMES, request_id=str(uuid.uuid4())
    )
    return v1.BulkIngestTrackletsRequest(request=request)


def test_a_tracklet_whose_frames_stop_coming_is_given_up_and_not_stored(hasty: LiveServer) -> None:
    gallery, over = hasty.new_gallery(), threading.Event()

    def half() -> Iterator[v1.StreamTrackletRequest]:
        yield header(gallery)
        yield v1.StreamTrackletRequest(frame=FRAMES.frames[0])
        over.wait(30)

    error = refused(lambda: hasty.tracklets.StreamTracklet(half(), timeout=60))
    over.set()
    assert (type(error), error.reason) == (DeadlineExceededError, "STREAM_IDLE")
    assert "2 s (limits.stream_idle_seconds)" in error.message
    assert stored(hasty, gallery) == 0
    assert hasty.on_loop(lambda: hasty.server.guard.streams) == 0


def test_frames_that_come_slowly_are_stored(hasty: LiveServer) -> None:
    gallery = hasty.new_gallery()

    def slowly() -> Iterator[v1.StreamTrackletRequest]:
        yield header(gallery)
        for _ in range(6):
            time.sleep(0.2 * IDLE_SECONDS)
            yield v1.StreamTrackletRequest(frame=FRAMES.frames[0])

    assert hasty.tracklets.StreamTracklet(slowly(), timeout=60).tracklet.frame_count == 6


def test_a_bulk_stream_is_given_up_once_nothing_is_owed(hasty: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, gate, over = hasty.new_gallery(), threading.Event(), threading.Event()
    backend = type(hasty.server.runtime.loaded.backend)
    encode = backend.encode

    def held(self, snippets):
        assert gate.wait(30)
        return encode(self, snippets)

    def one() -> Iterator[v1.BulkIngestTrackletsRequest]:
        yield item(gallery)
        over.wait(30)

    monkeypatch.setattr(backend, "encode", held)
    answers = hasty.tracklets.BulkIngestTracklets(one(), timeout=60)
    time.sleep(1.5 * IDLE_SECONDS)  # the caller waits for the server, not the other way round
    gate.set()
    assert next(answers).tracklet.frame_count == 2
    error = refused(lambda: next(answers))
    over.set()
    assert (type(error), error.reason) == (DeadlineExceededError, "STREAM_IDLE")
    assert stored(hasty, gallery) == 1


def test_the_client_goes_on_after_a_pause_of_its_source(hasty: LiveServer) -> None:
    gallery = hasty.new_gallery()
    frames = [encoded(image, "PNG") for image in crops(2)]

    def source() -> Iterator[v1.IngestTrackletRequest]:
        for number in range(2):
            time.sleep(1.5 * IDLE_SECONDS * number)
            yield tracklet_request(gallery, frames, camera=str(number))

    with Client(f"127.0.0.1:{hasty.port}") as client:
        results = list(client.bulk_ingest(source()))
    assert [result.tracklet.camera_id for result in results] == ["0", "1"]
    assert stored(hasty, gallery) == 2
