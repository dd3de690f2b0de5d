"""The places that the cameras watch: one long busy picture per camera, shared by everybody who passes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from passerby_model.street.people import Colour
from passerby_model.street.textures import shade

Image = NDArray[np.uint8]
PIXELS_PER_METRE = 72
SCENE_METRES = 16.0  # then the scene repeats, mirrored
ABOVE_GROUND, BELOW_GROUND = 3.0, 0.7  # metres drawn above and below the line where people walk
STYLES = ("brick", "shopfront", "plaster", "park", "car park", "hall")

_M = PIXELS_PER_METRE
_ROWS, _COLUMNS = round((ABOVE_GROUND + BELOW_GROUND) * _M), round(SCENE_METRES * _M)
GROUND_ROW = round(ABOVE_GROUND * _M)


def make_scene(style: str, rng: np.random.Generator) -> Image:
    """uint8 (rows, columns, 3) RGB at PIXELS_PER_METRE; people walk along row GROUND_ROW."""
    image = np.zeros((_ROWS, _COLUMNS, 3), np.uint8)
    foot = GROUND_ROW - int(rng.uniform(0.15, 0.75) * _M)  # where wall and ground meet, behind the walker
    _wall(image, style, foot, rng)
    _ground(image, foot, rng)
    for _ in range(int(rng.integers(7, 12))):
        _furniture(image, style, foot, rng)
    grain = rng.normal(0, 5, (_ROWS, _COLUMNS, 1))
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def _tone(rng: np.random.Generator, low: int = 60, high: int = 200, spread: int = 25) -> Colour:
    base = rng.integers(low, high)
    red, green, blue = np.clip(base + rng.integers(-spread, spread + 1, 3), 0, 255).tolist()
    return red, green, blue


def _soft_noise(rng: np.random.Generator, rows: int, columns: int, cell: int) -> NDArray[np.float32]:
    small = rng.standard_normal((rows // cell + 2, columns // cell + 2)).astype(np.float32)
    return np.asarray(cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC), np.float32)


def _wall(image: Image, style: str, foot: int, rng: np.random.Generator) -> None:
    colour = _tone(rng)
    image[:foot] = colour
    if style == "brick":
        brick, mortar = _tone(rng, 70, 150, 40), _tone(rng, 130, 190, 10)
        image[:foot] = mortar
        height, length = 7, 20
        for row, y in enumerate(range(0, foot, height)):
            for x in range(-(row % 2) * length // 2, _COLUMNS, length):
                tone = shade(brick, float(rng.uniform(0.8, 1.2)))
                cv2.rectangle(image, (x, y), (x + length - 2, y + height - 2), tone, -1)
    elif style == "park":
        noise = _soft_noise(rng, foot, _COLUMNS, 9) * 26 + _soft_noise(rng, foot, _COLUMNS, 40) * 30
        green = np.array((70, 104, 52), np.float32) + noise[..., None] * (0.7, 1.0, 0.5)
        image[:foot] = np.clip(green, 0, 255).astype(np.uint8)
        for x in rng.integers(0, _COLUMNS, 9):
            wide = int(rng.integers(8, 22))
            cv2.rectangle(image, (int(x), 0), (int(x) + wide, foot), (74, 56, 42), -1)
    elif style == "hall":
        panel = int(rng.integers(60, 120))
        for x in range(0, _COLUMNS, panel):
            cv2.rectangle(image, (x, 0), (x + panel - 3, foot), shade(colour, float(rng.uniform(0.85, 1.15))), -1)
        image[foot - 12 : foot] = shade(colour, 0.6)
    else:
        noise = _soft_noise(rng, foot, _COLUMNS, 16) * 7
        image[:foot] = np.clip(image[:foot] + noise[..., None], 0, 255).astype(np.uint8)
    if style in ("brick", "plaster", "shopfront"):
        _windows(image, style, foot, rng)


def _windows(image: Image, style: str, foot: int, rng: np.random.Generator) -> None:
    x = int(rng.integers(0, 60))
    while x < _COLUMNS:
        wide = int(rng.integers(90, 190) if style == "shopfront" else rng.integers(45, 90))
        top = int(rng.integers(5, 50))
        bottom = foot - int(rng.integers(6, 30) if style == "shopfront" else rng.integers(60, 110))
        door = rng.random() < 0.25
        bottom = foot if door else bottom
        pane = _tone(rng, 25, 110, 20) if not door else _tone(rng, 50, 140, 45)
        cv2.rectangle(image, (x, top), (x + wide, bottom), shade(pane, 0.45), -1)
        cv2.rectangle(image, (x + 4, top + 4), (x + wide - 4, bottom - 4), pane, -1)
        shine = np.array([(x + 8, bottom - 8), (x + wide // 2, top + 8), (x + wide // 2 + 14, top + 8)], np.int32)
        cv2.fillPoly(image, [shine], shade(pane, 1.4))
        if style == "shopfront" and not door:
            for _ in range(6):  # goods on display
                gx, gy = int(rng.integers(x + 8, x + wide - 8)), int(rng.integers(bottom - 70, bottom - 10))
                size = int(rng.integers(4, 16))
                cv2.rectangle(image, (gx, gy), (gx + size, gy + size), _tone(rng, 50, 220, 90), -1)
        x += wide + int(rng.integers(25, 130))


def _ground(image: Image, foot: int, rng: np.random.Generator) -> None:
    colour = _tone(rng, 80, 170, 12)
    noise = _soft_noise(rng, _ROWS - foot, _COLUMNS, 6) * 6
    image[foot:] = np.clip(np.asarray(colour, np.float32) + noise[..., None], 0, 255).astype(np.uint8)
    joint = shade(colour, 0.78)
    y = float(foot)
    step = rng.uniform(6, 14)
    while y < _ROWS:  # joints lie farther apart the nearer they are
        cv2.line(image, (0, int(y)), (_COLUMNS, int(y)), joint, 1)
        y += step
        step *= 1.35
    slant = int(rng.integers(-40, 40))
    for x in range(-80, _COLUMNS + 80, int(rng.integers(30, 80))):
        cv2.line(image, (x, foot), (x + slant, _ROWS), joint, 1)
    cv2.line(image, (0, foot), (_COLUMNS, foot), shade(colour, 0.5), 3)


def _furniture(image: Image, style: str, foot: int, rng: np.random.Generator) -> None:
    x, base = int(rng.integers(0, _COLUMNS)), foot + int(rng.integers(0, 14))
    kind = int(rng.integers(6))
    colour = _tone(rng, 40, 190, 60)
    if kind == 0 or style == "car park":
        _car(image, x, base + 12, colour)
    elif kind == 1:  # a pole with a sign
        wide = int(rng.integers(3, 8))
        cv2.rectangle(image, (x, 0), (x + wide, base), shade(colour, 0.6), -1)
        cv2.circle(image, (x + wide // 2, int(rng.integers(20, 90))), int(rng.integers(9, 18)), colour, -1)
    elif kind == 2:  # a plant in a pot
        for _ in range(50):
            dx, dy = rng.normal(0, 13), rng.normal(0, 20)
            leaf = shade((60, 112, 54), float(rng.uniform(0.5, 1.3)))
            cv2.circle(image, (int(x + dx), int(base - 52 + dy)), int(rng.integers(2, 6)), leaf, -1)
        cv2.rectangle(image, (x - 12, base - 24), (x + 12, base), shade(colour, 0.8), -1)
    elif kind == 3:  # a poster
        wide, tall, top = int(rng.integers(25, 60)), int(rng.integers(40, 80)), int(rng.integers(20, 90))
        cv2.rectangle(image, (x, top), (x + wide, top + tall), colour, -1)
        for k in range(3):
            line = (x + 5, top + 8 + k * tall // 4)
            cv2.line(image, line, (x + wide - 5, line[1]), _tone(rng, 30, 230, 60), 5)
        cv2.circle(image, (x + wide // 2, top + tall * 2 // 3), wide // 4, _tone(rng, 30, 230, 80), -1)
    elif kind == 4:  # a bin
        cv2.rectangle(image, (x, base - 60), (x + 34, base), shade(colour, 0.7), -1)
        cv2.rectangle(image, (x - 2, base - 64), (x + 36, base - 56), shade(colour, 0.4), -1)
    else:  # a bench
        for row in (0, 8, 26):
            cv2.rectangle(image, (x, base - 52 + row), (x + 110, base - 47 + row), (110, 78, 50), -1)
        for leg in (8, 98):
            cv2.rectangle(image, (x + leg, base - 26), (x + leg + 5, base), (50, 50, 52), -1)


def _car(image: Image, x: int, base: int, colour: Colour) -> None:
    length, height = 270, 62
    body = [(x, base - 20), (x + 12, base - height), (x + length - 16, base - height), (x + length, base - 20)]
    body += [(x + length, base - 8), (x, base - 8)]
    cabin = [(x + 55, base - height), (x + 85, base - 104), (x + 185, base - 104), (x + 220, base - height)]
    glass = [(x + 66, base - height), (x + 90, base - 98), (x + 180, base - 98), (x + 208, base - height)]
    cv2.fillPoly(image, [np.array(cabin, np.int32)], shade(colour, 0.9))
    cv2.fillPoly(image, [np.array(glass, np.int32)], (52, 62, 70))
    cv2.fillPoly(image, [np.array(body, np.int32)], colour)
    cv2.line(image, (x + 6, base - 40), (x + length - 6, base - 40), shade(colour, 0.7), 2)
    for wheel in (58, 212):
        cv2.circle(image, (x + wheel, base - 12), 21, (28, 28, 30), -1, cv2.LINE_AA)
        cv2.circle(image, (x + wheel, base - 12), 10, (130, 130, 134), -1, cv2.LINE_AA)
