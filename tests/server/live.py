"""A real server in a thread of its own, and the plain stubs to talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from passerby.errors import PasserbyError, from_rpc_error
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import gallery_service_pb2_grpc as gallery_grpc
from passerby.v1 import model_service_pb2_grpc as model_grpc
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2_grpc as search_grpc
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby.v1 import tracklet_service_pb2_grpc as tracklet_grpc
from passerby_server.app import Server
from passerby_server.config import ServerConfig


class Stubs:
    """All services of one server. Messages of up to 64 MiB may be sent, so that the server's limits are what is met."""

    def __init__(
        self, port: int, credentials: grpc.ChannelCredentials | None = None, interceptors: Sequence[Any] = ()
    ) -> None:
        self.port = port
        target = f"127.0.0.1:{port}"
        options = [("grpc.max_send_message_length", 64 << 20), ("grpc.max_receive_message_length", 64 << 20)]
        channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        self.channel = grpc.intercept_channel(channel, *interceptors)
        self.galleries = gallery_grpc.GalleryServiceStub(self.channel)
        self.tracklets = tracklet_grpc.TrackletServiceStub(self.channel)
        self.search = search_grpc.SearchServiceStub(self.channel)
        self.model = model_grpc.ModelServiceStub(self.channel)

    def new_gallery(self) -> str:
        """Name of a new, empty gallery."""
        request = gallery_v1.CreateGalleryRequest(gallery_id=f"g-{uuid.uuid4().hex[:12]}")
        return self.galleries.CreateGallery(request, timeout=20).gallery.name

    def ingest(
        self, gallery: str, frames: resources.FrameSequence, camera: str = "1", request_id: str = "", **tracklet: Any
    ) -> resources.Tracklet:
        """Stores one tracklet."""
        request = tracklet_v1.IngestTrackletRequest(
            parent=gallery,
            tracklet_id=tracklet.pop("tracklet_id", ""),
            tracklet=resources.Tracklet(camera_id=camera, **tracklet),
            frames=frames,
            request_id=request_id,
        )
        return self.tracklets.IngestTracklet(request, timeout=20).tracklet

    def close(self) -> None:
        self.channel.close()


class LiveServer(Stubs):
    """Stubs, and the server that they talk to: `server` may only be touched on its loop (`on_loop`)."""

    def __init__(
        self, server: Server, loop: asyncio.AbstractEventLoop, credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        super().__init__(server.port, credentials)
        self.server = server
        self.loop = loop

    def on_loop(self, function: Callable[[], Any]) -> Any:
        """Calls `function` on the server's loop; awaits what it returns when that can be awaited."""

        async def call() -> Any:
            result = function()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(30)


@contextlib.contextmanager
def running(
    bundle: Path, data: Path, *, credentials: grpc.ChannelCredentials | None = None, **settings: Any
) -> Iterator[LiveServer]:
    """A loaded server on a free port; drained and closed when the block ends. `credentials`: for its stubs."""
    config = ServerConfig(
        **{"bundle": bundle, "data": data, "address": "127.0.0.1:0", "threads": 1, "drain_seconds": 5} | settings
    )
    box: dict[str, Any] = {}
    ready = threading.Event()

    async def main() -> None:
        try:
            async with Server(config) as server:
                box["server"], box["loop"], box["stop"] = server, asyncio.get_running_loop(), asyncio.Event()
                ready.set()
                await box["stop"].wait()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            box["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="server")
    thread.start()
    ready.wait(60)
    if "error" in box:
        thread.join()
        raise box["error"]
    live = LiveServer(box["server"], box["loop"], credentials)
    try:
        yield live
    finally:
        live.close()
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"
    if "error" in box:
        raise box["error"]


def refused(call: Callable[[], Any]) -> PasserbyError:
    """The error that `call` ends with, as the client side sees it."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return from_rpc_error(raised.value)


def fields(error: PasserbyError) -> list[str]:
    """Paths of the fields that `error` complains about."""
    return [violation.field for violation in error.violations]
