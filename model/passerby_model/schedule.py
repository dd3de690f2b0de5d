"""The learning rate over a run: constant, steps, or half a cosine; each with a warm-up."""

from __future__ import annotations

import math
from bisect import bisect_right

from passerby_model.train_config import TrainConfig

WARMUP_START = 0.01


def learning_rate(config: TrainConfig, iteration: int, epoch: int, total: int) -> float:
    """The rate of an iteration (0-based) in an epoch (0-based): schedule times warm-up, from 1 % to all of it.

    Steps: by the reference's every so many epochs, by the paper's every so many iterations, or at milestones (Luo et
    al., CVPRW 2019, section 3.1, whose warm-up goes by whole epochs too).
    """
    rate = config.lr
    if config.schedule == "step":
        rate *= config.step_factor ** _steps(config, iteration, epoch)
    elif config.schedule == "cosine":
        share = max(0, iteration - config.warmup_iterations) / max(1, total - config.warmup_iterations)
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    if iteration < config.warmup_iterations:
        rate *= _warming(iteration / config.warmup_iterations)
    elif epoch < config.warmup_epochs:
        rate *= _warming(epoch / config.warmup_epochs)
    return rate


def _steps(config: TrainConfig, iteration: int, epoch: int) -> int:
    if config.milestones:
        return bisect_right(config.milestones, epoch)
    if config.step_iterations:
        return iteration // config.step_iterations
    return epoch // config.step_epochs


def _warming(share: float) -> float:
    return WARMUP_START + (1 - WARMUP_START) * share
