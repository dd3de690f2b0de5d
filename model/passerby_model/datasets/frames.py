"""Files of frames, looked at (are they there?) and opened (are they whole?), for `check`."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from passerby.errors import PasserbyError

from passerby_model import preprocess
from passerby_model.datasets.files import read_bytes, shown
from passerby_model.datasets.tracklets import Tracklet

UNUSUAL = 3.0
"""A side or an aspect ratio this many times the set's median, or the median this many times it, is unusual: between
people near and far a factor of 2.5 is common (WARD)."""
MAX_FRAME_BYTES = 64 * 2**20
_BATCH = 1024

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """What is wrong with some frames of one tracklet. kind: "missing", "unreadable", "twice" or "size"."""

    kind: str
    tracklet: Tracklet
    frame: Path
    reason: str


@dataclass(frozen=True)
class FrameSizes:
    """Height and width in pixels, each by itself."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]


@dataclass(frozen=True)
class _Seen:
    """One frame: what makes it the same as another, its height and width, or why it is not to be had."""

    same: Hashable = None
    size: tuple[int, int] | None = None
    fault: tuple[str, str] | None = None


def examine(
    tracklets: Sequence[Tracklet], decode: bool, threads: int, progress: Progress | None = None
) -> tuple[list[Finding], FrameSizes | None]:
    """Look at every frame's file; with `decode`, open each too.

    Args:
        tracklets: each once.
        threads: that read files at a time.
        progress: called with (frames done, frames in all) now and then.

    Returns:
        What is wrong, at most one finding of a kind for each tracklet, in their order; and, with `decode`, the sizes
        of those that could be opened.
    """
    frames = [(tracklet, frame) for tracklet in tracklets for frame in tracklet.frames]
    first_of: dict[Hashable, Path] = {}
    faults: dict[tuple[str, str], list[tuple[Tracklet, Path, str]]] = defaultdict(list)
    sizes = np.zeros((len(frames), 2), dtype=np.int32)
    for number, seen in enumerate(_seen((frame for _, frame in frames), decode, threads)):
        tracklet, frame = frames[number]
        if seen.fault is not None:
            faults[tracklet.key, seen.fault[0]].append((tracklet, frame, seen.fault[1]))
        elif (first := first_of.setdefault(seen.same, frame)) is not frame:
            faults[tracklet.key, "twice"].append((tracklet, frame, f"the same image as {shown(first)}"))
        if seen.size is not None:
            sizes[number] = seen.size
        if progress is not None and (number % _BATCH == 0 or number + 1 == len(frames)):
            progress(number + 1, len(frames))
    opened = np.flatnonzero(sizes[:, 0])
    if opened.size:
        for number, reason in _unusual(sizes[opened]):
            tracklet, frame = frames[int(opened[number])]
            faults[tracklet.key, "size"].append((tracklet, frame, reason))
    return [_finding(kind, group) for (_, kind), group in faults.items()], _summary(sizes[opened])


def _seen(frames: Iterable[Path], decode: bool, threads: int) -> Iterator[_Seen]:
    look = _open if decode else _stat
    with ThreadPoolExecutor(threads, thread_name_prefix="passerby-check") as pool:
        waiting = iter(frames)
        while batch := list(itertools.islice(waiting, _BATCH)):
            yield from pool.map(look, batch)


def _stat(frame: Path) -> _Seen:
    try:
        found = os.stat(frame)
    except (OSError, ValueError) as error:
        return _Seen(fault=("missing", getattr(error, "strerror", None) or str(error)))
    if not stat.S_ISREG(found.st_mode):
        return _Seen(fault=("unreadable", "not a file"))
    if not found.st_size:
        return _Seen(fault=("unreadable", "empty (0 bytes)"))
    return _Seen(same=(found.st_dev, found.st_ino))


def _open(frame: Path) -> _Seen:
    looked = _stat(frame)
    if looked.fault is not None:
        return looked
    try:
        data = read_bytes(frame, MAX_FRAME_BYTES)
        height, width, _ = preprocess.decode(data).shape
    except PasserbyError as error:
        return _Seen(fault=("unreadable", error.message))
    return _Seen(same=hashlib.blake2b(data, digest_size=16).digest(), size=(height, width))


def _unusual(sizes: NDArray[np.int32]) -> Iterator[tuple[int, str]]:
    """Rows of int32 (frames, 2) that stand out, and why."""
    height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    middle = np.median(sizes, axis=0).round().astype(int)
    outside = np.zeros(len(sizes), dtype=bool)
    for measure in (height, width, height / width):
        ratio = measure / np.median(measure)
        outside |= (ratio > UNUSUAL) | (ratio < 1 / UNUSUAL)
    for number in np.flatnonzero(outside).tolist():
        rows, columns = sizes[number].tolist()
        yield number, f"{rows} x {columns} pixels (rows x columns), where {middle[0]} x {middle[1]} is usual"


def _summary(sizes: NDArray[np.int32]) -> FrameSizes | None:
    if not len(sizes):
        return None
    smallest, median, largest = (
        (int(row[0]), int(row[1])) for row in (sizes.min(axis=0), np.median(sizes, axis=0).round(), sizes.max(axis=0))
    )
    return FrameSizes(smallest, median, largest)


def _finding(kind: str, group: list[tuple[Tracklet, Path, str]]) -> Finding:
    tracklet, frame, reason = group[0]
    count = f"; {len(group)} of the tracklet's {len(tracklet.frames)} frames" if len(group) > 1 else ""
    return Finding(kind, tracklet, frame, reason + count)
