"""Distillation: the encoder also learns to reproduce what another re-ID model makes of each training clip.

The teacher sees the very clip that the student sees, augmented as it is, only at its own size; joined people and dyed
clothes then widen the data without end, for the teacher says what they look like (Beyer et al., "Knowledge
distillation: a good teacher is patient and consistent", CVPR 2022, arXiv 2106.05237, section 3). Where the background
was exchanged the teacher sees the person's own: the way to its answer is then to look at the person alone. Two losses:

    Imitation            a linear map of the student's descriptor is pulled towards the teacher's by the cosine
                         (Romero et al., arXiv 1412.6550, section 2.2, at the descriptor instead of a hidden layer);
                         the map is thrown away after training
    distance_relation    distances between the clips of a batch are pulled towards the teacher's, both in units of
                         their mean (Park et al., "Relational knowledge distillation", CVPR 2019, equations 5 to 7)
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from passerby_model import preprocess, snippets
from passerby_model.augmentation import fitted
from passerby_model.backends import InferencePrecision, open_backend
from passerby_model.bundle import open_bundle
from passerby_model.clips import Clip, ClipBatch, ClipBuilder
from passerby_model.losses import euclidean_distances
from passerby_model.metrics import unit_rows

# Frames in one call of the teacher. Always so many, the last ones repeated if need be: a descriptor must not depend
# on what else was asked for at the same time, or a resumed run would differ from one in a single piece.
TEACHER_FRAMES = 16


class Teacher:
    """A bundle's encoder, for clips of any length. Safe to use from several threads: one call at a time computes."""

    def __init__(self, folder: Path, precision: InferencePrecision = "f32", threads: int = 0) -> None:
        """Load the bundle in `folder`.

        Raises:
            NotFoundError, FailedPreconditionError, DataLossError: see `open_bundle` and `open_backend`.
        """
        bundle = open_bundle(folder)
        self.name, self._input = bundle.manifest.name, bundle.manifest.input
        self.descriptor_size = bundle.manifest.descriptor_dim
        self._backend = open_backend(bundle, inference_precision=precision, threads=threads)
        self._lock = threading.Lock()

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of its frames."""
        return self._input.height, self._input.width

    def descriptors(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (M, N, H, W, 3) of its own size -> float32 (M, D) of unit length, the mean over each clip's snippets."""
        cuts = snippets.split(clips.shape[1], self._input.snippet_length)
        flat = clips[:, cuts].reshape(-1, *cuts.shape[1:], *clips.shape[2:])
        at_once = max(1, TEACHER_FRAMES // self._input.snippet_length)
        with self._lock:
            parts = [self._encode(flat[start : start + at_once], at_once) for start in range(0, len(flat), at_once)]
        rows = np.concatenate(parts).reshape(len(clips), len(cuts), -1).mean(axis=1)
        return unit_rows(rows)

    def _encode(self, cut: NDArray[np.uint8], at_once: int) -> NDArray[np.float32]:
        full = np.resize(cut, (at_once, *cut.shape[1:])) if len(cut) < at_once else cut
        return self._backend.encode(full).descriptors[: len(cut)]


_Pictures = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Frames (N, H, W, 3) and silhouettes (N, H, W) of a clip."""


@dataclass(frozen=True)
class _View:
    """A clip that the teacher has seen; its pictures at the student's size, None if memory was full."""

    pictures: _Pictures | None
    whole: bool
    target: NDArray[np.float32]


class TaughtClipBuilder:
    """Clips with the teacher's descriptors of them. Each tracklet has `views` clips; the teacher sees each once.

    The student sees a view mirrored or not, by another draw of chance. A clip depends on (seed, member, view) and
    the mirroring on (seed, iteration, place in the batch).
    """

    def __init__(
        self, builder: ClipBuilder, teacher: Teacher, views: int, cache_bytes: int, *, plain: bool = False
    ) -> None:
        """
        builder: its clips, at its size, are what the student sees; cache_bytes: of clips kept in memory.

        plain: the teacher sees the frames before augmentation.
        """
        self._builder, self._teacher, self._views, self._free = builder, teacher, views, cache_bytes
        self._large = builder.resized(teacher.size, plain_original=plain)
        self._known: dict[tuple[int, int], _View] = {}
        self._lock = threading.Lock()

    def batch(self, members: NDArray[np.int64], iteration: int, rank: int = 0) -> ClipBatch:
        """One clip of each tracklet of `members` (M,)."""
        chances = [np.random.default_rng([self._builder.seed, iteration, rank, place]) for place in range(len(members))]
        keys = [(int(m), int(chance.integers(self._views))) for m, chance in zip(members, chances, strict=True)]
        drawn = {key: self._draw(key) for key in dict.fromkeys(keys) if self._frames_missing(key)}
        fresh = [key for key in drawn if key not in self._known]
        if fresh:
            targets = self._teacher.descriptors(np.stack([drawn[key].original for key in fresh]))
            for key, target in zip(fresh, targets, strict=True):
                self._keep(key, self._shrunk(drawn[key]), drawn[key].whole, target)
        views = [self._known[key] for key in keys]
        pictures = [
            view.pictures if view.pictures is not None else self._shrunk(drawn[key])
            for key, view in zip(keys, views, strict=True)
        ]
        mirrored = [chance.random() < self._builder.augmentation.flip for chance in chances]
        return ClipBatch(
            _stacked([frames for frames, _ in pictures], mirrored),
            np.array([view.whole for view in views]),
            _stacked([silhouettes for _, silhouettes in pictures], mirrored),
            np.stack([view.target for view in views]),
        )

    def _frames_missing(self, key: tuple[int, int]) -> bool:
        return key not in self._known or self._known[key].pictures is None

    def _draw(self, key: tuple[int, int]) -> Clip:
        return self._large.clip(key[0], np.random.default_rng([self._builder.seed, *key]))

    def _shrunk(self, clip: Clip) -> _Pictures:
        size = self._builder.size
        frames = np.stack([preprocess.resize(frame, *size) for frame in clip.frames])
        return frames, np.stack([fitted(silhouette, *size) for silhouette in clip.silhouettes])

    def _keep(self, key: tuple[int, int], pictures: _Pictures, whole: bool, target: NDArray[np.float32]) -> None:
        taken = sum(part.nbytes for part in pictures)
        with self._lock:
            fits = taken <= self._free
            self._free -= taken if fits else 0
            self._known[key] = _View(pictures if fits else None, whole, target)


def _stacked(clips: Sequence[NDArray[np.uint8]], mirrored: Sequence[bool]) -> NDArray[np.uint8]:
    return np.stack([clip[:, :, ::-1] if mirror else clip for clip, mirror in zip(clips, mirrored, strict=True)])


class Imitation(nn.Module):
    """The loss: 1 - cos(W d + b, teacher), averaged over the batch; in [0, 2]."""

    def __init__(self, student_size: int, teacher_size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(student_size, teacher_size)

    def forward(self, descriptors: Tensor, targets: Tensor) -> Tensor:
        """descriptors float (M, student_size), targets float (M, teacher_size) of unit length -> scalar."""
        return (1 - F.cosine_similarity(self.projection(descriptors), targets)).mean()


def distance_relation(descriptors: Tensor, targets: Tensor) -> Tensor:
    """Huber loss between the student's and the teacher's Euclidean distances, each divided by its mean.

    Args:
        descriptors: float (M, D).
        targets: float (M, D').

    Returns:
        float scalar, >= 0; 0 for fewer than two clips.
    """
    if len(descriptors) < 2:
        return descriptors.sum() * 0
    upper = torch.triu_indices(len(descriptors), len(descriptors), offset=1, device=descriptors.device)
    student, teacher = (euclidean_distances(rows)[upper[0], upper[1]] for rows in (descriptors, targets))
    return F.smooth_l1_loss(student / student.mean(), teacher / teacher.mean())
