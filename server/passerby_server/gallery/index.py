"""Nearest descriptors in memory: a small interface, and the exact index on FAISS.

FAISS indexes must not be searched while they change, so every index here keeps a read-write lock. The index is
derived: whoever owns it rebuilds it from the store when in doubt.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray
from passerby.errors import InternalError
from passerby_model.metrics import unit_rows

from passerby_server.gallery.turns import turn
from passerby_server.gallery.types import Metric

SHARD_BYTES = 64 * 2**20
"""Descriptors of one shard: searched by one thread, and moved when one of them is deleted (about 10 ms)."""
MIN_SHARD_ROWS = 256
"""Rows of a shard at least, however long they are."""
SLACK = 16
"""Further candidates fetched beyond k, whose distances are recomputed: room for float32 rounding and for ties."""
EXACT_ROWS = 1024
"""Vectors copied out of the index at once to recompute their distances (8 MiB at 2,048 values)."""
ROUNDING = 2e-5
"""Bound of FAISS's float32 rounding of a distance: relative for squared_euclidean, absolute for cosine."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Result of a search: ids int64 (k,) and distances float32 (k,), nearest first, equal distances by id."""

    ids: NDArray[np.int64]
    distances: NDArray[np.float32]


Stored = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Reads descriptors from the store: of `ids` (ascending) those that are there, and their descriptors (n, D)."""


class Index(Protocol):
    """What a gallery needs of an index. Methods are safe to call from any thread at once.

    `stored` reads the descriptors that the index itself does not keep; an exact index asks for none.
    """

    @property
    def approximate(self) -> bool:
        """Whether a search may miss a neighbour."""
        ...

    @property
    def worn(self) -> bool:
        """Whether it should be built anew."""
        ...

    def add(self, ids: NDArray[np.int64], descriptors: NDArray[np.float32]) -> None:
        """Adds descriptors float32 (n, D) under ids int64 (n,), ascending and above all ids ever added."""
        ...

    def remove(self, ids: NDArray[np.int64]) -> None:
        """Forgets these ids; those that are not there are passed over."""
        ...

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.int64] | None = None,
        stored: Stored | None = None,
    ) -> Neighbours:
        """The nearest of those `allowed` (ascending int64; None: of all): exactly min(k, how many are here)."""
        ...

    def take(
        self, ids: NDArray[np.int64], stored: Stored | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Those of `ids` (ascending) that are here, and their vectors (n, D): unit vectors for cosine."""
        ...

    def size_bytes(self) -> int:
        """Memory of the vectors and ids."""
        ...

    def __len__(self) -> int: ...


class ReadWriteLock:
    """Many readers or one writer; a waiting writer goes before new readers, so that searches cannot starve ingest."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._writing = False
        self._waiting_writers = 0

    @property
    def readers(self) -> int:
        """How many read at this moment."""
        return self._readers

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._condition:
            while self._writing or self._waiting_writers:
                self._condition.wait()
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                if self._waiting_writers:
                    self._condition.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._condition:
            self._waiting_writers += 1
            try:
                self._condition.wait_for(lambda: not self._writing and self._readers == 0)
            finally:
                self._waiting_writers -= 1
                self._condition.notify_all()
            self._writing = True
        try:
            yield
        finally:
            with self._condition:
                self._writing = False
                self._condition.notify_all()


class _Shard:
    """A FAISS flat index and the ids of its rows, ascending."""

    def __init__(self, dimension: int, metric: Metric) -> None:
        self.flat = faiss.IndexFlatL2(dimension) if metric == "squared_euclidean" else faiss.IndexFlatIP(dimension)
        self.ids = np.zeros(0, np.int64)

    def add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        self.flat.add(vectors)
        self.ids = np.concatenate([self.ids, ids])

    def remove(self, ids: NDArray[np.int64]) -> None:
        rows, _ = self.locate(ids)
        if rows.size:
            self.flat.remove_ids(faiss.IDSelectorBatch(rows))  # later rows move up: the order stays
            self.ids = np.delete(self.ids, rows)

    def locate(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rows of those of `ids` that are here, and which of `ids` those are."""
        rows = np.searchsorted(self.ids, ids)
        here = np.zeros(len(ids), bool)
        inside = rows < len(self.ids)
        here[inside] = self.ids[rows[inside]] == ids[inside]
        return rows[here], here

    def parameters(self, allowed: NDArray[np.int64] | None) -> tuple[int, _Selection | None]:
        """How many rows `allowed` leaves, and FAISS's selector for them (None: all)."""
        if allowed is None:
            return len(self.ids), None
        span = slice(*np.searchsorted(allowed, [self.ids[0], self.ids[-1] + 1]))
        rows, _ = self.locate(allowed[span])
        if len(rows) == len(self.ids):
            return len(rows), None
        return len(rows), _Selection(rows, len(self.ids))


class _Selection:
    """FAISS search parameters that admit some rows; keeps alive what FAISS only points to."""

    def __init__(self, rows: NDArray[np.int64], total: int) -> None:
        mask = np.zeros(total, bool)
        mask[rows] = True
        self._bits = np.packbits(mask, bitorder="little")
        # FAISS's Python layer takes arrays and keywords that the signatures it shows to type checkers lack.
        selector: Any = faiss.IDSelectorBitmap
        parameters: Any = faiss.SearchParameters
        self._selector = selector(self._bits)
        self.parameters = parameters(sel=self._selector)


class ExactIndex:
    """Exhaustive search, float32, in shards that the threads of `pool` search side by side.

    A single FAISS search uses one thread for one query; the shards are what lets it use all. `cosine` keeps unit
    vectors; a zero vector stays zero and is at distance 1 from everything.
    """

    def __init__(self, dimension: int, metric: Metric, pool: ThreadPoolExecutor) -> None:
        self._dimension = dimension
        self._metric: Metric = metric
        self._pool = pool
        self._capacity = max(MIN_SHARD_ROWS, SHARD_BYTES // (4 * dimension))
        self._shards: list[_Shard] = []
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        with self._lock.reading():
            return self._count()

    @property
    def approximate(self) -> bool:
        return False

    @property
    def worn(self) -> bool:
        return False

    def size_bytes(self) -> int:
        with self._lock.reading():
            return self._count() * (4 * self._dimension + 8)

    def add(self, ids: NDArray[np.int64], descriptors: NDArray[np.float32]) -> None:
        vectors = np.ascontiguousarray(self._vectors(descriptors))
        with self._lock.writing():
            if len(ids) and self._shards and ids[0] <= self._shards[-1].ids[-1]:
                raise InternalError("ids must be added in ascending order")
            start = 0
            while start < len(ids):
                if not self._shards or len(self._shards[-1].ids) >= self._capacity:
                    self._shards.append(_Shard(self._dimension, self._metric))
                end = start + self._capacity - len(self._shards[-1].ids)
                self._shards[-1].add(ids[start:end], vectors[start:end])
                start = end

    def remove(self, ids: NDArray[np.int64]) -> None:
        with self._lock.writing():
            for shard in self._shards:
                shard.remove(np.unique(ids))
            self._shards = [shard for shard in self._shards if len(shard.ids)]

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.int64] | None = None,
        stored: Stored | None = None,
    ) -> Neighbours:
        vector = self._vectors(query[None, :])
        with self._lock.reading():
            found = self._nearest(vector, k + SLACK, allowed)
            with turn():
                exact = self._exact(vector, np.sort(found.ids))
            if self._may_lack_ties(exact, found, k):
                exact = self._exact(vector, np.sort(self._within(vector, float(exact.distances[k - 1]), allowed)))
        return Neighbours(exact.ids[:k], exact.distances[:k])

    def take(
        self,
        ids: NDArray[np.int64],
        stored: Stored | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        with self._lock.reading():
            return self._take(ids)

    def _count(self) -> int:
        return sum(len(shard.ids) for shard in self._shards)

    def _vectors(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        return unit_rows(descriptors) if self._metric == "cosine" else descriptors.astype(np.float32, copy=False)

    def _take(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        kept, vectors = [np.zeros(0, np.int64)], [np.zeros((0, self._dimension), np.float32)]
        for shard in self._shards:
            rows, here = shard.locate(ids)
            if rows.size:
                kept.append(ids[here])
                vectors.append(shard.flat.reconstruct_batch(rows))
        return np.concatenate(kept), np.concatenate(vectors)

    def _nearest(self, vector: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None) -> Neighbours:
        """FAISS's own k nearest over all shards, with its rounded distances."""

        def one(shard: _Shard) -> Neighbours | None:
            count, selection = shard.parameters(allowed)
            if count == 0:
                return None
            parameters = selection.parameters if selection else None
            distances, rows = shard.flat.search(vector, min(k, count), params=parameters)
            found = rows[0] >= 0
            return Neighbours(shard.ids[rows[0][found]], self._as_distance(distances[0][found]))

        merged = merge([part for part in self._over_shards(one) if part is not None])
        order = np.argsort(merged.distances, kind="stable")[:k]
        return Neighbours(merged.ids[order], merged.distances[order])

    def _within(
        self, vector: NDArray[np.float32], radius: float, allowed: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """Ids of all vectors up to `radius`, and of some a rounding error beyond."""
        bound = radius + self._rounding(radius)
        bound = np.nextafter(np.float32(bound), np.float32(np.inf))
        threshold = float(bound if self._metric == "squared_euclidean" else 1.0 - bound)

        def one(shard: _Shard) -> Neighbours | None:
            count, selection = shard.parameters(allowed)
            if count == 0:
                return None
            parameters = selection.parameters if selection else None
            _, distances, rows = shard.flat.range_search(vector, threshold, params=parameters)
            return Neighbours(shard.ids[rows], distances)

        return merge([part for part in self._over_shards(one) if part is not None]).ids

    def _over_shards(self, search: Callable[[_Shard], Neighbours | None]) -> list[Neighbours | None]:
        if len(self._shards) < 2:
            return [search(shard) for shard in self._shards]
        return list(self._pool.map(search, self._shards))

    def _exact(self, vector: NDArray[np.float32], ids: NDArray[np.int64]) -> Neighbours:
        """Distances to `ids` (ascending, all of them here), summed in float64 so that equal vectors are at exactly 0; sorted."""
        distances = np.empty(len(ids), np.float32)
        for start in range(0, len(ids), EXACT_ROWS):  # in parts: all rows of the gallery may tie
            part = slice(start, start + EXACT_ROWS)
            _, vectors = self._take(ids[part])
            distances[part] = exact_distances(vector[0], vectors, self._metric)
        order = np.argsort(distances, kind="stable")
        return Neighbours(ids[order], distances[order])

    def _may_lack_ties(self, exact: Neighbours, found: Neighbours, k: int) -> bool:
        """Whether an item that FAISS left out may be as near as the k-th."""
        if len(found.ids) < k + SLACK or not len(found.ids):
            return False
        last = float(found.distances[-1])
        return last - self._rounding(last) <= float(exact.distances[k - 1])

    def _rounding(self, distance: float) -> float:
        return ROUNDING * abs(distance) if self._metric == "squared_euclidean" else ROUNDING

    def _as_distance(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        return scores if self._metric == "squared_euclidean" else np.float32(1.0) - scores


def exact_distances(query: NDArray[np.float32], vectors: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Distances of `query` (D,) to `vectors` (n, D), computed in float64; float32 (n,).

    Cosine takes unit vectors: 1 - cos(a, b) = |a - b|^2 / 2, which loses nothing where the distance is small.
    A zero vector has no direction: its distance to everything is 1. No vectors may come without their length, (0, 0).
    """
    if not len(vectors):
        return np.zeros(0, np.float32)
    difference = vectors.astype(np.float64)
    if metric == "cosine":
        norms = np.sqrt(np.einsum("nd,nd->n", difference, difference))
    difference -= query.astype(np.float64)
    squared = np.einsum("nd,nd->n", difference, difference)
    if metric == "squared_euclidean":
        return np.asarray(squared, np.float32)
    none = (norms == 0.0) | (not query.any())
    return np.where(none, 1.0, np.minimum(squared / 2.0, 2.0)).astype(np.float32)


def search_pool(threads: int = 0) -> ThreadPoolExecutor:
    """The threads that search shards; 0 means as many as there are processors to use."""
    return ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)), thread_name_prefix="gallery-search")


def merge(parts: list[Neighbours]) -> Neighbours:
    """All of the parts, one after the other."""
    ids = [np.zeros(0, np.int64), *(part.ids for part in parts)]
    distances = [np.zeros(0, np.float32), *(part.distances for part in parts)]
    return Neighbours(np.concatenate(ids), np.concatenate(distances))
