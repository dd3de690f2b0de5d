"""Connections that are slow, silent, idle, too many or too eager; streams whose caller does not read.

The long form of the connects: TEST_CONNECTS=10000 (1,000 without it).
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from passerby.errors import from_rpc_error
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby.v1 import tracklet_service_pb2_grpc as tracklet_grpc

from tests.encoders import make_bundle
from tests.faults.test_encoder_faults import until
from tests.server.live import LiveServer, refused, running
from tests.server.pictures import crops, raw, sequence
from tests.server.process import serving

CONNECTS = int(os.environ.get("TEST_CONNECTS", "1000"))
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PING = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8)
SMALL = gallery_v1.ListGalleriesRequest()


def connected(port: int, greeting: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(greeting)
    return connection


def closed(connection: socket.socket, seconds: float) -> bool:
    """Whether the server closes the connection within `seconds`; what it sends before is read away."""
    with connection:
        return _closed(connection, seconds)


def _closed(connection: socket.socket, seconds: float) -> bool:
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            connection.settimeout(max(0.01, end - time.monotonic()))
            if not connection.recv(65536):
                return True
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return False


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with short times for everything."""
    connections = {"handshake_seconds": 1, "idle_seconds": 3, "keepalive_seconds": 1, "keepalive_timeout_seconds": 1}
    root = tmp_path_factory.mktemp("strict")
    limits = {"stream_idle_seconds": 1.0, "max_streams_per_client": 2, "max_requests_per_client": 8}
    with running(make_bundle(root / "bundle"), root / "data", connections=connections, limits=limits) as server:
        yield server


def test_who_connects_and_says_nothing_is_disconnected(strict: LiveServer) -> None:
    silent, dripping = connected(strict.port), connected(strict.port)
    for byte in PREFACE[:4]:
        dripping.send(bytes([byte]))
        time.sleep(0.1)
    assert closed(silent, 10)
    assert closed(dripping, 10)


def test_a_connection_that_answers_no_ping_is_closed(strict: LiveServer) -> None:
    assert closed(connected(strict.port, PREFACE), 15)


def test_a_connection_without_calls_is_closed_and_opened_again_when_needed(strict: LiveServer) -> None:
    channel = grpc.insecure_channel(f"127.0.0.1:{strict.port}")
    call: Any = channel.unary_unary("/passerby.v1.GalleryService/ListGalleries")
    call(b"", timeout=10)
    states: list[grpc.ChannelConnectivity] = []
    channel.subscribe(states.append)
    until(lambda: grpc.ChannelConnectivity.IDLE in states, 15)
    call(b"", timeout=10)
    channel.close()


def test_who_pings_too_often_is_disconnected(strict: LiveServer) -> None:
    with connected(strict.port, PREFACE) as eager:
        try:
            for _ in range(20):
                eager.sendall(PING)
                time.sleep(0.02)
        except ConnectionError:
            return
        assert closed(eager, 2)


def test_connections_beyond_the_limit_are_closed_at_once(tmp_path: Path) -> None:
    connections = {"max_connections": 5}
    with running(make_bundle(tmp_path / "bundle"), tmp_path / "data", connections=connections) as server:
        server.galleries.ListGalleries(SMALL, timeout=10)
        kept = [connected(server.port, PREFACE) for _ in range(4)]
        time.sleep(0.2)
        assert all(closed(connected(server.port), 5) for _ in range(10))
        server.galleries.ListGalleries(SMALL, timeout=10)
        for one in kept:
            one.close()
        time.sleep(0.2)
        assert not closed(connected(server.port, PREFACE), 0.5)


def test_one_client_has_a_limited_number_of_calls_and_streams(strict: LiveServer) -> None:
    def endless() -> Iterator[tracklet_v1.BulkIngestTrackletsRequest]:
        time.sleep(0.7)
        yield from ()

    first = [strict.tracklets.BulkIngestTracklets(endless(), timeout=20) for _ in range(2)]
    until(lambda: strict.on_loop(lambda: strict.server.guard.streams) == 2)
    error = refused(lambda: list(strict.tracklets.BulkIngestTracklets(iter(()), timeout=20)))
    assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS_OF_CLIENT")
    assert error.retry_delay is not None
    with grpc.insecure_channel(f"127.0.0.1:{strict.port}", options=[("grpc.use_local_subchannel_pool", 1)]) as other:
        call: Any = other.stream_stream("/passerby.v1.TrackletService/BulkIngestTracklets")
        assert list(call(iter(()), timeout=10)) == []
    assert [list(stream) for stream in first] == [[], []]


def test_a_stream_that_drips_frames_ends_when_it_falls_silent(strict: LiveServer) -> None:
    header = tracklet_v1.StreamTrackletRequest.Header(
        parent=strict.new_gallery(), tracklet=resources.Tracklet(camera_id="1")
    )

    def dripping() -> Iterator[tracklet_v1.StreamTrackletRequest]:
        yield tracklet_v1.StreamTrackletRequest(header=header)
        for _ in range(3):
            time.sleep(0.5)
            yield tracklet_v1.StreamTrackletRequest(frame=raw(crops(1)[0]))
        time.sleep(5)

    error = refused(lambda: strict.tracklets.StreamTracklet(dripping(), timeout=20))
    assert (error.code.name, error.reason) == ("DEADLINE_EXCEEDED", "STREAM_IDLE")
    batcher = strict.server.runtime.loaded.encoder.batcher
    until(lambda: strict.on_loop(lambda: (batcher.admitted, strict.server.guard.calls)) == (0, 0))


def test_a_unary_call_whose_message_does_not_come_counts_and_ends(strict: LiveServer) -> None:
    """To HTTP/2 a unary call is a stream of one message: one that is begun and never sent."""
    over = threading.Event()

    def never() -> Iterator[bytes]:
        over.wait(20)
        yield from ()

    call: Any = strict.channel.stream_unary("/passerby.v1.GalleryService/ListGalleries")
    waiting = [call.future(never(), timeout=20) for _ in range(8)]  # all that a client may have
    until(lambda: strict.on_loop(lambda: strict.server.guard.calls) == 8)
    error = refused(lambda: strict.galleries.ListGalleries(SMALL, timeout=10))
    assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS_OF_CLIENT")
    for one in waiting:
        error = refused(one.result)
        assert (error.code.name, error.reason) == ("DEADLINE_EXCEEDED", "MESSAGE_UNFINISHED")
    over.set()
    strict.galleries.ListGalleries(SMALL, timeout=10)
    error = refused(lambda: call(iter(()), timeout=10))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "MESSAGE_MISSING")


def test_who_goes_away_in_the_middle_of_a_message_has_cancelled_the_call(strict: LiveServer) -> None:
    over, path = threading.Event(), "/passerby.v1.SearchService/SearchTracklets"
    calls = strict.server.telemetry.metrics.registry.get_sample_value

    def never() -> Iterator[bytes]:
        over.wait(20)
        yield from ()

    def ended(code: str) -> float:
        return calls("passerby_calls_total", {"method": "SearchTracklets", "code": code}) or 0

    channel = grpc.insecure_channel(f"127.0.0.1:{strict.port}", options=[("grpc.use_local_subchannel_pool", 1)])
    call: Any = channel.stream_unary(path)
    going = call.future(never(), timeout=20)
    until(lambda: strict.on_loop(lambda: strict.server.guard.calls) == 1)
    going.cancel()
    channel.close()
    over.set()
    until(lambda: ended("CANCELLED") == 1)
    assert ended("INVALID_ARGUMENT") == 0


def test_a_bulk_stream_whose_answers_nobody_reads_ends(strict: LiveServer) -> None:
    """Its window of HTTP/2 stays at 64 KiB, which is full after some twenty answers that name 32 wrong frames each."""
    wrong = resources.FrameSequence(frames=[resources.Frame(encoded=bytes(4000))] * 32)
    sent = 0

    def requests() -> Iterator[tracklet_v1.BulkIngestTrackletsRequest]:
        nonlocal sent
        while True:
            sent += 1
            yield tracklet_v1.BulkIngestTrackletsRequest(
                request=tracklet_v1.IngestTrackletRequest(
                    parent=gallery,
                    tracklet=resources.Tracklet(camera_id="1"),
                    frames=wrong,
                    request_id=str(uuid.uuid4()),
                )
            )

    gallery = strict.new_gallery()
    guard = strict.server.guard
    options = [
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65536),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    channel = grpc.insecure_channel(f"127.0.0.1:{strict.port}", options=options)
    stub: Any = tracklet_grpc.TrackletServiceStub(channel)
    stream = stub.BulkIngestTracklets(requests(), timeout=120)
    until(lambda: strict.on_loop(lambda: guard.streams) == 1)
    until(lambda: strict.on_loop(lambda: guard.streams) == 0, 60)
    assert sent < 300  # of 128 kB each: the caller was held back, it did not go on sending
    with pytest.raises(grpc.RpcError) as raised:
        list(stream)
    error = from_rpc_error(raised.value)
    assert (error.code.name, error.reason) == ("DEADLINE_EXCEEDED", "ANSWERS_UNREAD")
    channel.close()
    batcher = strict.server.runtime.loaded.encoder.batcher
    assert strict.on_loop(lambda: batcher.admitted) == 0


def test_thousands_of_connects_and_half_sent_calls(tmp_path: Path) -> None:
    """Many connections come, say nothing or half a call, and go; others are served meanwhile and afterwards."""
    bundle = make_bundle(tmp_path / "bundle")
    embed = model_v1.EmbedTrackletRequest(frames=sequence(crops(4)))
    flags = ["--set", "connections.handshake_seconds=2", "--set", "connections.max_connections=300"]
    with serving(bundle, tmp_path / "data", *flags) as server:
        server.model.EmbedTracklet(embed, timeout=20)
        before = _resident(server.process.pid)
        held: list[socket.socket] = []
        for number in range(CONNECTS):
            connection = connected(server.port)
            try:
                if number % 2:
                    connection.sendall(PREFACE)
                if number % 4 == 3:
                    connection.sendall(PING[:5])
            except ConnectionError:
                pass  # closed at once: beyond the limit
            held.append(connection)
            if len(held) > 400:
                held.pop(0).close()
            if number % 250 == 0:
                assert server.model.EmbedTracklet(embed, timeout=20).snippet_count == 1
        for connection in held:
            connection.close()
        assert server.model.EmbedTracklet(embed, timeout=20).snippet_count == 1
        until(lambda: len(os.listdir(f"/proc/{server.process.pid}/fd")) < 120, 60)
        grown = _resident(server.process.pid) - before
        assert grown < 100e6, f"{grown / 1e6:.0f} MB more after {CONNECTS} connects"


def _resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
