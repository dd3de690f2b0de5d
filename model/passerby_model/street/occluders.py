"""Other people, and what comes between camera and person: poles, plants, cars, pedestrians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from passerby_model.street.cameras import Camera, make_camera
from passerby_model.street.canvas import BACKGROUND, Canvas, Image, Vec
from passerby_model.street.config import StreetConfig
from passerby_model.street.figure import View, Wardrobe, blank, paint_person
from passerby_model.street.people import Colour, make_person
from passerby_model.street.textures import shade

CROWD = 6  # extras of a camera; they are nobody's identity
PHASES = 4  # pictures of an extra's walk cycle
SPRITE_HEIGHT, SPRITE_WIDTH = 256, 144  # pixels
SPRITE_FOOT = 244  # row of a sprite where the feet stand
SPRITE_SCALE = 225.0  # pixels per body height in a sprite
OCCLUDERS = ("pole", "plant", "car", "pedestrian")


@dataclass(frozen=True)
class Sprite:
    """An extra at one moment: image uint8 (h, w, 3), mask uint8 (h, w) of 0 and 255."""

    image: Image
    mask: Image


@lru_cache(maxsize=64)
def crowd_of(seed: int, camera_index: int) -> tuple[tuple[Sprite, ...], ...]:
    """The extras of a camera: CROWD people, each at PHASES moments."""
    camera = make_camera(seed, camera_index)
    crowd = []
    for extra in range(CROWD):
        wardrobe = Wardrobe(make_person(seed, camera_index * CROWD + extra, stream=4))
        rng = np.random.default_rng([seed, 8, camera_index, extra])
        facing = camera.facing * (1 if extra % 2 else -1) + float(rng.normal(0, 0.3))
        view = View(SPRITE_WIDTH / 2, SPRITE_FOOT, SPRITE_SCALE, facing, camera.pitch, camera.light)
        sprites = []
        for phase in range(PHASES):
            canvas = Canvas(blank(SPRITE_HEIGHT, SPRITE_WIDTH))
            paint_person(canvas, wardrobe, view, phase * 2 * np.pi / PHASES)
            mask = ((canvas.labels > 0) * 255).astype(np.uint8)
            sprites.append(Sprite(canvas.image, mask))
        crowd.append(tuple(sprites))
    return tuple(crowd)


def paste(picture: Image, sprite: Sprite, foot: Vec, scale: float) -> tuple[slice, slice, Image] | None:
    """Paste a sprite with its feet at `foot` (pixels), `scale` pixels per body height.

    Gives the rows, columns and mask (uint8) of what was covered, or None if it lies outside.
    """
    zoom = scale / SPRITE_SCALE
    x0, y0 = round(foot[0] - SPRITE_WIDTH / 2 * zoom), round(foot[1] - SPRITE_FOOT * zoom)
    size = max(1, round(SPRITE_WIDTH * zoom)), max(1, round(SPRITE_HEIGHT * zoom))
    rows, columns = picture.shape[:2]
    left, right, top, bottom = max(0, x0), min(columns, x0 + size[0]), max(0, y0), min(rows, y0 + size[1])
    if left >= right or top >= bottom:
        return None
    part = (slice(top - y0, bottom - y0), slice(left - x0, right - x0))
    image = cv2.resize(sprite.image, size, interpolation=cv2.INTER_NEAREST)[part]
    mask = cv2.resize(sprite.mask, size, interpolation=cv2.INTER_NEAREST)[part]
    where = (slice(top, bottom), slice(left, right))
    cv2.copyTo(image, mask, picture[where])
    return (*where, np.asarray(mask, np.uint8))


class Passers:
    """People who walk farther away, behind the person."""

    def __init__(self, config: StreetConfig, camera: Camera, rng: np.random.Generator) -> None:
        self._crowd = crowd_of(config.seed, camera.index)
        count = int(rng.integers(0, 3))
        draws = rng.random((2, 5))
        self._walkers = [tuple(row) for row in draws[:count].tolist()]

    def paint(self, picture: Image, seconds: float, x: float, y: float, scale: float) -> None:
        """Paint them over the background; x, y, scale: the person's feet and size, pixels."""
        for who, offset, speed, size, phase in self._walkers:
            ratio = 0.45 + 0.4 * size
            sprite = self._crowd[int(who * CROWD)][int(phase * PHASES + seconds * PHASES) % PHASES]
            right = ((offset * 1.6 - 0.8) + (speed - 0.5) * 0.8 * seconds + 0.8) % 1.6 - 0.8
            foot = (x + right * scale, y - scale * 0.22 * (1 - ratio))
            paste(picture, sprite, foot, scale * ratio)


@dataclass(frozen=True)
class Occluder:
    """Something nearer than the person. `offsets`: its place in each frame, body heights to the right."""

    offsets: NDArray[np.float64]
    draw: Callable[[Canvas, int, float, float, float], None]

    def paint(self, canvas: Canvas, frame: int, x: float, y: float, scale: float) -> None:
        """Paint it where it is in `frame`; what it covers becomes background in the label map."""
        self.draw(canvas, frame, x + float(self.offsets[frame]) * scale, y, scale)


def make_occluder(config: StreetConfig, camera: Camera, count: int, rng: np.random.Generator) -> Occluder | None:
    """What comes between camera and person in a tracklet of `count` frames; None for most tracklets."""
    chance, which, place, speed, size = rng.random(5)
    direction = -1 if rng.random() < 0.5 else 1
    colour: Colour = tuple(rng.integers(40, 190, 3).tolist())
    seconds = np.arange(count) * config.every / camera.frames_per_second
    if chance >= config.occlusion:
        return None
    meeting = (0.15 + 0.7 * place) * seconds[-1]
    kind = OCCLUDERS[int(which * len(OCCLUDERS))]
    if kind == "pedestrian":
        # Overtakes or meets, but never stands right before the person: part of the body stays in view.
        sprites = crowd_of(config.seed, camera.index)[int(size * CROWD)]
        path = direction * (0.1 + np.abs(seconds - meeting) * (0.15 + 0.5 * speed))

        def pedestrian(canvas: Canvas, frame: int, x: float, y: float, scale: float) -> None:
            sprite = sprites[frame * config.every * PHASES // camera.frames_per_second % PHASES]
            covered = paste(canvas.image, sprite, (x, y + 0.1 * scale), scale * 1.08)
            if covered is not None:
                rows, columns, mask = covered
                canvas.labels[rows, columns][mask > 0] = BACKGROUND

        return Occluder(path, pedestrian)
    path = direction * (seconds - meeting) * (0.25 + 0.5 * speed)
    draw = {"pole": _pole, "plant": _plant, "car": _car}[kind]
    return Occluder(path, lambda canvas, _, x, y, scale: draw(canvas, x, y, scale, 0.3 + size, colour))


def _pole(canvas: Canvas, x: float, y: float, scale: float, size: float, colour: Colour) -> None:
    half = scale * (0.02 + 0.035 * size)
    for share, tone in ((1.0, 0.6), (0.55, 0.9), (0.15, 1.2)):
        edge = half * share
        corners = [(x - edge, -2.0), (x + edge, -2.0), (x + edge, canvas.height + 2.0)]
        canvas.polygon([*corners, (x - edge, canvas.height + 2.0)], shade(colour, tone), BACKGROUND)


def _plant(canvas: Canvas, x: float, y: float, scale: float, size: float, colour: Colour) -> None:
    # The leaves of a bush are always the same ones: a bush does not change from frame to frame.
    rng = np.random.default_rng(int(size * 1e6))
    tall, wide = scale * 0.33 * size, scale * 0.22
    for dx, dy, tone in rng.random((26, 3)).tolist():
        centre = (x + (dx - 0.5) * 2 * wide, y + scale * 0.06 - dy * tall)
        leaf = shade((58, 104, 50), 0.5 + 0.9 * tone)
        canvas.ellipse(centre, (scale * 0.055, scale * 0.04), leaf, BACKGROUND)


def _car(canvas: Canvas, x: float, y: float, scale: float, size: float, colour: Colour) -> None:
    roof, waist, end = y - scale * (0.24 + 0.18 * size), y - scale * 0.2, scale * 1.1
    x += (0.85 if size > 0.8 else -0.85) * scale  # one of its ends passes the person
    below = canvas.height + 4.0
    cabin = [(x - end * 0.6, waist), (x - end * 0.35, roof), (x + end * 0.35, roof), (x + end * 0.6, waist)]
    canvas.polygon(cabin, (58, 66, 74), BACKGROUND)
    canvas.line([cabin[0], cabin[1], cabin[2], cabin[3]], scale * 0.025, shade(colour, 0.8), BACKGROUND)
    body = [(x - end, y - scale * 0.1), (x - end * 0.9, waist), (x + end * 0.9, waist), (x + end, y - scale * 0.1)]
    canvas.polygon([*body, (x + end, below), (x - end, below)], colour, BACKGROUND)
    canvas.line([(x - end, y - scale * 0.1), (x + end, y - scale * 0.1)], 2, shade(colour, 0.6), BACKGROUND)
