"""Tracklet -> snippets -> descriptor, the reference's "dense" test scheme (numpy only).

Source: InnovArul/vidreid_cosegmentation, `video_loader.py` ("dense") and the test loop of `main_video_person_reid.py`;
the tail rule is the reference's: the last chunk is padded cyclically from itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError


def split(frame_count: int, snippet_length: int) -> NDArray[np.int64]:
    """Frame indices of the snippets of one tracklet.

    Consecutive chunks of `snippet_length` frames. A last chunk that is too short is repeated cyclically:
    7 frames at length 4 give [[0, 1, 2, 3], [4, 5, 6, 4]]. Whole chunks are never followed by a padded one.

    Args:
        frame_count: frames of the tracklet, >= 1.
        snippet_length: N, frames of a snippet, >= 1.

    Returns:
        int64 (S, N) with S = ceil(frame_count / N); every index in [0, frame_count).

    Raises:
        InvalidArgumentError: no frames, or a snippet length below 1.
    """
    if frame_count < 1:
        raise InvalidArgumentError("the tracklet has no frames; send at least one", reason="NO_FRAMES")
    if snippet_length < 1:
        raise InvalidArgumentError(f"snippet length must be at least 1, not {snippet_length}")
    starts = np.arange(0, frame_count, snippet_length, dtype=np.int64)[:, None]
    offsets = np.arange(snippet_length, dtype=np.int64)[None, :]
    chunk_sizes = np.minimum(frame_count - starts, snippet_length)
    return starts + offsets % chunk_sizes


def mean_descriptor(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The tracklet's descriptor: plain mean over its snippets, no normalisation (the reference's rule).

    Args:
        descriptors: float32 (S, D), S >= 1, one row a snippet.

    Returns:
        float32 (D,). The sum runs in float64, so that long tracklets (Duke: 9,324 frames) lose nothing.

    Raises:
        InvalidArgumentError: not two-dimensional, or no snippets.
    """
    if descriptors.ndim != 2 or descriptors.shape[0] == 0:
        raise InvalidArgumentError(f"expected (S, D) descriptors with S >= 1, got shape {descriptors.shape}")
    return np.asarray(descriptors.mean(axis=0, dtype=np.float64), dtype=np.float32)
