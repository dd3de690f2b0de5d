"""How a body walks: joints in three dimensions from the phase of the walk cycle.

Units are body heights. Axes: x forward, y to the person's left, z up; the ground is z = 0 below the lower
foot, so that the body bobs by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from passerby_model.street.people import Person

Point = tuple[float, float, float]

THIGH, SHIN, FOOT = 0.235, 0.235, 0.038  # lengths in body heights, an average adult
UPPER_ARM, FOREARM = 0.165, 0.145
TRUNK = 0.315  # hip to shoulder line
HEAD_ABOVE_SHOULDERS = 0.105  # shoulder line to the middle of the head


@dataclass(frozen=True)
class Leg:
    """Joints of one leg; `toe` is the direction of the foot on the ground, radians, + outwards to the left."""

    hip: Point
    knee: Point
    ankle: Point
    toe: float


@dataclass(frozen=True)
class Arm:
    """Joints of one arm."""

    shoulder: Point
    elbow: Point
    hand: Point


@dataclass(frozen=True)
class Pose:
    """A body at one moment. Index 0 = left, 1 = right."""

    pelvis: Point
    neck: Point
    head: Point
    legs: tuple[Leg, Leg]
    arms: tuple[Arm, Arm]


def pose(person: Person, phase: float) -> Pose:
    """The body at `phase` radians of the walk cycle (2 pi = two steps)."""
    body, wears = person.body, person.attributes
    swings = [_leg_angles(body.stride, phase + shift) for shift in (0.0, math.pi)]
    thigh, shin = THIGH * body.legs, SHIN * body.legs
    reach = [thigh * math.cos(hip) + shin * math.cos(hip - knee) for hip, knee in swings]
    hip_z = max(reach) + FOOT
    sway = 0.008 * math.sin(phase)
    legs = []
    for side, (hip, knee) in zip((1, -1), swings, strict=True):
        origin = (0.0, side * 0.05 * body.hips + sway, hip_z)
        bend = _along(origin, hip, 0.0, thigh)
        legs.append(Leg(origin, bend, _along(bend, hip - knee, -0.04 * side, shin), side * body.toe_out))
    lean = (math.sin(body.lean) * TRUNK, 0.0, math.cos(body.lean) * TRUNK)
    neck = (lean[0], sway, hip_z + lean[2])
    head = (neck[0] + 0.022, sway * 0.5, neck[2] + HEAD_ABOVE_SHOULDERS)
    arms = []
    for side, shift in ((1, 0.0), (-1, math.pi)):
        shoulder = (neck[0], side * 0.1 * body.shoulders + sway, neck[2] - 0.036)
        if wears.umbrella and side == body.bag_side:
            arms.append(_raised(shoulder, side))
        elif body.pocket_hand == side:
            arms.append(_pocket(shoulder, side))
        else:
            carries = wears.handbag_style == "tote" and side == body.bag_side
            swing = -body.arm_swing * math.cos(phase + shift) * (0.35 if carries else 1.0)
            arms.append(_swinging(shoulder, side, swing, 0.08 if carries else body.elbow))
    return Pose((0.0, sway, hip_z), neck, head, (legs[0], legs[1]), (arms[0], arms[1]))


def _leg_angles(stride: float, phase: float) -> tuple[float, float]:
    """(hip flexion, knee flexion) in radians; the knee bends while the leg swings forward."""
    hip = stride * math.cos(phase) + 0.03
    swing = max(0.0, -math.sin(phase - 0.35))
    return hip, 0.08 + 1.0 * swing**1.5 * (0.5 + stride)


def _along(start: Point, forward: float, sideways: float, length: float) -> Point:
    down = math.cos(forward)
    return start[0] + length * math.sin(forward), start[1] + length * sideways, start[2] - length * down


def _swinging(shoulder: Point, side: int, swing: float, elbow: float) -> Arm:
    bend = elbow + 0.5 * max(0.0, swing)  # the elbow closes as the arm comes forward
    joint = _along(shoulder, swing - 0.08, 0.14 * side, UPPER_ARM)
    return Arm(shoulder, joint, _along(joint, swing + bend, 0.02 * side, FOREARM))


def _pocket(shoulder: Point, side: int) -> Arm:
    joint = _along(shoulder, -0.35, 0.28 * side, UPPER_ARM)
    return Arm(shoulder, joint, _along(joint, 0.45, -0.25 * side, FOREARM))


def _raised(shoulder: Point, side: int) -> Arm:
    joint = _along(shoulder, 0.35, 0.05 * side, UPPER_ARM)
    return Arm(shoulder, joint, _along(joint, 2.35, -0.2 * side, FOREARM))
