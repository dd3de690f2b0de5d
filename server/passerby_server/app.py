"""The server's life: listen, load, warm up, serve, drain, stop.

The port is bound first, so that a taken one fails at once; health says NOT_SERVING and every call gets UNAVAILABLE
until model and galleries are loaded and warmed up. SIGTERM or SIGINT turns health to NOT_SERVING, refuses new calls,
lets running ones finish for `drain_seconds` and closes the galleries; a second signal does not wait.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from passerby.errors import FailedPreconditionError
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import gallery_service_pb2_grpc as gallery_grpc
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import model_service_pb2_grpc as model_grpc
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import search_service_pb2_grpc as search_grpc
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby.v1 import tracklet_service_pb2_grpc as tracklet_grpc

from passerby_server.config import ServerConfig, split_address
from passerby_server.connections import server_options
from passerby_server.interceptors import Guard
from passerby_server.logs import event
from passerby_server.runtime import Runtime
from passerby_server.security.gate import gate_of
from passerby_server.security.tls import Certificates
from passerby_server.services.gallery import GalleryService
from passerby_server.services.model import ModelService
from passerby_server.services.search import SearchService
from passerby_server.services.tracklet import TrackletService
from passerby_server.telemetry.state import State
from passerby_server.telemetry.telemetry import telemetry_of

log = logging.getLogger(__name__)

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (gallery_v1, "GalleryService"),
        (tracklet_v1, "TrackletService"),
        (search_v1, "SearchService"),
        (model_v1, "ModelService"),
    )
)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Server:
    """A server on the running event loop; `async with` listens, loads, and in the end drains and closes."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.telemetry = telemetry_of(config)
        self.runtime = Runtime(config, self.telemetry.metrics)
        self.host, self.port = split_address(config.address)
        self._health = health.aio.HealthServicer()
        self._telling: set[asyncio.Task[None]] = set()  # the loop alone would let them go
        self.metrics_port = 0
        """On which metrics are served, 0 where they are not."""
        self.guard = Guard(config.limits, self.telemetry)
        self._server = grpc.aio.server(
            interceptors=[self.guard],
            options=server_options(config.connections, config.limits),
        )

    async def __aenter__(self) -> Self:
        try:
            await self._listen()
            await self._load()
        except BaseException:
            await self.stop(grace=0)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self, grace: float | None = None) -> None:
        """Drains for at most `grace` seconds (`drain_seconds` when None), then closes everything; may be repeated."""
        await self._health.enter_graceful_shutdown()
        self.runtime.draining.set()
        await self._server.stop(self.config.drain_seconds if grace is None else grace)
        await self.runtime.close()
        await asyncio.to_thread(self.guard.gate.close)
        await asyncio.to_thread(self.telemetry.close)

    async def reload(self) -> None:
        """Loads the bundle anew, as `Runtime.reload` does; what goes wrong is in the log."""
        try:
            await self.runtime.reload()
        except Exception as error:  # noqa: BLE001 - nobody waits for it, and the old model goes on whatever it was
            event(log, logging.WARNING, "SIGHUP changed nothing", reason=getattr(error, "reason", ""))

    def ready_line(self) -> str:
        """What the command prints once the server serves."""
        loaded = self.runtime.loaded
        manifest = loaded.bundle.manifest
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            f"passerby is serving on {host}:{self.port} (bundle {manifest.name} {manifest.fingerprint[:12]}, "
            f"{loaded.backend.name} {loaded.backend.precision}, data {self.config.data})"
        )

    async def _listen(self) -> None:
        server, runtime = self._server, self.runtime
        gallery_grpc.add_GalleryServiceServicer_to_server(GalleryService(runtime), server)
        tracklet_grpc.add_TrackletServiceServicer_to_server(TrackletService(runtime), server)
        search_grpc.add_SearchServiceServicer_to_server(SearchService(runtime), server)
        model_grpc.add_ModelServiceServicer_to_server(ModelService(runtime), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        await self._say(_NOT_SERVING)
        certificates = Certificates.of(self.config.tls)
        state = State(runtime, self.guard, certificates, by_gallery=self.config.metrics.gallery_labels)
        self.metrics_port = self.telemetry.listen(self.config.metrics.address, state)
        self.guard.gate = gate_of(self.config)
        try:
            self.port = (
                server.add_secure_port(self.config.address, certificates.credentials())
                if certificates
                else server.add_insecure_port(self.config.address)
            )
        except RuntimeError as error:
            raise FailedPreconditionError(
                f"cannot listen on {self.config.address}: the port is taken, or the address is not this machine's; "
                "choose another --address (port 0 takes a free one)",
                reason="ADDRESS",
            ) from error
        await server.start()

    def _note_encoder(self, healthy: bool) -> None:
        """While the encoder hangs, all but the galleries' own service are NOT_SERVING."""

        async def say() -> None:
            for service in (*SERVICES[1:], health.OVERALL_HEALTH):
                await self._health.set(service, _SERVING if healthy else _NOT_SERVING)

        self._telling.add(task := asyncio.create_task(say()))
        task.add_done_callback(self._telling.discard)

    async def _load(self) -> None:
        loaded = await self.runtime.load()
        await self._say(_SERVING)
        self.runtime.on_encoder_health = self._note_encoder
        event(log, logging.INFO, "serving", port=self.port, fingerprint=loaded.bundle.fingerprint[:12])

    async def _say(self, status: int) -> None:
        for service in (*SERVICES, health.OVERALL_HEALTH):
            await self._health.set(service, status)


def serve(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT; SIGHUP loads the bundle anew; prints the ready line. Raises PasserbyError when it cannot start."""
    asyncio.run(_serve(config))


async def _serve(config: ServerConfig) -> None:
    stopping, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stopping.is_set() else stopping).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    made = Server(config)
    reloading: set[asyncio.Task[None]] = set()

    def on_hangup() -> None:
        reloading.add(task := asyncio.create_task(made.reload()))
        task.add_done_callback(reloading.discard)

    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    starting = asyncio.create_task(made.__aenter__())
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        event(log, logging.INFO, "stopped while loading")
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    server = starting.result()
    print(server.ready_line(), flush=True)
    await waiting
    event(log, logging.INFO, "draining", seconds=config.drain_seconds)
    draining, hurrying = asyncio.create_task(server.stop()), asyncio.create_task(hurry.wait())
    await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        await server.stop(grace=0)
    await draining
    hurrying.cancel()
    event(log, logging.INFO, "stopped")
