"""Cameras: where they look from, and what their optics, light and coding do to a picture.

clean picture -> motion blur, blur -> resolution -> light gradient -> cast, gain, saturation
              -> contrast curve -> sensor noise -> back to the frame's size -> JPEG
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from passerby_model.street.scenes import STYLES, make_scene

Image = NDArray[np.uint8]
# Main directions in which people walk past the cameras, in degrees from "towards the camera".
VIEWS: tuple[tuple[str, float], ...] = (
    ("front", 8.0),
    ("side", 82.0),
    ("back", 172.0),
    ("oblique", 45.0),
    ("oblique back", 135.0),
    ("front", 22.0),
    ("side", 100.0),
    ("back", 157.0),
)
_NOISE_SHIFT = 24  # pixels by which a frame's noise is moved against the one before
SCENE_MARGIN = 256  # pixels of the scene, more than a window's reach beyond it
_LUMA = np.array((0.299, 0.587, 0.114))


@dataclass(frozen=True)
class Camera:
    """One camera of a street; constant over all people who pass."""

    index: int
    name: str
    view: str
    facing: float  # radians, main walking direction relative to the camera
    pitch: float  # radians, looking down
    light: float  # radians, side the light comes from
    gain: float
    cast: tuple[float, float, float]  # factors on red, green, blue
    saturation: float
    gamma: float
    lift: float  # grey levels added: haze
    gradient: float  # relative light difference across the frame
    gradient_direction: float  # radians
    resolution: float  # share of the frame's pixels per side that the sensor resolves
    blur: float  # sigma in pixels of a 256-row frame
    motion_blur: int  # pixels of a 256-row frame
    noise: float  # sigma in grey levels
    jpeg_quality: int
    frames_per_second: int
    position_m: float  # along the street, metres
    style: str  # of the scene


def make_camera(seed: int, index: int) -> Camera:
    """Camera `index` of the street `seed`; the same whenever asked."""
    rng = np.random.default_rng([seed, 2, index])
    view, degrees = VIEWS[index % len(VIEWS)]
    warm = rng.uniform(0.1, 0.32) * (1 if (index + seed) % 2 else -1)  # neighbours differ in cast
    tint = rng.uniform(-0.14, 0.14)
    return Camera(
        index=index,
        name=f"c{index + 1}",
        view=view,
        facing=math.radians(degrees),
        pitch=float(rng.uniform(0.05, 0.32)),
        light=float(rng.uniform(-1.0, 1.0)),
        gain=float(rng.uniform(0.6, 1.3)),
        cast=(float(1 + warm), float(1 + tint), float(1 - warm)),
        saturation=float(rng.uniform(0.55, 1.1)),
        gamma=float(rng.uniform(0.75, 1.35)),
        lift=float(rng.uniform(0, 26)),
        gradient=float(rng.uniform(0.1, 0.5)),
        gradient_direction=float(rng.uniform(0, 2 * math.pi)),
        resolution=float(rng.uniform(0.4, 0.9)),
        blur=float(rng.uniform(0.4, 1.1)),
        motion_blur=int(rng.integers(1, 6)),
        noise=float(rng.uniform(2, 9)),
        jpeg_quality=int(rng.integers(55, 93)),
        frames_per_second=int(rng.integers(8, 16)),
        position_m=float(index * 130 + rng.uniform(0, 60)),
        style=STYLES[int((index + seed) % len(STYLES))],
    )


@lru_cache(maxsize=64)
def scene_of(seed: int, index: int) -> Image:
    """The scene behind the people of a camera, scenes.make_scene; kept, because everybody passes it."""
    camera = make_camera(seed, index)
    scene = make_scene(camera.style, np.random.default_rng([seed, 5, index]))
    scene.flags.writeable = False
    return scene


@lru_cache(maxsize=64)
def endless_scene_of(seed: int, index: int) -> Image:
    """`scene_of`, mirrored beyond each edge by SCENE_MARGIN pixels, so that any window of it can be cut."""
    edge = SCENE_MARGIN
    mirrored = cv2.copyMakeBorder(scene_of(seed, index), edge, edge, edge, edge, cv2.BORDER_REFLECT)
    scene = np.asarray(mirrored, np.uint8)
    scene.flags.writeable = False
    return scene


@lru_cache(maxsize=64)
def _sensor_noise(camera: Camera, rows: int, columns: int) -> NDArray[np.int16]:
    """int16 (rows, columns, 3), more than a frame, so that each frame can take another piece of it."""
    noise = np.random.default_rng([camera.index, rows, columns]).standard_normal((rows, columns, 3), np.float32)
    return (noise * camera.noise).astype(np.int16)


class Optics:
    """A camera's effect on pictures of one size, with one tracklet's share of changing light.

    daylight: factor on the gain, 1 = as usual. All randomness comes from the `rng` given.
    """

    def __init__(self, camera: Camera, height: int, width: int, rng: np.random.Generator) -> None:
        self._camera, self._size = camera, (width, height)
        gain = camera.gain * rng.uniform(0.85, 1.15)
        drift = rng.uniform(0.95, 1.05, 3)
        grey = np.tile(_LUMA, (3, 1)) * (1 - camera.saturation) + np.eye(3) * camera.saturation
        cast = np.asarray(camera.cast) * drift
        self._mix = np.hstack([grey * cast[:, None] * gain, np.full((3, 1), camera.lift)]).astype(np.float32)
        levels = np.arange(256) / 255
        self._curve = np.clip(255 * levels**camera.gamma, 0, 255).astype(np.uint8)
        columns, rows = max(8, round(width * camera.resolution)), max(16, round(height * camera.resolution))
        self._small = (columns, rows)
        y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
        slope = x * math.cos(camera.gradient_direction) + y * math.sin(camera.gradient_direction)
        light: Image = np.clip((1 + camera.gradient * slope / 1.4) * 128, 0, 255).astype(np.uint8)
        self._light = np.ascontiguousarray(np.repeat(light[..., None], 3, axis=2))
        self._unit = height / 256
        self._noise = _sensor_noise(camera, rows + _NOISE_SHIFT, columns + _NOISE_SHIFT)

    def apply(self, picture: Image, shake: float, rng: np.random.Generator) -> Image:
        """uint8 (H, W, 3) -> uint8 (H, W, 3). shake: factor on the camera's motion blur."""
        camera = self._camera
        seen: Any = picture  # OpenCV's stubs do not follow the dtype
        length = round(camera.motion_blur * shake * self._unit)
        if length > 1:
            seen = cv2.blur(seen, (length, 1))
        seen = cv2.GaussianBlur(seen, (3, 3), camera.blur * self._unit)
        # Bilinear, not area: the blur has removed what would alias, and area costs five times as much.
        seen = cv2.resize(seen, self._small, interpolation=cv2.INTER_LINEAR)
        seen = cv2.multiply(seen, self._light, scale=1 / 128)
        seen = cv2.LUT(cv2.transform(seen, self._mix), self._curve)
        dy, dx = rng.integers(0, _NOISE_SHIFT + 1, 2)
        noise = self._noise[dy : dy + self._small[1], dx : dx + self._small[0]]
        seen = cv2.add(seen, noise, dtype=cv2.CV_8U)
        return np.asarray(cv2.resize(seen, self._size, interpolation=cv2.INTER_LINEAR), np.uint8)


def encode_jpeg(picture: Image, quality: int) -> bytes:
    """JPEG file of an RGB picture, uint8 (H, W, 3)."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(data)


def decode_jpeg(data: bytes) -> Image:
    """RGB picture uint8 (H, W, 3) of a JPEG file."""
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8)
