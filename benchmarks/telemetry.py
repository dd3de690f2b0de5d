"""What watching costs: nanoseconds that metrics, stages and traces add to a call and to a batch, and what a page of metrics takes.

    python benchmarks/telemetry.py [--calls 100000]

Prints one JSON object. Spans go to an exporter that drops them: sending is another thread's work.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from passerby_server.sections import Tracing as Settings
from passerby_server.telemetry.calls import Call, Ending, begun, stage
from passerby_server.telemetry.metrics import Metrics
from passerby_server.telemetry.telemetry import Telemetry
from passerby_server.telemetry.tracing import Tracing
from prometheus_client import generate_latest

PATH = "/passerby.v1.SearchService/SearchTracklets"
ROUNDS = 5


class Nowhere(SpanExporter):
    """Drops spans."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        del spans
        return SpanExportResult.SUCCESS


def nanoseconds(function: Callable[[], object], calls: int) -> float:
    """Of this thread's own time, the least mean of a few rounds: what other programs take is no cost of ours."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.thread_time_ns()
        for _ in range(calls):
            function()
        best = min(best, (time.thread_time_ns() - start) / calls)
    return round(best)


def search(telemetry: Telemetry) -> None:
    """A call with the stages of a search by frames."""
    with telemetry.call(PATH, "0123456789abcdef", ()) as call:
        with stage("decode"):
            pass
        call.took("queue", 0.001)
        call.took("encode", 0.01)
        with stage("search"):
            pass


def empty(telemetry: Telemetry) -> None:
    with begun(Call("SearchTracklets", "0123456789abcdef", telemetry)):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000, help="In each round.")
    calls = parser.parse_args().calls
    plain, metrics = Telemetry(), Metrics()
    traced = Telemetry(Tracing(Settings(endpoint="http://nowhere:1"), BatchSpanProcessor(Nowhere())))
    unsampled = Telemetry(Tracing(Settings(endpoint="http://nowhere:1", sample=0.0), BatchSpanProcessor(Nowhere())))
    ending = Ending()
    result = {
        "nothing": nanoseconds(lambda: None, calls),
        "context of a call": nanoseconds(lambda: empty(plain), calls),
        "call counted": nanoseconds(lambda: metrics.call_ended("SearchTracklets", ending, 0.01), calls),
        "stage timed": nanoseconds(lambda: metrics.stage_ended("decode", 0.01), calls),
        "search with four stages, metrics": nanoseconds(lambda: search(plain), calls),
        "the same, traced but not sampled": nanoseconds(lambda: search(unsampled), calls // 10),
        "the same, traced": nanoseconds(lambda: search(traced), calls // 10),
        "page of metrics": nanoseconds(lambda: generate_latest(plain.metrics.registry), 20),
    }
    traced.close()
    unsampled.close()
    print(json.dumps({"unit": "ns", "calls": calls, "figures": result}, indent=2))


if __name__ == "__main__":
    main()
