"""Distances, CMC and mAP of person re-identification (numpy only).

Source of `evaluate`: jiyanggao/Video-Person-ReID `tools/eval_metrics.py` (the Market-1501 protocol, also torchreid's
`eval_market1501`): gallery items with the query's identity *and* camera are left out, queries without a match are
skipped. The trapezoid average precision is that of the official MARS evaluation (liangzheng06/MARS-evaluation,
`compute_AP.m`). Differs from both in one thing: ties are ranked in gallery order, so that a result can be repeated.

The order is that of the float32 distances, and the last bits of a matrix product depend on the shape of its factors.
So large products are always taken by the same tiles, whose height follows from the gallery's size alone:
`evaluate_descriptors` ranks the very distances that `squared_euclidean` and `cosine_distance` give for the whole
matrix, whatever the size of its blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError

JUNK_IDENTITY = -1
"""Identity of gallery items that count neither as right nor as wrong (MARS, Market-1501)."""

TILE_BYTES = 64 << 20
"""What a tile of distances (rows x gallery, float32) should stay below."""

TILE_ROWS = (64, 512)
"""Least and most rows of a tile: fewer waste a matrix product's time on packing the gallery, more gain nothing."""

BLOCK_ROWS = 64
"""Queries ranked at a time: the scratch copy of their distances fits a second-level cache up to 8,000 items."""

PAIRS = 256
"""Pairs of descriptors compared at a time: at 2,048 values each 4 MiB."""

AveragePrecision = Literal["plain", "trapezoid"]
Metric = Literal["squared_euclidean", "cosine"]


@dataclass(frozen=True, slots=True)
class RankingResult:
    """How well queries were ranked.

    Attributes:
        cmc: float64 (max_rank,); cmc[r] is the share of valid queries with a match among the first r + 1.
        mean_average_precision: mean of `average_precision` over the valid queries, in [0, 1].
        average_precision: float64 (Q,); NaN where the query was skipped for want of a match.
        first_match: int64 (Q,); 0-based rank of the first match, -1 where the query was skipped.
        valid_queries: how many queries counted.
    """

    cmc: NDArray[np.float64]
    mean_average_precision: float
    average_precision: NDArray[np.float64]
    first_match: NDArray[np.int64]
    valid_queries: int


def squared_euclidean(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared Euclidean distances.

    Computed as |a|^2 + |b|^2 - 2ab after moving both by the mean of `b`: the distance does not change, but far less
    is lost where the large terms cancel, since descriptors after a ReLU all lie to one side of the origin.

    Args:
        a: float32 (Q, D).
        b: float32 (G, D). The very object `a`: one symmetric product, in half the time.

    Returns:
        float32 (Q, G), >= 0.

    Raises:
        InvalidArgumentError: not two matrices of equal width.
    """
    return _all_distances(a, b, "squared_euclidean")


def cosine_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine distances, 1 - cos(a, b); a zero vector is at distance 1 from everything.

    Args:
        a: float32 (Q, D).
        b: float32 (G, D). The very object `a`: one symmetric product, in half the time.

    Returns:
        float32 (Q, G) in [0, 2].

    Raises:
        InvalidArgumentError: not two matrices of equal width.
    """
    return _all_distances(a, b, "cosine")


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """`rows` (R, D) scaled to length 1; zero rows stay zero. float32 (R, D), norms taken in float64."""
    norms = np.sqrt(np.einsum("rd,rd->r", rows, rows, dtype=np.float64))
    norms = np.where(norms > 0.0, norms, 1.0)[:, None]
    return np.divide(rows, norms, out=np.empty(rows.shape, np.float32), casting="same_kind")


class DistancesTo:
    """Distances to a fixed set of descriptors, a few rows at a time: what is done once for the set is kept."""

    def __init__(self, descriptors: NDArray[np.float32], metric: Metric) -> None:
        """Keeps a moved or scaled copy of `descriptors`, float32 (G, D).

        Raises:
            InvalidArgumentError: no matrix, or an unknown metric.
        """
        if metric not in ("squared_euclidean", "cosine"):
            raise InvalidArgumentError(f"unknown metric {metric!r}: use squared_euclidean or cosine")
        if descriptors.ndim != 2:
            raise InvalidArgumentError(f"expected (G, D) descriptors, got shape {descriptors.shape}")
        descriptors = np.asarray(descriptors, np.float32)
        self.metric = metric
        self._centre = np.zeros(descriptors.shape[1], np.float32)
        if metric == "squared_euclidean" and len(descriptors):
            self._centre = descriptors.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._own = self._prepare(descriptors)
        self._squares = np.einsum("gd,gd->g", self._own, self._own)

    def __len__(self) -> int:
        return len(self._own)

    def bound(self) -> float:
        """What no distance among the set exceeds; above 0."""
        if self.metric == "cosine":
            return 2.0
        return float(4.0 * self._squares.max(initial=0.0)) * (1.0 + 1e-3) or 1.0  # twice the longest, and rounding

    def _prepare(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        return unit_rows(descriptors) if self.metric == "cosine" else descriptors - self._centre

    def of(self, rows: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Distances of descriptors `rows`, float32 (R, D), to all: float32 (R, G), written to `out` where given."""
        return self._product(self._prepare(rows), self._own, self._squares, out)

    def among(self, rows: slice, out: NDArray[np.float32] | None = None, first: int = 0) -> NDArray[np.float32]:
        """Distances of some of the set itself to those from number `first` on: float32 (R, G - first)."""
        return self._product(self._own[rows], self._own[first:], self._squares[first:], out)

    def pairs(self, rows: NDArray[np.integer], columns: NDArray[np.integer]) -> NDArray[np.float32]:
        """Distances of pairs of the set: of numbers rows[i] and columns[i], float32 (P,)."""
        distances = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), PAIRS):
            part = slice(start, start + PAIRS)
            left, right = self._own[rows[part]], self._own[columns[part]]
            if self.metric == "squared_euclidean":
                left -= right
                distances[part] = np.einsum("pd,pd->p", left, left)
            else:
                distances[part] = 1.0 - np.einsum("pd,pd->p", left, right)
        return np.maximum(distances, 0.0, out=distances)

    def _product(
        self,
        rows: NDArray[np.float32],
        own: NDArray[np.float32],
        squares: NDArray[np.float32],
        out: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        distances: NDArray[np.float32] = np.matmul(rows, own.T, out=out)
        if self.metric == "cosine":
            np.subtract(np.float32(1.0), distances, out=distances)
            return np.clip(distances, 0.0, 2.0, out=distances)
        distances *= -2.0
        distances += np.einsum("qd,qd->q", rows, rows)[:, None]
        distances += squares[None, :]
        return np.maximum(distances, 0.0, out=distances)


def tiles(rows: int, columns: int) -> Iterator[slice]:
    """Rows 0..rows-1 in slices for tiles of distances to `columns` items: how large products are always cut."""
    least, most = TILE_ROWS
    fitting = max(1, TILE_BYTES // (4 * max(1, columns)))
    height = min(max(1 << (fitting.bit_length() - 1), least), most)
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def _all_distances(a: NDArray[np.float32], b: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    _check_widths(a, b)
    to_b = DistancesTo(b, metric)
    if a is b:
        return to_b.among(slice(None))
    a = np.asarray(a, np.float32)
    distances = np.empty((len(a), len(b)), np.float32)
    for rows in tiles(len(a), len(b)):
        to_b.of(a[rows], out=distances[rows])
    return distances


def evaluate(
    distances: NDArray[np.float32],
    query_ids: NDArray[np.int64],
    gallery_ids: NDArray[np.int64],
    query_cameras: NDArray[np.int64],
    gallery_cameras: NDArray[np.int64],
    max_rank: int = 50,
    average_precision: AveragePrecision = "plain",
) -> RankingResult:
    """CMC and mAP of a distance matrix.

    Junk (identity -1) is left out of the gallery; distractors (MARS: identity 0) need no care, for no query has
    their identity. A gallery smaller than `max_rank` continues its CMC with the last value.

    Args:
        distances: (Q, G), lower is nearer.
        query_ids: (Q,) identities.
        gallery_ids: (G,) identities.
        query_cameras: (Q,) cameras.
        gallery_cameras: (G,) cameras.
        max_rank: length of the CMC, >= 1.
        average_precision: "plain" is the mean of the precisions at the matches (reference), "trapezoid" averages
            each with the precision just before it (official MARS).

    Returns:
        RankingResult.

    Raises:
        InvalidArgumentError: shapes disagree, a distance is NaN, or no query has a match.
    """
    _check_labels(distances.shape, query_ids, gallery_ids, query_cameras, gallery_cameras)
    _check_options(max_rank, average_precision)
    protocol = _Protocol(query_ids, gallery_ids, query_cameras, gallery_cameras)
    kind = np.result_type(distances, np.float32)
    found = [
        protocol.match_ranks(start, np.array(distances[start : start + BLOCK_ROWS], kind))
        for start in range(0, len(distances), BLOCK_ROWS)
    ]
    return _result(found, len(query_ids), max_rank, average_precision)


def evaluate_descriptors(
    query: NDArray[np.float32],
    gallery: NDArray[np.float32],
    query_ids: NDArray[np.int64],
    gallery_ids: NDArray[np.int64],
    query_cameras: NDArray[np.int64],
    gallery_cameras: NDArray[np.int64],
    *,
    metric: Metric = "squared_euclidean",
    max_rank: int = 50,
    average_precision: AveragePrecision = "plain",
    block_rows: int = BLOCK_ROWS,
) -> RankingResult:
    """`evaluate` without the distance matrix: at no time more than a tile of it is there.

    The result equals `evaluate(squared_euclidean(query, gallery), ...)`, or of `cosine_distance`, to the last bit
    (see the head of this module; there, too, for two arrays that are not one object). Memory beside the descriptors:
    a copy of the gallery, a tile of distances (64 MiB, or 64 rows of a gallery beyond 262,144 items), a block.

    Args:
        query: float32 (Q, D) descriptors.
        gallery: float32 (G, D) descriptors.
        query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank, average_precision: as for `evaluate`.
        metric: "squared_euclidean" or "cosine".
        block_rows: queries ranked at a time, >= 1. No effect on the result.

    Returns:
        RankingResult.

    Raises:
        InvalidArgumentError: shapes disagree, an unknown metric, an option out of range, a descriptor that is not
            finite, or no query has a match.
    """
    _check_widths(query, gallery)
    shape = (len(query), len(gallery))
    _check_labels(shape, query_ids, gallery_ids, query_cameras, gallery_cameras)
    _check_options(max_rank, average_precision)
    if block_rows < 1:
        raise InvalidArgumentError(f"block_rows must be at least 1, not {block_rows}")
    check_finite(query, "query")
    check_finite(gallery, "gallery")
    protocol = _Protocol(query_ids, gallery_ids, query_cameras, gallery_cameras)
    to_gallery = DistancesTo(gallery, metric)
    query = np.asarray(query, np.float32)
    found = []
    buffer: NDArray[np.float32] | None = None
    for rows in tiles(*shape):
        height = rows.stop - rows.start
        buffer = np.empty((height, len(gallery)), np.float32) if buffer is None else buffer[:height]
        tile = to_gallery.of(query[rows], out=buffer)
        found += [
            protocol.match_ranks(rows.start + start, tile[start : start + block_rows])
            for start in range(0, height, block_rows)
        ]
    return _result(found, len(query), max_rank, average_precision)


class _Protocol:
    """Which gallery items count for a query: all but junk and those of its identity and camera."""

    def __init__(
        self,
        query_ids: NDArray[np.int64],
        gallery_ids: NDArray[np.int64],
        query_cameras: NDArray[np.int64],
        gallery_cameras: NDArray[np.int64],
    ) -> None:
        self._query_ids, self._query_cameras, self._gallery_cameras = query_ids, query_cameras, gallery_cameras
        self._junk = np.flatnonzero(gallery_ids == JUNK_IDENTITY)
        somebody = np.flatnonzero(gallery_ids != JUNK_IDENTITY)
        self._by_identity = somebody[np.argsort(gallery_ids[somebody], kind="stable")]
        self._sorted_ids = gallery_ids[self._by_identity]

    def match_ranks(self, start: int, distances: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the matches of queries `start`, `start` + 1, ... rank, given their distances (B, G): overwritten.

        Returns:
            int64 (matches,) query numbers, ascending, and int64 (matches,) 0-based ranks, ascending in each query.

        Raises:
            InvalidArgumentError: a distance is NaN.
        """
        if distances.size and np.isnan(distances.max()):
            raise InvalidArgumentError("distances hold NaN: a descriptor is broken")
        rows, columns = self._same_identity(self._query_ids[start : start + len(distances)])
        own = self._query_cameras[start + rows] == self._gallery_cameras[columns]
        dropped = (rows[own], columns[own])
        distances[:, self._junk] = np.inf
        distances[dropped] = np.inf
        rows, columns = rows[~own], columns[~own]
        values = distances[rows, columns]
        ordered = np.sort(distances, axis=1)
        ranks = np.empty(len(rows), np.int64)  # how many are nearer, as long as there is no tie
        bounds = np.searchsorted(rows, np.arange(len(distances) + 1))
        for row in np.flatnonzero(np.diff(bounds)):
            own_matches = slice(bounds[row], bounds[row + 1])
            ranks[own_matches] = np.searchsorted(ordered[row], values[own_matches])
        after = np.minimum(ranks + 1, distances.shape[1] - 1)
        tied = (after > ranks) & (ordered[rows, after] == values)
        for row in np.unique(rows[tied]):
            counts = np.ones(distances.shape[1], bool)
            counts[self._junk] = False
            counts[dropped[1][dropped[0] == row]] = False
            own_matches = slice(bounds[row], bounds[row + 1])
            ranks[own_matches] = _stable_ranks(distances[row], counts)[columns[own_matches]]
        order = np.lexsort((ranks, rows))
        return start + rows, ranks[order]  # rows are in order already

    def _same_identity(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (position in `ids`, gallery item) of equal identity, junk aside, ordered by position."""
        first = np.searchsorted(self._sorted_ids, ids, side="left")
        lengths = np.searchsorted(self._sorted_ids, ids, side="right") - first
        rows = np.repeat(np.arange(len(ids)), lengths)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return rows, self._by_identity[first[rows] + within]


def _stable_ranks(distances: NDArray[np.floating], counts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 (G,): rank of each item among those that count, ties in gallery order; undefined for the others."""
    counted = np.flatnonzero(counts)
    ranks = np.zeros(len(distances), np.int64)
    ranks[counted[np.argsort(distances[counted], kind="stable")]] = np.arange(len(counted))
    return ranks


def _result(
    found: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
    query_count: int,
    max_rank: int,
    average_precision: AveragePrecision,
) -> RankingResult:
    """The figures of all matches, given as `match_ranks` gives them, block after block."""
    rows = np.concatenate([rows for rows, _ in found]) if found else np.zeros(0, np.int64)
    if not len(rows):
        raise InvalidArgumentError("no query has a match from another camera in the gallery: nothing to evaluate")
    ranks = np.concatenate([ranks for _, ranks in found])
    matches = np.bincount(rows, minlength=query_count)
    before_own = np.cumsum(matches) - matches  # matches of the queries before
    nth = np.arange(1, len(rows) + 1) - before_own[rows]
    precisions = nth / (ranks + 1.0)
    if average_precision == "trapezoid":
        # Just before a match at rank r, r items have been seen and one match fewer; nothing seen is precision 1.
        precisions = (precisions + np.where(ranks > 0, (nth - 1) / np.maximum(ranks, 1), 1.0)) / 2.0
    valid = matches > 0
    means = np.full(query_count, np.nan)
    means[valid] = np.bincount(rows, precisions, query_count)[valid] / matches[valid]
    first_match = np.full(query_count, -1, np.int64)
    first_match[valid] = ranks[before_own[valid]]
    at_rank = np.bincount(np.minimum(first_match[valid], max_rank), minlength=max_rank + 1)[:max_rank]
    return RankingResult(
        cmc=np.cumsum(at_rank) / valid.sum(),
        mean_average_precision=float(means[valid].mean()),
        average_precision=means,
        first_match=first_match,
        valid_queries=int(valid.sum()),
    )


def check_finite(descriptors: NDArray[np.float32], name: str) -> None:
    """Raises InvalidArgumentError where `descriptors` (R, D) hold NaN or an infinity, naming the first such row."""
    if descriptors.size and not np.isfinite([descriptors.min(), descriptors.max()]).all():
        row = int(np.flatnonzero(~np.isfinite(descriptors).all(axis=1))[0])
        raise InvalidArgumentError(f"{name} descriptor {row} holds a value that is not finite")


def _check_widths(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InvalidArgumentError(f"expected (Q, D) and (G, D) descriptors, got shapes {a.shape} and {b.shape}")


def _check_labels(
    shape: tuple[int, ...],
    query_ids: NDArray[np.int64],
    gallery_ids: NDArray[np.int64],
    query_cameras: NDArray[np.int64],
    gallery_cameras: NDArray[np.int64],
) -> None:
    expected = (len(query_ids), len(gallery_ids))
    if shape != expected or (len(query_cameras), len(gallery_cameras)) != expected:
        raise InvalidArgumentError(
            f"distances have shape {shape}, but there are {len(query_ids)} query identities, "
            f"{len(query_cameras)} query cameras, {len(gallery_ids)} gallery identities and "
            f"{len(gallery_cameras)} gallery cameras"
        )


def _check_options(max_rank: int, average_precision: str) -> None:
    if max_rank < 1:
        raise InvalidArgumentError(f"max_rank must be at least 1, not {max_rank}")
    if average_precision not in ("plain", "trapezoid"):
        raise InvalidArgumentError(f"unknown average precision {average_precision!r}: use plain or trapezoid")
