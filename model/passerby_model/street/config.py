"""What to generate: the frozen, validated configuration of a synthetic street."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from passerby.errors import InvalidArgumentError

MAX_IDENTITIES = 1_000_000  # identity numbers are written with at most seven digits
MAX_CAMERAS = 64
MAX_FRAMES = 10_000  # frames of one tracklet, held in memory at once
MAX_EVERY, MAX_SCENES = 1000, 1000
MIN_HEIGHT, MAX_HEIGHT = 64, 1024  # pixels; below, limbs are thinner than a pixel
FIRST_MORNING = datetime(2026, 1, 5, 7, 0, tzinfo=UTC)  # a Monday; nobody is seen earlier


@dataclass(frozen=True)
class StreetConfig:
    """A street: who walks there, past which cameras, and how long each camera sees them.

    identities: number of people, >= 1.
    cameras: number of cameras, 1..64; every person passes every camera.
    frames: frames of each tracklet, or an inclusive (min, max) range drawn per tracklet; 1..10,000.
    height, width: pixels of a frame (crop); height 64..1024, width between a quarter of and equal to height.
    seed: >= 0; another seed gives other people, cameras and scenes.
    first_identity: number of the first person, >= 0. Person n of a seed is the same whatever range it is
        generated in, so disjoint ranges are disjoint people on the same street.
    visits: tracklets of each person in each camera, 1..100.
    occlusion: share of tracklets where a pole, a plant, a car or another pedestrian hides part of the
        person for some frames, 0..1.
    every: only every n-th frame that a camera takes is kept, 1..1000. Neighbouring frames of a camera (8 to 15 a
        second) have more of the background in common than of the person; every 8th has not.
    scenes: 0 leaves every camera where it is; n > 0 puts each tracklet of any camera before one of n scenes, drawn
        at random, for training data whose background says nothing about camera or person; 0..1000.

    Raises InvalidArgumentError, naming the field, for anything outside these ranges.
    """

    identities: int
    cameras: int
    frames: int | tuple[int, int] = 16
    height: int = 256
    width: int = 128
    seed: int = 0
    first_identity: int = 0
    visits: int = 1
    occlusion: float = 0.4
    every: int = 1
    scenes: int = 0

    def __post_init__(self) -> None:
        _between("identities", self.identities, 1, MAX_IDENTITIES)
        _between("cameras", self.cameras, 1, MAX_CAMERAS)
        low, high = self.frame_range
        _between("frames", low, 1, MAX_FRAMES)
        _between("frames", high, 1, MAX_FRAMES)
        if low > high:
            raise InvalidArgumentError(f"frames: the minimum {low} is above the maximum {high}; swap them")
        _between("height", self.height, MIN_HEIGHT, MAX_HEIGHT)
        _between("width", self.width, self.height // 4, self.height)
        _between("seed", self.seed, 0, 2**63 - 1)
        _between("first_identity", self.first_identity, 0, MAX_IDENTITIES - self.identities)
        _between("visits", self.visits, 1, 100)
        if not isinstance(self.occlusion, int | float) or not 0 <= self.occlusion <= 1:
            raise InvalidArgumentError(f"occlusion is {self.occlusion!r}; give a share between 0 and 1")
        _between("every", self.every, 1, MAX_EVERY)
        _between("scenes", self.scenes, 0, MAX_SCENES)

    @property
    def frame_range(self) -> tuple[int, int]:
        """Inclusive (min, max) number of frames of a tracklet."""
        if isinstance(self.frames, tuple | list):
            if len(self.frames) != 2:
                raise InvalidArgumentError(f"frames is {self.frames!r}; give a number or (min, max)")
            return self.frames[0], self.frames[1]
        return self.frames, self.frames

    @property
    def tracklet_count(self) -> int:
        """How many tracklets the street gives."""
        return self.identities * self.cameras * self.visits

    def tracklet_keys(self) -> Iterator[tuple[int, int, int]]:
        """(identity index, camera index, visit) of every tracklet, in the order of `generate`."""
        for identity in range(self.first_identity, self.first_identity + self.identities):
            for camera in range(self.cameras):
                for visit in range(self.visits):
                    yield identity, camera, visit


def _between(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgumentError(f"{name} is {value!r}; give a whole number")
    if not low <= value <= high:
        raise InvalidArgumentError(f"{name} is {value}; give a number between {low} and {high}")
