"""Tracklets on disk -> descriptors, with any encoder: the reference's dense test scheme (no torch).

    tracklets -> frames that count -> snippets -> batches across tracklets -> encoder -> mean of each tracklet

Snippets of many tracklets fill one batch, and the next batches are decoded while one is encoded, so memory depends on
neither the length nor the number of tracklets (the reference ran out of memory on long ones).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError, InvalidArgumentError

from passerby_model import preprocess, snippets
from passerby_model.datasets import Tracklet

BATCH_SNIPPETS = 16
"""Snippets of one forward; the limit that the reference needed on long tracklets."""
# Decoded batches that wait for the encoder: 6 MiB each at 16 snippets of 4 frames of 256 x 128.
PREFETCHED_BATCHES = 2

Encode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 (B, N, H, W, 3) RGB -> descriptors float32 (B, D)."""
ReadFrame = Callable[[Path], NDArray[np.uint8]]
Progress = Callable[[int, int], None]
"""Called with (tracklets done, tracklets in all)."""


@dataclass(frozen=True)
class ClipScheme:
    """Which frames of a tracklet make its descriptor; without limits, the reference's dense test.

    snippet_length: N, frames of a snippet, >= 1.
    max_frames: at most so many frames of each tracklet, evenly spread; None for all.
    max_snippets: at most so many of its snippets, evenly spread; None for all.

    Raises:
        InvalidArgumentError: a number below 1.
    """

    snippet_length: int
    max_frames: int | None = None
    max_snippets: int | None = None

    def __post_init__(self) -> None:
        for name in ("snippet_length", "max_frames", "max_snippets"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidArgumentError(f"{name} must be at least 1, not {value}")

    def snippets(self, frame_count: int) -> NDArray[np.int64]:
        """Frame indices of the snippets of a tracklet, int64 (S, N), each in [0, frame_count)."""
        frames = _spread(np.arange(frame_count, dtype=np.int64), self.max_frames)
        rows = frames[snippets.split(len(frames), self.snippet_length)]
        return _spread(rows, self.max_snippets)

    def __str__(self) -> str:
        text = f"dense, snippets of {self.snippet_length}"
        if self.max_frames is not None:
            text += f", at most {self.max_frames} frames"
        if self.max_snippets is not None:
            text += f", at most {self.max_snippets} snippets"
        return text


def embed(
    encode: Encode,
    tracklets: Sequence[Tracklet],
    scheme: ClipScheme,
    *,
    height: int,
    width: int,
    batch_snippets: int = BATCH_SNIPPETS,
    read_frame: ReadFrame = preprocess.read_image,
    decode_threads: int = 1,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """The descriptor of each tracklet: plain mean over its snippets.

    Args:
        encode: the encoder; must treat the rows of a batch on their own (batch norm in eval mode).
        tracklets: T >= 1 of them.
        scheme: which frames count.
        height, width: pixels of the encoder's input.
        batch_snippets: snippets of one call of `encode`, >= 1.
        read_frame: path -> uint8 (h, w, 3) RGB; called from `decode_threads` threads.
        decode_threads: how many batches are decoded at a time.
        progress: called after each batch.

    Returns:
        float32 (T, D).

    Raises:
        NotFoundError, InvalidArgumentError: a frame is missing or no image (the message names it), or no tracklets.
        FailedPreconditionError: a descriptor is not finite (the message names the tracklet).
    """
    if not tracklets:
        raise InvalidArgumentError("there are no tracklets to embed")

    def load(batch: Sequence[tuple[int, tuple[Path, ...]]]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        paths = {path for _, row in batch for path in row}
        frames = {path: preprocess.resize(read_frame(path), height, width) for path in paths}
        owners = np.array([owner for owner, _ in batch], np.int64)
        return owners, np.stack([[frames[path] for path in row] for _, row in batch])

    sums: NDArray[np.float64] | None = None
    counts = np.zeros(len(tracklets), np.int64)
    with ThreadPoolExecutor(decode_threads, thread_name_prefix="decode") as pool:
        for owners, pixels in _ahead(pool, load, _batches(tracklets, scheme, batch_snippets)):
            encoded = encode(pixels)
            if sums is None:
                sums = np.zeros((len(tracklets), encoded.shape[1]))
            np.add.at(sums, owners, encoded)  # in float64: long tracklets lose nothing
            np.add.at(counts, owners, 1)
            if progress is not None:
                progress(int(owners[-1]), len(tracklets))
    if progress is not None:
        progress(len(tracklets), len(tracklets))
    means = (np.asarray(sums) / counts[:, None]).astype(np.float32)
    check_finite(means, tracklets)
    return means


def check_finite(descriptors: NDArray[np.float32], tracklets: Sequence[Tracklet]) -> None:
    """Raises FailedPreconditionError (DESCRIPTOR_NOT_FINITE) with the first tracklet whose row of (T, D) is not."""
    broken = np.flatnonzero(~np.isfinite(descriptors).all(axis=1))
    if len(broken):
        raise FailedPreconditionError(
            f"the model gives descriptors that are not finite for {len(broken)} of {len(tracklets)} tracklets, first "
            f"{tracklets[broken[0]].key}: its weights are broken, or too large for the precision it computes in",
            reason="DESCRIPTOR_NOT_FINITE",
        )


def _spread(items: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    """At most `most` rows of `items` (K, ...), evenly spread, first and last among them."""
    if most is None or len(items) <= most:
        return items
    return items[np.linspace(0, len(items) - 1, most).round().astype(np.int64)]


def _batches(
    tracklets: Sequence[Tracklet], scheme: ClipScheme, size: int
) -> Iterator[list[tuple[int, tuple[Path, ...]]]]:
    """Snippets (index of the tracklet, its N frames) in batches of `size`, the last one smaller."""
    rows = (
        (index, tuple(tracklet.frames[frame] for frame in row))
        for index, tracklet in enumerate(tracklets)
        for row in scheme.snippets(len(tracklet.frames))
    )
    while batch := list(itertools.islice(rows, size)):
        yield batch


def _ahead(
    pool: ThreadPoolExecutor,
    load: Callable[[list[tuple[int, tuple[Path, ...]]]], tuple[NDArray[np.int64], NDArray[np.uint8]]],
    batches: Iterator[list[tuple[int, tuple[Path, ...]]]],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """`load` of each batch, in order, a few of them ahead."""
    waiting: deque[Future[tuple[NDArray[np.int64], NDArray[np.uint8]]]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(load, batch))
            if len(waiting) > PREFETCHED_BATCHES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
