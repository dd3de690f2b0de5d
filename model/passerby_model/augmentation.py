"""How the frames of a training clip are changed (numpy + Pillow).

Source: the reference's `transforms.py` (Random2DTranslation: with p 0.5 resize, else enlarge by 9/8 and crop; mirror
with p 0.5). Erasing, colour, grey, blur, garment, join and background are additions, off by default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from passerby_model import preprocess
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
WAIST = (0.35, 0.6)
UNKNOWN = 255
"""In a silhouette: nobody says whether this is the person."""


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
    share, moves = _draw_geometry(len(images), options, generator)
    if share is not None:
        images = _coarse(images, size, share)
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


def move_silhouettes(
    silhouettes: Sequence[NDArray[np.bool_]],
    size: tuple[int, int],
    options: Augmentation,
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """Where the person of each frame is after `augment` with a generator in the same state; uint8 (N, H, W), 0 or 1.

    A rectangle that `augment` erased still belongs to what it hides.
    """
    _, moves = _draw_geometry(len(silhouettes), options, generator)
    moved = [_moved(mask, size, *move, fit=fitted) for mask, move in zip(silhouettes, moves, strict=True)]
    return np.stack(moved).astype(np.uint8)


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


def before(
    image: NDArray[np.uint8],
    silhouette: NDArray[np.bool_],
    scene: NDArray[np.uint8],
    occupied: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """The person of `image` before the background of `scene`, whose own person gives way; uint8 (h, w, 3)."""
    height, width = image.shape[:2]
    silhouette, occupied = (fitted(mask, height, width) for mask in (silhouette, occupied))
    # The pixels of the scene's person are taken from the nearest background in their row; rows without any stay.
    columns = np.arange(width)
    left = np.maximum.accumulate(np.where(occupied, -1, columns), axis=1)
    right = np.minimum.accumulate(np.where(occupied, width, columns)[:, ::-1], axis=1)[:, ::-1]
    nearer = (right >= width) | ((left >= 0) & (columns - left <= right - columns))
    source = np.where(nearer, left, right)
    source = np.where((source >= 0) & (source < width), source, columns)
    empty = np.take_along_axis(preprocess.resize(scene, height, width), source[..., None], axis=1)
    return np.where(silhouette[..., None], image, empty)


def fitted(mask: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """A mask (h, w) at another size, by the nearest value."""
    rows, columns = (np.arange(size) * mask.shape[axis] // size for axis, size in enumerate((height, width)))
    nearest: NDArray[Any] = mask[rows][:, columns]
    return nearest


def _dress(clip: NDArray[np.uint8], probability: float, generator: np.random.Generator) -> None:
    """Other colours for the upper and the lower garment, each by chance, in place. clip: uint8 (N, H, W, 3)."""
    height, width = clip.shape[1:3]
    left, right = (round(share * width) for share in _GARMENT_COLUMNS)
    for first, last in _GARMENTS:
        if generator.random() < probability:
            area = clip[:, round(first * height) : round(last * height), left:right]
            area[...] = recolour(area[..., generator.permutation(3)], 1.0, generator)


_Move = tuple[bool, float, float, bool]


def _draw_geometry(
    count: int, options: Augmentation, generator: np.random.Generator
) -> tuple[float | None, list[_Move]]:
    """Share of the pixels that a blurred clip keeps (None for a sharp one), and the move of each frame."""
    share = float(generator.uniform(1 / 3, 0.9)) if options.blur and generator.random() < options.blur else None
    moves = [_draw_move(options, generator) for _ in range(count)]
    return share, [moves[0]] * count if options.per_clip else moves


def _draw_move(options: Augmentation, generator: np.random.Generator) -> _Move:
    """(enlarge?, vertical and horizontal place of the crop in [0, 1), mirror?)."""
    enlarge = bool(generator.random() < options.crop)
    down, across = generator.random(2)
    return enlarge, float(down), float(across), bool(generator.random() < options.flip)


def _moved(
    image: NDArray[Any],
    size: tuple[int, int],
    enlarge: bool,
    down: float,
    across: float,
    mirror: bool,
    fit: Callable[[NDArray[Any], int, int], NDArray[Any]] = preprocess.resize,
) -> NDArray[Any]:
    height, width = size
    if enlarge:
        large = fit(image, round(height * ENLARGED), round(width * ENLARGED))
        top = int(down * (large.shape[0] - height + 1))
        left = int(across * (large.shape[1] - width + 1))
        frame = large[top : top + height, left : left + width]
    else:
        frame = fit(image, height, width)
    return frame[:, ::-1] if mirror else frame


def _coarse(images: Sequence[NDArray[np.uint8]], size: tuple[int, int], share: float) -> list[NDArray[np.uint8]]:
    """The frames as a camera with `share` of the pixels in each direction would have seen them."""
    width, height = max(1, round(size[1] * share)), max(1, round(size[0] * share))
    return [
        np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR), dtype=np.uint8)
        for image in images
    ]
