"""Pixels in: decoding, resizing and normalisation as in the reference's test transform (numpy + Pillow only).

Source: InnovArul/vidreid_cosegmentation, `main_video_person_reid.py`: `T.Resize((256, 128))` on PIL images
(antialiased bilinear), `T.ToTensor()`, `T.Normalize(ImageNet)`. Training and serving share this file, so a crop is
resized by the same code wherever it comes from.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError, NotFoundError, PasserbyError
from PIL import Image, ImageOps, UnidentifiedImageError

HEIGHT = 256
WIDTH = 128
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FORMATS = ("JPEG", "PNG", "WEBP")
# A crop of a person: 16 megapixels is far above any, and 48 MB once decoded.
DEFAULT_MAX_PIXELS = 16 * 1024 * 1024

# A JPEG is decoded no smaller than so many times the size that it is then resized to, on either side. Decoded at twice
# the size, descriptors keep a cosine of 0.9998 to those of the whole picture; straight at the size, 0.997
# (`benchmarks/reduced_jpeg.py`).
REDUCED_FACTOR = 2
_ORIENTATION = 0x0112
_FIRST_TURNED = 5  # orientations from this one on swap height and width

# What Pillow's parsers raise on broken or hostile bytes (UnidentifiedImageError is an OSError).
_DECODER_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


def resize(image: NDArray[np.uint8], height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Antialiased bilinear resize, aspect ratio not kept (the reference's).

    Args:
        image: uint8 (h, w, 3) RGB.
        height, width: the size asked for, in pixels.

    Returns:
        uint8 (height, width, 3) RGB.

    Raises:
        InvalidArgumentError: another dtype or shape, or an empty image.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InvalidArgumentError(f"a frame must be uint8 (h, w, 3) RGB, got {image.dtype} {tuple(image.shape)}")
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(picture, dtype=np.uint8)


def normalise(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scale to [0, 1], subtract ImageNet's mean, divide by its standard deviation, channels first.

    Args:
        frames: uint8 (..., H, W, 3) RGB.

    Returns:
        float32 (..., 3, H, W), about [-2.2, 2.7].
    """
    mean = np.asarray(IMAGENET_MEAN, dtype=np.float32)
    std = np.asarray(IMAGENET_STD, dtype=np.float32)
    scaled = (frames.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def decode(
    data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, *, resized_to: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG or WebP image; the size is read from the header before any pixel is decoded.

    Args:
        data: the encoded image.
        max_pixels: largest width x height accepted (decompression bombs stop here).
        resized_to: height and width that the caller will `resize` it to: a JPEG of at least four times that size is
            decoded at a half, a quarter or an eighth of its own, never below twice what is asked for.

    Returns:
        uint8 (h, w, 3) RGB with the EXIF orientation applied; alpha dropped, grey repeated, 16 bit cut to 8, of an
        animation the first frame.

    Raises:
        InvalidArgumentError: empty, another format, broken or truncated, or too many pixels.
    """
    with _reading(data, max_pixels) as picture:
        if resized_to is not None:
            _reduce(picture, *resized_to)
        return np.array(_upright_rgb(picture), dtype=np.uint8)


def decode_resized(data: bytes, height: int, width: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """`resize` of `decode` with `resized_to`, bit by bit, without the pixels in between as an array.

    Returns:
        uint8 (height, width, 3) RGB.

    Raises:
        InvalidArgumentError: see `decode`.
    """
    with _reading(data, max_pixels) as picture:
        _reduce(picture, height, width)
        return np.array(_upright_rgb(picture).resize((width, height), Image.Resampling.BILINEAR), dtype=np.uint8)


@contextlib.contextmanager
def _reading(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The picture, of which only the header is read yet. What fails in the block is an InvalidArgumentError."""
    if not data:
        raise InvalidArgumentError("the image is empty (0 bytes)", reason="IMAGE_EMPTY")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_pixels(picture.width, picture.height, max_pixels)
            yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidArgumentError(
            f"the image has more than the allowed {max_pixels:,} pixels", reason="IMAGE_TOO_LARGE"
        ) from error
    except UnidentifiedImageError as error:
        raise InvalidArgumentError(
            "not an image that can be read: send JPEG, PNG or WebP", reason="IMAGE_UNREADABLE"
        ) from error
    except _DECODER_ERRORS as error:
        raise InvalidArgumentError(f"the image is broken or incomplete: {error}", reason="IMAGE_BROKEN") from error


def read_image(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """`decode` for a file; every error names the path.

    Returns:
        uint8 (h, w, 3) RGB.

    Raises:
        NotFoundError: no such file, or it may not be read.
        InvalidArgumentError: see `decode`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return decode(data, max_pixels)
    except PasserbyError as error:
        raise InvalidArgumentError(f"{path}: {error.message}", reason=error.reason) from error


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InvalidArgumentError(
            f"the image is {width} x {height}, more than the allowed {max_pixels:,} pixels",
            reason="IMAGE_TOO_LARGE",
        )


def _reduce(picture: Image.Image, height: int, width: int) -> None:
    """Lets the JPEG decoder leave out the finest frequencies, as far as `REDUCED_FACTOR` allows; no other format is."""
    if picture.format != "JPEG":
        return
    if picture.getexif().get(_ORIENTATION, 1) >= _FIRST_TURNED:
        height, width = width, height
    picture.draft(None, (REDUCED_FACTOR * width, REDUCED_FACTOR * height))


def _upright_rgb(picture: Image.Image) -> Image.Image:
    """The picture's pixels, RGB, turned as its EXIF orientation says."""
    picture.load()
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    return picture if picture.mode == "RGB" and "transparency" not in picture.info else _to_rgb(picture)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in picture.info:
        # Straight to RGB, Pillow warns about palettes with alpha; through RGBA it does not.
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
