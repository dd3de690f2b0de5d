"""Tracklets on disk -> descriptors, with the PyTorch encoder: the reference's dense test scheme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from passerby_model import preprocess, snippets
from passerby_model.datasets import Tracklet
from passerby_model.encoder import TrackletEncoder

# At most this many snippets in one forward; the reference ran out of memory on long tracklets without such a limit.
MAX_SNIPPETS = 16

ReadFrame = Callable[[Path], NDArray[np.uint8]]


def embed_tracklets(
    encoder: TrackletEncoder,
    tracklets: Sequence[Tracklet],
    *,
    max_snippets: int | None = None,
    read_frame: ReadFrame = preprocess.read_image,
    device: torch.device | None = None,
) -> NDArray[np.float32]:
    """Descriptor of each tracklet: mean over its snippets.

    Args:
        encoder: in eval mode (the caller's care, for batch statistics would leak between tracklets).
        tracklets: T of them.
        max_snippets: of each tracklet, evenly spread; None for all (the reference's test).
        read_frame: path -> uint8 (h, w, 3) RGB.
        device: of the encoder; CPU when not given.

    Returns:
        float32 (T, D).

    Raises:
        NotFoundError, InvalidArgumentError: a frame is missing or no image; the message names it.
    """
    rows = [_embed_one(encoder, tracklet, max_snippets, read_frame, device) for tracklet in tracklets]
    return np.stack(rows) if rows else np.zeros((0, encoder.descriptor_size), dtype=np.float32)


def normalised(frames: Tensor) -> Tensor:
    """uint8 (B, N, H, W, 3) on any device -> float32 (B, N, 3, H, W), as `preprocess.normalise`; channels last in memory."""
    mean = torch.tensor(preprocess.IMAGENET_MEAN, device=frames.device)
    std = torch.tensor(preprocess.IMAGENET_STD, device=frames.device)
    return ((frames.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)


def _embed_one(
    encoder: TrackletEncoder,
    tracklet: Tracklet,
    max_snippets: int | None,
    read_frame: ReadFrame,
    device: torch.device | None,
) -> NDArray[np.float32]:
    arch = encoder.architecture
    indices = snippets.split(len(tracklet.frames), arch.snippet_length)
    if max_snippets is not None and len(indices) > max_snippets:
        indices = indices[np.linspace(0, len(indices) - 1, max_snippets).round().astype(np.int64)]
    frames = {
        index: preprocess.resize(read_frame(tracklet.frames[index]), arch.height, arch.width)
        for index in np.unique(indices)
    }
    parts = []
    for start in range(0, len(indices), MAX_SNIPPETS):
        batch = np.stack([[frames[index] for index in row] for row in indices[start : start + MAX_SNIPPETS]])
        with torch.inference_mode():
            parts.append(encoder(normalised(torch.from_numpy(batch).to(device)))[0].float().cpu().numpy())
    return snippets.mean_descriptor(np.concatenate(parts))
