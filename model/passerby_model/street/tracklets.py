"""Tracklets: a person walks past a camera, and a detector's boxes follow.

Every tracklet depends on (seed, identity, camera, visit) and the settings of its frames alone, never on
what was generated before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import cv2
import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError

from passerby_model.street.cameras import (
    SCENE_MARGIN,
    Camera,
    Optics,
    decode_jpeg,
    encode_jpeg,
    endless_scene_of,
    make_camera,
)
from passerby_model.street.canvas import ACCESSORIES, PERSON, Canvas, Image
from passerby_model.street.config import FIRST_MORNING, StreetConfig
from passerby_model.street.figure import View, Wardrobe, paint_person
from passerby_model.street.occluders import Passers, make_occluder
from passerby_model.street.people import Attributes, Person, make_person
from passerby_model.street.scenes import GROUND_ROW, PIXELS_PER_METRE, SCENE_METRES

FEET = 0.955  # where the feet stand in a frame, as a share of its height
FILL = 0.875  # share of the frame's height that the body fills


@dataclass(frozen=True)
class StreetTracklet:
    """One person in one camera.

    identity: four or more digits; camera: "c1"..; visit: 0-based.
    start_time, end_time: UTC times of the first and the last frame; times: of every frame, T of them.
    frames: uint8 (T, H, W, 3) RGB, as decoded from the camera's JPEG.
    labels: uint8 (T, H, W), what is visible where: 0 background and occluders, 1 the person, and
        canvas.ACCESSORIES of what the person carries.
    """

    identity: str
    camera: str
    visit: int
    start_time: datetime
    end_time: datetime
    times: tuple[datetime, ...]
    frames: Image
    labels: Image
    attributes: Attributes

    @property
    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """Visible pixels, bool (T, H, W): "silhouette" (everything below together), "person" without what
        the person carries, and an entry for each accessory that the person carries."""
        masks = {"silhouette": self.labels > 0, "person": self.labels == PERSON}
        for name, label in ACCESSORIES.items():
            if getattr(self.attributes, name):
                masks[name] = self.labels == label
        return masks


@dataclass(frozen=True)
class CodedTracklet:
    """A tracklet as the camera stores it: `jpegs` instead of frames; the rest as in StreetTracklet."""

    person: Person
    camera: Camera
    visit: int
    times: tuple[datetime, ...]
    jpegs: tuple[bytes, ...]
    labels: Image


def identity_name(index: int) -> str:
    """Name of person `index`: at least four digits."""
    return f"{index:04d}"


def generate(config: StreetConfig) -> Iterator[StreetTracklet]:
    """The tracklets of `config.tracklet_keys()`, one at a time."""
    for identity, camera, visit in config.tracklet_keys():
        yield render_tracklet(config, identity, camera, visit)


def render_tracklet(config: StreetConfig, identity_index: int, camera_index: int, visit: int = 0) -> StreetTracklet:
    """One tracklet of the street, independently of all others.

    identity_index counts from `config.first_identity`'s zero: person n is the same for every range of
    identities. Raises InvalidArgumentError where the street has no such person, camera or visit.
    """
    coded = render_coded(config, identity_index, camera_index, visit)
    frames = np.stack([decode_jpeg(data) for data in coded.jpegs])
    return StreetTracklet(
        identity=identity_name(identity_index),
        camera=coded.camera.name,
        visit=visit,
        start_time=coded.times[0],
        end_time=coded.times[-1],
        times=coded.times,
        frames=frames,
        labels=coded.labels,
        attributes=coded.person.attributes,
    )


def render_coded(config: StreetConfig, identity_index: int, camera_index: int, visit: int) -> CodedTracklet:
    """As `render_tracklet`, before decoding: what `write` puts on disk."""
    first = config.first_identity
    if not first <= identity_index < first + config.identities:
        raise InvalidArgumentError(
            f"no identity {identity_index} here; this street has {first}..{first + config.identities - 1}"
        )
    if not 0 <= camera_index < config.cameras:
        raise InvalidArgumentError(f"no camera {camera_index}; this street has 0..{config.cameras - 1}")
    if not 0 <= visit < config.visits:
        raise InvalidArgumentError(f"no visit {visit}; this street has 0..{config.visits - 1}")
    person, camera = make_person(config.seed, identity_index), make_camera(config.seed, camera_index)
    rng = np.random.default_rng([config.seed, 3, identity_index, camera_index, visit])
    low, high = config.frame_range
    count = int(rng.integers(low, high + 1))
    walk = _Walk(config, person, camera, _scene(config, person, camera, visit), count, rng)
    optics = Optics(camera, config.height, config.width, rng)
    labels = np.empty((count, config.height, config.width), np.uint8)
    jpegs = []
    for frame in range(count):
        picture = walk.paint(frame, labels[frame])
        seen = optics.apply(picture, walk.shake[frame], rng)
        jpegs.append(encode_jpeg(seen, camera.jpeg_quality))
    times = _times(config, person, camera, visit, count)
    return CodedTracklet(person, camera, visit, times, tuple(jpegs), labels)


def _scene(config: StreetConfig, person: Person, camera: Camera, visit: int) -> int:
    if config.scenes == 0:
        return camera.index
    return int(np.random.default_rng([config.seed, 9, person.index, camera.index, visit]).integers(config.scenes))


def _times(config: StreetConfig, person: Person, camera: Camera, visit: int, count: int) -> tuple[datetime, ...]:
    """A person comes along within the day and walks up or down the street, passing camera after camera."""
    rng = np.random.default_rng([config.seed, 6, person.index, visit])
    start = FIRST_MORNING + timedelta(days=visit, seconds=float(rng.uniform(0, 10 * 3600)))
    upwards = rng.random() < 0.5
    last = make_camera(config.seed, config.cameras - 1).position_m
    way = camera.position_m if upwards else last - camera.position_m
    pause = float(np.random.default_rng([config.seed, 7, person.index, camera.index, visit]).uniform(0, 20))
    arrival = start + timedelta(seconds=way / person.body.speed_mps + pause)
    arrival = arrival.replace(microsecond=arrival.microsecond // 1000 * 1000)
    step = timedelta(seconds=config.every) / camera.frames_per_second
    return tuple(arrival + step * frame for frame in range(count))


class _Walk:
    """Where everything is in each frame of a tracklet, and how to paint it."""

    def __init__(
        self, config: StreetConfig, person: Person, camera: Camera, scene: int, count: int, rng: np.random.Generator
    ) -> None:
        self.camera, self.person = camera, person
        self.height, self.width = config.height, config.width
        self.wardrobe = Wardrobe(person)
        self.scene = endless_scene_of(config.seed, scene)
        steps = np.arange(count) * config.every
        self.seconds = seconds = steps / camera.frames_per_second
        self.phase = rng.uniform(0, 2 * math.pi) + seconds * 2 * math.pi * person.body.cadence_hz
        side = -1 if rng.random() < 0.5 else 1  # passes to the right or to the left
        turn = rng.normal(0, 0.16) + np.linspace(-1, 1, count) * rng.normal(0, 0.12)
        self.facing = side * camera.facing + turn
        self.metres = rng.uniform(0, SCENE_METRES) + seconds * person.body.speed_mps * np.sin(self.facing)
        # Somebody who comes nearer fills the box all the same: the scene behind shrinks instead.
        self.zoom = rng.uniform(0.75, 1.15) * np.exp(-0.05 * seconds * np.cos(self.facing))
        self.jitter = _wander(rng, count, (0.03, 0.02, 0.03))
        self.shake = rng.uniform(0.4, 1.4, count)
        self.scale = FILL * self.height * (0.86 if person.attributes.umbrella else 1.0)
        self.scale *= float(rng.uniform(0.94, 1.04))
        self.passers = Passers(config, camera, rng)
        self.occluder = make_occluder(config, camera, count, rng)

    def paint(self, frame: int, labels: Image) -> Image:
        """The clean picture, uint8 (H, W, 3); `labels` (uint8 (H, W)) is filled in."""
        dx, dy, grow = self.jitter[frame]
        scale = self.scale * (1 + grow)
        x, y = self.width * (0.5 + dx * 1.4), self.height * (FEET + dy)
        metre = scale / self.person.body.height_m
        picture = self._background(frame, x, y, metre)
        self.passers.paint(picture, float(self.seconds[frame]), x, y, scale)
        _shadow(picture, x, y, scale)
        canvas = Canvas(picture)
        view = View(x, y, scale, float(self.facing[frame]), self.camera.pitch, self.camera.light)
        paint_person(canvas, self.wardrobe, view, float(self.phase[frame]))
        if self.occluder is not None:
            self.occluder.paint(canvas, frame, x, y, scale)
        labels[:] = canvas.labels
        return canvas.image

    def _background(self, frame: int, x: float, y: float, metre: float) -> Image:
        zoom = metre / PIXELS_PER_METRE * float(self.zoom[frame])
        # Who has come nearer for long has shrunk the scene to all that is drawn of it; there it stays.
        zoom = max(zoom, y / (GROUND_ROW + SCENE_MARGIN - 1), max(x, self.width - x) / (SCENE_MARGIN - 1))
        wide, tall = max(2, round(self.width / zoom)), max(2, round(self.height / zoom))
        # The walker goes to and fro between the ends of the scene, in its mirrored picture.
        there = float(self.metres[frame]) % (2 * SCENE_METRES)
        metres = min(there, 2 * SCENE_METRES - there)
        left = round(metres * PIXELS_PER_METRE - x / zoom) + SCENE_MARGIN
        top = round(GROUND_ROW - y / zoom) + SCENE_MARGIN
        window = self.scene[top : top + tall, left : left + wide]
        picture = cv2.resize(window, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(picture, np.uint8)


def _wander(rng: np.random.Generator, count: int, sigma: tuple[float, float, float]) -> NDArray[np.float64]:
    """Jitter of a detector's boxes, float64 (count, 3): slow drift plus what changes from frame to frame."""
    white = rng.standard_normal((count, 3))
    slow = np.empty_like(white)
    slow[0] = rng.standard_normal(3)
    for frame in range(1, count):
        slow[frame] = 0.85 * slow[frame - 1] + 0.53 * white[frame]
    return np.clip(slow * 0.8 + white * 0.35, -2.2, 2.2) * sigma


def _shadow(picture: Image, x: float, y: float, scale: float) -> None:
    """Darken the ground below the feet."""
    half, flat = round(scale * 0.17), max(1, round(scale * 0.022))
    top, bottom = max(0, round(y) - flat), min(picture.shape[0], round(y) + flat)
    left, right = max(0, round(x) - half), min(picture.shape[1], round(x) + half)
    if top >= bottom or left >= right:
        return
    ground = picture[top:bottom, left:right]
    blob = np.zeros(ground.shape[:2], np.uint8)
    cv2.ellipse(blob, (round(x) - left, round(y) - top), (half, flat), 0, 0, 360, 1, -1)
    cv2.copyTo(cv2.convertScaleAbs(ground, alpha=0.6), blob, ground)
