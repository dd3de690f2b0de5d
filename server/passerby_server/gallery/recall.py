"""The recall audit: some live queries of an approximate index are repeated exactly in idle time, and counted.

recall@k = how many of the k nearest, by the stored descriptors, the answer held; of all audited queries together. A
tracklet as near as the k-th counts as one of them. What was stored after the query, or deleted since, counts nowhere.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from passerby.errors import DataLossError

from passerby_server.gallery.approximate import scan
from passerby_server.gallery.descriptors import BATCH, Reading, StoppedError, gallery_ids, stored_now
from passerby_server.gallery.index import Neighbours, merge
from passerby_server.gallery.types import ModelSpace

SHARE = 0.01
"""Of the queries that are audited."""
WAITING = 32
"""Queries that wait for the audit at most; beyond that the oldest is dropped."""
IDLE_SECONDS = 1.0
"""Without a search, after which the audit goes on."""
AS_NEAR = 1e-6
"""Relative: distances that differ by less are equal, for they may be summed in another order."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Audited queries, the neighbours that were to be found, and those that were found."""

    queries: int = 0
    expected: int = 0
    found: int = 0

    @property
    def value(self) -> float | None:
        """In [0, 1]; None before anything was audited."""
        return self.found / self.expected if self.expected else None


@dataclass(frozen=True, slots=True)
class _Sample:
    """A query (D,), the ids it might find up to `last` (None: all), and the distances that it found."""

    query: NDArray[np.float32]
    allowed: NDArray[np.int64] | None
    last: int
    answer: Neighbours


class RecallAudit:
    """The audit of one gallery. `offer` is for the threads that search, `run` for the one in the background."""

    def __init__(self, gallery_key: int, space: ModelSpace, seed: int | None = None) -> None:
        self._gallery_key = gallery_key
        self._space = space
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._waiting: deque[_Sample] = deque(maxlen=WAITING)
        self._last_search = -IDLE_SECONDS
        self.recall = Recall()

    def offer(
        self, query: NDArray[np.float32], allowed: NDArray[np.int64] | None, last: int, answer: Neighbours
    ) -> None:
        """Takes some of the live searches of an approximate index; `last` is the newest id that it might find."""
        with self._lock:
            self._last_search = time.monotonic()
            if len(answer.ids) and self._random.random() < SHARE:
                self._waiting.append(_Sample(query.copy(), allowed, last, answer))

    def forget(self) -> None:
        """Starts anew, for another index."""
        with self._lock:
            self._waiting.clear()
            self.recall = Recall()

    def run(self, reading: Reading, stop: threading.Event) -> None:
        """Repeats what waits; returns early when the gallery is searched again, and goes on another time.

        Raises DataLossError at a damaged descriptor, which all that wait would meet: they are dropped.
        """
        while self._idle() and self._waiting:
            sample = self._waiting[0]
            try:
                counted = self._counted(sample, reading, stop)
            except DataLossError:
                with self._lock:
                    self._waiting.clear()
                raise
            with self._lock:
                if counted is None or not self._waiting or self._waiting[0] is not sample:
                    return
                self._waiting.popleft()
                before = self.recall
                self.recall = Recall(before.queries + 1, before.expected + counted[0], before.found + counted[1])

    def _idle(self) -> bool:
        return time.monotonic() - self._last_search >= IDLE_SECONDS

    def _counted(self, sample: _Sample, reading: Reading, stop: threading.Event) -> tuple[int, int] | None:
        """Neighbours to be found, and found; None when the gallery is searched meanwhile."""
        with reading() as connection:
            here = gallery_ids(connection, self._gallery_key)
        ids = here if sample.allowed is None else np.intersect1d(here, sample.allowed, assume_unique=True)
        ids = ids[: np.searchsorted(ids, sample.last, "right")]
        present = np.isin(sample.answer.ids, ids)
        count = int(present.sum())  # what was deleted since leaves the answer shorter: so many are compared
        best = Neighbours(np.zeros(0, np.int64), np.zeros(0, np.float32))
        stored = stored_now(reading)
        for start in range(0, len(ids), BATCH):
            if stop.is_set():
                raise StoppedError
            if not self._idle():
                return None
            part = scan(sample.query, ids[start : start + BATCH], count, stored, self._space.metric)
            both = merge([best, part])
            order = np.argsort(both.distances, kind="stable")[:count]
            best = Neighbours(both.ids[order], both.distances[order])
        if not len(best.ids):
            return 0, 0
        farthest = float(best.distances[-1]) * (1.0 + AS_NEAR)
        return len(best.ids), int((sample.answer.distances[present] <= farthest).sum())
