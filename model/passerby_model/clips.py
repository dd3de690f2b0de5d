"""Training clips: which frames, and how they come from disk in time (numpy + Pillow); `augmentation` changes them.

Source: the reference's `video_loader.py` (N consecutive frames, uniform start; its start is off by one, [0, L-N] is
right). Frames spread over the tracklet and exchanged backgrounds are additions, off by default.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from passerby.errors import NotFoundError

from passerby_model import preprocess
from passerby_model.augmentation import ENLARGED, UNKNOWN, WAIST, augment, before, join, move_silhouettes
from passerby_model.datasets import Tracklet
from passerby_model.street_labels import read_labels
from passerby_model.train_config import Augmentation

Job = TypeVar("Job")
Result = TypeVar("Result")


def clip_indices(frame_count: int, snippet_length: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """int64 (N,): N consecutive frames with a uniform start in [0, L-N]; a shorter tracklet repeats cyclically."""
    if frame_count < snippet_length:
        return np.arange(snippet_length, dtype=np.int64) % frame_count
    start = int(generator.integers(0, frame_count - snippet_length + 1))
    return np.arange(start, start + snippet_length, dtype=np.int64)


def spread_indices(frame_count: int, snippet_length: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """int64 (N,): one frame of each N-th of the tracklet, ascending (restricted random sampling).

    Frames that lie apart have less background in common than consecutive ones. A tracklet of fewer than N frames
    gives some of them twice. Source: Li et al., "Diversity regularized spatiotemporal attention", CVPR 2018, section 3.1.
    """
    edges = np.linspace(0, frame_count, snippet_length + 1)
    return np.minimum(generator.uniform(edges[:-1], edges[1:]).astype(np.int64), frame_count - 1)


class FrameStore:
    """Decoded frames, kept in memory up to a limit; beyond it they are decoded anew each time.

    Frames larger than the enlarged training size are kept at that size. Safe to use from several threads.
    """

    def __init__(self, height: int, width: int, cache_bytes: int) -> None:
        self._largest = (round(height * ENLARGED), round(width * ENLARGED))
        self._free = cache_bytes
        self._cache: dict[Path, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def get(self, path: Path) -> NDArray[np.uint8]:
        """uint8 (h, w, 3) RGB.

        Raises:
            NotFoundError, InvalidArgumentError: the file is missing or no image; the message names it.
        """
        return self._cached(path, self._read)

    def mask(self, path: Path) -> NDArray[np.uint8]:
        """uint8 (h, w): the labels of a palette or grey PNG, 0 for background, at the file's own size.

        Raises:
            NotFoundError, InvalidArgumentError: no such file, or no PNG of labels; the message names it.
        """
        return self._cached(path, read_labels)

    def _cached(self, path: Path, read: Callable[[Path], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        cached = self._cache.get(path)
        if cached is not None:
            return cached
        image = read(path)
        with self._lock:
            if path not in self._cache and image.nbytes <= self._free:
                self._free -= image.nbytes
                self._cache[path] = image
        return image

    def _read(self, path: Path) -> NDArray[np.uint8]:
        image = preprocess.read_image(path)
        if image.shape[0] > self._largest[0] and image.shape[1] > self._largest[1]:
            image = preprocess.resize(image, *self._largest)
        return image


@dataclass(frozen=True)
class Clip:
    """A clip as the student sees it and as a teacher does.

    frames, original: uint8 (N, H, W, 3); original has its own background and, from a builder with `plain_original`, no
    augmentation but `join`. whole: whether they show one person. silhouettes: uint8 (N, H, W), 1 where `frames` show the
    person, 0 elsewhere; UNKNOWN throughout where nobody says.
    """

    frames: NDArray[np.uint8]
    original: NDArray[np.uint8]
    whole: bool
    silhouettes: NDArray[np.uint8]


@dataclass(frozen=True)
class ClipBatch:
    """What one step trains on.

    frames: uint8 (M, N, H, W, 3). whole: bool (M,), False where a clip was joined of two people and so is nobody.
    silhouettes: uint8 (M, N, H, W), as of its clips. targets: float32 (M, D) unit-length descriptors of a teacher that
    saw these very clips; None without one.
    """

    frames: NDArray[np.uint8]
    whole: NDArray[np.bool_]
    silhouettes: NDArray[np.uint8]
    targets: NDArray[np.float32] | None = None


class ClipBuilder:
    """Augmented clips of tracklets. A clip depends on (seed, iteration, place in the batch) alone."""

    def __init__(
        self,
        tracklets: Sequence[Tracklet],
        store: FrameStore,
        augmentation: Augmentation,
        snippet_length: int,
        size: tuple[int, int],
        seed: int = 0,
        mask_of: Callable[[Path], Path | None] = lambda frame: None,
        plain_original: bool = False,
    ) -> None:
        """mask_of: where the silhouette of a frame is, for exchanging backgrounds; None where there is none."""
        self.augmentation, self.size, self.seed = augmentation, size, seed
        self._mask_of, self._plain_original = mask_of, plain_original
        self._tracklets, self._store, self._length = tracklets, store, snippet_length
        self._sources: dict[str, list[int]] = {}
        for member, tracklet in enumerate(tracklets):
            self._sources.setdefault(_source(tracklet), []).append(member)

    def resized(self, size: tuple[int, int], *, plain_original: bool = False) -> ClipBuilder:
        """The same clips at another (H, W)."""
        return ClipBuilder(
            self._tracklets,
            self._store,
            self.augmentation,
            self._length,
            size,
            self.seed,
            self._mask_of,
            plain_original,
        )

    def batch(self, members: NDArray[np.int64], iteration: int, rank: int = 0) -> ClipBatch:
        """One clip of each tracklet of `members` (M,)."""
        drawn = [
            self.clip(int(member), np.random.default_rng([self.seed, iteration, rank, place]))
            for place, member in enumerate(members)
        ]
        return ClipBatch(
            np.stack([clip.frames for clip in drawn]),
            np.array([clip.whole for clip in drawn]),
            np.stack([clip.silhouettes for clip in drawn]),
        )

    def clip(self, member: int, generator: np.random.Generator) -> Clip:
        """N frames of a tracklet, augmented."""
        options = self.augmentation
        paths = self._paths(member, generator)
        images = [self._store.get(path) for path in paths]
        if options.join and generator.random() < options.join:
            lower = [self._store.get(path) for path in self._paths(self._partner(member, generator), generator)]
            images = join(images, lower, generator.uniform(*WAIST))
            frames = augment(images, self.size, options, generator)
            return Clip(frames, self._original(images, frames), False, self._unknown())
        moved = self._elsewhere(member, paths, images, generator)
        again, third = copy.deepcopy(generator), copy.deepcopy(generator)
        frames = augment(images, self.size, options, generator)
        seen = frames if moved is None else augment(moved, self.size, options, again)
        return Clip(seen, self._original(images, frames), True, self._moved_silhouettes(paths, third))

    def _original(self, images: Sequence[NDArray[np.uint8]], augmented: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if not self._plain_original:
            return augmented
        return np.stack([preprocess.resize(image, *self.size) for image in images])

    def _partner(self, member: int, generator: np.random.Generator) -> int:
        """Some tracklet of the same source, where cameras and drawing style are alike."""
        others = self._sources[_source(self._tracklets[member])]
        return others[int(generator.integers(len(others)))]

    def _paths(self, member: int, generator: np.random.Generator) -> list[Path]:
        frames = self._tracklets[member].frames
        apart = self.augmentation.spread and generator.random() < self.augmentation.spread
        indices = (spread_indices if apart else clip_indices)(len(frames), self._length, generator)
        return [frames[i] for i in indices]

    def _elsewhere(
        self, member: int, paths: list[Path], images: list[NDArray[np.uint8]], generator: np.random.Generator
    ) -> list[NDArray[np.uint8]] | None:
        """The person before the backgrounds of others: of one tracklet, or of another one in each frame."""
        chance = self.augmentation.background
        if self._mask_of(paths[0]) is None or not chance or generator.random() >= chance:
            return None
        places = self._paths(self._partner(member, generator), generator)
        if generator.random() < 0.5:
            places = [self._paths(self._partner(member, generator), generator)[0] for _ in paths]
        return [
            before(image, self._silhouette(path), self._store.get(place), self._silhouette(place))
            for image, path, place in zip(images, paths, places, strict=True)
        ]

    def _moved_silhouettes(self, paths: Sequence[Path], generator: np.random.Generator) -> NDArray[np.uint8]:
        if self._mask_of(paths[0]) is None:
            return self._unknown()
        return move_silhouettes([self._silhouette(path) for path in paths], self.size, self.augmentation, generator)

    def _unknown(self) -> NDArray[np.uint8]:
        return np.full((self._length, *self.size), UNKNOWN, dtype=np.uint8)

    def _silhouette(self, path: Path) -> NDArray[np.bool_]:
        mask = self._mask_of(path)
        if mask is None:
            raise NotFoundError(f"{path}: its data source has masks, and this frame has none")
        return self._store.mask(mask) > 0


def prefetched(jobs: Iterable[Job], work: Callable[[Job], Result], workers: int) -> Iterator[tuple[Job, Result]]:
    """(job, work(job)) in order, with the next jobs already under way in threads.

    Pillow and numpy release the interpreter lock while they decode, resize and index, so threads are enough.
    """
    pending: deque[tuple[Job, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="clips")
    try:
        for job in jobs:
            pending.append((job, pool.submit(work, job)))
            if len(pending) > workers:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _source(tracklet: Tracklet) -> str:
    """The data source of a training tracklet: `training_data.gather` puts it before the identity."""
    return tracklet.identity.partition("/")[0] if "/" in tracklet.identity else ""
