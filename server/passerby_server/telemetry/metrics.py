"""What the server counts and times while it works, for Prometheus. What can be read off its state is in `state.py`.

Labels are methods, status codes, reasons and stages: sets that the code closes. Nothing that a caller chooses becomes a
label, so no name of a person or a camera can, and no caller can make series.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics

from passerby_server.telemetry.calls import Ending, Stage

CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds of the histograms of times: from a lookup to a long tracklet on a slow machine."""
BATCH_SNIPPETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""The sizes that the batcher makes."""


class Metrics:
    """The instruments of one server, in a registry of their own."""

    def __init__(self, methods: Iterable[str] = ()) -> None:
        """`methods`: names that are there from the beginning, at zero, so that the first call already shows as a rate."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside every counter, which nobody reads
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._calls = Counter("passerby_calls", "Calls that ended.", ["method", "code"], registry=registry)
        self._call_seconds = Histogram(
            "passerby_call_duration_seconds",
            "From when a call is taken up to its answer.",
            ["method"],
            buckets=CALL_SECONDS,
            registry=registry,
        )
        self._errors = Counter(
            "passerby_errors",
            "Calls, and tracklets of bulk streams, that were refused or failed, by the reason in the ErrorInfo.",
            ["code", "reason"],
            registry=registry,
        )
        self._items = Counter(
            "passerby_bulk_tracklets", "Tracklets answered within bulk streams.", ["code"], registry=registry
        )
        self._stage_seconds = Histogram(
            "passerby_stage_duration_seconds",
            "Time of a call in one of its stages; a long tracklet passes some of them several times.",
            ["stage"],
            buckets=CALL_SECONDS,
            registry=registry,
        )
        self.batch_snippets = Histogram(
            "passerby_batch_snippets", "Snippets in a batch of the encoder.", buckets=BATCH_SNIPPETS, registry=registry
        )
        self.batch_seconds = Histogram(
            "passerby_batch_duration_seconds",
            "Time of a batch in the encoder.",
            buckets=CALL_SECONDS,
            registry=registry,
        )
        self.batch_failures = Counter(
            "passerby_batch_failures", "Batches that the encoder failed on.", registry=registry
        )
        self._reloads = Counter(
            "passerby_model_reloads",
            "Reloads of the bundle: switched, or failed and rolled back.",
            ["outcome"],
            registry=registry,
        )
        # Looking a label up costs more than counting does, so the children are kept.
        self._of_stage = {name: self._stage_seconds.labels(name) for name in get_args(Stage)}
        self._of_method = {method: self._call_seconds.labels(method) for method in methods}
        self._of_code = {(method, "OK"): self._calls.labels(method, "OK") for method in methods}
        for outcome in ("switched", "failed"):
            self._reloads.labels(outcome)

    def call_ended(self, method: str, ending: Ending, seconds: float) -> None:
        """Counts and times a call."""
        counted = self._of_code.get((method, ending.code))
        if counted is None:
            counted = self._of_code[method, ending.code] = self._calls.labels(method, ending.code)
        counted.inc()
        timed = self._of_method.get(method)
        if timed is None:
            timed = self._of_method[method] = self._call_seconds.labels(method)
        timed.observe(seconds)
        self._count_error(ending)

    def item_ended(self, ending: Ending) -> None:
        """Counts an item of a stream."""
        self._items.labels(ending.code).inc()
        self._count_error(ending)

    def stage_ended(self, stage: Stage, seconds: float) -> None:
        """Times one stage of a call."""
        self._of_stage[stage].observe(seconds)

    def reloaded(self, outcome: str) -> None:
        """Counts a reload: `switched` or `failed`."""
        self._reloads.labels(outcome).inc()

    def _count_error(self, ending: Ending) -> None:
        if ending.reason:
            self._errors.labels(ending.code, ending.reason).inc()
