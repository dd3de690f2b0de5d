"""Builds an approximate index from the store, in the background: sample, train, fill, and find how far to search."""

from __future__ import annotations

import logging
import threading

import numpy as np
from numpy.typing import NDArray
from passerby_model.metrics import unit_rows

from passerby_server.gallery import kinds
from passerby_server.gallery.approximate import ApproximateIndex
from passerby_server.gallery.descriptors import BATCH, Reading, StoppedError, batches, gallery_ids, stored_now
from passerby_server.gallery.index import Index, Stored
from passerby_server.gallery.kinds import IndexKind
from passerby_server.gallery.types import ModelSpace

logger = logging.getLogger(__name__)

TARGET_RECALL = 0.997
"""Share of the 10 nearest that probing part of an inverted file's lists must find, measured when it is built."""
RECALL_QUERIES = 256
RECALL_AT = 10
EFFORT_STEPS = 8
"""The lists probed are at most one part in so many more than needed."""


def build(
    kind: IndexKind, gallery_key: int, space: ModelSpace, reading: Reading, stop: threading.Event
) -> ApproximateIndex:
    """A filled index of `kind`; what is written meanwhile may be in it or not.

    Raises StoppedError, and RuntimeError when FAISS cannot build such an index of this dimension and metric.
    """
    with reading() as connection:
        ids = gallery_ids(connection, gallery_key)
    stored = stored_now(reading)
    chosen = np.random.default_rng(0).permutation(ids)
    sample = _sample(stored, np.sort(chosen[: kind.training_rows]), space, stop)
    index = ApproximateIndex(space.metric, kinds.trained(kind, space.metric, sample))
    del sample
    for some, descriptors in batches(reading, gallery_key, -1, stop):
        index.add(some, descriptors)
    if kind.lists and not kind.parameters:
        _tune(index, kind, chosen[:RECALL_QUERIES], stored, stop)
    return index


def follow(index: Index, gallery_key: int, after: int, reading: Reading, stop: threading.Event) -> int:
    """Adds what was stored after vector id `after`; the last vector id."""
    for some, descriptors in batches(reading, gallery_key, after, stop):
        index.add(some, descriptors)
        after = int(some[-1])
    return after


def _sample(stored: Stored, ids: NDArray[np.int64], space: ModelSpace, stop: threading.Event) -> NDArray[np.float32]:
    sample = np.empty(
        (len(ids), space.descriptor_dim), np.float32
    )  # at once: parts, joined later, would take twice that
    count = 0
    for start in range(0, len(ids), BATCH):
        if stop.is_set():
            raise StoppedError
        kept, descriptors = stored(ids[start : start + BATCH])
        if not len(kept):  # all deleted since
            continue
        sample[count : count + len(kept)] = unit_rows(descriptors) if space.metric == "cosine" else descriptors
        count += len(kept)
    return sample[:count]


def _tune(
    index: ApproximateIndex, kind: IndexKind, ids: NDArray[np.int64], stored: Stored, stop: threading.Event
) -> None:
    """Finds how few lists may be probed: doubles them until recall suffices, then tries numbers in between."""
    ids, queries = stored(np.sort(ids))  # without those deleted meanwhile
    index.effort = kind.lists
    truths = [_others(index, query, number, stored) for query, number in zip(queries, ids, strict=True)]

    def recall(effort: int) -> float:
        if stop.is_set():
            raise StoppedError
        index.effort = effort
        trials = zip(queries, ids, truths, strict=True)
        found = sum(len(_others(index, query, number, stored) & truth) for query, number, truth in trials)
        return found / max(sum(map(len, truths)), 1)

    enough = 1
    while enough < kind.lists and recall(enough) < TARGET_RECALL:
        enough = min(2 * enough, kind.lists)
    short = enough // 2
    while enough - short > max(1, enough // EFFORT_STEPS):
        middle = (short + enough) // 2
        short, enough = (short, middle) if recall(middle) >= TARGET_RECALL else (middle, enough)
    logger.info(
        "index %s: %d of %d lists are probed, recall@%d %.4f", kind, enough, kind.lists, RECALL_AT, recall(enough)
    )
    index.effort = enough


def _others(index: ApproximateIndex, query: NDArray[np.float32], own: int, stored: Stored) -> set[int]:
    """The RECALL_AT nearest of a stored descriptor but for itself, which lies in the first list that is probed: what
    is searched for in earnest is stored under another name, or not at all."""
    found = index.search(query, RECALL_AT + 1, None, stored).ids.tolist()
    return set([number for number in found if number != own][:RECALL_AT])
