"""Open-set figures of descriptors: how often strangers match and people miss themselves, by threshold (numpy only).

Terms of ISO/IEC 19795-1:2021 (biometric performance testing). Verification, over pairs of tracklets:

    FMR(t)    false match rate: share of impostor pairs (two people) at a distance <= t
    FNMR(t)   false non-match rate: share of genuine pairs (one person) at a distance > t

Identification, over searches of one tracklet (probe) in all the others:

    FPIR(t)   false-positive identification rate: share of non-mated searches, those of a person who is not in the
              gallery, that return anybody at a distance <= t
    FNIR(t)   false-negative identification rate: share of mated searches whose nearest item at a distance <= t is
              not the person searched for, or where there is none (rank 1)

Pairs within one camera are left out, as in the ranking protocol: the same view of the same minute makes genuine
pairs easy, and background makes strangers alike. A non-mated search is had from every probe by taking its own person
out of the gallery.

A threshold for a target rate is an order statistic, not a fit: the largest impostor distance at which the rate does
not yet exceed the target. A rate is supported where the count allows for at least one error (count >= 1 / rate) and
the nearest impostors are not so tied that every distance reaches too many; otherwise nothing is said. One error is
the least that can be counted, not a good estimate: by the "rule of 30" of the standard, 30 errors are needed to be
90 % sure of a rate within 30 % of itself, so `errors` stands beside each rate; and pairs of one person are not
independent, which makes it less sure still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError

from passerby_model.distances import DistancesTo, Metric, check_finite, tiles
from passerby_model.metrics import BLOCK_ROWS, JUNK_IDENTITY

RATES = (1e-2, 1e-3, 1e-4)
"""False-match rates at which re-identification is usually asked for."""

HISTOGRAM_BINS = 100
"""Bins of the finished histograms: enough for a picture."""

_FINE_BINS = 1 << 14
"""Bins counted while the largest distance is not yet known; merged into HISTOGRAM_BINS at the end."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold for a target rate of false positives, and what it costs.

    Attributes:
        target: false-positive rate asked for (FMR, or FPIR), in (0, 1).
        threshold: the same person is meant at a distance <= threshold; None where the rate is not supported.
        false_positive_rate: FMR (or FPIR) at the threshold, in (0, target]; None likewise.
        false_negative_rate: FNMR (or FNIR) at the threshold, in [0, 1]; None likewise.
        errors: impostor pairs (or non-mated searches) at or below the threshold; 0 where not supported.
    """

    target: float
    threshold: float | None
    false_positive_rate: float | None
    false_negative_rate: float | None
    errors: int

    @property
    def supported(self) -> bool:
        """Whether there were impostors enough to say anything."""
        return self.threshold is not None


@dataclass(frozen=True, slots=True)
class OpenSetResult:
    """How well distances tell the same person from another.

    Attributes:
        verification: FMR and FNMR at each wanted rate, in the order given.
        identification: FPIR and FNIR (rank 1) likewise.
        genuine_pairs, impostor_pairs: pairs that counted.
        mated_searches, non_mated_searches: searches that counted.
        edges: float64 (bins + 1,), distances, ascending from 0; the last holds the largest distance.
        genuine_counts, impostor_counts: int64 (bins,), pairs by distance; they sum to the pairs.
    """

    verification: tuple[OperatingPoint, ...]
    identification: tuple[OperatingPoint, ...]
    genuine_pairs: int
    impostor_pairs: int
    mated_searches: int
    non_mated_searches: int
    edges: NDArray[np.float64]
    genuine_counts: NDArray[np.int64]
    impostor_counts: NDArray[np.int64]


def open_set(
    descriptors: NDArray[np.float32],
    ids: NDArray[np.int64],
    cameras: NDArray[np.int64],
    *,
    metric: Metric = "squared_euclidean",
    cross_camera_only: bool = True,
    rates: Sequence[float] = RATES,
    distractor_identity: int | None = None,
    block_rows: int = BLOCK_ROWS,
) -> OpenSetResult:
    """Compares every tracklet with every other, once.

    Memory beside the descriptors: two copies of them, a tile of distances (see `distances.tiles`), 4 bytes for each
    genuine pair, and at most 16 bytes for each of the nearest impostor pairs that the largest rate asks for.

    Args:
        descriptors: float32 (M, D).
        ids: (M,) identities; junk (-1) is left out.
        cameras: (M,) cameras.
        metric: "squared_euclidean" or "cosine"; thresholds are in it.
        cross_camera_only: leave out pairs within one camera.
        rates: false-positive rates to find thresholds for, each in (0, 1).
        distractor_identity: identity of tracklets of people unknown (MARS: 0). They are impostors to everybody
            known; pairs among themselves, of which nothing is known, are left out, and they are no probes.
        block_rows: tracklets whose distances are sorted out at a time, >= 1. No effect on the result.

    Returns:
        OpenSetResult.

    Raises:
        InvalidArgumentError: shapes disagree, a descriptor is not finite, an option is out of range, or there is no
            genuine or no impostor pair.
    """
    _check(descriptors, ids, cameras, rates, block_rows)
    kept = ids != JUNK_IDENTITY
    people = _People(ids[kept], cameras[kept], cross_camera_only, distractor_identity)
    genuine_pairs, impostor_pairs = people.pair_counts()
    if not genuine_pairs or not impostor_pairs:
        raise InvalidArgumentError(
            f"{genuine_pairs} pairs of one person and {impostor_pairs} of two people"
            f"{' in different cameras' if cross_camera_only else ''}: both are needed"
        )
    to_all = DistancesTo(descriptors[kept], metric)
    seen = _Seen(len(people), to_all.bound(), _allowed(max(rates), impostor_pairs) + 1)
    for rows in tiles(len(people), len(people)):
        tile = to_all.among(rows, first=rows.start)
        for start in range(rows.start, rows.stop, block_rows):
            stop = min(start + block_rows, rows.stop)
            block = tile[start - rows.start : stop - rows.start, start - rows.start :]
            seen.add(block, start, *people.pairs(start, stop))
    return seen.result(people.known, rates, genuine_pairs, impostor_pairs)


class _People:
    """Who and where: which pairs count, and as what."""

    def __init__(
        self,
        ids: NDArray[np.int64],
        cameras: NDArray[np.int64],
        cross_camera_only: bool,
        distractor_identity: int | None,
    ) -> None:
        self.known = ids != distractor_identity if distractor_identity is not None else np.ones(len(ids), bool)
        self._ids = np.unique(ids, return_inverse=True)[1].astype(np.int32)
        places = cameras if cross_camera_only else np.arange(len(ids))  # each a camera of its own: all pairs count
        self._cameras = np.unique(places, return_inverse=True)[1].astype(np.int32)

    def __len__(self) -> int:
        return len(self._ids)

    def pair_counts(self) -> tuple[int, int]:
        """Genuine and impostor pairs."""
        one_person = _pairs_within(self._ids[self.known]) - self._within_camera(self.known, self._ids)
        unknown = ~self.known
        nobody = _pairs_within(np.zeros(int(unknown.sum()), np.int32)) - self._within_camera(unknown)
        everybody = _pairs_within(np.zeros(len(self), np.int32)) - self._within_camera(np.ones(len(self), bool))
        return one_person, everybody - nobody - one_person

    def _within_camera(self, chosen: NDArray[np.bool_], ids: NDArray[np.int32] | None = None) -> int:
        """Pairs of one camera among the `chosen`; where `ids` are given, of one identity, too."""
        cameras = self._cameras[chosen].astype(np.int64)
        return _pairs_within(cameras if ids is None else cameras * len(self) + ids[chosen])

    def pairs(self, start: int, stop: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Of items `start`..`stop`-1 with items `start`..M-1: bool (R, M - start) genuine, and likewise impostor."""
        counts = self._cameras[start:stop, None] != self._cameras[None, start:]
        counts[:, : stop - start] &= np.triu(np.ones((stop - start, stop - start), bool), k=1)
        counts[~self.known[start:stop]] &= self.known[start:]
        same = self._ids[start:stop, None] == self._ids[None, start:]
        return counts & same, counts & ~same


class _Seen:
    """What is kept of the distances while they pass."""

    def __init__(self, items: int, bound: float, wanted: int) -> None:
        self._genuine: list[NDArray[np.float32]] = []
        self._impostors = _Smallest(wanted)
        self._nearest_genuine = np.full(items, np.inf, np.float32)
        self._nearest_impostor = np.full(items, np.inf, np.float32)
        self._counts = np.zeros(_FINE_BINS, np.int64)
        self._width = bound / _FINE_BINS

    def add(
        self, distances: NDArray[np.float32], start: int, genuine: NDArray[np.bool_], impostor: NDArray[np.bool_]
    ) -> None:
        """Distances (R, M - start) of items from `start` on to all from `start` on, with what each pair is."""
        row, column = np.nonzero(genuine)
        self._genuine.append(distances[row, column])
        np.minimum.at(self._nearest_genuine, start + row, self._genuine[-1])
        np.minimum.at(self._nearest_genuine, start + column, self._genuine[-1])
        rows, columns = slice(start, start + len(distances)), slice(start, None)
        others = np.where(impostor, distances, np.float32(np.inf))
        for nearest, axis in ((self._nearest_impostor[rows], 1), (self._nearest_impostor[columns], 0)):
            np.minimum(nearest, others.min(axis=axis), out=nearest)
        values = distances[impostor]
        self._impostors.add(values)
        self._counts += self._binned(values)

    def _binned(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        bins = np.minimum((values * (1.0 / self._width)).astype(np.int64), _FINE_BINS - 1)
        return np.bincount(bins, minlength=_FINE_BINS)

    def result(
        self, known: NDArray[np.bool_], rates: Sequence[float], genuine_pairs: int, impostor_pairs: int
    ) -> OpenSetResult:
        genuine = np.sort(np.concatenate(self._genuine))
        mated = known & np.isfinite(self._nearest_genuine)
        found = self._nearest_genuine[mated]
        # Another person at the same distance counts as found first.
        found = np.sort(np.where(self._nearest_impostor[mated] <= found, np.float32(np.inf), found))
        strangers = np.sort(self._nearest_impostor[known & np.isfinite(self._nearest_impostor)])
        nearest = self._impostors.sorted()
        genuine_counts = self._binned(genuine)
        used = int(np.flatnonzero(self._counts + genuine_counts)[-1]) + 1
        merged = -(-used // HISTOGRAM_BINS)
        starts = np.arange(0, used, merged)
        return OpenSetResult(
            verification=tuple(_point(rate, nearest, impostor_pairs, genuine) for rate in rates),
            identification=tuple(_point(rate, strangers, len(strangers), found) for rate in rates),
            genuine_pairs=genuine_pairs,
            impostor_pairs=impostor_pairs,
            mated_searches=len(found),
            non_mated_searches=len(strangers),
            edges=merged * self._width * np.arange(len(starts) + 1, dtype=np.float64),
            genuine_counts=np.add.reduceat(genuine_counts, starts),
            impostor_counts=np.add.reduceat(self._counts, starts),
        )


class _Smallest:
    """The `wanted` smallest of many values that come by and by; at most twice as many, and a block, are held."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._kept = np.zeros(0, np.float32)
        self._new: list[NDArray[np.float32]] = []
        self._new_count = 0
        self._limit = np.float32(np.inf)

    def add(self, values: NDArray[np.float32]) -> None:
        self._new.append(values[values <= self._limit])
        self._new_count += len(self._new[-1])
        if self._new_count > self._wanted:
            self._merge()

    def _merge(self) -> None:
        self._kept = np.concatenate([self._kept, *self._new])
        self._new, self._new_count = [], 0
        if len(self._kept) > self._wanted:
            self._kept.partition(self._wanted - 1)
            self._kept = self._kept[: self._wanted].copy()
            self._limit = self._kept.max()

    def sorted(self) -> NDArray[np.float32]:
        """float32 (wanted,), ascending; fewer where fewer came."""
        self._merge()
        return np.sort(self._kept)


def _point(
    rate: float, impostors: NDArray[np.float32], impostor_count: int, genuine: NDArray[np.float32]
) -> OperatingPoint:
    """The operating point of the ascending nearest `impostors` out of `impostor_count`, and all `genuine` distances."""
    allowed = _allowed(rate, impostor_count)
    # The next one must stay out; where it is tied with others, so must they.
    errors = int(np.searchsorted(impostors, impostors[allowed], side="left")) if allowed else 0
    if not errors:
        return OperatingPoint(rate, None, None, None, 0)
    threshold = impostors[errors - 1]
    missed = len(genuine) - int(np.searchsorted(genuine, threshold, side="right"))
    return OperatingPoint(rate, float(threshold), errors / impostor_count, missed / max(len(genuine), 1), errors)


def _allowed(rate: float, count: int) -> int:
    """How many of `count` may be errors: floor(rate * count), safe from the rounding of a rate like 1e-3."""
    return min(int(rate * count * (1.0 + 1e-12)), count - 1)


def _pairs_within(labels: NDArray[np.integer]) -> int:
    """Unordered pairs of equal label."""
    sizes = np.unique(labels, return_counts=True)[1].astype(np.int64)
    return int((sizes * (sizes - 1) // 2).sum())


def _check(
    descriptors: NDArray[np.float32],
    ids: NDArray[np.int64],
    cameras: NDArray[np.int64],
    rates: Sequence[float],
    block_rows: int,
) -> None:
    if descriptors.ndim != 2 or not len(descriptors) == len(ids) == len(cameras):
        raise InvalidArgumentError(
            f"expected (M, D) descriptors with M identities and cameras, got {descriptors.shape}, {len(ids)} and "
            f"{len(cameras)}"
        )
    if not rates or not all(0.0 < rate < 1.0 for rate in rates):
        raise InvalidArgumentError(f"rates must be at least one, each above 0 and below 1, not {tuple(rates)}")
    if block_rows < 1:
        raise InvalidArgumentError(f"block_rows must be at least 1, not {block_rows}")
    check_finite(descriptors, "tracklet")
