"""Exact nearest neighbours among descriptors, without the matrix of their distances (numpy only)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passerby_model.distances import DistancesTo, tiles

GROUP = 32
"""Distances whose least is taken first when the nearest are looked for."""

FAR = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
"""The key of no item: behind all others."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest items of every item of a set, itself included, and the distance of its farthest.

    Attributes:
        items: int32 (M, K), by ascending distance, ties by ascending number.
        distances: float32 (M, K), of `items`.
        farthest: float32 (M,), the largest distance of each item to any other.
    """

    items: NDArray[np.int32]
    distances: NDArray[np.float32]
    farthest: NDArray[np.float32]

    def pairs(self, among: DistancesTo, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """Distances of pairs of items, float32 (P,), `rows` ascending: of neighbours known, of the others computed."""
        if not len(rows):
            return np.zeros(0, np.float32)
        some = slice(rows[0], rows[-1] + 1)
        order = np.argsort(self.items[some], axis=1)
        start = (np.arange(len(order)) * len(self.items))[:, None]
        known = (start + np.take_along_axis(self.items[some], order, axis=1)).ravel()  # ascending
        wanted = (rows - rows[0]) * len(self.items) + columns
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        distances: NDArray[np.float32] = np.take_along_axis(self.distances[some], order, axis=1).ravel()[place]
        others = known[place] != wanted
        distances[others] = among.pairs(rows[others], columns[others])
        return distances


def nearest_among(among: DistancesTo, count: int) -> Neighbours:
    """The `count` nearest (all, where there are fewer) within a set of descriptors; an item is at 0 from itself.

    Each distance is computed once: a tile holds those of its rows to themselves and to all later items, and serves
    the rows along its rows and the later items along its columns.
    """
    items = len(among)
    nearest = np.full((items, min(count, items)), FAR)
    farthest = np.zeros(items, np.float32)
    for rows in tiles(items, items):
        tile = among.among(rows, first=rows.start)
        height = len(tile)
        np.fill_diagonal(tile[:, :height], 0.0)
        farthest[rows] = np.maximum(farthest[rows], tile.max(axis=1))
        nearest[rows] = _merged(nearest[rows], _nearest_keys(tile, count, rows.start))
        if rows.stop < items:
            later = slice(rows.stop, items)
            farthest[later] = np.maximum(farthest[later], tile[:, height:].max(axis=0))
            _offer(nearest[later], tile[:, height:], rows.start)
    return Neighbours(_items(nearest), _distances(nearest), farthest)


def nearest_columns(distances: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """The `count` nearest columns of each row (B, M), int32 (B, min(count, M)), ascending, ties in column order."""
    return _items(_nearest_keys(distances, count, 0))


def _offer(nearest: NDArray[np.uint64], distances: NDArray[np.float32], first: int) -> None:
    """Takes items `first`, `first` + 1, ... into the `nearest` keys (C, K) of others, given distances (R, C)."""
    if nearest[0, 0] == FAR:  # nothing there yet to compare with
        nearest[:] = _merged(nearest, _nearest_keys(np.ascontiguousarray(distances.T), nearest.shape[1], first))
        return
    row, column = _where(distances <= _distances(nearest[:, -1]))
    taken, place = np.unique(column, return_inverse=True)
    order = np.argsort(place, kind="stable")
    keys = _padded(place[order], _keys(distances[row, column], first + row)[order], len(taken))
    nearest[taken] = _merged(nearest[taken], keys)


def _nearest_keys(distances: NDArray[np.float32], count: int, first: int) -> NDArray[np.uint64]:
    """Keys (B, min(count, M)) of the nearest columns of each row (B, M), ascending; the columns count from `first`."""
    rows, items = distances.shape
    count = min(count, items)
    group = min(GROUP, items // count)
    width = items // group
    # Of `width` groups, `count` have a least distance within the bound: so no row has fewer than `count` within it.
    least = distances[:, : width * group].reshape(rows, group, width).min(axis=1)
    bound = np.partition(least, count - 1, axis=1)[:, count - 1, None]
    row, column = _where(distances <= bound)
    keys = _padded(row, _keys(distances[row, column], first + column), rows)
    keys.sort(axis=1)
    return keys[:, :count]


def _keys(distances: NDArray[np.float32], items: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Numbers that rank as (distance, item) does: the bits of a float >= 0 rank as it does; below them the item."""
    bits = (distances + np.float32(0.0)).view(np.uint32).astype(np.uint64)  # -0.0 becomes 0.0
    return bits << np.uint64(32) | items.astype(np.uint64)


def _items(keys: NDArray[np.uint64]) -> NDArray[np.int32]:
    """The items of `_keys`."""
    return keys.astype(np.uint32).view(np.int32)


def _distances(keys: NDArray[np.uint64]) -> NDArray[np.float32]:
    """The distances of `_keys`; FAR is infinitely far."""
    bits = (keys >> np.uint64(32)).astype(np.uint32)
    return np.where(keys == FAR, np.float32(np.inf), bits.view(np.float32))


def _merged(nearest: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The K smallest of each row of `nearest` (R, K) and `keys` (R, any), ascending."""
    both = np.concatenate([nearest, keys], axis=1)
    both.sort(axis=1)
    return both[:, : nearest.shape[1]]


def _padded(row: NDArray[np.int64], keys: NDArray[np.uint64], rows: int) -> NDArray[np.uint64]:
    """`keys` of ascending `row`s as a matrix (rows, most keys of a row), the rest of it FAR."""
    lengths = np.bincount(row, minlength=rows)
    slot = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    matrix = np.full((rows, lengths.max(initial=0)), FAR)
    matrix[row, slot] = keys
    return matrix


def _where(true: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """np.nonzero of a matrix with few entries, several times faster."""
    row, column = np.divmod(np.flatnonzero(true), true.shape[1])
    return row, column
