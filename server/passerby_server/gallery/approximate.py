"""An index that FAISS compresses or searches in part; its candidates are ranked by the stored float32 descriptors.

    query -> FAISS: 2k + 64 candidates among the allowed -> their stored descriptors -> exact distances -> the k nearest

Reading descriptors is what takes long: the nearest k + 4 candidates are read first, and of the others those that may
be among the k nearest, by how far FAISS's distances are from the exact ones.

Always min(k, how many are allowed) of them: few allowed ones are all compared; where FAISS gives too few candidates,
it searches all its lists, and then everything allowed is read from the store. A narrow filter widens the search by
as much, for an inverted file probes as many allowed descriptors then as without it.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from passerby.errors import InternalError
from passerby_model.metrics import unit_rows

from passerby_server.gallery import kinds
from passerby_server.gallery.index import EXACT_ROWS, Neighbours, ReadWriteLock, Stored, exact_distances, merge
from passerby_server.gallery.turns import turn
from passerby_server.gallery.types import Metric

SCAN_ROWS = 250
"""Allowed tracklets up to which all are read and compared: about 3 ms at 2,048 values. With more, the index
is faster, and as many lists more are probed as the filter is narrow."""
GRAPH_SCAN_ROWS = 1000
"""Likewise of a graph, which has to follow many more links the narrower the filter is."""
MORE_CANDIDATES = 64
"""Candidates beyond 2 k."""
FIRST_READ = 4
"""Candidates beyond k that are read first."""
MIN_PART_BYTES = 4 * 2**20
"""Codes that are worth a thread of their own: about a millisecond."""
DOUBT = 1.0
"""How much less than the least of those read a candidate's distance may be beyond FAISS's, in parts of the range of
those read; one that may be among the k nearest then is read. With 8-bit codes, which err by little, hardly any is
read beyond k + 4, with principal components, which leave out about as much of each, some; with product quantisation
all."""
MAX_DEAD = 0.05
"""Share of removed rows that a kind without removal carries along before it is built anew."""


class ApproximateIndex:
    """An `Index` over a trained FAISS index, empty or (with `ids`, ascending) filled.

    Descriptors are normalised for cosine, and compared by inner product. A kind that cannot remove (HNSW) keeps what
    was removed as dead rows, which are never returned; `worn` says when it should be built anew.
    """

    def __init__(self, metric: Metric, trained: Any, ids: NDArray[np.int64] | None = None) -> None:
        self._metric: Metric = metric
        self._faiss = trained
        self._ids = np.zeros(0, np.int64) if ids is None else ids
        self._dead = np.zeros(0, np.int64)
        self._lock = ReadWriteLock()
        self._inverted = kinds.inverted_file(trained)
        self._core = kinds.core(trained)
        self._transforms = kinds.transforms(trained)
        self._by_angle = trained.metric_type == faiss.METRIC_INNER_PRODUCT
        self._graph = self._core.hnsw if hasattr(self._core, "hnsw") else None
        selects = (faiss.IndexFlat, faiss.IndexScalarQuantizer)
        self._selects = self._inverted is not None or self._graph is not None or isinstance(self._core, selects)
        if isinstance(self._inverted, faiss.IndexIVFAdditiveQuantizer):  # FAISS: "id selector not supported"
            self._selects = False
        self.effort = self._inverted.nprobe if self._inverted is not None else getattr(self._graph, "efSearch", 0)
        """Lists probed (inverted file) or candidates followed (graph) by a search without filter."""
        self._pool: ThreadPoolExecutor | None = None

    def share(self, pool: ThreadPoolExecutor) -> None:
        """A search that is the only one may use the threads of `pool` from now on, where it can be divided."""
        if self._selects and self._graph is None:
            self._pool = pool

    def __len__(self) -> int:
        with self._lock.reading():
            return len(self._ids)

    @property
    def approximate(self) -> bool:
        return True

    @property
    def worn(self) -> bool:
        """Whether dead rows are so many that it should be built anew."""
        return len(self._dead) > MAX_DEAD * max(len(self._ids), 1)

    @property
    def clean(self) -> bool:
        """Whether nothing of what was removed is left in it."""
        return not len(self._dead)

    def size_bytes(self) -> int:
        with self._lock.reading():
            rows = len(self._ids) + len(self._dead)
            code = self._core.code_size if hasattr(self._core, "code_size") else 4 * self._core.d
            links = 8 * self._graph.nb_neighbors(1) if self._graph is not None else 0
            return int(rows * (code + links + 16))  # its id and ours

    def add(self, ids: NDArray[np.int64], descriptors: NDArray[np.float32]) -> None:
        vectors = np.ascontiguousarray(self._vectors(descriptors))
        with self._lock.writing():
            if len(ids) and len(self._ids) and ids[0] <= self._ids[-1]:
                raise InternalError("ids must be added in ascending order")
            self._faiss.add_with_ids(vectors, ids)
            self._ids = np.concatenate([self._ids, ids])

    def remove(self, ids: NDArray[np.int64]) -> None:
        with self._lock.writing():
            here = np.intersect1d(ids, self._ids)
            if not len(here):
                return
            try:
                self._faiss.remove_ids(here)
            except RuntimeError:  # FAISS: "remove_ids not implemented for this type of index"
                self._dead = np.union1d(self._dead, here)
            self._ids = np.setdiff1d(self._ids, here, assume_unique=True)

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.int64] | None = None,
        stored: Stored | None = None,
    ) -> Neighbours:
        if stored is None:
            raise InternalError("an approximate index needs the stored descriptors")
        everyone = self._ids if allowed is None else allowed  # the array is replaced, never changed
        wanted = min(k, len(everyone))
        if len(everyone) <= max(GRAPH_SCAN_ROWS if self._graph is not None else SCAN_ROWS, k):
            with turn():
                return scan(query, everyone, k, stored, self._metric)
        for widest in (False, True):
            candidates = self._candidates(query, 2 * k + MORE_CANDIDATES, allowed, widest=widest)
            with turn():
                found = self._ranked(query, candidates, k, stored)
            if len(found.ids) >= wanted:
                return found
        return scan(query, everyone, k, stored, self._metric)

    def take(
        self, ids: NDArray[np.int64], stored: Stored | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if stored is None:
            raise InternalError("an approximate index needs the stored descriptors")
        kept, descriptors = stored(ids)
        return kept, self._vectors(descriptors)

    def ids(self) -> NDArray[np.int64]:
        """All ids here, int64 (n,), ascending."""
        with self._lock.reading():
            return self._ids

    def dump(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Ids int64 (n,) and FAISS's bytes uint8 (m,), of one moment."""
        with self._lock.reading():
            return self._ids, faiss.serialize_index(self._faiss)

    def _vectors(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        return unit_rows(descriptors) if self._metric == "cosine" else descriptors.astype(np.float32, copy=False)

    def _ranked(self, query: NDArray[np.float32], candidates: Neighbours, k: int, stored: Stored) -> Neighbours:
        """The k nearest of the candidates by their stored descriptors."""
        count = k + FIRST_READ
        order = candidates.ids[:count].argsort()
        ids, estimated = candidates.ids[order], candidates.distances[order]
        kept, descriptors = stored(ids)
        if len(kept) < len(ids):  # some were deleted since
            return scan(query, np.sort(candidates.ids), k, stored, self._metric)
        distances = self._exact(query, descriptors)
        if len(candidates.ids) > count:
            beyond = distances - estimated
            least = beyond.min() - DOUBT * np.ptp(beyond)
            farthest = np.partition(distances, k - 1)[k - 1] - least
            others = candidates.ids[count : candidates.distances.searchsorted(farthest, "right")]
            if len(others):
                kept, descriptors = stored(np.sort(others))
                ids = np.concatenate([ids, kept])
                distances = np.concatenate([distances, self._exact(query, descriptors)])
        best = np.lexsort((ids, distances))[:k]
        return Neighbours(ids[best], distances[best])

    def _exact(self, query: NDArray[np.float32], descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        return exact_distances(self._vectors(query[None])[0], self._vectors(descriptors), self._metric)

    def _candidates(
        self, query: NDArray[np.float32], count: int, allowed: NDArray[np.int64] | None, *, widest: bool
    ) -> Neighbours:
        """Up to `count` that FAISS finds near, nearest first, with its distances; `widest` spares no effort."""
        vector = self._vectors(query[None, :])
        with self._lock.reading():
            total = len(self._ids) + len(self._dead)
            if not total:
                return merge([])
            if allowed is None and len(self._dead):
                allowed = self._ids
            if allowed is None or self._selects:
                options = self._options(total, count, allowed, widest=widest)
                scores, found = self._search(vector, min(count, total), options)
            else:  # without a selector: as many more as the filter will drop
                more = total if widest else min(total, count * total // max(len(allowed), 1))
                options = self._options(total, count, None, widest=widest)
                scores, found = self._search(vector, min(more, 10 * count), options)
        here = found[0] >= 0
        if allowed is not None:
            here &= _among(found[0], allowed)
        return Neighbours(found[0][here], self._as_distance(scores[0][here]))

    def _as_distance(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._by_angle:
            return np.float32(1.0) - scores
        return scores if self._metric == "squared_euclidean" else scores / np.float32(2.0)  # of unit vectors

    def _options(self, total: int, count: int, allowed: NDArray[np.int64] | None, *, widest: bool) -> dict[str, Any]:
        """FAISS's search parameters by name."""
        options: dict[str, Any] = {} if allowed is None else {"sel": _selector(allowed, int(self._last()) + 1)}
        widening = 1.0 if allowed is None else total / max(len(allowed), 1)
        if self._inverted is not None:
            lists = self._inverted.nlist
            options["nprobe"] = lists if widest else min(lists, round(self.effort * widening))
        elif self._graph is not None:
            options["efSearch"] = min(total, round(max(self.effort, 2 * count) * widening * (8 if widest else 1)))
        return options

    def _search(
        self, vector: NDArray[np.float32], count: int, options: dict[str, Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As FAISS's own search of `vector` (1, D): scores and ids (1, count), nearest first."""
        kind: Any = faiss.SearchParameters
        if self._inverted is not None:
            kind = faiss.SearchParametersIVF
        elif self._graph is not None:
            kind = vars(faiss)["SearchParametersHNSW"]  # missing in FAISS's type stub

        def one(own: dict[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            return tuple(self._faiss.search(vector, count, params=kind(**own) if own else None))

        if self._pool is None or self._lock.readers > 1:
            return one(options)
        first, *others = self._divided(vector, options, self._pool._max_workers)
        if not others:
            return one(first)
        running = [self._pool.submit(one, part) for part in others]
        found = [one(first), *(other.result() for other in running)]
        scores, ids = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
        key = -scores[0] if self._by_angle else scores[0]
        nearest = np.argsort(np.where(ids[0] >= 0, key, np.inf), kind="stable")[:count]
        return scores[:, nearest], ids[:, nearest]

    def _divided(self, vector: NDArray[np.float32], options: dict[str, Any], most: int) -> list[dict[str, Any]]:
        """Options of searches that together are the one with `options`: by lists that are probed, or by ids."""
        rows = len(self._ids)
        if self._inverted is None:
            parts = 1 if "sel" in options else min(most, rows * self._core.code_size // MIN_PART_BYTES)
            bounds = self._ids[rows * np.arange(1, parts) // max(parts, 1)].tolist()
            between = zip([0, *bounds], [*bounds, int(self._last()) + 1], strict=True)
            selector: Any = faiss.IDSelectorRange
            return [options] if parts < 2 else [{"sel": selector(*ids)} for ids in between]
        share = options["nprobe"] / self._inverted.nlist
        parts = min(most, options["nprobe"], int(share * rows * self._core.code_size) // MIN_PART_BYTES)
        if parts < 2:
            return [options]
        for transform in self._transforms:
            vector = transform.apply(vector)
        probed = faiss.downcast_index(self._inverted.quantizer).search(vector, options["nprobe"])[1][0]
        return [options | self._probing(np.sort(probed[part::parts])) for part in range(parts)]

    def _probing(self, lists: NDArray[np.int64]) -> dict[str, Any]:
        parameters: Any = faiss.SearchParameters
        selector = _selector(lists, self._inverted.nlist)
        return {"nprobe": len(lists), "quantizer_params": parameters(sel=selector)}

    def _last(self) -> int:
        return max(int(part[-1]) for part in (self._ids, self._dead) if len(part))


def _selector(ids: NDArray[np.int64], limit: int) -> Any:
    """FAISS's selector of `ids` (ascending) below `limit`."""
    mask = np.zeros(limit, bool)
    mask[ids[: np.searchsorted(ids, limit)]] = True
    bitmap: Any = faiss.IDSelectorBitmap
    return bitmap(np.packbits(mask, bitorder="little"))


def _among(ids: NDArray[np.int64], allowed: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of `ids` are in `allowed` (ascending, not empty)."""
    places = np.minimum(np.searchsorted(allowed, ids), len(allowed) - 1)
    return np.asarray(allowed[places] == ids)


def scan(
    query: NDArray[np.float32],
    ids: NDArray[np.int64],
    k: int,
    stored: Stored,
    metric: Metric,
    stop: threading.Event | None = None,
) -> Neighbours:
    """The k nearest among the stored descriptors of `ids` (ascending), compared exactly; equal distances by id.

    Those that are not stored are passed over. A set `stop` ends it early, with the nearest so far.
    """
    vector = unit_rows(query[None, :])[0] if metric == "cosine" else query
    best = Neighbours(np.zeros(0, np.int64), np.zeros(0, np.float32))
    for start in range(0, len(ids), EXACT_ROWS):
        if stop is not None and stop.is_set():
            break
        kept, descriptors = stored(ids[start : start + EXACT_ROWS])
        vectors = unit_rows(descriptors) if metric == "cosine" else descriptors
        both = merge([best, Neighbours(kept, exact_distances(vector, vectors, metric))])
        order = np.argsort(both.distances, kind="stable")[:k]  # earlier parts have smaller ids: ties stay by id
        best = Neighbours(both.ids[order], both.distances[order])
    return best
