"""What encoders are compared and calibrated on: made-up frames, drawn people, tracklets from disk."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError
from passerby_model import datasets, preprocess
from passerby_model.bundle import Input
from passerby_model.descriptors import ClipScheme

log = logging.getLogger(__name__)

SYNTHETIC = ("noise", "smooth")
DRAWN = "drawn"
SNIPPETS_EACH = 2
"""Snippets of a tracklet that are looked at, evenly spread."""
MOST_TRACKLETS = 240
"""Tracklets of a data set that are looked at: whole identities, so that they still can be ranked."""
_GRID = (16, 8)  # smooth frames: so many random colours, blurred over the whole frame
_DARK = 12  # brightest pixel of the nearly dark snippet
_DRIFT = 6  # pixels that a smooth frame moves against the one before
_FRAMES_OF_ONE = 4  # drawn frames of a person, at least
_DRAWN_SIZE = (128, 64)  # pixels; drawn once, then resized to what the encoder takes


@dataclass(frozen=True)
class Tracklets:
    """Snippets of labelled tracklets of the data set `name`.

    snippets: uint8 (S, N, H, W, 3) RGB; owner: int64 (S,), ascending, which tracklet a snippet is of.
    identities, cameras: int64 (T,), numbers for the names in the data set.
    """

    name: str
    snippets: NDArray[np.uint8]
    owner: NDArray[np.int64]
    identities: NDArray[np.int64]
    cameras: NDArray[np.int64]

    def of(self, kept: NDArray[np.bool_]) -> Tracklets:
        """The tracklets where `kept`, bool (T,), holds."""
        chosen = kept[self.owner]
        number = np.cumsum(kept) - 1
        return Tracklets(
            self.name,
            self.snippets[chosen],
            number[self.owner[chosen]],
            self.identities[kept],
            self.cameras[kept],
        )

    def halves(self) -> tuple[Tracklets, Tracklets]:
        """Every other identity, and the rest: no person is in both.

        Raises:
            InvalidArgumentError: there is only one identity.
        """
        order = np.searchsorted(np.unique(self.identities), self.identities)
        if order.max(initial=0) == 0:
            raise InvalidArgumentError(f"{self.name} has one identity: two at least are needed, one to calibrate on")
        return self.of(order % 2 == 0), self.of(order % 2 == 1)


def sample_snippets(count: int, input: Input, kind: str, *, seed: int = 0) -> NDArray[np.uint8]:
    """Snippets that no data set is needed for: uint8 (count, N, H, W, 3).

    `noise` is independent in every pixel, which excites every filter. `smooth` is like pictures: blurred colours that
    drift from frame to frame; its first snippet is nearly dark, as at night. Wholly black frames are left out: in
    networks with instance normalisation they amplify the last bit (measured: 1e-3 on one), which proves nothing.
    """
    random = np.random.default_rng([seed, SYNTHETIC.index(kind)])
    shape = (count, input.snippet_length, input.height, input.width, 3)
    if kind == "noise":
        return random.integers(0, 256, shape, dtype=np.uint8)
    snippets = np.zeros(shape, np.uint8)
    for number, snippet in enumerate(snippets):
        colours = random.integers(0, 256 if number else _DARK, (*_GRID, 3), dtype=np.uint8)
        picture = preprocess.resize(colours, input.height, input.width)
        for n, frame in enumerate(snippet):
            frame[...] = np.roll(picture, _DRIFT * n, axis=1)
    return snippets


def drawn_snippets(count: int, input: Input) -> NDArray[np.uint8] | None:
    """Snippets of drawn people who walk (`passerby_model.street`): uint8 (count, N, H, W, 3); None without OpenCV."""
    try:
        small = _drawn(count, input.snippet_length)
    except ImportError as error:
        log.warning("not checked on drawn people: %s; pip install 'passerby[street]'", error)
        return None
    frames = [preprocess.resize(frame, input.height, input.width) for frame in small]
    return np.stack(frames).reshape(count, input.snippet_length, input.height, input.width, 3)


@lru_cache(maxsize=4)
def _drawn(count: int, snippet_length: int) -> NDArray[np.uint8]:
    """Frames of `count` snippets, uint8 (count * N, H, W, 3); a person gives as many as fit into four frames."""
    from passerby_model.street import StreetConfig, generate

    each = max(1, _FRAMES_OF_ONE // snippet_length)
    height, width = _DRAWN_SIZE
    people = -(-count // each)
    street = StreetConfig(people, 1, frames=each * snippet_length, height=height, width=width, seed=11)
    frames = np.concatenate([person.frames for person in generate(street)])
    return frames[: count * snippet_length]


def read_tracklets(path: Path, input: Input, identities: Collection[str] | None = None) -> Tracklets:
    """Snippets of the tracklets in the data set at `path`; of a large one, those of its first identities.

    Args:
        identities: of these people only.

    Raises:
        NotFoundError, InvalidArgumentError: no data set there, or a frame that cannot be read; the message names it.
    """
    found = datasets.read(path, identities=identities).people().tracklets
    if not found:
        raise InvalidArgumentError(f"{path}: nobody in it can be told from others: only junk and distractors")
    names = sorted({tracklet.identity for tracklet in found})
    numbers = {name: number for number, name in enumerate(names)}
    cameras = {name: number for number, name in enumerate(sorted({tracklet.camera for tracklet in found}))}
    chosen: list[datasets.Tracklet] = []
    for _, theirs in itertools.groupby(sorted(found, key=lambda t: (t.identity, t.key)), key=lambda t: t.identity):
        chosen += theirs
        if len(chosen) >= MOST_TRACKLETS:
            break
    scheme = ClipScheme(input.snippet_length, max_snippets=SNIPPETS_EACH)
    parts = [_read(tracklet, scheme, input) for tracklet in chosen]
    return Tracklets(
        name=path.resolve().name,
        snippets=np.concatenate(parts),
        owner=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        identities=np.array([numbers[tracklet.identity] for tracklet in chosen], np.int64),
        cameras=np.array([cameras[tracklet.camera] for tracklet in chosen], np.int64),
    )


def _read(tracklet: datasets.Tracklet, scheme: ClipScheme, input: Input) -> NDArray[np.uint8]:
    indices = scheme.snippets(len(tracklet.frames))
    frames = {
        index: preprocess.resize(preprocess.read_image(tracklet.frames[index]), input.height, input.width)
        for index in np.unique(indices)
    }
    return np.stack([[frames[index] for index in row] for row in indices])
