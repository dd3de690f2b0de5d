"""What one server tells about itself: metrics always (counting costs microseconds), traces when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

from passerby.v1 import gallery_service_pb2, model_service_pb2, search_service_pb2, tracklet_service_pb2
from prometheus_client.registry import Collector

from passerby_server.config import ServerConfig
from passerby_server.telemetry.calls import Call, Stage, begun
from passerby_server.telemetry.endpoint import Endpoint
from passerby_server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from passerby_server.telemetry.tracing import Tracing  # takes a second to import

_API = (gallery_service_pb2, tracklet_service_pb2, search_service_pb2, model_service_pb2)


class Watched(Collector, Protocol):
    """A server's state: its figures, and whether it answers calls."""

    def serving(self) -> bool: ...

    def unwritable(self) -> str: ...


class Telemetry:
    """The `Observer` of all calls of one server."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        self.metrics = Metrics(methods())
        self.tracing = tracing
        self._closing = ExitStack()
        if tracing is not None:
            self._closing.callback(tracing.close)

    def listen(self, address: str, state: Watched) -> int:
        """Counts `state` among the metrics, and serves them at `address`, if there is one; the port, else 0.

        Raises:
            FailedPreconditionError: the port is taken, or the address is not this machine's (ADDRESS).
        """
        self.metrics.registry.register(state)
        if not address:
            return 0
        return self._closing.enter_context(
            Endpoint(address, self.metrics.registry, state.serving, state.unwritable)
        ).port

    def close(self) -> None:
        """Stops serving metrics, and sends the last spans. May be repeated."""
        self._closing.close()

    @contextmanager
    def call(self, path: str, request_id: str, metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[Call]:
        """The block handles the call of `path` (`/passerby.v1.SearchService/SearchTracklets`), and says in its `ending`
        how it ended."""
        service, _, method = path.removeprefix("/").partition("/")
        span = None
        if self.tracing is not None:
            carrier = {key: value for key, value in metadata if isinstance(value, str)}
            span = self.tracing.begin(method, service, request_id, carrier)
        with begun(Call(method, request_id, self, span)) as call:
            try:
                yield call
            finally:
                self.metrics.call_ended(method, call.ending, call.seconds)
                if self.tracing is not None and span is not None:
                    self.tracing.end(span, call.ending)

    @contextmanager
    def item(self, call: Call) -> Iterator[Call]:
        """The block works on one item of the stream that `call` is: a span of its own, with its stages."""
        span = None if self.tracing is None else self.tracing.begin_item(call.span)
        with begun(Call(call.method, call.request_id, self, span)) as item:
            try:
                yield item
            finally:
                self.metrics.item_ended(item.ending)
                if self.tracing is not None and span is not None:
                    self.tracing.end(span, item.ending)

    def stage_ended(self, call: Call, stage: Stage, seconds: float, *, failed: bool) -> None:
        self.metrics.stage_ended(stage, seconds)
        if self.tracing is not None:
            self.tracing.stage_ended(call.span, stage, seconds, failed=failed)

    def trace_id(self, call: Call) -> str:
        """As collectors show it: 32 hexadecimal digits."""
        return f"{call.span.get_span_context().trace_id:032x}"


def telemetry_of(config: ServerConfig) -> Telemetry:
    """What the configuration asks for."""
    if not config.tracing.endpoint:
        return Telemetry()
    from passerby_server.telemetry.tracing import Tracing

    return Telemetry(Tracing(config.tracing))


def methods() -> list[str]:
    """Names of all methods of the API, without their service; no two are the same."""
    return [
        method.name
        for module in _API
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
