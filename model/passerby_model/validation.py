"""How well a model under training ranks people that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from passerby_model import metrics
from passerby_model.datasets import Tracklet
from passerby_model.descriptors import ReadFrame
from passerby_model.embed import embed_tracklets
from passerby_model.encoder import TrackletEncoder


@dataclass(frozen=True)
class Validation:
    """All tracklets against all, same identity in the same camera excluded, plain AP; both figures in [0, 1]."""

    rank1: float
    mean_average_precision: float
    queries: int

    def __str__(self) -> str:
        return f"rank-1 {100 * self.rank1:.1f}, mAP {100 * self.mean_average_precision:.1f} ({self.queries} queries)"


def validate(
    encoder: TrackletEncoder,
    tracklets: Sequence[Tracklet],
    max_snippets: int | None,
    read_frame: ReadFrame,
    device: torch.device | None = None,
) -> Validation:
    """Embed and rank `tracklets` with an encoder in eval mode; squared Euclidean distance.

    Raises:
        NotFoundError, InvalidArgumentError: a frame is missing or no image, or nobody was seen by two cameras.
        FailedPreconditionError: a descriptor is not finite.
    """
    descriptors = embed_tracklets(encoder, tracklets, max_snippets=max_snippets, read_frame=read_frame, device=device)
    identities = np.unique([tracklet.identity for tracklet in tracklets], return_inverse=True)[1].astype(np.int64)
    cameras = np.unique([tracklet.camera for tracklet in tracklets], return_inverse=True)[1].astype(np.int64)
    result = metrics.evaluate_descriptors(descriptors, descriptors, identities, identities, cameras, cameras)
    return Validation(float(result.cmc[0]), float(result.mean_average_precision), int(result.valid_queries))
