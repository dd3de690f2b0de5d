"""How many lists of an inverted file are probed: measured on stored descriptors, whose exact neighbours are found while the
index is filled."""

from __future__ import annotations

import logging
import threading

import numpy as np
from numpy.typing import NDArray
from passerby_model.distances import DistancesTo

from passerby_server.gallery.approximate import ApproximateIndex, scan
from passerby_server.gallery.descriptors import StoppedError
from passerby_server.gallery.index import Stored
from passerby_server.gallery.kinds import IndexKind
from passerby_server.gallery.recall import AS_NEAR
from passerby_server.gallery.types import Metric

logger = logging.getLogger(__name__)

TARGET_RECALL = 0.997
"""Share of the neighbours within reach of all lists that those probed must find."""
RECALL_QUERIES = 256
RECALL_AT = 10
EFFORT_STEPS = 8
"""The lists probed are at most one part in so many more than needed."""


class Trials:
    """Queries that are stored themselves, and their RECALL_AT nearest others, exactly.

    An own descriptor lies in the first list that is probed; what is searched for in earnest is stored under another
    name, or not at all.
    """

    def __init__(self, ids: NDArray[np.int64], stored: Stored, metric: Metric) -> None:
        """Takes those of `ids` (ascending) that are `stored`."""
        self._stored = stored
        self._metric: Metric = metric
        self._ids, self._queries = stored(ids)
        self._to_queries = DistancesTo(self._queries, metric)
        self._distances = np.full((len(self._ids), RECALL_AT), np.inf, np.float32)
        self._neighbours = np.full(self._distances.shape, -1)

    def see(self, ids: NDArray[np.int64], descriptors: NDArray[np.float32]) -> None:
        """Offers stored descriptors (n, D) as neighbours; each of them once."""
        if not len(self._ids):  # all deleted meanwhile
            return
        distances = self._to_queries.of(descriptors).T
        distances[self._ids[:, None] == ids] = np.inf
        distances = np.concatenate([self._distances, distances], axis=1)
        neighbours = np.concatenate([self._neighbours, np.broadcast_to(ids, (len(self._ids), len(ids)))], axis=1)
        nearest = np.argpartition(distances, RECALL_AT - 1, axis=1)[:, :RECALL_AT]
        self._distances = np.take_along_axis(distances, nearest, axis=1)
        self._neighbours = np.take_along_axis(neighbours, nearest, axis=1)

    def recall(self, index: ApproximateIndex, stop: threading.Event) -> float:
        """Share of the neighbours that are still stored that `index` finds. Raises StoppedError."""
        expected = found = 0
        for query, own, neighbours in zip(self._queries, self._ids.tolist(), self._neighbours, strict=True):
            if stop.is_set():
                raise StoppedError
            truth = scan(query, np.sort(neighbours[neighbours >= 0]), RECALL_AT, self._stored, self._metric)
            if not len(truth.ids):
                continue
            answer = index.search(query, RECALL_AT + 1, None, self._stored)
            others = answer.distances[answer.ids != own][: len(truth.ids)]
            expected += len(truth.ids)
            found += int((others <= truth.distances[-1] * (1.0 + AS_NEAR)).sum())
        return found / max(expected, 1)


def tune(index: ApproximateIndex, kind: IndexKind, trials: Trials, stop: threading.Event) -> float:
    """Has as few lists of `index` probed as suffice: doubles them, then tries numbers in between. Raises StoppedError.

    Returns:
        The recall of probing all of them, in [0, 1].
    """

    def recall(lists: int) -> float:
        index.effort = lists
        return trials.recall(index, stop)

    reached = recall(kind.lists)
    enough = 1
    while enough < kind.lists and recall(enough) < TARGET_RECALL * reached:
        enough = min(2 * enough, kind.lists)
    short = enough // 2
    while enough - short > max(1, enough // EFFORT_STEPS):
        middle = (short + enough) // 2
        short, enough = (short, middle) if recall(middle) >= TARGET_RECALL * reached else (middle, enough)
    logger.info(
        "index %s: %d of %d lists are probed, recall@%d %.4f, of all lists %.4f",
        kind,
        enough,
        kind.lists,
        RECALL_AT,
        recall(enough),
        reached,
    )
    return reached
