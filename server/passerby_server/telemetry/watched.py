"""An encoder whose batches are counted and timed."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray
from passerby.errors import UnavailableError
from passerby_model.backends import Backend, BackendName, Encoded
from passerby_model.backends.base import EncoderSpec

from passerby_server.telemetry.metrics import Metrics


class WatchedBackend:
    """`backend`, as the batcher sees it, until `close`."""

    def __init__(self, backend: Backend, metrics: Metrics) -> None:
        self._open: Backend | None = backend
        self._metrics = metrics

    def close(self) -> None:
        """Lets go of the encoder: hundreds of megabytes, which must not wait for the garbage collector to find whatever
        still points to this."""
        self._open = None

    @property
    def _backend(self) -> Backend:
        if self._open is None:
            raise UnavailableError("the encoder was closed", reason="SHUTTING_DOWN")
        return self._open

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
        backend, start = self._backend, time.perf_counter()
        self._metrics.batch_snippets.observe(len(snippets))
        try:
            return backend.encode(snippets)
        except Exception:
            self._metrics.batch_failures.inc()
            raise
        finally:
            self._metrics.batch_seconds.observe(time.perf_counter() - start)
