"""Frames as sent -> pixels as the encoder takes them, in a pool of threads. Limits are checked before decoding."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FieldViolation, InvalidArgumentError
from passerby.v1 import resources_pb2 as resources
from passerby_model import preprocess
from PIL import ExifTags, Image

from passerby_server import lanes
from passerby_server.sections import Limits

THUMBNAIL_HEIGHT = 256
THUMBNAIL_MAX_WIDTH = 512
THUMBNAIL_QUALITY = 85
# Frames that one task decodes: few enough to use all threads on a short tracklet, enough to hide the hand-over.
_FRAMES_A_TASK = 4


class Decoder:
    """Decodes and resizes frames. `close` ends its threads."""

    def __init__(self, height: int, width: int, limits: Limits, threads: int) -> None:
        """`height` and `width`: pixels of the encoder's input."""
        self._size = (height, width)
        self._limits = limits
        self._interactive = ThreadPoolExecutor(threads, thread_name_prefix="passerby-decoder")
        # Of their own: a query's frames must not wait behind those of many tracklets.
        self._bulk = ThreadPoolExecutor(max(1, threads // 2), thread_name_prefix="passerby-bulk-decoder")

    def close(self) -> None:
        for threads in (self._interactive, self._bulk):
            threads.shutdown(cancel_futures=True)

    async def decode(self, frames: Sequence[resources.Frame], first: int, field: str) -> NDArray[np.uint8]:
        """Decodes and resizes frames.

        Args:
            first: index of `frames[0]` in the request, for error messages.
            field: path of the frames in the request, for example `frames.frames`.

        Returns:
            uint8 (len(frames), height, width, 3) RGB.

        Raises:
            InvalidArgumentError: with one violation for each frame that is wrong (`frames.frames[3]`).
        """
        loop = asyncio.get_running_loop()
        threads = self._threads()
        pixels = np.empty((len(frames), *self._size, 3), dtype=np.uint8)
        tasks = [
            loop.run_in_executor(threads, self._decode_some, frames[at : at + _FRAMES_A_TASK], pixels, at)
            for at in range(0, len(frames), _FRAMES_A_TASK)
        ]
        wrong = [problem for problems in await asyncio.gather(*tasks) for problem in problems]
        if wrong:
            violations = [FieldViolation(f"{field}[{first + index}]", error.message) for index, error in wrong]
            raise InvalidArgumentError(
                "; ".join(f"{where}: {what}" for where, what in violations[:3])
                + (f"; and {len(violations) - 3} more" if len(violations) > 3 else ""),
                reason=wrong[0][1].reason,
                violations=violations,
            )
        return pixels

    async def thumbnail(self, frame: resources.Frame) -> bytes:
        """A JPEG of a frame that `decode` accepted, at most 256 pixels high and 512 wide."""
        return await asyncio.get_running_loop().run_in_executor(self._threads(), self._thumbnail, frame)

    def _threads(self) -> ThreadPoolExecutor:
        return self._bulk if lanes.current().bulk else self._interactive

    def _decode_some(
        self, frames: Sequence[resources.Frame], into: NDArray[np.uint8], at: int
    ) -> list[tuple[int, InvalidArgumentError]]:
        wrong = []
        for index, frame in enumerate(frames, start=at):
            try:
                into[index] = self._resized(frame)
            except InvalidArgumentError as error:
                wrong.append((index, error))
        return wrong

    def _resized(self, frame: resources.Frame) -> NDArray[np.uint8]:
        kind = frame.WhichOneof("pixels")
        if kind == "encoded":
            _check_bytes(len(frame.encoded), self._limits)
            return preprocess.decode_resized(frame.encoded, *self._size, self._limits.max_pixels)
        if kind == "raw":
            return preprocess.resize(_raw(frame.raw, self._limits), *self._size)
        raise InvalidArgumentError("has no pixels; set `encoded` or `raw`", reason="IMAGE_EMPTY")

    def _thumbnail(self, frame: resources.Frame) -> bytes:
        if frame.WhichOneof("pixels") == "encoded":
            reduced = (THUMBNAIL_HEIGHT, 1)
            picture = Image.fromarray(preprocess.decode(frame.encoded, self._limits.max_pixels, resized_to=reduced))
        else:
            picture = Image.fromarray(_raw(frame.raw, self._limits))
        picture.thumbnail((THUMBNAIL_MAX_WIDTH, THUMBNAIL_HEIGHT), Image.Resampling.BILINEAR)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=THUMBNAIL_QUALITY)
        return stream.getvalue()


def _raw(image: resources.RawImage, limits: Limits) -> NDArray[np.uint8]:
    height, width = image.height, image.width
    if height < 1 or width < 1:
        raise InvalidArgumentError(f"is {height} rows x {width} columns; both must be at least 1", reason="IMAGE_EMPTY")
    if height * width > limits.max_pixels:
        raise InvalidArgumentError(
            f"is {width} x {height}, more than the allowed {limits.max_pixels:,} pixels", reason="IMAGE_TOO_LARGE"
        )
    _check_bytes(len(image.rgb), limits)
    if len(image.rgb) != height * width * 3:
        raise InvalidArgumentError(
            f"holds {len(image.rgb):,} bytes; {height} x {width} x 3 are {height * width * 3:,}", reason="IMAGE_BROKEN"
        )
    return np.frombuffer(image.rgb, dtype=np.uint8).reshape(height, width, 3)


def _check_bytes(size: int, limits: Limits) -> None:
    if size > limits.max_frame_bytes:
        raise InvalidArgumentError(
            f"is {size:,} bytes, more than the allowed {limits.max_frame_bytes:,}", reason="IMAGE_TOO_LARGE"
        )


async def warm_up(height: int, width: int) -> None:
    """Decodes a turned picture of each format, for an encoder's input of that size: the first one loads its decoder (60 ms),
    for which no caller is to wait. Whatever the operator's limits are, which are about callers."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)  # black leaves much out
    picture, turned = Image.fromarray(noise), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    decoder = Decoder(height, width, Limits(), threads=1)
    try:
        for kind in preprocess.FORMATS:
            stream = io.BytesIO()
            picture.save(stream, kind, exif=turned.tobytes())
            await decoder.thumbnail(frame := resources.Frame(encoded=stream.getvalue()))
            await decoder.decode([frame], 0, "frames")
    finally:
        decoder.close()
