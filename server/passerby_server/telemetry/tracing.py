"""Traces: a span for each call, with its stages below it, sent to an OpenTelemetry collector over gRPC (OTLP).

The caller's trace goes on: `traceparent` in its metadata (W3C Trace Context) is the parent, and its choice to sample is
followed. Spans carry the method, the status and the request id. They never carry payloads, names of people, cameras or
galleries.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import metadata

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from passerby_server.sections import Tracing as Settings
from passerby_server.telemetry.calls import Ending

REQUEST_ID = "passerby.request_id"
_FLUSH_SECONDS = 5
"""A collector that does not answer holds a shutdown up for no longer."""


class Tracing:
    """The spans of one server. `close` sends what is left."""

    def __init__(self, settings: Settings, processor: SpanProcessor | None = None) -> None:
        """`processor`: where spans go instead of `settings.endpoint`."""
        resource = Resource.create({"service.name": "passerby", "service.version": metadata.version("passerby")})
        self._provider = TracerProvider(
            # A trace that the caller began is kept or dropped as the caller says.
            sampler=ParentBased(TraceIdRatioBased(settings.sample)),
            resource=resource,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            processor
            or BatchSpanProcessor(
                OTLPSpanExporter(
                    endpoint=settings.endpoint,
                    insecure=not settings.endpoint.startswith("https://"),
                    timeout=_FLUSH_SECONDS,
                )
            )
        )
        self._tracer = self._provider.get_tracer("passerby_server")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, service: str, request_id: str, carrier: Mapping[str, str]) -> Span:
        """The span of a call, below the caller's if `carrier`, its metadata, holds a trace context."""
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, REQUEST_ID: request_id}
        parent = self._propagator.extract(carrier)
        return self._tracer.start_span(
            f"{service}/{method}", context=parent, kind=SpanKind.SERVER, attributes=attributes
        )

    def begin_item(self, span: Span) -> Span:
        """The span of one tracklet of a bulk stream, whose own is `span`."""
        return self._tracer.start_span("tracklet", context=set_span_in_context(span))

    def stage_ended(self, span: Span, stage: str, seconds: float, *, failed: bool) -> None:
        """A stage of the call of `span` that has just ended."""
        if not span.is_recording():
            return
        end = time.time_ns()
        start = end - round(seconds * 1e9)
        child = self._tracer.start_span(stage, context=set_span_in_context(span), start_time=start)
        if failed:
            child.set_status(Status(StatusCode.ERROR))
        child.end(end)

    def end(self, span: Span, ending: Ending) -> None:
        """Ends the span of a call or of a tracklet."""
        span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[ending.code].value[0])
        if ending.code != "OK":
            span.set_status(Status(StatusCode.ERROR, ending.reason or ending.code))
        span.end()

    def close(self) -> None:
        """Sends what is left, waiting for a few seconds at most, and stops."""
        self._provider.force_flush(_FLUSH_SECONDS * 1000)
        self._provider.shutdown()
