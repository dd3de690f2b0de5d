"""Infer requests of OpenVINO for calls from any thread: who computes alone has all threads, others share them.

Of two calls that both use all threads each waits for the other, layer by layer; two that have half of them each are
faster together. A lone call, though, would be slowed to half the speed. So the encoder is compiled twice.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passerby_model.backends.openvino_package import import_openvino

log = logging.getLogger(__name__)

MAX_RELATIVE_ERROR = 0.02
"""Of what streams compute to what a lone call does: more than any number format moves it, far less than a wrong weight."""


class Requests:
    """`with requests.taken() as request`: one for as long as the block lasts, after waiting for one where all compute."""

    def __init__(self, alone: Any, beside: Any | None, streams: int) -> None:
        """
        Args:
            alone: compiled model whose one stream has all threads.
            beside: the same of `streams` streams, which share the threads; None for calls one after the other.
        """
        self._alone = _made(alone, 1)
        self._beside = self._alone if beside is None else _made(beside, streams)
        self._calls = 0
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[Any]:
        """A request that nobody else uses meanwhile."""
        with self._lock:
            requests = self._beside if self._calls else self._alone
            self._calls += 1
        try:
            request = requests.get()
            try:
                yield request
            finally:
                requests.put(request)
        finally:
            with self._lock:
                self._calls -= 1


def streams_agree(alone: Any, beside: Any, streams: int, probe: NDArray[np.uint8]) -> bool:
    """Whether all streams of `beside` compute at the same time what `alone` does of `probe`; says in the log if not."""
    (wanted,) = _outputs([alone.create_infer_request()], probe)
    found = _outputs([beside.create_infer_request() for _ in range(streams)], probe)
    errors = [
        float(np.linalg.norm(have - want) / (np.linalg.norm(want) + 1e-12))
        for outputs in found
        for have, want in zip(outputs, wanted, strict=True)
    ]
    # Not "any is larger": what is not a number is no agreement.
    agree = all(error <= MAX_RELATIVE_ERROR for error in errors)
    if not agree:
        log.warning(
            "OpenVINO %s computes something else in %d streams than in one (relative error %.2g): batches are computed one "
            "after the other",
            import_openvino().__version__,
            streams,
            max(errors),
        )
    return agree


def fold_constants(model: Any) -> None:
    """Computes, once, what hangs on constants alone: weights that are kept as 8-bit codes or halves become float32.

    OpenVINO does so itself when it compiles, but with several streams it goes wrong (2026.4.1: weights stored as int8 are
    garbage in every stream).
    """
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)


def _made(compiled: Any, count: int) -> queue.LifoQueue[Any]:
    requests: queue.LifoQueue[Any] = queue.LifoQueue()
    for _ in range(count):
        requests.put(compiled.create_infer_request())
    return requests


def _outputs(requests: list[Any], probe: NDArray[np.uint8]) -> list[list[NDArray[np.float32]]]:
    """Of each request, all at the same time."""

    def run(request: Any) -> list[NDArray[np.float32]]:
        request.infer({0: probe})
        return [np.array(tensor.data, dtype=np.float32) for tensor in request.output_tensors]

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(run, requests))
