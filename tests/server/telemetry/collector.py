"""A collector of OpenTelemetry traces: the real protocol (OTLP over gRPC), the spans kept in memory."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as v1
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as v1_grpc


class Collector(v1_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.port = 0
        self._spans: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.service = ""

    def Export(self, request: v1.ExportTraceServiceRequest, context: object) -> v1.ExportTraceServiceResponse:  # noqa: N802
        for resource in request.resource_spans:
            names = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
            self.service = names["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self._spans.put(span)
        return v1.ExportTraceServiceResponse()

    def spans(self) -> list[Any]:
        """All that came, in the order of their ends."""
        found = []
        while not self._spans.empty():
            found.append(self._spans.get())
        return sorted(found, key=lambda span: (span.end_time_unix_nano, -span.start_time_unix_nano))


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    v1_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait(10)
