"""Paints a person, seen from one side at one moment of the walk cycle.

Person -> Wardrobe (unrolled textures, once per tracklet) -> parts sorted by distance -> Canvas
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from passerby_model.street import textures
from passerby_model.street.accessories import accessory_parts
from passerby_model.street.canvas import PERSON, Canvas, Image, Vec
from passerby_model.street.gait import Arm, Leg, Point, Pose, pose
from passerby_model.street.people import HAIR, PALETTE, SKIN, Colour, Person

Part = tuple[float, Callable[[], None]]  # (nearness to the camera in body heights, paint)
_CIRCLE = [(math.cos(k * math.pi / 12), math.sin(k * math.pi / 12)) for k in range(24)]
_ABOVE_TORSO = 0.012  # nearness of the face: the trunk lies at -0.01
_VIEW_STEP = math.radians(4)  # textures are picked anew when the person has turned by this much


@dataclass(frozen=True)
class View:
    """Where the body's origin (on the ground) lies in the picture, and from which side it is seen.

    x, y: pixels; scale: pixels per body height; facing: radians, 0 = towards the camera, + = to the right;
    pitch: radians by which the camera looks down; light: see textures.visible_half.
    """

    x: float
    y: float
    scale: float
    facing: float
    pitch: float
    light: float

    @cached_property
    def _angles(self) -> tuple[float, float, float, float]:
        return math.sin(self.facing), math.cos(self.facing), math.sin(self.pitch), math.cos(self.pitch)

    def project(self, point: Point) -> Vec:
        """(x, y) in pixels of a point of the body (body heights), by parallel projection."""
        forward, left, up = point
        sin, cos, sin_pitch, cos_pitch = self._angles
        right = forward * sin + left * cos
        near = forward * cos - left * sin
        rise = up * cos_pitch - near * sin_pitch
        return self.x + right * self.scale, self.y - rise * self.scale

    def near(self, point: Point) -> float:
        """How much nearer to the camera than the body's axis, in body heights."""
        return point[0] * self._angles[1] - point[1] * self._angles[0]

    def half_width(self, breadth: float, depth: float) -> float:
        """Half the apparent width in pixels of an upright elliptic cylinder of the given radii."""
        return self.scale * math.hypot(breadth * math.cos(self.facing), depth * math.sin(self.facing))


class Wardrobe:
    """A person's textures, and what of them is seen from the side last asked for."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.textures = textures.textures_of(person)
        self._seen: dict[tuple[int, float], dict[str, Image]] = {}

    def seen(self, view: View) -> dict[str, Image]:
        """Shaded strips by name (torso, head, skirt, upper_arm, forearm, thigh, shin) for the view."""
        key = (round(view.facing / _VIEW_STEP), view.light)
        if key not in self._seen:
            facing = key[0] * _VIEW_STEP
            arm = textures.flat_strip(self.textures.sleeve, view.light)
            leg = textures.flat_strip(self.textures.leg, view.light)
            rows = textures.LIMB_ROWS
            self._seen[key] = {
                "torso": textures.visible_half(self.textures.torso, facing, 64, view.light),
                "head": textures.visible_half(self.textures.head, facing, 32, view.light),
                "skirt": textures.visible_half(self.textures.skirt, facing, 64, view.light),
                "upper_arm": arm[:rows],
                "forearm": arm[rows:],
                "thigh": leg[:rows],
                "shin": leg[rows:],
            }
        return self._seen[key]


def paint_person(canvas: Canvas, wardrobe: Wardrobe, view: View, phase: float) -> None:
    """Paint the person at `phase` (radians of the walk cycle) over what is on the canvas."""
    person = wardrobe.person
    body = pose(person, phase)
    seen = wardrobe.seen(view)
    parts = [*_leg_parts(canvas, person, body, view, seen), *_arm_parts(canvas, person, body, view, seen)]
    parts += _trunk_parts(canvas, person, body, view, seen)
    parts += _head_parts(canvas, person, body, view, seen, phase)
    parts += accessory_parts(canvas, person, body, view, wardrobe.textures.backpack)
    for _, paint in sorted(parts, key=lambda part: part[0]):
        paint()


def _leg_parts(canvas: Canvas, person: Person, body: Pose, view: View, seen: dict[str, Image]) -> list[Part]:
    build, wears = person.body.build, person.attributes
    loose = 0.012 * person.body.looseness if wears.lower_type in ("trousers", "jeans") else 0.0
    if wears.lower_type in ("tights", "bare legs", "skirt"):
        build *= 0.88
    s = view.scale
    thigh = (s * 0.052 * build, s * (0.036 * build + loose * 0.5))
    shin = (s * (0.035 * build + loose * 0.5), s * (0.023 * build + loose))

    def paint(leg: Leg, far: bool) -> None:
        hip, knee, ankle = view.project(leg.hip), view.project(leg.knee), view.project(leg.ankle)
        _paint_shoe(canvas, person, leg, view)
        shades = 0.82 if far else 1.0
        canvas.limb(knee, ankle, shin, _dim(seen["shin"], shades), PERSON)
        canvas.limb(hip, knee, thigh, _dim(seen["thigh"], shades), PERSON)

    parts: list[Part] = []
    near = [view.near(leg.knee) for leg in body.legs]
    for index, leg in enumerate(body.legs):
        far = near[index] < near[1 - index] - 0.02
        parts.append((-0.5 + near[index], lambda leg=leg, far=far: paint(leg, far)))  # type: ignore[misc]
    return parts


def _dim(image: Image, factor: float) -> Image:
    return image if factor == 1.0 else np.asarray(cv2.convertScaleAbs(image, alpha=factor), np.uint8)


def _paint_shoe(canvas: Canvas, person: Person, leg: Leg, view: View) -> None:
    x, y, z = leg.ankle
    forward, side = math.cos(leg.toe), math.sin(leg.toe)
    # While the foot trails, the heel lifts and the toe points down.
    drop = max(-0.03, min(0.05, (z - 0.045) * 0.9)) if leg.ankle[0] < leg.hip[0] else -0.01

    def at(along: float, across: float, up: float) -> Vec:
        tilt = -drop * max(0.0, along) / 0.1
        return view.project((x + along * forward - across * side, y + along * side + across * forward, z + up + tilt))

    sole = [at(a, b, -0.036) for a, b in ((-0.035, 0.02), (-0.035, -0.02), (0.1, -0.022), (0.1, 0.022))]
    top = [at(-0.03, 0.02, 0.012), at(-0.03, -0.02, 0.012), at(0.03, 0, 0.0), at(0.1, 0, -0.018)]
    colour = PALETTE[person.attributes.shoe_colour]
    canvas.hull([*sole, *top], colour, PERSON)
    edge = textures.shade(colour, 0.5) if sum(colour) > 330 else (150, 150, 148)
    canvas.line([at(-0.035, 0, -0.034), at(0.1, 0, -0.034)], view.scale / 180, edge, PERSON)


def _arm_parts(canvas: Canvas, person: Person, body: Pose, view: View, seen: dict[str, Image]) -> list[Part]:
    wears, build = person.attributes, person.body.build
    thick = {"coat": 0.007, "jacket": 0.006, "hoodie": 0.006}.get(wears.upper_type, 0.0)
    s = view.scale
    upper = (s * (0.03 * build + thick), s * (0.025 * build + thick))
    lower = (s * (0.024 * build + thick), s * (0.018 * build + thick))
    skin = textures.shade(SKIN[wears.skin_tone], 0.92)

    def paint(arm: Arm, far: bool) -> None:
        shoulder, elbow, hand = view.project(arm.shoulder), view.project(arm.elbow), view.project(arm.hand)
        dx, dy = hand[0] - elbow[0], hand[1] - elbow[1]
        length = max(1.0, math.hypot(dx, dy))
        fist = (hand[0] + dx / length * s * 0.022, hand[1] + dy / length * s * 0.022)
        canvas.ellipse(fist, (s * 0.02, s * 0.023), skin, PERSON)
        shades = 0.8 if far else 0.96
        canvas.limb(elbow, hand, lower, _dim(seen["forearm"], shades), PERSON)
        canvas.limb(shoulder, elbow, upper, _dim(seen["upper_arm"], shades), PERSON)

    parts: list[Part] = []
    for arm in body.arms:
        near = view.near(arm.elbow)
        nearness = near + (0.06 if near > -0.07 else 0.0)
        parts.append((nearness, lambda arm=arm, far=near < -0.07: paint(arm, far)))  # type: ignore[misc]
    return parts


def _outline(levels: list[tuple[Vec, float]]) -> list[Vec]:
    left = [(x - half, y) for (x, y), half in levels]
    return left + [(x + half, y) for (x, y), half in reversed(levels)]


def _wrap(canvas: Canvas, levels: list[tuple[Vec, float]], texture: Image) -> None:
    """Paint a body of revolution given by (axis point, half width) from top to bottom."""
    (x0, y0), (x1, y1) = levels[0][0], levels[-1][0]
    wide = max(half for _, half in levels[:5])
    canvas.textured(_outline(levels), texture, ((x0 - wide, y0), (x0 + wide, y0), (x1 - wide, y1)), PERSON)


def _trunk_parts(canvas: Canvas, person: Person, body: Pose, view: View, seen: dict[str, Image]) -> list[Part]:
    wears, shape = person.attributes, person.body
    bulk = {"coat": 0.01, "jacket": 0.009, "hoodie": 0.008}.get(wears.upper_type, 0.003)
    build = shape.build

    def level(share: float, breadth: float, depth: float) -> tuple[Vec, float]:
        """share: 0 = shoulder line, 1 = hip joints, > 1 = below."""
        low = min(share, 1.0)
        point = (
            body.neck[0] + (body.pelvis[0] - body.neck[0]) * low,
            body.pelvis[1],
            body.neck[2] + (body.pelvis[2] - body.neck[2]) * share,
        )
        return view.project(point), view.half_width(breadth * build + bulk, depth * build + bulk)

    levels = [
        level(-0.06, 0.035, 0.035),
        level(0.0, 0.088 * shape.shoulders, 0.045),
        level(0.05, 0.106 * shape.shoulders, 0.052),
        level(0.12, 0.112 * shape.shoulders, 0.06),
        level(0.35, 0.1 * shape.shoulders, 0.066),
        level(0.68, 0.088, 0.058),
        level(1.02, 0.094 * shape.hips, 0.066),
    ]
    spread = abs(view.project(body.legs[0].knee)[0] - view.project(body.legs[1].knee)[0]) / 2
    parts: list[Part] = []
    if wears.upper_type in ("coat", "dress"):
        end = (1.45 + 0.35 * shape.hem) if wears.upper_type == "coat" else (1.55 + 0.3 * shape.hem)
        flare = 1.0 if wears.upper_type == "coat" else 1.25
        hem, half = level(end, 0.098 * flare, 0.075 * flare)
        levels += [level(1.15, 0.1 * shape.hips, 0.07), (hem, max(half, spread + view.scale * 0.035))]
    elif wears.lower_type == "skirt":
        hem, half = level(1.5 + 0.45 * shape.hem, 0.115, 0.085)
        skirt = [level(0.85, 0.09, 0.062), level(1.05, 0.1 * shape.hips, 0.072)]
        skirt.append((hem, max(half, spread * 0.9 + view.scale * 0.03)))
        parts.append((-0.03, lambda: _wrap(canvas, skirt, seen["skirt"])))
    neck_top = view.project((body.head[0] - 0.015, body.head[1], body.head[2] - 0.03))
    neck_base = view.project(body.neck)
    wide = view.scale * 0.03
    skin = textures.plain(2, 2, textures.shade(SKIN[wears.skin_tone], 0.75))
    parts.append((-0.02, lambda: canvas.limb(neck_top, neck_base, (wide, wide * 1.15), skin, PERSON)))
    parts.append((-0.01, lambda: _wrap(canvas, levels, seen["torso"])))
    if wears.upper_type == "hoodie":
        hood = (body.neck[0] - 0.04, body.neck[1], body.neck[2] + 0.012)
        colour = textures.shade(PALETTE[wears.upper_colour], 0.8)
        parts.append(
            (
                view.near(hood),
                lambda: canvas.ellipse(
                    view.project(hood), (view.half_width(0.06, 0.04), view.scale * 0.032), colour, PERSON
                ),
            )
        )
    return parts


def _head_parts(
    canvas: Canvas, person: Person, body: Pose, view: View, seen: dict[str, Image], phase: float
) -> list[Part]:
    wears = person.attributes
    centre = view.project(body.head)
    half, tall = view.half_width(0.043, 0.052), view.scale * 0.066

    def face() -> None:
        points = [(centre[0] + c * half * (1 - 0.12 * max(0.0, s)), centre[1] + s * tall) for c, s in _CIRCLE]
        corners = (
            (centre[0] - half, centre[1] - tall),
            (centre[0] + half, centre[1] - tall),
            (centre[0] - half, centre[1] + tall),
        )
        canvas.textured(points, seen["head"], corners, PERSON)

    parts: list[Part] = [(_ABOVE_TORSO, face)]
    colour = HAIR.get(wears.hair_colour)
    if colour is not None:
        parts += _hair_parts(canvas, wears.hair_style, colour, body, view, phase)
    return parts


def _hair_parts(canvas: Canvas, style: str, colour: Colour, body: Pose, view: View, phase: float) -> list[Part]:
    x, y, z = body.head
    s = view.scale
    dark = textures.shade(colour, 0.8)

    def behind(point: Point) -> float:
        return _ABOVE_TORSO + view.near(point) - view.near(body.head)

    def blob(point: Point, radii: Vec, tone: Colour) -> Part:
        return behind(point), lambda: canvas.ellipse(view.project(point), (radii[0] * s, radii[1] * s), tone, PERSON)

    back = (x - 0.018, y, z + 0.012)
    swing = 0.012 * math.sin(2 * phase)
    if style == "curly":
        return [blob((x - 0.012, y, z + 0.018), (0.07, 0.07), dark)]
    parts = [blob(back, (0.05, 0.064), dark)]
    if style == "bun":
        parts.append(blob((x - 0.055, y, z + 0.045), (0.028, 0.026), colour))
    elif style == "ponytail":
        top, end = (x - 0.055, y, z + 0.03), (x - 0.075, y + swing, z - 0.11)
        texture = textures.plain(2, 2, colour)
        parts.append(
            (
                behind(end) + 0.01,
                lambda: canvas.limb(view.project(top), view.project(end), (0.022 * s, 0.012 * s), texture, PERSON),
            )
        )
    elif style == "long":
        top, end = (x - 0.03, y, z + 0.01), (x - 0.055, y + swing / 2, z - 0.15)
        wide = view.half_width(0.05, 0.036)
        texture = textures.flat_strip(textures.plain(8, 16, colour), view.light)
        parts.append(
            (
                behind(end),
                lambda: canvas.limb(view.project(top), view.project(end), (wide, wide * 1.1), texture, PERSON),
            )
        )
    return parts


def blank(height: int, width: int) -> Image:
    """uint8 (height, width, 3), mid grey."""
    return np.full((height, width, 3), 128, np.uint8)
