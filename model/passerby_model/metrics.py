"""Distances, CMC and mAP of person re-identification (numpy only).

Source of `evaluate`: jiyanggao/Video-Person-ReID `tools/eval_metrics.py` (the Market-1501 protocol, also torchreid's
`eval_market1501`): gallery items with the query's identity *and* camera are left out, queries without a match are
skipped. The trapezoid average precision is that of the official MARS evaluation (liangzheng06/MARS-evaluation,
`compute_AP.m`). Differs from both in one thing: ties are ranked in gallery order, so that a result can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError

JUNK_IDENTITY = -1
"""Identity of gallery items that count neither as right nor as wrong (MARS, Market-1501)."""

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


def squared_euclidean(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared Euclidean distances.

    Computed as |a|^2 + |b|^2 - 2ab after moving both by the mean of `b`: the distance does not change, but far less
    is lost where the large terms cancel, since descriptors after a ReLU all lie to one side of the origin.

    Args:
        a: float32 (Q, D).
        b: float32 (G, D).

    Returns:
        float32 (Q, G), >= 0.

    Raises:
        InvalidArgumentError: not two matrices of equal width.
    """
    a, b = _pair(a, b)
    if b.shape[0] == 0:
        return np.zeros((a.shape[0], 0), np.float32)
    centre = b.mean(axis=0, dtype=np.float64).astype(np.float32)
    moved_b = b - centre
    moved_a = moved_b if a is b else a - centre
    distances: NDArray[np.float32] = moved_a @ moved_b.T
    distances *= -2.0
    distances += np.einsum("qd,qd->q", moved_a, moved_a)[:, None]
    distances += np.einsum("gd,gd->g", moved_b, moved_b)[None, :]
    return np.maximum(distances, 0.0, out=distances)


def cosine_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine distances, 1 - cos(a, b); a zero vector is at distance 1 from everything.

    Args:
        a: float32 (Q, D).
        b: float32 (G, D).

    Returns:
        float32 (Q, G) in [0, 2].

    Raises:
        InvalidArgumentError: not two matrices of equal width.
    """
    a, b = _pair(a, b)
    unit_b = unit_rows(b)
    unit_a = unit_b if a is b else unit_rows(a)
    distances = 1.0 - unit_a @ unit_b.T
    return np.clip(distances, 0.0, 2.0, out=distances)


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """`rows` (R, D) scaled to length 1; zero rows stay zero. float32 (R, D), norms taken in float64."""
    norms = np.sqrt(np.einsum("rd,rd->r", rows, rows, dtype=np.float64))
    return (rows / np.where(norms > 0.0, norms, 1.0)[:, None]).astype(np.float32)


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
    _check_ranking(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank)
    precisions = np.full(len(query_ids), np.nan)
    first_match = np.full(len(query_ids), -1, np.int64)
    for query, (identity, camera) in enumerate(zip(query_ids, query_cameras, strict=True)):
        counts = ~((gallery_ids == identity) & (gallery_cameras == camera)) & (gallery_ids != JUNK_IDENTITY)
        order = np.argsort(distances[query, counts], kind="stable")
        ranks = np.flatnonzero(gallery_ids[counts][order] == identity)
        if ranks.size:
            precisions[query] = _average_precision(ranks, average_precision)
            first_match[query] = ranks[0]
    valid = first_match >= 0
    if not valid.any():
        raise InvalidArgumentError("no query has a match from another camera in the gallery: nothing to evaluate")
    at_rank = np.bincount(np.minimum(first_match[valid], max_rank), minlength=max_rank + 1)[:max_rank]
    return RankingResult(
        cmc=np.cumsum(at_rank) / valid.sum(),
        mean_average_precision=float(precisions[valid].mean()),
        average_precision=precisions,
        first_match=first_match,
        valid_queries=int(valid.sum()),
    )


def _average_precision(ranks: NDArray[np.int64], kind: AveragePrecision) -> float:
    """Average precision of matches at the 0-based `ranks` (ascending, at least one)."""
    found = np.arange(1, len(ranks) + 1)
    at_match = found / (ranks + 1.0)
    if kind == "plain":
        return float(at_match.mean())
    # Just before a match at rank r, r items have been seen and one match fewer; nothing seen counts as precision 1.
    before = np.where(ranks > 0, (found - 1) / np.maximum(ranks, 1), 1.0)
    return float(((before + at_match) / 2.0).mean())


def _pair(a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InvalidArgumentError(f"expected (Q, D) and (G, D) descriptors, got shapes {a.shape} and {b.shape}")
    return np.asarray(a, np.float32), np.asarray(b, np.float32)


def _check_ranking(
    distances: NDArray[np.float32],
    query_ids: NDArray[np.int64],
    gallery_ids: NDArray[np.int64],
    query_cameras: NDArray[np.int64],
    gallery_cameras: NDArray[np.int64],
    max_rank: int,
) -> None:
    expected = (len(query_ids), len(gallery_ids))
    if distances.shape != expected or (len(query_cameras), len(gallery_cameras)) != expected:
        raise InvalidArgumentError(
            f"distances have shape {distances.shape}, but there are {len(query_ids)} query identities, "
            f"{len(query_cameras)} query cameras, {len(gallery_ids)} gallery identities and "
            f"{len(gallery_cameras)} gallery cameras"
        )
    if max_rank < 1:
        raise InvalidArgumentError(f"max_rank must be at least 1, not {max_rank}")
    if np.isnan(distances).any():
        raise InvalidArgumentError("distances hold NaN: a descriptor is broken")
