"""Frames for tests: random crops, and pictures that are wrong in every way that matters."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from passerby.v1 import resources_pb2 as resources
from PIL import Image


def crops(count: int, seed: int = 0, height: int = 48, width: int = 24) -> list[NDArray[np.uint8]]:
    """`count` different crops, uint8 (height, width, 3)."""
    generator = np.random.default_rng(seed)
    base = generator.integers(0, 256, size=(count, 1, 1, 3))
    noise = generator.integers(-30, 31, size=(count, height, width, 3))
    return list(np.clip(base + noise, 0, 255).astype(np.uint8))


def encoded(image: NDArray[np.uint8], format: str = "PNG") -> bytes:
    """`image` as an encoded picture; PNG and WebP without loss."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format, **({"lossless": True} if format == "WEBP" else {}))
    return stream.getvalue()


def sequence(images: list[NDArray[np.uint8]], format: str = "PNG") -> resources.FrameSequence:
    """The crops as frames of a request."""
    return resources.FrameSequence(frames=[resources.Frame(encoded=encoded(image, format)) for image in images])


def raw(image: NDArray[np.uint8]) -> resources.Frame:
    """The crop as a frame that needs no decoding."""
    height, width, _ = image.shape
    return resources.Frame(raw=resources.RawImage(height=height, width=width, rgb=image.tobytes()))


def bomb(side: int = 30_000) -> bytes:
    """A valid black PNG of side x side grey pixels in about 870 kB (30,000): 900 MB once decoded."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + side)
    data = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    return _png(struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0), data)


def _png(header: bytes, data: bytes) -> bytes:
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
