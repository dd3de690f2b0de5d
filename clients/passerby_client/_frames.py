"""Whatever a caller holds of a frame -> `passerby.v1.Frame`. Encoded images stay as they are: the server decodes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby.v1 import resources_pb2

FrameInput = str | os.PathLike[str] | bytes | NDArray[np.uint8] | resources_pb2.Frame
"""A path, an encoded image (JPEG, PNG or WebP), or decoded pixels: uint8 (h, w, 3) RGB."""


def frame(source: FrameInput, capture_time: datetime | None = None, *, field: str = "frames") -> resources_pb2.Frame:
    """One frame of a request.

    Raises:
        NotFoundError: a path that cannot be read.
        InvalidArgumentError: an array that is not uint8 (h, w, 3), another type, or a time without a time zone.
    """
    if isinstance(source, resources_pb2.Frame):
        made = source
    elif isinstance(source, bytes | bytearray | memoryview):
        made = resources_pb2.Frame(encoded=bytes(source))
    elif isinstance(source, np.ndarray):
        made = resources_pb2.Frame(raw=_raw(source, field))
    elif isinstance(source, str | os.PathLike):
        made = resources_pb2.Frame(encoded=_read(Path(source)))
    else:
        raise InvalidArgumentError.of(
            field, f"a frame is a path, encoded bytes or a uint8 array (h, w, 3), not {type(source).__name__}"
        )
    if capture_time is not None:
        made.capture_time.CopyFrom(timestamp(capture_time, field=f"{field}.capture_time"))
    return made


def frame_sequence(
    frames: Iterable[FrameInput], capture_times: Sequence[datetime] | None = None
) -> resources_pb2.FrameSequence:
    """The frames of one tracklet, in time order; `capture_times`: one for each frame, with a time zone.

    Raises:
        NotFoundError, InvalidArgumentError: see `frame`; also when there is no frame, or not as many times as frames.
    """
    if isinstance(frames, str | bytes | os.PathLike):
        raise InvalidArgumentError.of("frames", "give a list of frames; for a single one, [frame]")
    sources = list(frames)
    if not sources:
        raise InvalidArgumentError.of("frames", "there is no frame; a tracklet needs at least one")
    if capture_times is not None and len(capture_times) != len(sources):
        raise InvalidArgumentError.of("capture_times", f"{len(capture_times)} times for {len(sources)} frames")
    times: Sequence[datetime | None] = [None] * len(sources) if capture_times is None else capture_times
    return resources_pb2.FrameSequence(
        frames=[frame(s, t, field=f"frames.frames[{i}]") for i, (s, t) in enumerate(zip(sources, times, strict=True))]
    )


def timestamp(time: datetime, *, field: str) -> Timestamp:
    """`time` for the wire. Raises InvalidArgumentError when it has no time zone: it could mean any hour."""
    if time.utcoffset() is None:
        raise InvalidArgumentError.of(field, f"{time.isoformat()} has no time zone; add one, for example UTC")
    made = Timestamp()
    made.FromDatetime(time)
    return made


def _raw(image: NDArray[np.uint8], field: str) -> resources_pb2.RawImage:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InvalidArgumentError.of(
            field, f"decoded pixels are uint8 (h, w, 3) RGB, got {image.dtype} {tuple(image.shape)}"
        )
    return resources_pb2.RawImage(height=image.shape[0], width=image.shape[1], rgb=image.tobytes())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror or error}") from error
