"""The truth that galleries are tested against: plain Python over a list, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray
from passerby_server.gallery.types import MAX_SIBLINGS, NewTracklet, SearchQuery, TrackletFilter, TravelWindow


@dataclass
class Entry:
    tracklet: NewTracklet
    descriptor: NDArray[np.float32]


def passes(tracklet: NewTracklet, where: TrackletFilter) -> bool:
    return (
        (not where.camera_ids or tracklet.camera_id in where.camera_ids)
        and tracklet.camera_id not in where.exclude_camera_ids
        and (not where.identity_ids or tracklet.identity_id in where.identity_ids)
        and all(tracklet.labels.get(key) == value for key, value in where.labels.items())
        and (where.start_time is None or (tracklet.end_time is not None and tracklet.end_time >= where.start_time))
        and all(travels(tracklet, window) for window in where.travel)
        and (where.end_time is None or (tracklet.start_time is not None and tracklet.start_time < where.end_time))
    )


def travels(tracklet: NewTracklet, window: TravelWindow) -> bool:
    if tracklet.camera_id != window.camera_id:
        return True
    if tracklet.start_time is None or tracklet.end_time is None:
        return False
    apart = max(tracklet.start_time - window.end_time, window.start_time - tracklet.end_time, timedelta(0))
    return window.shortest <= apart <= window.longest


def distance(a, b, metric) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    if metric == "squared_euclidean":
        return float(((a - b) ** 2).sum())
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return 1.0 if norms == 0 else float(1 - a @ b / norms)


def ranking(entries: list[Entry], query: SearchQuery, metric: str) -> list[tuple[str, float]]:
    """All that pass the filter as (tracklet id, distance), nearest first, ties in storing order."""
    found = [
        (entry.tracklet.tracklet_id, distance(query.descriptor, entry.descriptor, metric))
        for entry in entries
        if passes(entry.tracklet, query.filter) and entry.tracklet.tracklet_id != query.exclude_tracklet_id
    ]
    return sorted(found, key=lambda item: item[1])


def grouped(order: list[str], identity_of: dict[str, str], top_k: int) -> list[tuple[str, list[str]]]:
    """Leaders and siblings of a ranking, by identity."""
    groups: dict[str, list[str]] = {}
    for tracklet_id in order:
        groups.setdefault(identity_of[tracklet_id] or f"/{tracklet_id}", []).append(tracklet_id)
    return [(members[0], members[1 : 1 + MAX_SIBLINGS]) for members in list(groups.values())[:top_k]]
