"""Many callers at once: every answer is its own, overload is refused at once, going away frees the room."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_server.gallery import ledger
from passerby_server.runtime import READ_THREADS, WRITE_THREADS

from tests.encoders import expected_descriptor, make_bundle
from tests.server.live import LiveServer, refused, running
from tests.server.pictures import crops, raw, sequence


def request(count: int, seed: int) -> model_v1.EmbedTrackletRequest:
    frames = resources.FrameSequence(frames=[raw(image) for image in crops(count, seed)])
    return model_v1.EmbedTrackletRequest(frames=frames)


def test_every_caller_gets_its_own_descriptor_although_batches_are_shared(live: LiveServer, monkeypatch) -> None:
    backend = type(live.server.runtime.loaded.backend)
    encode, batches = backend.encode, []

    def slower(self, snippets):
        batches.append(len(snippets))
        time.sleep(0.005)
        return encode(self, snippets)

    monkeypatch.setattr(backend, "encode", slower)

    def one(seed: int) -> float:
        count = 1 + seed % 13
        answer = live.model.EmbedTracklet(request(count, seed), timeout=60).tracklet_descriptor.values
        return float(np.abs(np.array(answer) - expected_descriptor(crops(count, seed))).max())

    with ThreadPoolExecutor(16) as pool:
        worst = max(pool.map(one, range(200)))
    assert worst < 1e-4  # a mix-up is in the order of 1
    assert max(batches) > 4, "requests did not share batches"
    assert len(batches) < sum(-(-(1 + seed % 13) // 4) for seed in range(200))


def test_overload_is_refused_at_once_and_passes(tmp_path: Path, monkeypatch) -> None:
    batching = {"max_queued_snippets": 8, "max_snippets": 2}  # half of it for one client
    with running(make_bundle(tmp_path / "bundle"), tmp_path / "data", batching=batching) as server:
        gate = threading.Event()
        backend = type(server.server.runtime.loaded.backend)
        encode = backend.encode

        def held(self, snippets):
            assert gate.wait(30)
            return encode(self, snippets)

        monkeypatch.setattr(backend, "encode", held)
        waiting = [server.model.EmbedTracklet.future(request(8, seed), timeout=60) for seed in range(2)]
        batcher = server.server.runtime.loaded.encoder.batcher
        while server.on_loop(lambda: batcher.admitted) < 4:
            time.sleep(0.01)
        start = time.monotonic()
        error = refused(lambda: server.model.EmbedTracklet(request(1, 9), timeout=60))
        assert time.monotonic() - start < 2
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        assert error.retry_delay is not None
        gate.set()
        for seed, call in enumerate(waiting):
            np.testing.assert_allclose(
                call.result().tracklet_descriptor.values, expected_descriptor(crops(8, seed)), atol=1e-5
            )
        server.model.EmbedTracklet(request(1, 9), timeout=60)


def test_streams_together_hold_half_of_the_room_until_they_are_encoded(tmp_path: Path, monkeypatch) -> None:
    batching = {"max_queued_snippets": 8, "max_snippets": 2}
    with running(make_bundle(tmp_path / "bundle"), tmp_path / "data", batching=batching) as server:
        gate, submitted = threading.Event(), []
        loaded = server.server.runtime.loaded
        backend, batcher = type(loaded.backend), loaded.encoder.batcher
        encode, submit = backend.encode, batcher.submit

        def held(self, snippets):
            assert gate.wait(30)
            return encode(self, snippets)

        def counted(snippets, **options):
            submitted.append(len(snippets))
            return submit(snippets, **options)

        monkeypatch.setattr(backend, "encode", held)
        monkeypatch.setattr(batcher, "submit", counted)
        gallery = server.new_gallery()

        def messages():
            header = tracklet_v1.StreamTrackletRequest.Header(parent=gallery)
            header.tracklet.camera_id = "1"
            yield tracklet_v1.StreamTrackletRequest(header=header)
            yield from (tracklet_v1.StreamTrackletRequest(frame=raw(crop)) for crop in crops(25))

        calls = [server.tracklets.StreamTracklet.future(messages(), timeout=60) for _ in range(4)]
        until = time.monotonic() + 20
        while sum(submitted) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.5)
        assert sum(submitted) == server.on_loop(lambda: batcher.admitted) == 4
        gate.set()
        assert {call.result().tracklet.frame_count for call in calls} == {25}
        assert sum(submitted) == 4 * 7
        assert server.on_loop(lambda: batcher.admitted) == 0


def test_a_call_that_would_come_too_late_is_refused_at_once(tmp_path: Path, monkeypatch) -> None:
    with running(make_bundle(tmp_path / "bundle"), tmp_path / "data") as server:
        gate = threading.Event()
        backend = type(server.server.runtime.loaded.backend)
        encode = backend.encode

        def held(self, snippets):
            assert gate.wait(30)
            return encode(self, snippets)

        batcher = server.server.runtime.loaded.encoder.batcher
        monkeypatch.setattr(backend, "encode", held)
        waiting = server.model.EmbedTracklet.future(request(8, 0), timeout=60)
        while server.on_loop(lambda: batcher.admitted) < 2:
            time.sleep(0.01)
        server.on_loop(lambda: setattr(batcher._room, "seconds_a_snippet", 10.0))  # as if the encoder were that slow
        error = refused(lambda: server.model.EmbedTracklet(request(8, 1), timeout=15))
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_TOO_LONG")
        late = server.model.EmbedTracklet.future(request(8, 1), timeout=60)
        gate.set()
        assert waiting.result().snippet_count == late.result().snippet_count == 2


def test_expired_and_cancelled_calls_free_their_room_and_are_not_computed(live: LiveServer, monkeypatch) -> None:
    backend, gate, sizes = type(live.server.runtime.loaded.backend), threading.Event(), []
    encode = backend.encode

    def held(self, snippets):
        sizes.append(len(snippets))
        assert gate.wait(30)
        return encode(self, snippets)

    monkeypatch.setattr(backend, "encode", held)
    batcher = live.server.runtime.loaded.encoder.batcher
    first = live.model.EmbedTracklet.future(request(4, 0), timeout=60)
    while not sizes:
        time.sleep(0.01)
    late = live.model.EmbedTracklet.future(request(4, 1), timeout=0.3)
    gone = live.model.EmbedTracklet.future(request(4, 2), timeout=60)
    while live.on_loop(lambda: batcher.waiting) < 2:
        time.sleep(0.01)
    gone.cancel()
    assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    while live.on_loop(lambda: batcher.admitted) > 1:
        time.sleep(0.01)
    gate.set()
    assert first.result().snippet_count == 1
    live.model.EmbedTracklet(request(4, 3), timeout=20)
    assert sizes == [1, 1]


def test_calls_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    limits = {"max_streams": 1}
    with running(make_bundle(tmp_path / "bundle"), tmp_path / "data", limits=limits) as server:
        done = threading.Event()

        def endless():
            done.wait(30)
            yield from ()

        open_stream = server.tracklets.BulkIngestTracklets(endless(), timeout=60)
        guard = server.server.guard
        while server.on_loop(lambda: guard.streams) < 1:
            time.sleep(0.01)
        error = refused(lambda: list(server.tracklets.BulkIngestTracklets(iter(()), timeout=20)))
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS")
        server.new_gallery()  # other calls go on
        done.set()
        assert list(open_stream) == []
        assert list(server.tracklets.BulkIngestTracklets(iter(()), timeout=20)) == []


def test_a_short_tracklet_overtakes_a_long_one(live: LiveServer, monkeypatch) -> None:
    backend = type(live.server.runtime.loaded.backend)
    encode = backend.encode

    def slower(self, snippets):
        time.sleep(0.02)
        return encode(self, snippets)

    monkeypatch.setattr(backend, "encode", slower)
    long = live.model.EmbedTracklet.future(
        model_v1.EmbedTrackletRequest(frames=sequence(crops(800, height=8, width=8))), timeout=60
    )
    time.sleep(0.2)
    start = time.monotonic()
    live.model.EmbedTracklet(request(1, 0), timeout=60)
    took = time.monotonic() - start
    assert not long.done()
    assert took < 1
    assert long.result().snippet_count == 200


def test_a_long_delete_with_writes_behind_it_holds_up_no_search(live: LiveServer, monkeypatch) -> None:
    kept, doomed = live.new_gallery(), live.new_gallery()
    for gallery in (kept, doomed):
        live.ingest(gallery, sequence(crops(4)))
    deleting, gate, forget = threading.Event(), threading.Event(), ledger.forget_gallery

    def slowly(*arguments) -> None:
        deleting.set()
        assert gate.wait(60)
        forget(*arguments)

    monkeypatch.setattr(ledger, "forget_gallery", slowly)
    request = gallery_v1.DeleteGalleryRequest(name=doomed, force=True)
    delete = live.galleries.DeleteGallery.future(request, timeout=60)
    assert deleting.wait(20)
    names = [f"{kept.removeprefix('galleries/')}-{number}" for number in range(READ_THREADS + WRITE_THREADS)]
    writes = [
        live.galleries.CreateGallery.future(gallery_v1.CreateGalleryRequest(gallery_id=name), timeout=60)
        for name in names
    ]
    while live.on_loop(lambda: live.server.guard.calls) < 1 + len(writes):
        time.sleep(0.01)
    search = search_v1.SearchTrackletsRequest(parent=kept, frames=sequence(crops(4)), top_k=3)
    assert [len(live.search.SearchTracklets(search, timeout=20).hits) for _ in range(3)] == [1, 1, 1]
    assert not delete.done()
    assert not any(write.done() for write in writes)
    gate.set()
    assert delete.result().deleted_tracklet_count == 1
    assert [write.result().gallery.name for write in writes] == [f"galleries/{name}" for name in names]
