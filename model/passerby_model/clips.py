"""Training clips: which frames, how they are changed, and how they come from disk in time (numpy + Pillow).

Source: the reference's `video_loader.py` (N consecutive frames, uniform start; its start is off by one, [0, L-N] is
right) and `transforms.py` (Random2DTranslation: with p 0.5 resize, else enlarge by 9/8 and crop; mirror with p 0.5).
Erasing, colour, grey, blur, garment, join, spread and background are additions, off by default.
"""

from __future__ import annotations

import copy
import math
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
from PIL import Image

from passerby_model import preprocess
from passerby_model.datasets import Tracklet
from passerby_model.train_config import Augmentation

ENLARGED = 9 / 8  # 288 x 144 for 256 x 128
# Random erasing (Zhong et al., arXiv 1708.04896): share of the area and aspect ratio of the rectangle.
ERASED_AREA, ERASED_ASPECT = (0.02, 0.4), 3.3
# At strength 1: spread of the logarithms of light and of each colour channel, of gamma, contrast and saturation.
COLOUR_SPREAD, TONE_SPREAD = 0.35, 0.35
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# Rows (share of the height) of the upper and the lower garment, and the columns of both.
_GARMENTS, _GARMENT_COLUMNS = ((0.15, 0.52), (0.48, 0.92)), (0.1, 0.9)
# Rows between which the upper body of one person is joined to the lower body of another.
_WAIST = (0.35, 0.6)

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
            NotFoundError: no such file, or no image.
        """
        return self._cached(path, _read_labels)

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


def _read_labels(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as picture:
            return np.array(picture if picture.mode in ("P", "L") else picture.convert("L"), dtype=np.uint8)
    except (OSError, Image.DecompressionBombError) as error:
        raise NotFoundError(f"{path}: no silhouette mask can be read from it: {error}") from error


@dataclass(frozen=True)
class Clip:
    """A clip as the student sees it and as a teacher does.

    frames, original: uint8 (N, H, W, 3); original has its own background and, from a builder with `plain_original`, no
    augmentation but `join`. whole: whether they show one person.
    """

    frames: NDArray[np.uint8]
    original: NDArray[np.uint8]
    whole: bool


@dataclass(frozen=True)
class ClipBatch:
    """What one step trains on.

    frames: uint8 (M, N, H, W, 3). whole: bool (M,), False where a clip was joined of two people and so is nobody.
    targets: float32 (M, D) unit-length descriptors of a teacher that saw these very clips; None without one.
    """

    frames: NDArray[np.uint8]
    whole: NDArray[np.bool_]
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
        return ClipBatch(np.stack([clip.frames for clip in drawn]), np.array([clip.whole for clip in drawn]))

    def clip(self, member: int, generator: np.random.Generator) -> Clip:
        """N frames of a tracklet, augmented."""
        options = self.augmentation
        paths = self._paths(member, generator)
        images = [self._store.get(path) for path in paths]
        if options.join and generator.random() < options.join:
            lower = [self._store.get(path) for path in self._paths(self._partner(member, generator), generator)]
            images = join(images, lower, generator.uniform(*_WAIST))
            frames = augment(images, self.size, options, generator)
            return Clip(frames, self._original(images, frames), whole=False)
        moved = self._elsewhere(member, paths, images, generator)
        again = copy.deepcopy(generator)
        frames = augment(images, self.size, options, generator)
        seen = frames if moved is None else augment(moved, self.size, options, again)
        return Clip(seen, self._original(images, frames), whole=True)

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
            _before(image, self._silhouette(path), self._store.get(place), self._silhouette(place))
            for image, path, place in zip(images, paths, places, strict=True)
        ]

    def _silhouette(self, path: Path) -> NDArray[np.bool_]:
        mask = self._mask_of(path)
        if mask is None:
            raise NotFoundError(f"{path}: its data source has masks, and this frame has none")
        return self._store.mask(mask) > 0


def augment(
    images: Sequence[NDArray[np.uint8]],
    size: tuple[int, int],
    options: Augmentation,
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """Resize and change the frames of one clip.

    Args:
        images: N frames, uint8 (h, w, 3) of any size.
        size: (H, W) of the result.
        options: probabilities and strengths.
        generator: the only source of chance.

    Returns:
        uint8 (N, H, W, 3).
    """
    if options.blur and generator.random() < options.blur:
        images = _coarse(images, size, generator.uniform(1 / 3, 0.9))
    moves = [_draw_move(options, generator) for _ in images]
    if options.per_clip:
        moves = [moves[0]] * len(moves)
    clip = np.stack([_moved(image, size, *move) for image, move in zip(images, moves, strict=True)])
    if options.garment:
        _dress(clip, options.garment, generator)
    if options.colour:
        clip = recolour(clip, options.colour, generator)
    if options.grey and generator.random() < options.grey:
        clip = np.repeat((clip @ _GREY).astype(np.uint8)[..., None], 3, axis=-1)
    if options.erase:
        for frame in clip:
            if generator.random() < options.erase:
                erase(frame, generator)
    return clip


def recolour(clip: NDArray[np.uint8], strength: float, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Another camera's light, white balance, gamma, contrast and saturation, the same for all frames of a clip.

    Args:
        clip: uint8 (N, H, W, 3).
        strength: 0..1.
        generator: the source of chance.

    Returns:
        uint8 (N, H, W, 3).
    """
    gain = np.exp(generator.normal(0, COLOUR_SPREAD * strength, 3) + generator.normal(0, COLOUR_SPREAD * strength))
    gamma, contrast, saturation = np.exp(generator.normal(0, TONE_SPREAD * strength, 3))
    levels = (np.arange(256)[:, None] / 255) ** gamma * gain
    middle = levels[clip[0, ..., 1]].mean()
    table = np.clip((levels - middle) * contrast + middle, 0, 1).astype(np.float32) * 255
    out = np.stack([table[:, channel][clip[..., channel]] for channel in range(3)], axis=-1)
    grey = (out @ _GREY)[..., None]
    return np.clip(grey + (out - grey) * np.float32(saturation), 0, 255).astype(np.uint8)


def join(
    upper: Sequence[NDArray[np.uint8]], lower: Sequence[NDArray[np.uint8]], waist: float
) -> list[NDArray[np.uint8]]:
    """Frames of somebody who does not exist: above the row `waist` (share of the height) one person, below another.

    Args:
        upper: N frames, uint8 (h, w, 3); their sizes are the result's.
        lower: N frames, uint8 (h', w', 3), resized to those of `upper`.
        waist: in (0, 1).

    Returns:
        N frames, uint8 (h, w, 3).
    """
    joined = []
    for above, below in zip(upper, lower, strict=True):
        height, width = above.shape[:2]
        seam = round(waist * height)
        joined.append(np.concatenate([above[:seam], preprocess.resize(below, height, width)[seam:]]))
    return joined


def erase(frame: NDArray[np.uint8], generator: np.random.Generator, attempts: int = 20) -> None:
    """Fill a random rectangle of a frame uint8 (H, W, 3), in place, with ImageNet's mean (0 once normalised)."""
    height, width = frame.shape[:2]
    for _ in range(attempts):
        area = generator.uniform(*ERASED_AREA) * height * width
        aspect = math.exp(generator.uniform(-math.log(ERASED_ASPECT), math.log(ERASED_ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = int(generator.integers(0, height - h + 1)), int(generator.integers(0, width - w + 1))
            frame[top : top + h, left : left + w] = np.round(255 * np.array(preprocess.IMAGENET_MEAN))
            return


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


def _before(
    image: NDArray[np.uint8],
    silhouette: NDArray[np.bool_],
    scene: NDArray[np.uint8],
    occupied: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """The person of `image` before the background of `scene`, whose own person gives way; uint8 (h, w, 3)."""
    height, width = image.shape[:2]
    silhouette, occupied = (_fitted(mask, height, width) for mask in (silhouette, occupied))
    # The pixels of the scene's person are taken from the nearest background in their row; rows without any stay.
    columns = np.arange(width)
    left = np.maximum.accumulate(np.where(occupied, -1, columns), axis=1)
    right = np.minimum.accumulate(np.where(occupied, width, columns)[:, ::-1], axis=1)[:, ::-1]
    nearer = (right >= width) | ((left >= 0) & (columns - left <= right - columns))
    source = np.where(nearer, left, right)
    source = np.where((source >= 0) & (source < width), source, columns)
    empty = np.take_along_axis(preprocess.resize(scene, height, width), source[..., None], axis=1)
    return np.where(silhouette[..., None], image, empty)


def _fitted(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    rows, columns = (np.arange(size) * mask.shape[axis] // size for axis, size in enumerate((height, width)))
    fitted: NDArray[np.bool_] = mask[rows][:, columns]
    return fitted


def _dress(clip: NDArray[np.uint8], probability: float, generator: np.random.Generator) -> None:
    """Other colours for the upper and the lower garment, each by chance, in place. clip: uint8 (N, H, W, 3)."""
    height, width = clip.shape[1:3]
    left, right = (round(share * width) for share in _GARMENT_COLUMNS)
    for first, last in _GARMENTS:
        if generator.random() < probability:
            area = clip[:, round(first * height) : round(last * height), left:right]
            area[...] = recolour(area[..., generator.permutation(3)], 1.0, generator)


def _draw_move(options: Augmentation, generator: np.random.Generator) -> tuple[bool, float, float, bool]:
    """(enlarge?, vertical and horizontal place of the crop in [0, 1), mirror?)."""
    enlarge = bool(generator.random() < options.crop)
    down, across = generator.random(2)
    return enlarge, float(down), float(across), bool(generator.random() < options.flip)


def _moved(
    image: NDArray[np.uint8], size: tuple[int, int], enlarge: bool, down: float, across: float, mirror: bool
) -> NDArray[np.uint8]:
    height, width = size
    if enlarge:
        large = preprocess.resize(image, round(height * ENLARGED), round(width * ENLARGED))
        top = int(down * (large.shape[0] - height + 1))
        left = int(across * (large.shape[1] - width + 1))
        frame = large[top : top + height, left : left + width]
    else:
        frame = preprocess.resize(image, height, width)
    return frame[:, ::-1] if mirror else frame


def _coarse(images: Sequence[NDArray[np.uint8]], size: tuple[int, int], share: float) -> list[NDArray[np.uint8]]:
    """The frames as a camera with `share` of the pixels in each direction would have seen them."""
    width, height = max(1, round(size[1] * share)), max(1, round(size[0] * share))
    return [
        np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR), dtype=np.uint8)
        for image in images
    ]
