"""A sparse matrix by rows, and how it is built block by block (numpy only)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SparseRows:
    """A sparse float32 (M, M) matrix by rows: row i holds `values` at `columns` from starts[i] to starts[i + 1]."""

    starts: NDArray[np.int64]
    columns: NDArray[np.int32]
    values: NDArray[np.float32]

    def take(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """Entries of `rows` (R,) as (position in `rows`, column, value), each (entries,)."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        owner = np.repeat(np.arange(len(rows)), lengths)
        first = np.repeat(self.starts[rows] - (np.cumsum(lengths) - lengths), lengths)
        where = np.arange(len(owner)) + first
        return owner, self.columns[where], self.values[where]

    def transposed(self) -> SparseRows:
        items = len(self.starts) - 1
        order = np.argsort(self.columns, kind="stable")
        owner = np.repeat(np.arange(items, dtype=np.int32), np.diff(self.starts))
        starts = np.concatenate([[0], np.cumsum(np.bincount(self.columns, minlength=items))])
        return SparseRows(starts, owner[order], self.values[order])


class RowCollector:
    """Builds SparseRows from blocks of rows, given in order."""

    def __init__(self) -> None:
        self._lengths: list[NDArray[np.int64]] = []
        self._columns: list[NDArray[np.int32]] = []
        self._values: list[NDArray[np.float32]] = []

    def add(
        self, height: int, rows: NDArray[np.int64], columns: NDArray[np.integer], values: NDArray[np.floating]
    ) -> None:
        """A block of `height` rows with entries (rows, columns, values), ordered by row."""
        self._lengths.append(np.bincount(rows, minlength=height))
        self._columns.append(columns.astype(np.int32, copy=False))
        self._values.append(values.astype(np.float32, copy=False))

    def finish(self) -> SparseRows:
        starts = np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))])
        return SparseRows(starts, np.concatenate(self._columns), np.concatenate(self._values))
