"""Reading many descriptors from the store: some by id, or all of a gallery in short reads."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from passerby_server.gallery.index import Stored
from passerby_server.gallery.rows import MAX_VARIABLES, decode_descriptors

BATCH = 1024
"""Descriptors read from the store at once (8 MiB at 2,048 values), each batch in a read of its own: a long one would
keep the write-ahead log from being emptied after an erasure."""
REMEMBERED_ROWS = 4096
"""Descriptors that a search with re-ranking keeps at most (32 MiB at 2,048 values): all of a shortlist's candidates."""

Reading = Callable[[], AbstractContextManager[sqlite3.Connection]]
"""Opens a read of the store."""


class StoppedError(Exception):
    """The server goes down: nobody waits for the result any more. Never leaves the gallery."""


def stored_in(connection: sqlite3.Connection) -> Stored:
    """Reads descriptors within one read of the store; DataLossError where a checksum does not fit."""
    return lambda ids: get_descriptors(connection, ids)


def stored_now(reading: Reading) -> Stored:
    """Reads descriptors of the present, each call in a read of its own."""

    def stored(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        with reading() as connection:
            return get_descriptors(connection, ids)

    return stored


def get_descriptors(
    connection: sqlite3.Connection, ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of `ids` (ascending) those that are stored, int64 (n,), and their descriptors, float32 (n, D); none: (0, 0)."""
    found: list[tuple[int, int, bytes]] = []
    for start in range(0, len(ids), MAX_VARIABLES):
        chunk = ids[start : start + MAX_VARIABLES].tolist()
        marks = ",".join("?" * len(chunk))
        statement = f"SELECT vector_id, checksum, descriptor FROM descriptors WHERE vector_id IN ({marks})"  # noqa: S608
        found += connection.execute(f"{statement} ORDER BY vector_id", chunk).fetchall()
    return _arrays(connection, found)


def gallery_ids(connection: sqlite3.Connection, gallery_key: int) -> NDArray[np.int64]:
    """Vector ids of a gallery, int64 (n,), ascending."""
    # One long text instead of n rows: several times faster.
    statement = "SELECT coalesce(group_concat(vector_id), '') FROM tracklets WHERE gallery_key = ?"
    (text,) = connection.execute(statement, (gallery_key,)).fetchone()
    return np.sort(np.fromstring(text, np.int64, sep=",")) if text else np.zeros(0, np.int64)


def descriptors_lack(connection: sqlite3.Connection, gallery_key: int) -> bool:
    """Whether a tracklet of a gallery has no descriptor, which only damage brings about."""
    statement = (
        "SELECT 1 FROM tracklets WHERE gallery_key = ? AND vector_id NOT IN (SELECT vector_id FROM descriptors) LIMIT 1"
    )
    return connection.execute(statement, (gallery_key,)).fetchone() is not None


def batches(
    reading: Reading, gallery_key: int, after: int, stop: threading.Event
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """All of a gallery beyond vector id `after`, in storing order: (ids (n,), descriptors (n, D)), n <= BATCH.

    Each batch is of the moment at which it is read. Raises StoppedError once `stop` is set.
    """
    # The plus keeps SQLite from looking up the gallery in an index and then sorting all of it for every batch.
    statement = (
        "SELECT vector_id, checksum, descriptor FROM tracklets LEFT JOIN descriptors USING (vector_id) "
        "WHERE +gallery_key = ? AND vector_id > ? ORDER BY vector_id LIMIT ?"
    )
    while True:
        if stop.is_set():
            raise StoppedError
        with reading() as connection:
            found = connection.execute(statement, (gallery_key, after, BATCH)).fetchall()
            if not found:
                return
            part = _arrays(connection, found)
        after = found[-1][0]
        yield part


class Remembered:
    """Reads the descriptors of one search, and gives those that it has read again without the store."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._ids = np.zeros(0, np.int64)
        self._parts: list[NDArray[np.float32]] = []

    def __call__(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if len(self._ids) and np.isin(ids, self._ids).all():
            if len(self._parts) > 1:
                self._parts = [np.concatenate(self._parts)]
            order = np.argsort(self._ids)
            return ids, self._parts[0][order[np.searchsorted(self._ids, ids, sorter=order)]]
        found, descriptors = self._stored(ids)
        if len(found) and len(self._ids) + len(found) <= REMEMBERED_ROWS and not np.isin(found, self._ids).any():
            self._ids = np.concatenate([self._ids, found])
            self._parts.append(descriptors)
        return found, descriptors


def _arrays(
    connection: sqlite3.Connection, found: list[tuple[int, int, bytes]]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if not found:
        return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
    return np.array([row[0] for row in found], np.int64), decode_descriptors(connection, found)
