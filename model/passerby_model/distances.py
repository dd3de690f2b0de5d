"""Distances of descriptors: whole matrices, tiles of them, and single pairs (numpy only).

The last bits of a matrix product depend on the shape of its factors. So large products are always taken by the same
tiles of rows, whose height follows from the number of columns alone: a distance is the same number whether the whole
matrix is asked for or a part of it, whatever the size of the caller's blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError

TILE_BYTES = 64 << 20
"""What a tile of distances (rows x gallery, float32) should stay below."""

TILE_ROWS = (64, 512)
"""Least and most rows of a tile: fewer waste a matrix product's time on packing the gallery, more gain nothing."""

PAIRS = 256
"""Pairs of descriptors compared at a time: at 2,048 values each 4 MiB."""

Metric = Literal["squared_euclidean", "cosine"]


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


def unit_rows(rows: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """`rows` (R, D) scaled to length 1; zero rows stay zero. float32 (R, D), `out` where given, norms taken in float64."""
    norms = np.sqrt(np.einsum("rd,rd->r", rows, rows, dtype=np.float64))
    norms = np.where(norms > 0.0, norms, 1.0)[:, None]
    return np.divide(rows, norms, out=np.empty(rows.shape, np.float32) if out is None else out, casting="same_kind")


class DistancesTo:
    """Distances to a fixed set of descriptors, a few rows at a time: what is done once for the set is kept."""

    def __init__(self, descriptors: NDArray[np.float32], metric: Metric, *, overwrite: bool = False) -> None:
        """Keeps a moved or scaled copy of `descriptors`, float32 (G, D); with `overwrite` in their own place.

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
            # By a matrix product: whatever is near the middle will do, and the mean in float64 takes four times as long.
            self._centre = np.ones(len(descriptors), np.float32) @ descriptors / np.float32(len(descriptors))
        self._own = self._prepare(descriptors, descriptors if overwrite else None)
        self._squares = np.einsum("gd,gd->g", self._own, self._own)

    def __len__(self) -> int:
        return len(self._own)

    def bound(self) -> float:
        """What no distance among the set exceeds; above 0."""
        if self.metric == "cosine":
            return 2.0
        return float(4.0 * self._squares.max(initial=0.0)) * (1.0 + 1e-3) or 1.0  # twice the longest, and rounding

    def _prepare(self, descriptors: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        if self.metric == "cosine":
            return unit_rows(descriptors, out)
        moved: NDArray[np.float32] = np.subtract(descriptors, self._centre, out=out)
        return moved

    def of(self, rows: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Distances of descriptors `rows`, float32 (R, D), to all: float32 (R, G), written to `out` where given."""
        prepared = self._prepare(rows)
        return self._product(prepared, np.einsum("qd,qd->q", prepared, prepared), slice(None), out)

    def among(self, rows: slice, out: NDArray[np.float32] | None = None, first: int = 0) -> NDArray[np.float32]:
        """Distances of some of the set itself to those from number `first` on: float32 (R, G - first)."""
        return self._product(self._own[rows], self._squares[rows], slice(first, None), out)

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
        squares: NDArray[np.float32],
        columns: slice,
        out: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Distances of prepared `rows` (R, D), whose squared lengths are `squares` (R,), to `columns` of the set."""
        distances: NDArray[np.float32] = np.matmul(rows, self._own[columns].T, out=out)
        if self.metric == "cosine":
            np.subtract(np.float32(1.0), distances, out=distances)
            return np.clip(distances, 0.0, 2.0, out=distances)
        distances *= -2.0
        distances += squares[:, None]
        distances += self._squares[None, columns]
        return np.maximum(distances, 0.0, out=distances)


def tiles(rows: int, columns: int) -> Iterator[slice]:
    """Rows 0..rows-1 in slices for tiles of distances to `columns` items: how large products are always cut."""
    least, most = TILE_ROWS
    fitting = max(1, TILE_BYTES // (4 * max(1, columns)))
    height = min(max(1 << (fitting.bit_length() - 1), least), most)
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def _all_distances(a: NDArray[np.float32], b: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    check_widths(a, b)
    to_b = DistancesTo(b, metric)
    if a is b:
        return to_b.among(slice(None))
    a = np.asarray(a, np.float32)
    distances = np.empty((len(a), len(b)), np.float32)
    for rows in tiles(len(a), len(b)):
        to_b.of(a[rows], out=distances[rows])
    return distances


def check_finite(descriptors: NDArray[np.float32], name: str) -> None:
    """Raises InvalidArgumentError, naming the first row of `descriptors` (R, D) with NaN, an infinity or a value so
    large that distances do not fit float32."""
    if not descriptors.size:
        return
    most = np.sqrt(np.finfo(np.float32).max / (16.0 * descriptors.shape[1]))
    if not max(-descriptors.min(), descriptors.max()) <= most:  # not: NaN compares false
        row = int(np.flatnonzero(~(np.abs(descriptors) <= most).all(axis=1))[0])
        raise InvalidArgumentError(f"{name} descriptor {row} holds a value that is not finite or beyond {most:.0e}")


def check_widths(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    """Raises InvalidArgumentError unless `a` and `b` are matrices of equal width."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InvalidArgumentError(f"expected (Q, D) and (G, D) descriptors, got shapes {a.shape} and {b.shape}")
