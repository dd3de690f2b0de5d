"""Distillation: the encoder also learns to reproduce what another re-ID model makes of each tracklet.

A linear map of the student's descriptor is pulled towards the teacher's by the cosine (feature regression, as in
FitNets, Romero et al., arXiv 1412.6550, section 2.2, at the descriptor instead of a hidden layer). The teacher sees
clean frames, the student augmented ones. The map is thrown away after training.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from passerby_model import preprocess, snippets
from passerby_model.backends import open_backend
from passerby_model.bundle import Bundle, open_bundle
from passerby_model.datasets import Tracklet

REPORT_EVERY = 200  # tracklets


def teacher_descriptors(
    teacher: Path, tracklets: Sequence[Tracklet], frames: int, cache: Path, report: Callable[[str], None]
) -> NDArray[np.float32]:
    """(T, D) float32: the bundle's unit-length descriptor of each tracklet, from `frames` evenly spread frames.

    Kept in `cache`, and computed anew when teacher, tracklets or `frames` are others.

    Raises:
        NotFoundError, FailedPreconditionError, DataLossError: see `open_bundle`.
    """
    bundle = open_bundle(teacher)
    subject = [bundle.fingerprint, str(frames), *(f"{t.frames[0].parent} {t.key} {len(t.frames)}" for t in tracklets)]
    key = hashlib.sha256("\n".join(subject).encode()).hexdigest()
    if (kept := _read(cache, key)) is not None:
        return kept
    encode = _encoder(bundle, frames)
    rows = []
    for number, tracklet in enumerate(tracklets):
        if number % REPORT_EVERY == 0:
            report(f"teacher {bundle.manifest.name}: tracklet {number} of {len(tracklets)}")
        rows.append(encode(tracklet))
    descriptors = np.stack(rows)
    descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    np.savez(cache, key=key, descriptors=descriptors)
    return descriptors


class Imitation(nn.Module):
    """The loss: 1 - cos(W d + b, teacher), averaged over the batch; in [0, 2]."""

    def __init__(self, student_size: int, teacher: NDArray[np.float32]) -> None:
        """teacher: (T, D) unit-length descriptors of the training tracklets."""
        super().__init__()
        self.projection = nn.Linear(student_size, teacher.shape[1])
        self.register_buffer("targets", torch.from_numpy(teacher), persistent=False)

    def forward(self, descriptors: Tensor, members: Tensor) -> Tensor:
        """descriptors float (M, student_size), members int64 (M,): which tracklets they are of -> scalar."""
        targets = self.get_buffer("targets")[members]
        return (1 - F.cosine_similarity(self.projection(descriptors), targets)).mean()


def _encoder(bundle: Bundle, frames: int) -> Callable[[Tracklet], NDArray[np.float32]]:
    backend = open_backend(bundle)
    size = bundle.manifest.input

    def encode(tracklet: Tracklet) -> NDArray[np.float32]:
        chosen = np.unique(np.linspace(0, len(tracklet.frames) - 1, frames).round().astype(int))
        images = [preprocess.read_image(tracklet.frames[i]) for i in chosen]
        stack = np.stack([preprocess.resize(image, size.height, size.width) for image in images])
        cut = stack[snippets.split(len(stack), size.snippet_length)]
        return snippets.mean_descriptor(backend.encode(cut).descriptors)

    return encode


def _read(cache: Path, key: str) -> NDArray[np.float32] | None:
    try:
        # numpy leaves a file that is no archive open when it is only given a path.
        with cache.open("rb") as stream, np.load(stream) as content:
            return np.asarray(content["descriptors"], np.float32) if str(content["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # missing, or cut off by a kill
        return None
