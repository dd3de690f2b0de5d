"""k-reciprocal re-ranking (numpy only).

Source: Zhong, Zheng, Cao, Li: "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017,
arXiv 1701.08398; the public code `re_ranking(q_g_dist, q_q_dist, g_g_dist)` ("ranklist"), whose float32 results
this module reproduces. Steps as marked below:

    1. squared distances of all items (queries and gallery alike), each row divided by its maximum
    2. k1-reciprocal neighbours R(i), expanded by those half-k1-reciprocal sets that overlap R(i) in more than 2/3
    3. V(i): exp(-distance) over the expanded set, summing to 1 (section 3.3, equation 6)
    4. local query expansion: V(i) becomes the mean of V over its k2 nearest (section 3.4, equation 11)
    5. Jaccard distance from sums of minima and maxima (equation 10), mixed with the distance of step 1 (equation 12)

Differs from the public code: V is kept sparse (a few dozen entries a row), the minima are summed over an inverted
index of it, and work goes by blocks of rows. Where descriptors are given, nothing of the size M x M ever exists: a
tile of distances is there until its rows' maxima and nearest items are taken, and the distances that step 3 needs
besides are computed pair by pair. Ties are ranked in item order, not by chance of the sort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError

from passerby_model.distances import (
    DistancesTo,
    Metric,
    check_finite,
    check_widths,
    tiles,
)
from passerby_model.neighbours import nearest_among, nearest_columns
from passerby_model.sparse_rows import RowCollector, SparseRows

BLOCK_ELEMENTS = 1 << 22
"""Elements of the dense scratch matrices (rows x M): 4 Mi, 16 MiB as float32, about what a shared cache holds."""

PairDistances = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""Distances of step 1 of pairs: of items (P,) to items (P,)."""

OVERLAP = 2.0 / 3.0
"""Share of a neighbour's reciprocal set that has to be in R(i) for it to be merged (section 3.2, equation 5)."""


def k_reciprocal(
    query_gallery: NDArray[np.float32],
    query_query: NDArray[np.float32],
    gallery_gallery: NDArray[np.float32],
    k1: int = 20,
    k2: int = 6,
    original_weight: float = 0.3,
) -> NDArray[np.float32]:
    """Joint re-ranking of all queries and the whole gallery: every query is also a neighbour of the others.

    Args:
        query_gallery: float32 (Q, G), Euclidean distances (not squared), >= 0.
        query_query: float32 (Q, Q), likewise.
        gallery_gallery: float32 (G, G), likewise.
        k1: neighbours in the reciprocal set, >= 1.
        k2: neighbours in the query expansion, in [1, k1].
        original_weight: share of the original distance in the result, in [0, 1].

    Returns:
        float32 (Q, G) in [0, 1], lower is nearer.

    Raises:
        InvalidArgumentError: shapes disagree or an option is out of range.
    """
    queries, gallery = query_gallery.shape
    if query_query.shape != (queries, queries) or gallery_gallery.shape != (gallery, gallery):
        raise InvalidArgumentError(
            f"expected (Q, G), (Q, Q), (G, G) distances, got {query_gallery.shape}, {query_query.shape}, "
            f"{gallery_gallery.shape}"
        )
    distances = np.empty((queries + gallery, queries + gallery), np.float32)
    # The public code stacks the blocks, divides columns and transposes; here the blocks lie transposed from the start.
    distances[:queries, :queries] = query_query.T
    distances[:queries, queries:] = query_gallery
    distances[queries:, :queries] = query_gallery.T
    distances[queries:, queries:] = gallery_gallery.T
    np.square(distances, out=distances)
    return rerank_squared(distances, queries, k1, k2, original_weight)


def k_reciprocal_descriptors(
    query: NDArray[np.float32],
    gallery: NDArray[np.float32],
    *,
    metric: Metric = "squared_euclidean",
    k1: int = 20,
    k2: int = 6,
    original_weight: float = 0.3,
    block_rows: int | None = None,
) -> NDArray[np.float32]:
    """`k_reciprocal` of descriptors, in memory that grows with M = Q + G, not with its square.

    The arguments and errors are those of `k_reciprocal_blocks`.

    Returns:
        float32 (Q, G) in [0, 1], lower is nearer. Where that is too large itself, take it from `k_reciprocal_blocks`.
    """
    result = np.empty((len(query), len(gallery)), np.float32)
    for rows, distances in k_reciprocal_blocks(
        query, gallery, metric=metric, k1=k1, k2=k2, original_weight=original_weight, block_rows=block_rows
    ):
        result[rows] = distances
    return result


def k_reciprocal_blocks(
    query: NDArray[np.float32],
    gallery: NDArray[np.float32],
    *,
    metric: Metric = "squared_euclidean",
    k1: int = 20,
    k2: int = 6,
    original_weight: float = 0.3,
    block_rows: int | None = None,
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Joint re-ranking of all queries and the whole gallery, handed out by blocks of queries.

    Memory beside the descriptors: two copies of them (one while the first block is prepared), a tile of distances
    with its scratch (about 0.3 GB), and about 1 KB for each item.

    Args:
        query: float32 (Q, D).
        gallery: float32 (G, D).
        metric: "squared_euclidean" or "cosine"; see `shortlist_rerank`.
        k1: neighbours in the reciprocal set, >= 1.
        k2: neighbours in the query expansion, in [1, k1].
        original_weight: share of the original distance in the result, in [0, 1].
        block_rows: most queries in a block, >= 1; by default what fits a tile (`distances.tiles`). No effect on values.

    Yields:
        (rows, float32 (len(rows), G) in [0, 1]), lower is nearer; the rows of all blocks are 0..Q-1 in order.

    Raises:
        InvalidArgumentError: shapes disagree, an unknown metric, a descriptor that is not finite, or an option out
            of range; with the first block, not before.
    """
    check_options(k1, k2, original_weight)
    if block_rows is not None and block_rows < 1:
        raise InvalidArgumentError(f"block_rows must be at least 1, not {block_rows}")
    check_widths(query, gallery)
    check_finite(query, "query")
    check_finite(gallery, "gallery")
    queries, items = len(query), len(query) + len(gallery)
    if not len(query) or not len(gallery):
        return
    among = DistancesTo(np.concatenate([query, gallery]), metric)
    neighbours = nearest_among(among, k1 + 1)
    scale = np.where(neighbours.farthest > 0.0, neighbours.farthest, np.float32(1.0)).astype(np.float32)
    encoding = _encode(neighbours.items, k1, lambda a, b: neighbours.pairs(among, a, b) / scale[a])
    if k2 > 1:
        encoding = _expand(encoding, neighbours.items[:, :k2])
    inverted = encoding.transposed()
    for tile in tiles(queries, items):
        distances = among.among(tile)
        distances /= scale[tile, None]
        for start in range(tile.start, tile.stop, block_rows or items):
            rows = slice(start, min(start + (block_rows or items), tile.stop))
            block = distances[rows.start - tile.start : rows.stop - tile.start]
            yield rows, _mixed(encoding, inverted, block, start, queries, original_weight)


def shortlist_rerank(
    query: NDArray[np.float32],
    candidates: NDArray[np.float32],
    metric: str = "squared_euclidean",
    k1: int = 20,
    k2: int = 6,
    original_weight: float = 0.3,
    check: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Online re-ranking of one query's nearest candidates.

    Neighbourhoods are taken within {query} + candidates. With the whole gallery as candidates this is `k_reciprocal`
    of that one query; it is not what a joint run of many queries gives, for there the other queries are neighbours
    too, which a server that answers one query at a time does not have.

    Args:
        query: float32 (D,).
        candidates: float32 (G, D).
        metric: "squared_euclidean" or "cosine". 1 - cos is half the squared Euclidean distance of unit vectors,
            and step 1 takes the half away, so both mean the method on Euclidean distances.
        k1: neighbours in the reciprocal set, >= 1.
        k2: neighbours in the query expansion, in [1, k1].
        original_weight: share of the original distance in the result, in [0, 1].

        check: called between the steps; what it raises ends the work.

    Returns:
        float32 (G,) in [0, 1], in the order of `candidates`, lower is nearer. No candidates: empty.

    Raises:
        InvalidArgumentError: shapes disagree, an unknown metric or an option out of range.
    """
    if query.ndim != 1 or candidates.ndim != 2 or candidates.shape[1] != query.shape[0]:
        raise InvalidArgumentError(f"expected (D,) and (G, D) descriptors, got {query.shape} and {candidates.shape}")
    if metric not in ("squared_euclidean", "cosine"):
        raise InvalidArgumentError(f"unknown metric {metric!r}: use squared_euclidean or cosine")
    items = np.concatenate([query[None, :], candidates]).astype(np.float32, copy=False)
    distances = DistancesTo(items, "cosine" if metric == "cosine" else "squared_euclidean", overwrite=True).among(
        slice(None)
    )
    np.fill_diagonal(distances, 0.0)
    reranked: NDArray[np.float32] = rerank_squared(distances, 1, k1, k2, original_weight, check)[0]
    return reranked


def rerank_squared(
    squared: NDArray[np.float32],
    query_count: int,
    k1: int = 20,
    k2: int = 6,
    original_weight: float = 0.3,
    check: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """The method itself, on the squared distances of all items, the queries first.

    Args:
        squared: float32 (M, M), >= 0, row i the squared distances of item i; overwritten by step 1.
        query_count: Q, how many leading items are queries.
        k1: neighbours in the reciprocal set, >= 1; fewer where there are fewer items.
        k2: neighbours in the query expansion, in [1, k1].
        original_weight: share of the original distance in the result, in [0, 1].
        check: called between the steps; what it raises ends the work.

    Returns:
        float32 (Q, M - Q) in [0, 1].

    Raises:
        InvalidArgumentError: an option is out of range.
    """
    check_options(k1, k2, original_weight)
    if query_count == 0 or query_count == squared.shape[0]:
        return np.zeros((query_count, squared.shape[0] - query_count), np.float32)
    largest = squared.max(axis=1, keepdims=True)
    distances = np.divide(squared, np.where(largest > 0.0, largest, 1.0), out=squared)  # step 1
    check()
    blocks = _blocks(len(distances), len(distances))
    nearest = np.concatenate([nearest_columns(distances[block[0] : block[-1] + 1], k1 + 1) for block in blocks])
    check()
    encoding = _encode(nearest, k1, lambda rows, columns: distances[rows, columns])
    check()
    expanded_over = nearest[:, :k2] if k2 > 1 else np.arange(len(nearest), dtype=np.int32)[:, None]
    if query_count == 1:
        return _mixed_one(encoding, expanded_over, distances[0], original_weight)[None]
    if k2 > 1:
        encoding = _expand(encoding, expanded_over)
    return _mixed(encoding, encoding.transposed(), distances[:query_count], 0, query_count, original_weight)


def check_options(k1: int, k2: int, original_weight: float) -> None:
    """Raises InvalidArgumentError unless k1 >= 1, 1 <= k2 <= k1 and original_weight in [0, 1]."""
    if k1 < 1:
        raise InvalidArgumentError.of("rerank.k1", f"must be at least 1, not {k1}")
    if not 1 <= k2 <= k1:
        raise InvalidArgumentError.of("rerank.k2", f"must be from 1 to k1 ({k1}), not {k2}")
    if not 0.0 <= original_weight <= 1.0:
        raise InvalidArgumentError.of("rerank.original_weight", f"must be in [0, 1], not {original_weight}")


def _blocks(items: int, width: int) -> list[NDArray[np.int64]]:
    """Row numbers 0..items-1 in blocks whose dense (rows, width) form stays within BLOCK_ELEMENTS."""
    height = max(1, BLOCK_ELEMENTS // width)
    return [np.arange(start, min(start + height, items)) for start in range(0, items, height)]


def _encode(nearest: NDArray[np.int32], k1: int, distances_of: PairDistances) -> SparseRows:
    """Steps 2 and 3: V, the k-reciprocal encoding of every item."""
    half = nearest[:, : round(k1 / 2) + 1]  # round() is half-to-even, as np.around in the public code
    blocks = _blocks(len(nearest), max(len(nearest), nearest.shape[1] ** 2))
    half_mutual = np.concatenate([_mutual(half, block) for block in blocks])
    collector = RowCollector()
    for block in blocks:
        neighbours = nearest[block]  # (B, k1 + 1)
        mutual = _mutual(nearest, block)  # (B, k1 + 1)
        member = np.zeros(len(block) * len(nearest), bool)  # R(i) as rows of booleans, laid end to end
        first = np.arange(len(block)) * len(nearest)
        member[(first[:, None] + neighbours)[mutual]] = True
        candidate = first[:, None, None] + half[neighbours]  # (B, k1 + 1, half + 1)
        candidate_mutual = half_mutual[neighbours]
        overlap = (member[candidate] & candidate_mutual).sum(axis=2)
        merged = mutual & (overlap > OVERLAP * candidate_mutual.sum(axis=2))
        member[candidate[merged[:, :, None] & candidate_mutual]] = True
        owner, columns = np.divmod(np.flatnonzero(member), len(nearest))
        weights = np.exp(-distances_of(block[owner], columns))
        collector.add(len(block), owner, columns, weights / np.bincount(owner, weights)[owner])
    return collector.finish()


def _mutual(nearest: NDArray[np.int32], block: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool (B, K): whether each neighbour of the items in `block` has them among its own nearest (M, K)."""
    if len(nearest) ** 2 <= BLOCK_ELEMENTS:  # few items: one look into a matrix instead of K comparisons
        is_near = np.zeros((len(nearest), len(nearest)), bool)
        is_near[np.arange(len(nearest))[:, None], nearest] = True
        return np.asarray(is_near[nearest[block], block[:, None]])
    back: NDArray[np.bool_] = nearest[nearest[block]] == block[:, None, None]
    found: NDArray[np.bool_] = np.asarray(back.any(axis=2))
    return found


def _expand(encoding: SparseRows, nearest: NDArray[np.int32]) -> SparseRows:
    """Step 4: the mean of the encodings of each item's k2 nearest (M, k2)."""
    items, k2 = nearest.shape
    collector = RowCollector()
    for block in _blocks(items, items):
        owner, columns, values = encoding.take(nearest[block].ravel())
        keys = owner // k2 * items + columns
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        rows, columns = np.divmod(keys[first], items)
        collector.add(len(block), rows, columns, np.add.reduceat(values[order], first, dtype=np.float64) / k2)
    return collector.finish()


def _mixed(
    encoding: SparseRows,
    inverted: SparseRows,
    distances: NDArray[np.float32],
    first: int,
    query_count: int,
    original_weight: float,
) -> NDArray[np.float32]:
    """Step 5 for queries `first`, `first` + 1, ..., given their distances of step 1 (B, M): float32 (B, M - Q).

    Rows of V sum to 1, so the sum of maxima is 2 minus the sum of minima.
    """
    mixed = np.empty((len(distances), distances.shape[1] - query_count), np.float32)
    for row in range(len(distances)):
        own = slice(encoding.starts[first + row], encoding.starts[first + row + 1])
        owner, others, values = inverted.take(encoding.columns[own])
        shared = np.minimum(values, encoding.values[own][owner])
        minima = np.bincount(others, shared, minlength=distances.shape[1])[query_count:]
        jaccard = np.maximum(1.0 - minima / (2.0 - minima), 0.0)  # rounding may leave -1e-8
        mixed[row] = jaccard * (1.0 - original_weight) + distances[row, query_count:] * original_weight
    return mixed


def _mixed_one(
    encoding: SparseRows, nearest: NDArray[np.int32], distances: NDArray[np.float32], original_weight: float
) -> NDArray[np.float32]:
    """Steps 4 and 5 for item 0 as the only query, given the k2 nearest of all (M, k2): float32 (M - 1,).

    Only the columns of V that the query's own row has after step 4 can have minima above 0: they are few, and dense.
    """
    items, k2 = nearest.shape
    place = np.full(items, -1)
    own = np.unique(encoding.take(nearest[0])[1])
    place[own] = np.arange(len(own))
    column = place[encoding.columns]
    kept = column >= 0
    owner = np.repeat(np.arange(items), np.diff(encoding.starts))
    dense = np.zeros((items, len(own)), np.float32)
    dense[owner[kept], column[kept]] = encoding.values[kept]
    total = dense[nearest[:, 0]].astype(np.float64)
    for neighbour in range(1, k2):
        total += dense[nearest[:, neighbour]]
    expanded = (total / k2).astype(np.float32)
    minima = np.minimum(expanded[1:], expanded[0]).sum(axis=1, dtype=np.float64)
    jaccard = np.maximum(1.0 - minima / (2.0 - minima), 0.0)
    mixed: NDArray[np.float32] = jaccard * (1.0 - original_weight) + distances[1:] * original_weight
    return mixed.astype(np.float32)
