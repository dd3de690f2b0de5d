"""The server's life: loading, health, reflection, signals, draining; as a process and in this one."""

from __future__ import annotations

import asyncio
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from passerby.errors import DataLossError, FailedPreconditionError, NotFoundError, UnavailableError
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_model.preprocess import FORMATS
from passerby_server import runtime
from passerby_server.__main__ import main
from passerby_server.app import SERVICES, Server
from passerby_server.backend import open_sized
from passerby_server.config import ServerConfig

from tests.encoders import make_bundle
from tests.server.live import LiveServer, Stubs, refused, running
from tests.server.pictures import crops, encoded, sequence
from tests.server.process import command, serving

FRAMES = sequence(crops(2))
ROOT = Path(__file__).resolve().parents[2]


def health_of(channel: grpc.Channel, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status)


def test_health_of_every_service(live: LiveServer) -> None:
    for service in ("", *SERVICES):
        assert health_of(live.channel, service) == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as raised:
        health_of(live.channel, "passerby.v1.Nothing")
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_each_word_on_the_encoders_health_is_said(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    health = live.server._health
    set_ = health.set

    async def setting(service: str, status: Any) -> None:
        said.append(status)
        await set_(service, status)

    async def words() -> None:
        for healthy in (False, True):
            live.server._note_encoder(healthy)
        assert len(live.server._telling) == 2  # held, or the loop would let them go
        await asyncio.gather(*live.server._telling)

    monkeypatch.setattr(health, "set", setting)
    live.on_loop(words)
    assert sorted(said) == sorted(
        [health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING] * 4
    )
    assert health_of(live.channel, SERVICES[1]) == health_pb2.HealthCheckResponse.SERVING
    assert not live.server._telling


def test_reflection_lists_and_describes(live: LiveServer) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(live.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="passerby.v1.SearchService"),
    ]
    listed, described = stub.ServerReflectionInfo(iter(requests), timeout=10)
    names = {service.name for service in listed.list_services_response.service}
    assert set(SERVICES) | {"grpc.health.v1.Health"} <= names
    assert any(b"SearchTracklets" in file for file in described.file_descriptor_response.file_descriptor_proto)


def test_while_loading_health_says_so_and_calls_are_unavailable(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def slowly(*args, **kwargs):
        assert gate.wait(30)
        return open_sized(*args, **kwargs)

    monkeypatch.setattr(runtime, "open_sized", slowly)

    async def life() -> None:
        server = Server(ServerConfig(bundle=bundle, data=tmp_path, address="127.0.0.1:0"))
        starting = asyncio.create_task(server.__aenter__())
        while server.port == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stubs = Stubs(server.port)
        try:
            status = await asyncio.to_thread(health_of, stubs.channel, SERVICES[0])
            assert status == health_pb2.HealthCheckResponse.NOT_SERVING
            error = await asyncio.to_thread(
                refused, lambda: stubs.model.GetModelInfo(model_v1.GetModelInfoRequest(), timeout=10)
            )
            assert (type(error), error.reason, error.retry_delay) == (UnavailableError, "LOADING", 1.0)
            gate.set()
            await starting
            status = await asyncio.to_thread(health_of, stubs.channel, SERVICES[0])
            assert status == health_pb2.HealthCheckResponse.SERVING
        finally:
            gate.set()
            stubs.close()
            await server.stop(grace=0)

    asyncio.run(life())


def test_a_server_that_is_stopped_while_galleries_load_does_not_wait_for_them(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, ended = threading.Event(), threading.Event()

    def slowly(*_: Any, stop: threading.Event, **__: Any) -> None:
        loading.set()
        if stop.wait(30):
            ended.set()
        raise UnavailableError("stopped", reason="SHUTTING_DOWN")

    monkeypatch.setattr(runtime, "open_galleries", slowly)

    async def life() -> None:
        server = Server(ServerConfig(bundle=bundle, data=tmp_path, address="127.0.0.1:0"))
        starting = asyncio.create_task(server.__aenter__())
        assert await asyncio.to_thread(loading.wait, 30)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)

    asyncio.run(life())
    assert ended.is_set()


FIRST_CALLS = """
import asyncio, sys
from pathlib import Path
from passerby.v1 import resources_pb2 as resources, search_service_pb2 as search_v1
from passerby_server.app import Server
from passerby_server.config import ServerConfig
from tests.server.live import Stubs

async def main(bundle, data, query):
    frames = resources.FrameSequence.FromString(Path(query).read_bytes())
    async with Server(ServerConfig(bundle=Path(bundle), data=Path(data), address="127.0.0.1:0", threads=1)) as server:
        stubs, before = Stubs(server.port), set(sys.modules)
        gallery = await asyncio.to_thread(stubs.new_gallery)
        await asyncio.to_thread(stubs.ingest, gallery, frames)
        request = search_v1.SearchTrackletsRequest(parent=gallery, top_k=1, frames=frames)
        await asyncio.to_thread(stubs.search.SearchTracklets, request, timeout=20)
        stubs.close()
        print(sorted(set(sys.modules) - before))

asyncio.run(main(*sys.argv[1:]))
"""


def test_first_calls_load_nothing(bundle: Path, tmp_path: Path) -> None:
    """Once the server serves, no caller waits for decoders or other modules to be loaded."""
    frames = [resources.Frame(encoded=encoded(crop, kind)) for crop, kind in zip(crops(3), FORMATS, strict=True)]
    query = tmp_path / "query"
    query.write_bytes(resources.FrameSequence(frames=frames).SerializeToString())
    script = [sys.executable, "-c", FIRST_CALLS, str(bundle), str(tmp_path / "data"), str(query)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_limits_for_callers_are_not_in_the_way_of_the_start(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path / "data", limits={"max_frame_bytes": 1024, "max_pixels": 1024}) as server:
        assert server.server.runtime.loaded.max_batch


def test_running_calls_end_and_endless_streams_are_sent_away_when_draining(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path / "data") as server:
        gallery = server.new_gallery()
        box: queue.Queue[tracklet_v1.BulkIngestTrackletsRequest | None] = queue.Queue()
        request = tracklet_v1.IngestTrackletRequest(
            parent=gallery,
            tracklet=resources.Tracklet(camera_id="1"),
            frames=FRAMES,
            request_id=str(uuid.uuid4()),
        )

        def requests() -> Iterator[tracklet_v1.BulkIngestTrackletsRequest]:
            while (message := box.get()) is not None:
                yield message

        call = server.tracklets.BulkIngestTracklets(requests(), timeout=60)
        box.put(tracklet_v1.BulkIngestTrackletsRequest(request=request))
        assert next(call).tracklet.frame_count == 2
        start = time.monotonic()
        server.on_loop(server.server.stop)
        assert time.monotonic() - start < 4, "an open stream held the server up"
        error = refused(lambda: next(call))
        assert (type(error), error.reason) == (UnavailableError, "SHUTTING_DOWN")
        box.put(None)
        later = refused(lambda: server.galleries.GetGallery(gallery_v1.GetGalleryRequest(name=gallery), timeout=5))
        assert isinstance(later, UnavailableError)


def test_bundles_that_are_not_served(tmp_path: Path) -> None:
    def start(bundle: Path, **settings: Any) -> None:
        with running(bundle, tmp_path / "data", **settings):
            pass

    with pytest.raises(NotFoundError, match="is no bundle"):
        start(tmp_path)
    unverified = make_bundle(tmp_path / "unverified", parity_passed=None)
    with pytest.raises(FailedPreconditionError, match="has no parity report"):
        start(unverified)
    with pytest.raises(FailedPreconditionError, match="failed its parity check"):
        start(make_bundle(tmp_path / "failed", parity_passed=False))
    start(unverified, allow_unverified=True)
    damaged = make_bundle(tmp_path / "damaged")
    (damaged / "encoder.onnx").write_bytes((damaged / "encoder.onnx").read_bytes() + b"x")
    with pytest.raises(DataLossError, match="differs from its checksum"):
        start(damaged)


def test_a_taken_port_is_an_error(bundle: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(FailedPreconditionError, match="the port is taken"),
            running(bundle, tmp_path, address=address),
        ):
            pass


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_both_backends_serve_the_same_descriptor(bundle: Path, tmp_path: Path, live: LiveServer, backend: str) -> None:
    request = model_v1.EmbedTrackletRequest(frames=sequence(crops(7)))
    expected = live.model.EmbedTracklet(request).tracklet_descriptor.values
    with running(bundle, tmp_path, backend=backend) as other:
        info = other.model.GetModelInfo(model_v1.GetModelInfoRequest()).model_info
        assert model_v1.Backend.Name(info.backend) == f"BACKEND_{backend.upper()}"
        assert other.model.EmbedTracklet(request).tracklet_descriptor.values == pytest.approx(expected, abs=1e-5)


def test_the_command_serves_drains_and_keeps_what_it_acknowledged(bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(bundle, data, "--log-format", "json") as server:
        assert f"openvino fp32, data {data})" in server.ready_line
        gallery = server.new_gallery()
        stored = server.ingest(gallery, FRAMES, camera="secret-camera")
        assert server.stop(signal.SIGTERM) == 0
    log = data.with_suffix(".log").read_text()
    assert '"message": "draining"' in log
    assert "Traceback" not in log
    assert "secret" not in log
    with serving(bundle, data) as server:
        answer = server.tracklets.GetTracklet(tracklet_v1.GetTrackletRequest(name=stored.name), timeout=20)
        assert answer.tracklet == stored
        assert server.stop(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--address", "0.0.0.0:0"], "no TLS (tls.certificate, tls.key) and no authentication (access.file)"),
        (["--set", "limits.max_frame=3"], "did you mean limits.max_frames?"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--backend", "abacus"], "Input should be 'auto', 'openvino', 'onnxruntime', 'onnxruntime-cuda'"),
    ],
    ids=["open-address", "unknown-key", "no-config", "backend"],
)
def test_the_command_explains_what_is_wrong_in_one_line(
    bundle: Path, tmp_path: Path, capsys, flags, message: str
) -> None:
    assert invoke(bundle, tmp_path, *flags) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("passerby: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_an_unreadable_file_is_explained_in_one_line(bundle: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "server.yaml").write_text("limits: [\nmax_frames")
    assert invoke(bundle, tmp_path, "--config", str(tmp_path / "server.yaml")) == 1
    printed = capsys.readouterr()
    assert "is no YAML" in printed.err
    assert printed.err.count("\n") == 1


def test_the_environment_counts_for_the_command(bundle: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PASSERBY_LIMITS__MAX_TOP_K", "zero")
    assert invoke(bundle, tmp_path) == 1
    assert "limits.max_top_k: Input should be a valid integer" in capsys.readouterr().err


def test_a_missing_bundle_ends_the_process_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, tmp_path / "data"), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"passerby: {tmp_path} is no bundle: it has no bundle.json; make one with `passerby export` or `passerby bundle wrap`\n"
    )


def invoke(bundle: Path, folder: Path, *flags: str) -> int | str | None:
    """Runs the command in this process, only for command lines that fail before they serve; its exit status."""
    with pytest.raises(SystemExit) as raised:
        main(["--bundle", str(bundle), "--data", str(folder / "data"), *flags])
    return raised.value.code
