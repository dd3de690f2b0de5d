"""What a training run tells while it goes on: steps, messages, and when the clips come too late (no torch)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

# The step should wait for nothing: above this share of the time over so many steps the user is told.
WAIT_SHARE, WAIT_STEPS = 0.1, 100


@dataclass(frozen=True)
class Step:
    """What one iteration did; the parts of the loss without their weights.

    iteration counts from 1: how many have been done; epoch from 0. accuracy: share of the clips whose identity the
    classifier got right, in [0, 1]. clips: of all processes together. seconds: of wall clock since the last
    iteration, wait_seconds of them spent waiting for clips.
    """

    iteration: int
    epoch: int
    lr: float
    loss: float
    cross_entropy: float
    triplet: float
    distillation: float
    mask: float
    accuracy: float
    clips: int
    seconds: float
    wait_seconds: float


class Reporter(Protocol):
    """Where progress goes."""

    def message(self, text: str) -> None:
        """Something worth a line of its own."""

    def step(self, step: Step, total: int) -> None:
        """After every iteration."""


class Silent:
    """The reporter of processes beside the main one."""

    def message(self, text: str) -> None:
        """Nothing."""

    def step(self, step: Step, total: int) -> None:
        """Nothing."""


class WaitWatch:
    """Notices that decoding starves the step, and says once what to do about it."""

    def __init__(self, workers: int, cache_gib: float) -> None:
        self._settings = f"workers (now {workers}), and cache_gib (now {cache_gib:g}) if the decoded frames do not fit"
        self._recent: deque[tuple[float, float]] = deque(maxlen=WAIT_STEPS)
        self._told = False

    def advice(self, step: Step) -> str | None:
        """A line for the user after the step that made it true; None otherwise, and as long as it stays true."""
        self._recent.append((step.wait_seconds, step.seconds))
        if len(self._recent) < WAIT_STEPS:
            return None
        waited, passed = map(sum, zip(*self._recent, strict=True))
        starving = waited > WAIT_SHARE * passed
        news = starving and not self._told
        self._told = starving
        if not news:
            return None
        share = 100 * waited / passed
        return f"waiting for clips took {share:.0f} % of the last {WAIT_STEPS} iterations; raise {self._settings}"
