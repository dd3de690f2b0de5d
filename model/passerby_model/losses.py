"""The two losses of the reference, added with weight 1 each, and one for attention masks whose truth is known.

Sources: InnovArul/vidreid_cosegmentation, `losses.py` (after KaiyangZhou/deep-person-reid); label smoothing is
Szegedy et al., CVPR 2016; the batch-hard triplet loss is Hermans, Beyer, Leibe, arXiv 1703.07737.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from passerby_model.augmentation import UNKNOWN

# Least squared distance before the root: at 0 the root's gradient is infinite.
MIN_SQUARED_DISTANCE = 1e-12
# What a mask is to be on the background and on the person. Nothing is wiped out: on real people, whose silhouettes nobody
# knows, a wrong mask then costs little.
BACKGROUND_MASK, PERSON_MASK = 0.25, 0.75


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy against (1 - smoothing) * one-hot + smoothing / classes, mean over the batch.

    Args:
        logits: float (B, classes).
        labels: int64 (B,), in [0, classes).
        smoothing: in [0, 1); 0 is the plain loss.

    Returns:
        float scalar, >= 0.
    """
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def batch_hard_triplet(descriptors: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """Hinge between each anchor's farthest positive and nearest negative in the batch, mean over anchors.

    An anchor counts as its own positive (at distance ~0), as in the reference. A batch of one identity has no
    negatives: its loss is 0.

    Args:
        descriptors: float (B, D).
        labels: int64 (B,).
        margin: in units of Euclidean distance.

    Returns:
        float32 (float64 for float64 input) scalar, >= 0.
    """
    if descriptors.dtype in (torch.float16, torch.bfloat16):
        descriptors = descriptors.float()
    distances = euclidean_distances(descriptors)
    same = labels[:, None] == labels[None, :]
    hardest_positive = distances.masked_fill(~same, -torch.inf).amax(dim=1)
    hardest_negative = distances.masked_fill(same, torch.inf).amin(dim=1)
    return F.relu(hardest_positive - hardest_negative + margin).mean()


def silhouette(masks: Mapping[int, Tensor], silhouettes: Tensor) -> Tensor:
    """Cross-entropy of attention masks against where the person is, mean over places, clips that know it, and blocks.

    A place of a mask that shows the person to a share s is to be BACKGROUND_MASK + s (PERSON_MASK - BACKGROUND_MASK).

    Args:
        masks: by CNN block, float (M, N, h, w) in (0, 1).
        silhouettes: uint8 (M, N, H, W): 1 person, 0 background, UNKNOWN throughout for clips without.

    Returns:
        float32 scalar, >= 0; 0 when no clip has a silhouette, or there are no masks.
    """
    known = (silhouettes != UNKNOWN).flatten(1).all(dim=1)
    if not known.any() or not masks:
        return torch.zeros((), device=silhouettes.device)
    truth, parts = silhouettes[known].float(), []
    for mask in masks.values():
        share = F.adaptive_avg_pool2d(truth, (mask.shape[-2], mask.shape[-1]))
        target = BACKGROUND_MASK + share * (PERSON_MASK - BACKGROUND_MASK)
        parts.append(F.binary_cross_entropy(mask[known].float().clamp(1e-6, 1 - 1e-6), target))
    return torch.stack(parts).mean()


def euclidean_distances(descriptors: Tensor) -> Tensor:
    """float (B, D) -> (B, B) Euclidean distances; squares are clamped to 1e-12 before the root."""
    squares = descriptors.square().sum(dim=1)
    squared = squares[:, None] + squares[None, :] - 2 * descriptors @ descriptors.T
    return squared.clamp(min=MIN_SQUARED_DISTANCE).sqrt()
