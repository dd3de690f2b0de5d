"""Tracklets on disk -> descriptors, with the PyTorch encoder: `descriptors.embed` around a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from passerby_model import descriptors, preprocess
from passerby_model.datasets import Tracklet
from passerby_model.descriptors import ClipScheme, Encode, Progress, ReadFrame
from passerby_model.encoder import TrackletEncoder


def embed_tracklets(
    encoder: TrackletEncoder,
    tracklets: Sequence[Tracklet],
    *,
    max_snippets: int | None = None,
    max_frames: int | None = None,
    read_frame: ReadFrame = preprocess.read_image,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Descriptor of each tracklet: mean over its snippets.

    Args:
        encoder: in eval mode (the caller's care, for batch statistics would leak between tracklets).
        tracklets: T of them.
        max_snippets, max_frames: of each tracklet, evenly spread; None for all (the reference's test).
        read_frame: path -> uint8 (h, w, 3) RGB, called from another thread.
        device: of the encoder; CPU when not given.
        progress: called with (tracklets done, T).

    Returns:
        float32 (T, D).

    Raises:
        NotFoundError, InvalidArgumentError: a frame is missing or no image; the message names it.
        FailedPreconditionError: a descriptor is not finite.
    """
    arch = encoder.architecture
    if not tracklets:
        return np.zeros((0, encoder.descriptor_size), dtype=np.float32)
    return descriptors.embed(
        torch_encode(encoder, device),
        tracklets,
        ClipScheme(arch.snippet_length, max_frames, max_snippets),
        height=arch.height,
        width=arch.width,
        read_frame=read_frame,
        progress=progress,
    )


def torch_encode(encoder: TrackletEncoder, device: torch.device | None = None) -> Encode:
    """The encoder (in eval mode, on `device`) as a function of uint8 snippets (B, N, H, W, 3)."""

    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found = encoder(normalised(torch.from_numpy(pixels).to(device)))[0]
        return np.asarray(found.float().cpu().numpy(), np.float32)

    return encode


def normalised(frames: Tensor) -> Tensor:
    """uint8 (B, N, H, W, 3) on any device -> float32 (B, N, 3, H, W), as `preprocess.normalise`; channels last in memory."""
    mean = torch.tensor(preprocess.IMAGENET_MEAN, device=frames.device)
    std = torch.tensor(preprocess.IMAGENET_STD, device=frames.device)
    return ((frames.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)
