"""The index of one gallery as the server uses it: follows the store, and is rebuilt from it when in doubt."""

from __future__ import annotations

import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from passerby_server.gallery import rows
from passerby_server.gallery.index import ExactIndex, Index
from passerby_server.gallery.types import ModelSpace

logger = logging.getLogger(__name__)

REBUILD_BATCH = 1024
"""Descriptors read from the store at once (8 MiB at 2,048 values)."""


class LiveIndex:
    """An index with its owner's duties. All changes come from the store's one writer, in storing order.

    A change that fails (out of memory, a fault in FAISS) cannot undo the commit that it follows: the index is then
    `stale`, takes no further changes, and must not be used before `rebuild`.
    """

    def __init__(self, gallery_key: int, space: ModelSpace, pool: ThreadPoolExecutor) -> None:
        self._gallery_key = gallery_key
        self._space = space
        self._pool = pool
        self.index: Index = self._empty()
        self.stale = False

    def add(self, vector_id: int, descriptor: NDArray[np.float32]) -> None:
        """Follows a committed ingest. Never raises."""
        if self.stale:
            return
        try:
            self.index.add(np.array([vector_id], np.int64), descriptor[None, :])
        except Exception:  # noqa: BLE001 - whatever it was, the commit stands: log it and rebuild
            self._fail()

    def remove(self, *vector_ids: int) -> None:
        """Follows a committed delete. Never raises."""
        if self.stale:
            return
        try:
            self.index.remove(np.array(vector_ids, np.int64))
        except Exception:  # noqa: BLE001 - whatever it was, the commit stands: log it and rebuild
            self._fail()

    def erased(self) -> tuple[Path, ...]:
        """Sees to it that no file still holds what `remove` took out; the files that were removed or written anew."""
        return ()  # the index lives in memory alone

    def rebuild(self, connection: sqlite3.Connection) -> None:
        """Fills a fresh index from the store, while no write is under way, and puts it in place."""
        index = self._empty()
        for ids, descriptors in rows.descriptor_batches(connection, self._gallery_key, REBUILD_BATCH):
            index.add(ids, descriptors)
        self.index = index
        self.stale = False

    def _empty(self) -> Index:
        return ExactIndex(self._space.descriptor_dim, self._space.metric, self._pool)

    def _fail(self) -> None:
        self.stale = True
        logger.exception("the index of gallery %d failed; it will be rebuilt from the store", self._gallery_key)
