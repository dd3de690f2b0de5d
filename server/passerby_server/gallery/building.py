"""Builds an approximate index from the store, in the background: sample, train, fill, and find how far to search."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray
from passerby_model.metrics import unit_rows

from passerby_server.gallery import kinds
from passerby_server.gallery.approximate import ApproximateIndex
from passerby_server.gallery.descriptors import BATCH, Reading, StoppedError, batches, gallery_ids, stored_now
from passerby_server.gallery.index import Index, Stored
from passerby_server.gallery.kinds import IndexKind
from passerby_server.gallery.tuning import RECALL_QUERIES, TARGET_RECALL, Trials, tune
from passerby_server.gallery.types import ModelSpace


class CoarseError(Exception):
    """The automatic choice misses too many neighbours in this gallery. Never leaves the gallery."""


def build(
    kind: IndexKind,
    gallery_key: int,
    space: ModelSpace,
    reading: Reading,
    stop: threading.Event,
    *,
    choosy: bool = False,
) -> ApproximateIndex:
    """A filled index of `kind`; what is written meanwhile may be in it or not.

    Raises StoppedError, RuntimeError when FAISS cannot build such an index of this dimension and metric, and where
    `choosy`, CoarseError when even all lists of an inverted file hold less than TARGET_RECALL of the neighbours.
    """
    with reading() as connection:
        ids = gallery_ids(connection, gallery_key)
    stored = stored_now(reading)
    chosen = np.random.default_rng(0).permutation(ids)
    sample = _sample(stored, np.sort(chosen[: kind.training_rows]), space, stop)
    index = ApproximateIndex(space.metric, kinds.trained(kind, space.metric, sample))
    del sample
    tuned = kind.lists > 0 and not kind.parameters
    trials = Trials(np.sort(chosen[:RECALL_QUERIES]), stored, space.metric) if tuned else None
    for some, descriptors in batches(reading, gallery_key, -1, stop):
        index.add(some, descriptors)
        if trials is not None:
            trials.see(some, descriptors)
    if trials is not None and tune(index, kind, trials, stop) < TARGET_RECALL and choosy:
        raise CoarseError
    return index


def follow(index: Index, gallery_key: int, after: int, reading: Reading, stop: threading.Event) -> int:
    """Adds what was stored after vector id `after`; the last vector id."""
    for some, descriptors in batches(reading, gallery_key, after, stop):
        index.add(some, descriptors)
        after = int(some[-1])
    return after


def _sample(stored: Stored, ids: NDArray[np.int64], space: ModelSpace, stop: threading.Event) -> NDArray[np.float32]:
    # At once: parts, joined later, would take twice that.
    sample = np.empty((len(ids), space.descriptor_dim), np.float32)
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
