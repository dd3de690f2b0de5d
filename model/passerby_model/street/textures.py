"""Cloth, heads and bags as images, procedurally.

A garment's texture is an unrolled cylinder: columns go once round the body (column 0 and the last meet at
the back, the middle column is the front), rows go from top to bottom. `visible_half` then picks what a
camera sees from one side, so that a logo on the chest is not seen from behind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from passerby_model.street.people import HAIR, PALETTE, SKIN, Colour, Person

Image = NDArray[np.uint8]
WRAP = 192  # columns once round the body
TORSO_ROWS = 112  # about the torso's height in a frame of 256 rows, so that little is lost by resampling
LIMB_ROWS, LIMB_COLUMNS = 48, 24
HEAD_ROWS = 48


def plain(rows: int, columns: int, colour: Colour) -> Image:
    """uint8 (rows, columns, 3) of one colour."""
    return np.full((rows, columns, 3), colour, np.uint8)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, lighter (factor > 1) or darker (< 1)."""
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue


def pattern(kind: str, first: Colour, second: Colour, rng: np.random.Generator, rows: int) -> Image:
    """A cloth pattern of people.TEXTURES, uint8 (rows, WRAP, 3), seamless across its left and right edge.

    Five draws are taken from `rng` whatever the kind.
    """
    size, phase, duty, _, contrast = rng.random(5)
    y, x = np.mgrid[0:rows, 0:WRAP].astype(np.float32)
    period = (10.0, 14.0, 20.0, 28.0)[int(size * 3.999)]
    width = 0.3 + 0.3 * duty
    turns = (8, 12, 16, 20)[int(size * 3.999)]  # whole periods round the body, hence seamless
    if kind == "stripes":
        weight = ((y / period + phase) % 1 < width).astype(np.float32)
    elif kind == "vertical stripes":
        weight = ((x / WRAP * turns + phase) % 1 < width * 0.8).astype(np.float32)
    elif kind == "checks":
        across = ((x / WRAP * turns * 0.75 + phase) % 1 < 0.5).astype(np.float32)
        weight = (across + ((y / (period * 1.15) + phase) % 1 < 0.5)) / 2
    elif kind == "dots":
        row = np.floor(y / period)
        dx = ((x / WRAP * turns + 0.5 * (row % 2)) % 1 - 0.5) * WRAP / turns
        dy = (y / period % 1 - 0.5) * period
        weight = (dx**2 + dy**2 < (period * (0.26 + 0.12 * duty)) ** 2).astype(np.float32)
    elif kind == "gradient":
        weight = np.clip((y / rows - 0.2) / 0.6, 0, 1)
    elif kind == "mottled":
        weight = _blobs(rng, rows, period * 0.45)
    elif kind == "blocks":
        weight = (y > rows * (0.3 + 0.3 * phase)).astype(np.float32)
    elif kind == "diagonal":
        weight = ((y / period + x / WRAP * turns * 0.5 + phase) % 1 < width).astype(np.float32)
    elif kind == "band":
        weight = (np.abs(y / rows - (0.25 + 0.35 * phase)) < 0.05 + 0.06 * duty).astype(np.float32)
    else:
        weight = np.zeros_like(y)
    strength = 0.75 + 0.25 * contrast
    mixed: NDArray[np.float32] = np.asarray(first, np.float32) * (1 - weight * strength)[..., None]
    mixed += np.asarray(second, np.float32) * (weight * strength)[..., None]
    return mixed.astype(np.uint8)


def _blobs(rng: np.random.Generator, rows: int, scale: float) -> NDArray[np.float32]:
    noise = rng.standard_normal((rows, WRAP)).astype(np.float32)
    wide = np.tile(noise, (1, 3))  # so that the blur meets itself at the back
    smooth = cv2.GaussianBlur(wide, (0, 0), scale)[:, WRAP : 2 * WRAP]
    return np.asarray(smooth > 0).astype(np.float32)


def folds(image: Image, rng: np.random.Generator, strength: float = 0.12) -> Image:
    """The image with soft darker and lighter streaks, as cloth has."""
    rows, columns = image.shape[:2]
    noise = rng.standard_normal((max(2, rows // 14), max(2, columns // 10))).astype(np.float32)
    streaks = cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC)
    return np.clip(image * (1 + strength * np.tanh(streaks))[..., None], 0, 255).astype(np.uint8)


def draw_logo(image: Image, kind: str, centre: tuple[int, int], radius: int, colour: Colour) -> None:
    """Draw an emblem of people.LOGOS into `image` (uint8 (h, w, 3)), in place."""
    x, y = centre
    if kind == "disc":
        cv2.circle(image, centre, radius, colour, -1, cv2.LINE_AA)
    elif kind == "ring":
        cv2.circle(image, centre, radius - 2, colour, max(3, radius // 3), cv2.LINE_AA)
    elif kind == "square":
        cv2.rectangle(image, (x - radius, y - radius), (x + radius, y + radius), colour, -1)
    elif kind == "cross":
        arm = max(2, radius // 3)
        cv2.rectangle(image, (x - arm, y - radius), (x + arm, y + radius), colour, -1)
        cv2.rectangle(image, (x - radius, y - arm), (x + radius, y + arm), colour, -1)
    elif kind == "bars":
        for step in (-1, 0, 1):
            top = y + step * (2 * radius // 3) - radius // 5
            cv2.rectangle(image, (x - radius, top), (x + radius, top + 2 * radius // 5), colour, -1)
    elif kind == "letter":
        cv2.line(image, (x - radius, y + radius), (x, y - radius), colour, 4, cv2.LINE_AA)
        cv2.line(image, (x, y - radius), (x + radius, y + radius), colour, 4, cv2.LINE_AA)
        cv2.line(image, (x - radius // 2, y + radius // 4), (x + radius // 2, y + radius // 4), colour, 3)
    elif kind:
        outline = np.array(_OUTLINES[kind], np.float32) * radius + (x, y)
        cv2.fillPoly(image, [np.round(outline).astype(np.int32)], colour, cv2.LINE_AA)


def _star() -> list[tuple[float, float]]:
    radii = (1.1, 0.45) * 5
    return [(r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5)) for k, r in enumerate(radii)]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "star": _star(),
    "triangle": [(0, -1), (1, 0.9), (-1, 0.9)],
    "heart": [(0, 1), (-1, 0), (-0.9, -0.7), (-0.4, -0.9), (0, -0.5), (0.4, -0.9), (0.9, -0.7), (1, 0)],
    "bolt": [(0.3, -1.1), (-0.8, 0.2), (-0.1, 0.2), (-0.3, 1.1), (0.8, -0.2), (0.1, -0.2)],
}


@dataclass(frozen=True)
class Textures:
    """All that a person wears, unrolled; each uint8 (rows, columns, 3) as its function below says."""

    torso: Image
    sleeve: Image
    leg: Image
    skirt: Image
    head: Image
    backpack: Image | None


@lru_cache(maxsize=32)
def textures_of(person: Person) -> Textures:
    """The person's textures; kept for a while, because the person passes several cameras in a row."""
    return Textures(
        torso=torso(person),
        sleeve=sleeve(person),
        leg=leg(person),
        skirt=lower_cloth(person, 64, WRAP),
        head=head(person),
        backpack=backpack(person) if person.attributes.backpack else None,
    )


def torso(person: Person) -> Image:
    """The upper garment, unrolled: uint8 (TORSO_ROWS, WRAP, 3); a coat or dress down to its hem."""
    wears = person.attributes
    rng = np.random.default_rng([*person.texture_seed, 1])
    first, second = PALETTE[wears.upper_colour], PALETTE[wears.upper_second_colour]
    image = folds(pattern(wears.upper_texture, first, second, rng, TORSO_ROWS), rng)
    middle = WRAP // 2
    radius = int(rng.integers(11, 18))
    long = wears.upper_type in ("coat", "dress")
    height = TORSO_ROWS // (4 if long else 3)
    draw_logo(image, wears.front_logo, (middle, height), radius, second)
    if wears.back_logo:  # drawn in the middle, then rolled to the back
        image = np.roll(image, middle, axis=1)
        draw_logo(image, wears.back_logo, (middle, height), radius + 2, second)
        image = np.ascontiguousarray(np.roll(image, -middle, axis=1))
    _closure(image, wears.upper_type, first, second, rng)
    return image


def _closure(image: Image, kind: str, first: Colour, second: Colour, rng: np.random.Generator) -> None:
    rows, middle = image.shape[0], WRAP // 2
    opened, inner = rng.random(2)
    dark = shade(first, 0.6)
    if kind in ("coat", "jacket") and opened < 0.45:  # worn open: what is below shows
        under = PALETTE["white"] if inner < 0.5 else shade(second, 0.8)
        wedge = np.array([(middle - 9, 0), (middle + 9, 0), (middle + 14, rows), (middle - 14, rows)], np.int32)
        cv2.fillPoly(image, [wedge], under)
    elif kind in ("coat", "jacket", "shirt"):
        cv2.line(image, (middle, 0), (middle, rows), dark, 2)
        for row in range(10, rows - 4, 14):
            cv2.circle(image, (middle, row), 2, shade(first, 1.5) if sum(first) < 300 else dark, -1)
    if kind == "coat":
        belt = rows * 2 // 5
        if inner < 0.5:
            cv2.rectangle(image, (0, belt), (WRAP, belt + 5), dark, -1)
    if kind == "dress" and inner < 0.6:
        cv2.rectangle(image, (0, rows * 2 // 5), (WRAP, rows * 2 // 5 + 4), second, -1)
    if kind in ("shirt", "jacket"):
        cv2.rectangle(image, (0, 0), (WRAP, 4), shade(first, 1.35), -1)
    if kind == "hoodie":
        cv2.rectangle(image, (middle - 20, rows * 2 // 3), (middle + 20, rows - 8), dark, 2)
        cv2.rectangle(image, (0, rows - 6), (WRAP, rows), dark, -1)


def sleeve(person: Person) -> Image:
    """One arm without the hand, shoulder to wrist: uint8 (2 * LIMB_ROWS, LIMB_COLUMNS, 3)."""
    wears = person.attributes
    rng = np.random.default_rng([*person.texture_seed, 2])
    first, second = PALETTE[wears.upper_colour], PALETTE[wears.upper_second_colour]
    kind = wears.upper_texture if wears.upper_texture not in ("gradient", "blocks", "band") else "plain"
    base, other = (second, first) if wears.sleeves == "contrast" else (first, second)
    texture_rng = np.random.default_rng([*person.texture_seed, 1])
    cloth = pattern(kind if wears.sleeves == "same" else "plain", base, other, texture_rng, 2 * LIMB_ROWS)
    image = folds(np.ascontiguousarray(cloth[:, :LIMB_COLUMNS]), rng)
    bare = {"t-shirt": 0.3, "dress": 0.22 if rng.random() < 0.6 else 1.0}.get(wears.upper_type, 1.0)
    image[int(len(image) * bare) :] = SKIN[wears.skin_tone]
    if bare == 1.0:
        image[-6:] = shade(base, 0.7)
    return image


def leg(person: Person) -> Image:
    """One leg, hip to ankle: uint8 (2 * LIMB_ROWS, LIMB_COLUMNS, 3)."""
    wears = person.attributes
    rng = np.random.default_rng([*person.texture_seed, 3])
    rows = 2 * LIMB_ROWS
    skin = SKIN[wears.skin_tone]
    sock = rng.random()
    if wears.lower_type in ("skirt", "bare legs"):
        image = plain(rows, LIMB_COLUMNS, skin)
    else:
        image = lower_cloth(person, rows, LIMB_COLUMNS)
    if wears.lower_type == "shorts":
        image[int(rows * 0.48) :] = skin
    if wears.lower_type in ("shorts", "skirt", "bare legs") and sock < 0.5:
        image[int(rows * 0.88) :] = PALETTE["white" if sock < 0.3 else "black"]
    return image


def lower_cloth(person: Person, rows: int, columns: int) -> Image:
    """Trousers or skirt as flat cloth: uint8 (rows, columns, 3)."""
    wears = person.attributes
    rng = np.random.default_rng([*person.texture_seed, 4])
    colour = PALETTE[wears.lower_colour] if wears.lower_colour else SKIN[wears.skin_tone]
    if wears.lower_type == "jeans":
        colour = shade((72, 92, 132), {"black": 0.55, "grey": 1.25}.get(wears.lower_colour, 0.9))
    kind = "checks" if wears.lower_texture == "checks" else "plain"
    light = shade(colour, 1.9) if sum(colour) < 250 else shade(colour, 0.55)
    cloth = pattern(kind, colour, light, rng, rows)
    image = folds(np.ascontiguousarray(cloth[:, :columns]), rng, 0.18)
    if wears.lower_type == "jeans":  # worn paler along the front of the thigh and at the knee
        middle = slice(columns // 3, 2 * columns // 3)
        image[: rows // 2, middle] = np.minimum(image[: rows // 2, middle] * 1.25, 255).astype(np.uint8)
    if wears.lower_texture == "side stripe":
        image[:, -5:] = PALETTE["white"] if sum(colour) < 450 else PALETTE["red"]
    return image


def head(person: Person) -> Image:
    """Face and hair, unrolled like a torso: uint8 (HEAD_ROWS, WRAP, 3)."""
    wears = person.attributes
    skin = SKIN[wears.skin_tone]
    image = plain(HEAD_ROWS, WRAP, skin)
    middle = WRAP // 2
    y, x = np.mgrid[0:HEAD_ROWS, 0:WRAP]
    angle = np.abs(x - middle) / middle * 180  # degrees from the front
    for side in (-1, 1):
        eye = (middle + side * 13, 22)
        cv2.ellipse(image, eye, (4, 2), 0, 0, 360, (44, 34, 32), -1)
        cv2.line(image, (eye[0] - 5, 17), (eye[0] + 5, 17), shade(HAIR.get(wears.hair_colour, skin), 0.8), 2)
        cv2.ellipse(image, ((middle + side * 49), 25), (4, 6), 0, 0, 360, shade(skin, 0.78), -1)
    cv2.line(image, (middle, 20), (middle, 30), shade(skin, 0.82), 2)
    cv2.line(image, (middle - 7, 37), (middle + 7, 37), shade(skin, 0.6), 2)
    hair = HAIR.get(wears.hair_colour, shade(skin, 0.7))
    if wears.beard:
        image[(angle < 75) & (y > 33 - angle / 8) & ~((angle < 8) & (y < 39))] = hair
    if wears.hair_style != "bald":
        reach = np.interp(angle, [0, 40, 62, 100, 180], [10, 12, 22, 28, 40])
        if wears.hair_style == "long":
            reach = np.interp(angle, [0, 35, 55, 70, 180], [10, 14, 40, 48, 48])
        image[y < reach] = hair
        rng = np.random.default_rng([*person.texture_seed, 5])
        image = folds(image, rng, 0.15 if wears.hair_style == "curly" else 0.06)
    return image


def backpack(person: Person) -> Image:
    """The back of the backpack: uint8 (48, 40, 3)."""
    wears = person.attributes
    rng = np.random.default_rng([*person.texture_seed, 6])
    colour = PALETTE[wears.backpack_colour]
    image = folds(plain(48, 40, colour), rng, 0.1)
    trim = shade(colour, 1.8) if sum(colour) < 250 else shade(colour, 0.5)
    cv2.rectangle(image, (5, 24), (34, 44), trim, 2)
    cv2.line(image, (3, 13), (36, 13), trim, 2)
    names = sorted(PALETTE)
    patch = PALETTE[names[int(rng.integers(len(names)))]]
    if rng.random() < 0.6:
        cv2.rectangle(image, (12, 28), (28, 38), patch, -1)
    return image


def visible_half(unrolled: Image, facing: float, columns: int, light: float) -> Image:
    """What the camera sees of an unrolled cylinder: uint8 (rows, columns, 3), shaded round.

    facing: radians; 0 = towards the camera, +pi/2 = to the right of the picture, pi = away.
    light: radians; side from which the light comes, 0 = from the camera, + = from the right.
    A point at angle u round the body (0 front, + to the person's left) lies at sin(u + facing) across.
    """
    across = (np.arange(columns) + 0.5) / columns * 2 - 1
    seen = np.arcsin(across)
    turn = (seen - facing) / (2 * math.pi) + 0.5
    picked = unrolled[:, np.floor(turn * WRAP).astype(np.int64) % WRAP]
    return _round_shading(picked, seen, light)


def flat_strip(cloth: Image, light: float) -> Image:
    """A limb's strip (rows, columns, 3), shaded round."""
    columns = cloth.shape[1]
    across = (np.arange(columns) + 0.5) / columns * 2 - 1
    return _round_shading(cloth, np.arcsin(across), light)


def _round_shading(image: Image, seen: NDArray[np.float64], light: float) -> Image:
    factor = 0.58 + 0.5 * np.maximum(0, np.cos(seen - light))
    return np.minimum(image * factor[None, :, None].astype(np.float32), 255).astype(np.uint8)
