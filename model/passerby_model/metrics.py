"""CMC and mAP of person re-identification (numpy only).

Source of `evaluate`: jiyanggao/Video-Person-ReID `tools/eval_metrics.py` (the Market-1501 protocol, also torchreid's
`eval_market1501`): gallery items with the query's identity *and* camera are left out, queries without a match are
skipped. The trapezoid average precision is that of the official MARS evaluation (liangzheng06/MARS-evaluation,
`compute_AP.m`). Differs from both in one thing: ties are ranked in gallery order, so that a result can be repeated.

The order is that of the float32 distances. `evaluate_descriptors` ranks the very numbers that `squared_euclidean` and
`cosine_distance` give for the whole matrix (see `distances`), whatever the size of its blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError

from passerby_model.distances import DistancesTo, Metric, check_finite, check_widths, tiles
from passerby_model.distances import cosine_distance as cosine_distance  # part of this module's face
from passerby_model.distances import squared_euclidean as squared_euclidean
from passerby_model.distances import unit_rows as unit_rows

JUNK_IDENTITY = -1
"""Identity of gallery items that count neither as right nor as wrong (MARS, Market-1501)."""

BLOCK_ROWS = 64
"""Queries ranked at a time."""

FEW_MATCHES = 40
"""Up to so many matches, counting what is nearer to each takes less time than sorting all distances of a query."""

AveragePrecision = Literal["plain", "trapezoid"]


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
    ranking = _Ranking(query_ids, gallery_ids, query_cameras, gallery_cameras, average_precision)
    kind = np.result_type(distances, np.float32)
    for start in range(0, len(distances), BLOCK_ROWS):
        ranking.add(start, np.array(distances[start : start + BLOCK_ROWS], kind))
    return ranking.result(max_rank)


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
    (where query and gallery are not one object, for then those take another way). Memory beside the descriptors:
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
    check_widths(query, gallery)
    shape = (len(query), len(gallery))
    _check_labels(shape, query_ids, gallery_ids, query_cameras, gallery_cameras)
    _check_options(max_rank, average_precision)
    if block_rows < 1:
        raise InvalidArgumentError(f"block_rows must be at least 1, not {block_rows}")
    check_finite(query, "query")
    check_finite(gallery, "gallery")
    ranking = _Ranking(query_ids, gallery_ids, query_cameras, gallery_cameras, average_precision)
    to_gallery = DistancesTo(gallery, metric)
    query = np.asarray(query, np.float32)
    buffer: NDArray[np.float32] | None = None
    for rows in tiles(*shape):
        height = rows.stop - rows.start
        buffer = np.empty((height, len(gallery)), np.float32) if buffer is None else buffer[:height]
        tile = to_gallery.of(query[rows], out=buffer)
        for start in range(0, height, block_rows):
            ranking.add(rows.start + start, tile[start : start + block_rows])
    return ranking.result(max_rank)


class _Ranking:
    """Ranks all gallery items that count for a query: all but junk and those of its identity and camera."""

    def __init__(
        self,
        query_ids: NDArray[np.int64],
        gallery_ids: NDArray[np.int64],
        query_cameras: NDArray[np.int64],
        gallery_cameras: NDArray[np.int64],
        average_precision: AveragePrecision,
    ) -> None:
        self._query_ids, self._query_cameras, self._gallery_cameras = query_ids, query_cameras, gallery_cameras
        self._junk = np.flatnonzero(gallery_ids == JUNK_IDENTITY)
        somebody = np.flatnonzero(gallery_ids != JUNK_IDENTITY)
        self._by_identity = somebody[np.argsort(gallery_ids[somebody], kind="stable")]
        self._sorted_ids = gallery_ids[self._by_identity]
        self._kind = average_precision
        self._average_precision = np.full(len(query_ids), np.nan)
        self._first_match = np.full(len(query_ids), -1, np.int64)

    def add(self, start: int, distances: NDArray[np.floating]) -> None:
        """Ranks for queries `start`, `start` + 1, ..., given their distances (B, G), which are overwritten.

        Raises:
            InvalidArgumentError: a distance is NaN.
        """
        if distances.size and np.isnan(distances.max()):
            raise InvalidArgumentError("distances hold NaN: a descriptor is broken")
        rows, ranks = self._match_ranks(start, distances)
        matches = np.bincount(rows, minlength=len(distances))
        valid = np.flatnonzero(matches)
        first = (np.cumsum(matches) - matches)[valid]  # of each query's matches
        nth = np.arange(1, len(rows) + 1) - np.repeat(first, matches[valid])
        precisions = nth / (ranks + 1.0)
        if self._kind == "trapezoid":
            # Just before a match at rank r, r items have been seen and one match fewer; nothing seen is precision 1.
            precisions = (precisions + np.where(ranks > 0, (nth - 1) / np.maximum(ranks, 1), 1.0)) / 2.0
        self._average_precision[start + valid] = np.bincount(rows, precisions, len(distances))[valid] / matches[valid]
        self._first_match[start + valid] = ranks[first]

    def _match_ranks(self, start: int, distances: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64 (matches,) rows, ascending, and int64 (matches,) 0-based ranks, ascending within each row."""
        rows, columns = self._same_identity(self._query_ids[start : start + len(distances)])
        own = self._query_cameras[start + rows] == self._gallery_cameras[columns]
        dropped = (rows[own], columns[own])
        distances[:, self._junk] = np.inf
        distances[dropped] = np.inf
        rows, columns = rows[~own], columns[~own]
        ranks = np.empty(len(rows), np.int64)
        bounds = np.searchsorted(rows, np.arange(len(distances) + 1))
        for row in np.flatnonzero(np.diff(bounds)):
            matches = slice(bounds[row], bounds[row + 1])
            nearer, not_farther = _counts(distances[row], distances[row, columns[matches]])
            ranks[matches] = nearer
            if (not_farther - nearer > 1).any():  # something else at the same distance: gallery order decides
                counts = np.ones(distances.shape[1], bool)
                counts[self._junk] = False
                counts[dropped[1][dropped[0] == row]] = False
                ranks[matches] = _stable_ranks(distances[row], counts)[columns[matches]]
        return rows, ranks[np.lexsort((ranks, rows))]  # rows are in order already

    def _same_identity(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (position in `ids`, gallery item) of equal identity, junk aside, ordered by position."""
        first = np.searchsorted(self._sorted_ids, ids, side="left")
        lengths = np.searchsorted(self._sorted_ids, ids, side="right") - first
        rows = np.repeat(np.arange(len(ids)), lengths)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return rows, self._by_identity[first[rows] + within]

    def result(self, max_rank: int) -> RankingResult:
        """The figures of all queries added."""
        valid = self._first_match >= 0
        if not valid.any():
            raise InvalidArgumentError("no query has a match from another camera in the gallery: nothing to evaluate")
        at_rank = np.bincount(np.minimum(self._first_match[valid], max_rank), minlength=max_rank + 1)[:max_rank]
        return RankingResult(
            cmc=np.cumsum(at_rank) / valid.sum(),
            mean_average_precision=float(self._average_precision[valid].mean()),
            average_precision=self._average_precision,
            first_match=self._first_match,
            valid_queries=int(valid.sum()),
        )


def _counts(
    distances: NDArray[np.floating], values: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of `distances` (G,) are below each of `values` (V,), and how many not above it; int64 (V,) each."""
    if len(values) <= FEW_MATCHES:
        counts = [(np.count_nonzero(distances < value), np.count_nonzero(distances <= value)) for value in values]
        below, not_above = np.array(counts, np.int64).T
        return below, not_above
    ordered = np.sort(distances)
    return np.searchsorted(ordered, values), np.searchsorted(ordered, values, side="right")


def _stable_ranks(distances: NDArray[np.floating], counts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 (G,): rank of each item among those that count, ties in gallery order; undefined for the others."""
    counted = np.flatnonzero(counts)
    ranks = np.zeros(len(distances), np.int64)
    ranks[counted[np.argsort(distances[counted], kind="stable")]] = np.arange(len(counted))
    return ranks


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
