"""Descriptors kept on disk, so that an evaluation that was interrupted, or is repeated, does not embed again.

<cache>/<key>/00000.npy    float32, the first PART_TRACKLETS tracklets; 00001.npy the next ones, and so on

The key is a sha256 over everything that a descriptor depends on: the model's fingerprint, what computes it, the clip
scheme, and name, size and time of change of every frame. Nothing is ever looked up under another key, so a file can
be deleted at any time and never lies.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from passerby.errors import NotFoundError
from passerby_model.datasets import Tracklet
from passerby_model.descriptors import ClipScheme, Progress

from .evaluate_models import EvaluatedModel

PART_TRACKLETS = 256
"""Tracklets of one file: what an interrupt can cost."""


def embed_cached(
    model: EvaluatedModel,
    tracklets: Sequence[Tracklet],
    scheme: ClipScheme,
    cache: Path | None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """`model.embed`, through the cache where there is one. float32 (T, D)."""
    if cache is None:
        return model.embed(tracklets, scheme, progress)
    folder = cache / cache_key(model, tracklets, scheme)
    parts = []
    for number, start in enumerate(range(0, len(tracklets), PART_TRACKLETS)):
        part = tracklets[start : start + PART_TRACKLETS]
        path = folder / f"{number:05d}.npy"
        found = _read(path, (len(part), model.description.descriptor_dim))
        if found is None:
            found = model.embed(part, scheme, _from(progress, start, len(tracklets)))
            _write(path, found)
        elif progress is not None:
            progress(start + len(part), len(tracklets))
        parts.append(found)
    return np.concatenate(parts)


def cache_key(model: EvaluatedModel, tracklets: Sequence[Tracklet], scheme: ClipScheme) -> str:
    """sha256 in hex over everything that the descriptors depend on. Raises NotFoundError for a missing frame."""
    digest = hashlib.sha256()
    description = model.description
    digest.update(f"1\n{description.fingerprint}\n{description.runtime}\n{scheme}\n".encode())
    for tracklet in tracklets:
        digest.update(f"{tracklet.key}\n".encode())
        for frame in tracklet.frames:
            try:
                status = frame.stat()
            except OSError as error:
                raise NotFoundError(f"{frame}: cannot be read: {error.strerror or error}") from error
            digest.update(f"{frame.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """What is stored; None when nothing is, or it is not what should be there (a disk that was full)."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float32 and np.isfinite(found).all() else None


def _write(path: Path, descriptors: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as stream:
        np.save(stream, descriptors, allow_pickle=False)
    partial.replace(path)


def _from(progress: Progress | None, start: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(start + done, total)
