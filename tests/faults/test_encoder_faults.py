"""An encoder that throws or hangs under a running server: whoever waits is told, health says so, and it recovers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby_server import batcher as batcher_module

from tests.encoders import make_bundle
from tests.faults.stubborn import stubborn
from tests.server.live import LiveServer, refused, running
from tests.server.pictures import crops, sequence

EMBED = model_v1.EmbedTrackletRequest(frames=sequence(crops(4)))


def health(server: LiveServer, service: str = "") -> str:
    stub: Any = health_pb2_grpc.HealthStub(server.channel)
    status = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def test_an_encoder_that_throws_fails_its_batch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        running(make_bundle(tmp_path / "bundle"), tmp_path / "data") as server,
        stubborn(server, monkeypatch) as encoder,
    ):
        encoder.failure = RuntimeError("secret detail of the runtime")
        for _ in range(3):
            error = refused(lambda: server.model.EmbedTracklet(EMBED, timeout=20))
            assert (error.code.name, error.reason) == ("INTERNAL", "ENCODER_FAILED")
            assert "secret" not in error.message
        encoder.failure = None
        assert server.model.EmbedTracklet(EMBED, timeout=20).snippet_count == 1
        assert server.on_loop(lambda: server.server.runtime.loaded.encoder.batcher.admitted) == 0


def test_an_encoder_that_hangs_is_noticed_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "_RETRY_SECONDS", 0.05)
    settings: dict[str, Any] = {"batching": {"watchdog_seconds": 0.3}}
    with (
        running(make_bundle(tmp_path / "bundle"), tmp_path / "data", **settings) as server,
        stubborn(server, monkeypatch) as encoder,
    ):
        batcher = server.server.runtime.loaded.encoder.batcher
        encoder.gate.clear()
        waiting = [server.model.EmbedTracklet.future(EMBED, timeout=30) for _ in range(12)]
        for call in waiting:
            error = refused(call.result)
            assert (error.code.name, error.reason) == ("INTERNAL", "ENCODER_HUNG")
        until(lambda: health(server) == "NOT_SERVING")
        assert health(server, "passerby.v1.SearchService") == "NOT_SERVING"
        assert health(server, "passerby.v1.GalleryService") == "SERVING"
        error = refused(lambda: server.model.EmbedTracklet(EMBED, timeout=20))
        assert (error.code.name, error.reason) == ("UNAVAILABLE", "ENCODER_HUNG")
        assert error.retry_delay is not None
        server.galleries.ListGalleries(gallery_v1.ListGalleriesRequest(), timeout=20)  # needs no encoder
        encoder.gate.set()
        until(lambda: health(server) == "SERVING")
        assert server.model.EmbedTracklet(EMBED, timeout=20).snippet_count == 1
        until(lambda: server.on_loop(lambda: batcher.left_behind) == 0)
        assert server.on_loop(lambda: batcher.admitted) == 0


def test_a_server_whose_encoder_hangs_still_shuts_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"batching": {"watchdog_seconds": 0.2}, "drain_seconds": 1}
    with pytest.MonkeyPatch.context() as patch:
        with running(make_bundle(tmp_path / "bundle"), tmp_path / "data", **settings) as server:
            backend = type(server.server.runtime.loaded.backend)
            ended: list[float] = []

            def hang(self: Any, snippets: Any) -> Any:
                time.sleep(8)
                ended.append(time.monotonic())
                raise RuntimeError("too late")

            patch.setattr(backend, "encode", hang)
            error = refused(lambda: server.model.EmbedTracklet(EMBED, timeout=20))
            assert error.reason == "ENCODER_HUNG"
            start = time.monotonic()
        assert time.monotonic() - start < 6
        assert not ended


def test_a_cancellation_storm_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"max_requests_per_client": 1000, "max_requests": 1000}
    options: dict[str, Any] = {"limits": limits, "connections": {"max_calls": 1000}}
    with (
        running(make_bundle(tmp_path / "bundle"), tmp_path / "data", **options) as server,
        stubborn(server, monkeypatch) as encoder,
    ):
        batcher, guard = server.server.runtime.loaded.encoder.batcher, server.server.guard
        for round in range(6):
            encoder.gate.clear()
            calls = [server.model.EmbedTracklet.future(EMBED, timeout=60) for _ in range(60)]
            calls += [server.model.EmbedTracklet.future(EMBED, timeout=0.01 * number) for number in range(20)]
            for number, call in enumerate(calls):
                if (number + round) % 4:
                    call.cancel()
                if number == 40:
                    encoder.gate.set()
            for call in calls:
                try:
                    call.result()
                except (grpc.RpcError, grpc.FutureCancelledError):
                    continue
            until(lambda: server.on_loop(lambda: (batcher.admitted, batcher.waiting, guard.calls)) == (0, 0, 0))
        assert server.model.EmbedTracklet(EMBED, timeout=20).snippet_count == 1
