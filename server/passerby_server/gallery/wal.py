"""Whether SQLite's write-ahead log has lost something.

SQLite reads the log up to the first frame (a page and its header) whose checksum is wrong, and passes over the rest
without a word. After a power cut that is right, for what is torn was never acknowledged; after a flipped bit it is not.
The two differ: each commit waits for the disk, so a power cut leaves at most one behind the torn frame.

Format: https://www.sqlite.org/fileformat2.html#walformat
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct(">8I")
"""Magic, version, page size, number of checkpoints, two salts that are new after each, two checksums."""
_MAGIC = 0x377F0682
"""With its last bit set or not, for the byte order of the checksums."""
_FRAME_HEADER = 24
"""Bytes: page, size of the database if this ends a commit (else 0), the two salts, two checksums."""
_PAGE_SIZES = tuple(2**power for power in range(9, 17))


def commits(log: Path) -> NDArray[np.int64]:
    """Numbers, from 1, of the frames of the log at `log` that end a commit and are not of before its last checkpoint;
    int64 (n,). None without a log, or in one that SQLite did not write."""
    header = _start_of(log)
    if header is None:
        return np.zeros(0, np.int64)
    page_size, *salts = header
    length = page_size + _FRAME_HEADER
    count = (log.stat().st_size - _HEADER.size) // length
    if count < 1:
        return np.zeros(0, np.int64)
    frames = np.memmap(log, np.uint8, "r", _HEADER.size, (count, length))
    heads = np.ascontiguousarray(frames[:, :16]).view(">u4")
    ends = (heads[:, 1] != 0) & (heads[:, 2:] == np.array(salts, np.uint32)).all(axis=1)
    return np.flatnonzero(ends).astype(np.int64) + 1


def lost(log_commits: NDArray[np.int64], read: int) -> int:
    """How many acknowledged commits are lost at least, where SQLite has read the first `read` frames."""
    return max(0, int((log_commits > read).sum()) - 1)


def _start_of(log: Path) -> tuple[int, int, int] | None:
    """Page size in bytes and the two salts."""
    try:
        with log.open("rb") as file:
            start = file.read(_HEADER.size)
    except OSError:
        return None
    if len(start) < _HEADER.size:
        return None
    magic, _, page_size, _, first, second, _, _ = _HEADER.unpack(start)
    return (page_size, first, second) if magic & ~1 == _MAGIC and page_size in _PAGE_SIZES else None
