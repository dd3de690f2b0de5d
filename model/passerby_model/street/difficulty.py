"""How far colours alone go on a street: the classical baseline of HSV histograms over horizontal stripes.

Stripe histograms as in Gray and Tao, "Viewpoint invariant pedestrian recognition with an ensemble of
localized features", ECCV 2008, section 3 (six stripes), compared by Hellinger distance.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from passerby_model.metrics import evaluate, squared_euclidean
from passerby_model.street.tracklets import StreetTracklet

BINS = (12, 4, 4)  # hue, saturation, value


@dataclass(frozen=True)
class ColourBaseline:
    """Ranking by colour alone: every tracklet queries the tracklets of all other cameras. Shares in [0, 1]."""

    rank1: float
    mean_average_precision: float
    chance_rank1: float


def colour_baseline(
    tracklets: Iterable[StreetTracklet], *, stripes: int = 6, grey_world: bool = False, silhouette: bool = False
) -> ColourBaseline:
    """Rank tracklets (of `generate`) by stripe histograms, same camera excluded.

    grey_world: first scale each frame's channels to the same mean, which removes most of a colour cast.
    silhouette: count only the pixels of the true mask of person and accessories, as no camera can know it.
    """
    descriptors, identities, cameras = [], [], []
    for tracklet in tracklets:
        descriptors.append(stripe_histogram(tracklet, stripes, grey_world=grey_world, silhouette=silhouette))
        identities.append(int(tracklet.identity))
        cameras.append(int(tracklet.camera.removeprefix("c")))
    matrix, ids, cams = np.stack(descriptors), np.array(identities, np.int64), np.array(cameras, np.int64)
    ids += 1  # evaluate() knows identity 0 as a distractor
    distances = squared_euclidean(matrix, matrix)
    # Everybody of one camera shares its background: with them in the gallery, colours would never be right.
    distances[cams[:, None] == cams[None, :]] = np.finfo(np.float32).max
    result = evaluate(distances, ids, ids, cams, cams, max_rank=1)
    return ColourBaseline(float(result.cmc[0]), result.mean_average_precision, 1 / len(set(identities)))


def stripe_histogram(
    tracklet: StreetTracklet, stripes: int = 6, *, grey_world: bool = False, silhouette: bool = False
) -> NDArray[np.float32]:
    """Square roots of the tracklet's mean HSV histogram of each stripe, float32 (stripes * 192,).

    Euclidean distance between two of them is the Hellinger distance of the histograms, up to a factor.
    """
    total = np.zeros((stripes, *BINS), np.float64)
    for frame, labels in zip(tracklet.frames, tracklet.labels, strict=True):
        picture = _grey_world(frame) if grey_world else frame
        hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
        mask = (labels > 0).astype(np.uint8) if silhouette else None
        edges = np.linspace(0, len(frame), stripes + 1).astype(int)
        for stripe, (top, bottom) in enumerate(itertools.pairwise(edges)):
            inside = None if mask is None else mask[top:bottom]
            ranges = [0, 180, 0, 256, 0, 256]
            total[stripe] += cv2.calcHist([hsv[top:bottom]], [0, 1, 2], inside, list(BINS), ranges)
    rows = total.reshape(stripes, -1)
    rows /= np.maximum(rows.sum(axis=1, keepdims=True), 1e-9)
    return np.sqrt(rows).ravel().astype(np.float32)


def _grey_world(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    means = frame.reshape(-1, 3).mean(axis=0)
    balanced: NDArray[np.float64] = np.clip(frame * (means.mean() / np.maximum(means, 1.0)), 0, 255)
    return balanced.astype(np.uint8)
