"""What a gallery takes: every check that needs no database."""

from __future__ import annotations

from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError, InvalidArgumentError
from passerby.names import check_tracklet_id

from passerby_server.gallery.types import ModelSpace, NewTracklet, Precision, TrackletFilter

MAX_DESCRIPTOR_DIM = 65536
"""Far above any re-identification model (2,048 is usual)."""
MAX_SQUARED_NORM = 1e37
"""Of a descriptor: four times this, the largest squared distance of two, is still a float32."""


def check_space(space: ModelSpace) -> None:
    """Raises InvalidArgumentError for a descriptor size or metric that no index can hold."""
    if not 1 <= space.descriptor_dim <= MAX_DESCRIPTOR_DIM:
        raise InvalidArgumentError.of(
            "descriptor_dim", f"must be from 1 to {MAX_DESCRIPTOR_DIM}, not {space.descriptor_dim}"
        )
    if space.metric not in ("squared_euclidean", "cosine"):
        raise InvalidArgumentError.of("metric", f"must be squared_euclidean or cosine, not {space.metric!r}")
    if not space.fingerprint:
        raise InvalidArgumentError.of("fingerprint", "must not be empty: it says which model fills the gallery")


def check_model(gallery_id: str, space: ModelSpace, fingerprint: str, descriptor: NDArray[np.float32]) -> None:
    """Raises FailedPreconditionError (MODEL_MISMATCH) for another model, InvalidArgumentError for another size."""
    if fingerprint != space.fingerprint:
        raise FailedPreconditionError(
            f"gallery {gallery_id} holds descriptors of model {space.fingerprint}, this one is of "
            f"{fingerprint or 'an unnamed model'}: use the gallery's model, or index into a new gallery",
            reason="MODEL_MISMATCH",
            metadata={"gallery_fingerprint": space.fingerprint, "fingerprint": fingerprint},
        )
    if len(descriptor) != space.descriptor_dim:
        raise InvalidArgumentError.of(
            "descriptor", f"has {len(descriptor)} values, gallery {gallery_id} holds {space.descriptor_dim}"
        )


def checked_descriptor(descriptor: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy of `descriptor` as float32 (D,); raises InvalidArgumentError unless finite and in range."""
    vector = np.array(descriptor, np.float32)
    if vector.ndim != 1:
        raise InvalidArgumentError.of("descriptor", f"must have one axis, not shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise InvalidArgumentError.of("descriptor", "holds NaN or infinity: the model or its input is broken")
    if float(np.dot(vector.astype(np.float64), vector.astype(np.float64))) > MAX_SQUARED_NORM:
        raise InvalidArgumentError.of("descriptor", "is too large: its distances would not be float32 numbers")
    return vector


def as_stored(descriptor: NDArray[np.float32], precision: Precision) -> NDArray[np.float32]:
    """A checked descriptor (D,) with the values that are left of it in `precision`, as float32.

    Raises InvalidArgumentError (DESCRIPTOR_RANGE) for one that fp16 cannot hold: beyond its range, or all zeros there.
    """
    if precision == "fp32":
        return descriptor
    largest = float(np.abs(descriptor).max())
    with np.errstate(over="ignore", under="ignore"):
        stored = descriptor.astype(np.float16).astype(np.float32)
    if not np.isfinite(stored).all() or (largest > 0 and not stored.any()):
        raise InvalidArgumentError.of(
            "descriptor",
            f"has values up to {largest:g}, which fp16 cannot hold (from 6e-8 to 65504): store it in a gallery of fp32",
            reason="DESCRIPTOR_RANGE",
        )
    return stored


def check_tracklet(tracklet: NewTracklet) -> None:
    """Raises InvalidArgumentError for a malformed id, camera, time or frame count."""
    if tracklet.tracklet_id:
        check_tracklet_id(tracklet.tracklet_id)
    if not tracklet.camera_id:
        raise InvalidArgumentError.of("camera_id", "must not be empty")
    if tracklet.frame_count < 0:
        raise InvalidArgumentError.of("frame_count", f"must not be negative, but is {tracklet.frame_count}")
    start, end = tracklet.start_time, tracklet.end_time
    if (start is None) != (end is None):
        raise InvalidArgumentError.of("end_time", "start_time and end_time must be given together")
    _check_aware("start_time", start)
    _check_aware("end_time", end)
    if start is not None and end is not None and end < start:
        raise InvalidArgumentError.of("end_time", f"{end.isoformat()} is before start_time {start.isoformat()}")


def check_filter(where: TrackletFilter) -> None:
    """Raises InvalidArgumentError for times without a time zone."""
    _check_aware("filter.start_time", where.start_time)
    _check_aware("filter.end_time", where.end_time)
    for window in where.travel:
        _check_aware("query_start_time", window.start_time)
        _check_aware("query_end_time", window.end_time)


def _check_aware(field: str, time: datetime | None) -> None:
    if time is not None and time.utcoffset() is None:
        raise InvalidArgumentError.of(field, "must carry a time zone")
