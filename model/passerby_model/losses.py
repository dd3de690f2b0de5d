"""The two losses of the reference, added with weight 1 each.

Sources: InnovArul/vidreid_cosegmentation, `losses.py` (after KaiyangZhou/deep-person-reid); label smoothing is
Szegedy et al., CVPR 2016; the batch-hard triplet loss is Hermans, Beyer, Leibe, arXiv 1703.07737.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Least squared distance before the root: at 0 the root's gradient is infinite.
MIN_SQUARED_DISTANCE = 1e-12


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


def euclidean_distances(descriptors: Tensor) -> Tensor:
    """float (B, D) -> (B, B) Euclidean distances; squares are clamped to 1e-12 before the root."""
    squares = descriptors.square().sum(dim=1)
    squared = squares[:, None] + squares[None, :] - 2 * descriptors @ descriptors.T
    return squared.clamp(min=MIN_SQUARED_DISTANCE).sqrt()
