"""Contact sheets: one picture to look at what a street contains."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError

from passerby_model.street.config import StreetConfig
from passerby_model.street.tracklets import StreetTracklet, render_tracklet

_OVERLAY = np.array([(0, 0, 0), (40, 220, 60), (250, 200, 0), (250, 60, 200), (60, 160, 255), (255, 120, 0)], np.uint8)


def contact_sheet(config: StreetConfig, *, frames_per_camera: int = 4, overlay: bool = False) -> NDArray[np.uint8]:
    """uint8 (rows, columns, 3) RGB: a row for each identity, in it each camera's frames.

    frames_per_camera: frames shown, evenly spaced over the tracklet, >= 1.
    overlay: tint the pixels of person and accessories by their masks.
    """
    if frames_per_camera < 1:
        raise InvalidArgumentError(f"frames_per_camera is {frames_per_camera}; give at least 1")
    rows = []
    for identity in range(config.first_identity, config.first_identity + config.identities):
        cells = [
            _cells(render_tracklet(config, identity, camera), frames_per_camera, overlay)
            for camera in range(config.cameras)
        ]
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows, axis=0)


def _cells(tracklet: StreetTracklet, count: int, overlay: bool) -> NDArray[np.uint8]:
    chosen = np.linspace(0, len(tracklet.frames) - 1, count).round().astype(np.int64)
    pictures = tracklet.frames[chosen].copy()
    if overlay:
        labels = tracklet.labels[chosen]
        tinted = (pictures // 2 + _OVERLAY[labels] // 2).astype(np.uint8)
        pictures = np.where((labels > 0)[..., None], tinted, pictures)
    height = pictures.shape[1]
    strip = np.concatenate([*pictures, np.full((height, 4, 3), 255, np.uint8)], axis=1)
    return np.concatenate([strip, np.full((3, strip.shape[1], 3), 255, np.uint8)], axis=0)
