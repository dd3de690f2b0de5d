"""The learning rate over a run: constant, the reference's steps, or half a cosine; each with a linear warm-up."""

from __future__ import annotations

import math

from passerby_model.train_config import TrainConfig

WARMUP_START = 0.01


def learning_rate(config: TrainConfig, iteration: int, epoch: int, total: int) -> float:
    """The rate of an iteration (0-based): schedule times linear warm-up."""
    rate = config.lr
    if config.schedule == "step":
        rate *= config.step_factor ** (epoch // config.step_epochs)
    elif config.schedule == "cosine":
        share = max(0, iteration - config.warmup_iterations) / max(1, total - config.warmup_iterations)
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    if iteration < config.warmup_iterations:
        rate *= WARMUP_START + (1 - WARMUP_START) * iteration / config.warmup_iterations
    return rate
