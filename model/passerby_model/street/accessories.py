"""Paints backpack, handbag, hat and umbrella; each has its own label in the canvas's map."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from passerby_model.street.canvas import BACKPACK, HANDBAG, HAT, UMBRELLA, Canvas, Image, Vec
from passerby_model.street.gait import Point, Pose
from passerby_model.street.people import PALETTE, Colour, Person
from passerby_model.street.textures import shade

if TYPE_CHECKING:
    from passerby_model.street.figure import View

Part = tuple[float, Callable[[], None]]
_UPPER_ARC = [(math.cos(k * math.pi / 10), math.sin(k * math.pi / 10)) for k in range(11)]


def accessory_parts(canvas: Canvas, person: Person, body: Pose, view: View, backpack: Image | None) -> list[Part]:
    """What the person carries, as (nearness, paint) like the other parts of a figure."""
    wears = person.attributes
    parts: list[Part] = []
    if backpack is not None:
        parts += _backpack(canvas, person, body, view, backpack)
    if wears.handbag:
        parts += _handbag(canvas, person, body, view)
    if wears.hat:
        parts.append((0.2, lambda: _hat(canvas, person, body, view)))
    if wears.umbrella:
        parts.append((0.3, lambda: _umbrella(canvas, person, body, view)))
    return parts


def _backpack(canvas: Canvas, person: Person, body: Pose, view: View, texture: Image) -> list[Part]:
    colour = PALETTE[person.attributes.backpack_colour]
    build = person.body.build
    inner, outer = -0.06 * build - 0.005, -0.06 * build - 0.1
    top, bottom, half = body.neck[2] - 0.015, body.neck[2] - 0.245, 0.082
    lean = body.neck[0]

    def bag() -> None:
        box = [
            view.project((lean * (z - bottom) / 0.23 + x, y, z))
            for x in (inner, outer)
            for y in (-half, half)
            for z in (top, bottom)
        ]
        canvas.hull(box, shade(colour, 0.62), BACKPACK)
        if math.cos(view.facing) < -0.15:  # the back of the bag is turned to the camera
            left, right = (half, -half) if math.cos(view.facing) > 0 else (-half, half)
            left, right = -left, -right
            face = [
                view.project((lean + outer, left, top)),
                view.project((lean + outer, right, top)),
                view.project((outer, right, bottom)),
                view.project((outer, left, bottom)),
            ]
            canvas.textured(face, texture, (face[0], face[1], face[3]), BACKPACK)

    def straps() -> None:
        for side in (-1, 1):
            angle = side * 0.75
            if math.cos(angle + view.facing) <= 0.05:
                continue
            x, y = 0.066 * build * math.cos(angle), 0.1 * build * math.sin(angle)
            line: list[Point] = [
                (lean - 0.01, y * 0.95, body.neck[2] + 0.004),
                (lean + x, y, body.neck[2] - 0.07),
                (lean * 0.5 + x * 0.9, y * 1.25, body.neck[2] - 0.17),
            ]
            canvas.line([view.project(p) for p in line], view.scale * 0.02, shade(colour, 0.8), BACKPACK)

    middle = view.near((outer, 0.0, 0.0))
    return [(middle + (0.02 if middle > -0.02 else 0.0), bag), (0.03, straps)]


def _handbag(canvas: Canvas, person: Person, body: Pose, view: View) -> list[Part]:
    wears, shape = person.attributes, person.body
    colour = PALETTE[wears.handbag_colour]
    side = shape.bag_side
    tote = wears.handbag_style == "tote"
    hand = body.arms[0 if side > 0 else 1].hand
    if tote:
        centre: Point = (hand[0], hand[1] + side * 0.015, hand[2] - 0.135)
        size = (0.085, 0.025, 0.075)
    else:
        centre = (0.01, side * (0.1 * shape.build + 0.03), body.pelvis[2] + 0.02)
        size = (0.07, 0.028, 0.05)

    def bag() -> None:
        corners = [
            view.project((centre[0] + dx * size[0], centre[1] + dy * size[1], centre[2] + dz * size[2]))
            for dx in (-1, 1)
            for dy in (-1, 1)
            for dz in (-1, 1)
        ]
        canvas.hull(corners, colour, HANDBAG)
        trim = shade(colour, 1.7) if sum(colour) < 250 else shade(colour, 0.55)
        band = [view.project((centre[0] + dx * size[0], centre[1] + side * size[1], centre[2])) for dx in (-1, 1)]
        canvas.line(band, view.scale * 0.015, trim, HANDBAG)

    def handle() -> None:
        top = hand if tote else (body.neck[0], side * 0.07, body.neck[2] + 0.01)
        ends = [(centre[0] + dx * size[0] * 0.7, centre[1], centre[2] + size[2]) for dx in (-1, 1)]
        line = [view.project(ends[0]), view.project(top), view.project(ends[1])]
        canvas.line(line, view.scale * 0.011, shade(colour, 0.7), HANDBAG)

    near = view.near(centre)
    return [(near + (0.09 if near > -0.07 else -0.02), bag), (near + 0.05 if tote or near > -0.07 else -0.3, handle)]


def _hat(canvas: Canvas, person: Person, body: Pose, view: View) -> None:
    wears = person.attributes
    colour = PALETTE[wears.hat_colour]
    x, y, z = body.head
    half, tall = view.half_width(0.052, 0.06), view.scale * 0.06
    base = view.project((x - 0.004, y, z + 0.022))
    dome = [(base[0] + c * half, base[1] - s * tall) for c, s in _UPPER_ARC]
    trim = shade(colour, 1.7) if sum(colour) < 250 else shade(colour, 0.6)
    if wears.hat_style == "cap":
        brim: list[Vec] = [view.project((x + 0.03, y + side * 0.042, z + 0.026)) for side in (-1, 1)]
        brim += [view.project((x + 0.1, y + side * 0.03, z + 0.014)) for side in (-1, 1)]
        brim += [view.project((x + 0.03, y, z + 0.032))]
        canvas.polygon(dome, colour, HAT)
        if math.cos(view.facing) > -0.5:
            canvas.hull(brim, shade(colour, 0.75), HAT)
    elif wears.hat_style == "beanie":
        tall_dome = [(px, base[1] + (py - base[1]) * 1.15) for px, py in dome]
        canvas.polygon(tall_dome, colour, HAT)
        canvas.line([(base[0] - half, base[1] - 1), (base[0] + half, base[1] - 1)], view.scale * 0.025, trim, HAT)
    else:
        canvas.polygon(dome, colour, HAT)
        canvas.ellipse(base, (half * 1.95, view.scale * 0.02), shade(colour, 0.85), HAT)
        band = (base[1] - view.scale * 0.022,) * 2
        canvas.line([(base[0] - half, band[0]), (base[0] + half, band[1])], view.scale * 0.014, trim, HAT)


def _umbrella(canvas: Canvas, person: Person, body: Pose, view: View) -> None:
    wears, side = person.attributes, person.body.bag_side
    hand = body.arms[0 if side > 0 else 1].hand
    top: Point = (hand[0] - 0.02, hand[1] * 0.5, body.head[2] + 0.23)
    rim = view.project((top[0], top[1], body.head[2] + 0.09))
    tip = view.project(top)
    canvas.line([view.project(hand), tip], view.scale * 0.01, (60, 60, 62), UMBRELLA)
    radius, tall = view.scale * 0.25, rim[1] - tip[1]
    colours: tuple[Colour, Colour] = (PALETTE[wears.umbrella_colour], PALETTE[wears.umbrella_second_colour])
    gores = 6
    climb = [(math.cos(j * math.pi / 10), math.sin(j * math.pi / 10)) for j in range(6)]
    for k in range(gores):
        sides = [radius * math.cos(math.pi * (k + j) / gores) for j in (0, 1)]
        right, left = ([(rim[0] + edge * c, rim[1] - tall * s) for c, s in climb] for edge in sides)
        canvas.polygon([*right, *reversed(left)], shade(colours[k % 2], 0.7 + 0.07 * k), UMBRELLA)
