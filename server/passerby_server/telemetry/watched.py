"""An encoder whose batches are counted and timed."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray
from passerby_model.backends import Backend, BackendName, Encoded
from passerby_model.backends.base import EncoderSpec

from passerby_server.telemetry.metrics import Metrics


class WatchedBackend:
    """`backend`, as the batcher sees it."""

    def __init__(self, backend: Backend, metrics: Metrics) -> None:
        self._backend = backend
        self._metrics = metrics

    @property
    def name(self) -> BackendName:
        return self._backend.name

    @property
    def precision(self) -> str:
        return self._backend.precision

    @property
    def spec(self) -> EncoderSpec:
        return self._backend.spec

    def encode(self, snippets: NDArray[np.uint8]) -> Encoded:
        """See `Backend.encode`."""
        start = time.perf_counter()
        self._metrics.batch_snippets.observe(len(snippets))
        try:
            return self._backend.encode(snippets)
        except Exception:
            self._metrics.batch_failures.inc()
            raise
        finally:
            self._metrics.batch_seconds.observe(time.perf_counter() - start)
