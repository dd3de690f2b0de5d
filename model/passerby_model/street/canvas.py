"""A picture and a map of what is where, painted together from back to front."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from passerby_model.street.people import Colour

Image = NDArray[np.uint8]
Vec = tuple[float, float]

# Values of the label map. What belongs to the person and is no accessory is PERSON.
BACKGROUND, PERSON, BACKPACK, HANDBAG, HAT, UMBRELLA = range(6)
ACCESSORIES = {"backpack": BACKPACK, "handbag": HANDBAG, "hat": HAT, "umbrella": UMBRELLA}

_SHIFT = 4  # OpenCV's fixed-point bits: corners lie on sixteenths of a pixel
_UNIT = 1 << _SHIFT
_ROUND = [(math.cos(k * math.pi / 8), math.sin(k * math.pi / 8)) for k in range(16)]


class Canvas:
    """image: uint8 (H, W, 3) RGB; labels: uint8 (H, W) of the values above. Points are (x, y) in pixels."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.height, self.width = image.shape[:2]
        self.labels: Image = np.zeros((self.height, self.width), np.uint8)
        self._mask: Image = np.zeros((self.height, self.width), np.uint8)

    def polygon(self, points: Sequence[Vec], colour: Colour, label: int) -> None:
        """Fill a convex polygon."""
        corners = np.rint(np.array(points, np.float32) * _UNIT).astype(np.int32)
        cv2.fillConvexPoly(self.image, corners, colour, cv2.LINE_8, _SHIFT)
        cv2.fillConvexPoly(self.labels, corners, label, cv2.LINE_8, _SHIFT)

    def hull(self, points: Sequence[Vec], colour: Colour, label: int) -> None:
        """Fill the convex hull of the points."""
        corners = cv2.convexHull(np.array(points, np.float32))[:, 0]
        self.polygon(corners.tolist(), colour, label)

    def ellipse(self, centre: Vec, radii: Vec, colour: Colour, label: int) -> None:
        """Fill an upright ellipse."""
        self.polygon([(centre[0] + c * radii[0], centre[1] + s * radii[1]) for c, s in _ROUND], colour, label)

    def line(self, points: Sequence[Vec], thickness: float, colour: Colour, label: int) -> None:
        """Draw an open line, at least one pixel thick."""
        corners = np.rint(np.array(points, np.float32) * _UNIT).astype(np.int32)
        wide = max(1, round(thickness))
        cv2.polylines(self.image, [corners], False, colour, wide, cv2.LINE_8, _SHIFT)
        cv2.polylines(self.labels, [corners], False, label, wide, cv2.LINE_8, _SHIFT)

    def textured(self, points: Sequence[Vec], texture: Image, corners: tuple[Vec, Vec, Vec], label: int) -> None:
        """Fill a polygon with `texture` (uint8 (h, w, 3)).

        corners: where the texture's top left, top right and bottom left go; beyond, its edge is repeated.
        """
        outline = np.rint(np.array(points, np.float32) * _UNIT).astype(np.int32)
        x0, y0 = np.maximum(outline.min(0) // _UNIT, 0).tolist()
        x1, y1 = (outline.max(0) // _UNIT + 2).tolist()
        x1, y1 = min(x1, self.width), min(y1, self.height)
        if x1 <= x0 or y1 <= y0:
            return
        rows, columns = texture.shape[:2]
        (ax, ay), (bx, by), (cx, cy) = corners
        matrix = np.array(
            [
                [(bx - ax) / columns, (cx - ax) / rows, ax - x0],
                [(by - ay) / columns, (cy - ay) / rows, ay - y0],
            ]
        )
        patch = cv2.warpAffine(
            texture, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        mask = self._mask[y0:y1, x0:x1]
        mask[:] = 0
        cv2.fillPoly(mask, [outline - (x0 * _UNIT, y0 * _UNIT)], 255, cv2.LINE_8, _SHIFT)
        inside = mask.view(bool)
        cv2.copyTo(patch, mask, self.image[y0:y1, x0:x1])
        self.labels[y0:y1, x0:x1][inside] = label

    def limb(self, a: Vec, b: Vec, radii: Vec, texture: Image, label: int) -> None:
        """A tapered limb with round ends from a to b, its texture (uint8 (h, w, 3)) along it."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        length = max(math.hypot(dx, dy), 1.0)
        tx, ty = dx / length, dy / length
        if tx == 0 and ty == 0:
            ty = 1.0
        nx, ny = ty, -tx  # to the picture's right on a limb that hangs down
        points = [_offset(a, nx, ny, tx, ty, radii[0], *end) for end in _NEAR_END]
        points += [_offset(b, nx, ny, tx, ty, radii[1], *end) for end in _FAR_END]
        wide = max(radii)
        corners = (
            (a[0] - nx * wide, a[1] - ny * wide),
            (a[0] + nx * wide, a[1] + ny * wide),
            (a[0] - nx * wide + tx * length, a[1] - ny * wide + ty * length),
        )
        self.textured(points, texture, corners, label)


# (across, along) of the points of a limb's round ends.
_NEAR_END = [(-1.0, 0.0), (-0.7, -0.7), (0.0, -1.0), (0.7, -0.7), (1.0, 0.0)]
_FAR_END = [(1.0, 0.0), (0.7, 0.7), (0.0, 1.0), (-0.7, 0.7), (-1.0, 0.0)]


def _offset(point: Vec, nx: float, ny: float, tx: float, ty: float, radius: float, across: float, along: float) -> Vec:
    x = point[0] + (nx * across + tx * along) * radius
    return x, point[1] + (ny * across + ty * along) * radius
