"""Batches in a few sizes. Runtimes on a GPU keep memory, and choose kernels, for every batch size that they ever saw."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def buckets(max_batch: int) -> tuple[int, ...]:
    """The sizes, ascending: 1, 2, 4, ... and `max_batch`."""
    powers = (1 << exponent for exponent in range(max_batch.bit_length()))
    return tuple(sorted({*powers, max_batch} - {0}))


def bucket_for(batch: int, max_batch: int) -> int:
    """The smallest size that holds `batch` rows. Raises ValueError unless 1 <= batch <= max_batch."""
    if not 1 <= batch <= max_batch:
        raise ValueError(f"a batch of {batch} does not fit into 1 to {max_batch}")
    return min(max_batch, 1 << (batch - 1).bit_length())


def padded(rows: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`rows` (B, ...) and copies of the last one, (size, ...), contiguous: what has been padded is thrown away later."""
    if len(rows) == size:
        return np.ascontiguousarray(rows)
    wide = np.empty((size, *rows.shape[1:]), rows.dtype)
    wide[: len(rows)] = rows
    wide[len(rows) :] = rows[-1]
    return wide


def pieces(rows: NDArray[np.uint8], max_batch: int) -> Iterator[NDArray[np.uint8]]:
    """`rows` in order, at most `max_batch` at a time."""
    for start in range(0, len(rows), max_batch):
        yield rows[start : start + max_batch]
