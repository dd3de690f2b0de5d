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
_ROUND = np.array([(math.cos(k * math.pi / 8), math.sin(k * math.pi / 8)) for k in range(16)])


class Canvas:
    """image: uint8 (H, W, 3) RGB; labels: uint8 (H, W) of the values above. Points are (x, y) in pixels."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.height, self.width = image.shape[:2]
        self.labels: Image = np.zeros((self.height, self.width), np.uint8)
        self._mask: Image = np.zeros((self.height, self.width), np.uint8)

    def polygon(self, points: Sequence[Vec], colour: Colour, label: int) -> None:
        """Fill a convex polygon."""
        # Rounded in Python: for so few points NumPy's calls would take most of the time.
        corners = np.array([(int(x * _UNIT + 0.5), int(y * _UNIT + 0.5)) for x, y in points], np.int32)
        cv2.fillConvexPoly(self.image, corners, colour, cv2.LINE_8, _SHIFT)
        cv2.fillConvexPoly(self.labels, corners, label, cv2.LINE_8, _SHIFT)

    def hull(self, points: Sequence[Vec], colour: Colour, label: int) -> None:
        """Fill the convex hull of the points."""
        corners = cv2.convexHull(np.array(points, np.float32))[:, 0]
        self.polygon(corners.tolist(), colour, label)

    def ellipse(self, centre: Vec, radii: Vec, colour: Colour, label: int) -> None:
        """Fill an upright ellipse."""
        corners = ((_ROUND * radii + centre + 0.5 / _UNIT) * _UNIT).astype(np.int32)
        cv2.fillConvexPoly(self.image, corners, colour, cv2.LINE_8, _SHIFT)
        cv2.fillConvexPoly(self.labels, corners, label, cv2.LINE_8, _SHIFT)

    def line(self, points: Sequence[Vec], thickness: float, colour: Colour, label: int) -> None:
        """Draw an open line, at least one pixel thick."""
        corners = np.array([(int(x * _UNIT + 0.5), int(y * _UNIT + 0.5)) for x, y in points], np.int32)
        wide = max(1, round(thickness))
        cv2.polylines(self.image, [corners], False, colour, wide, cv2.LINE_8, _SHIFT)
        cv2.polylines(self.labels, [corners], False, label, wide, cv2.LINE_8, _SHIFT)

    def textured(
        self, points: Sequence[Vec], texture: Image, corners: tuple[Vec, Vec, Vec], label: int, *, smooth: bool = True
    ) -> None:
        """Fill a polygon with `texture` (uint8 (h, w, 3)).

        corners: where the texture's top left, top right and bottom left go; beyond, its edge is repeated.
        """
        outline = np.array([(int(x * _UNIT + 0.5), int(y * _UNIT + 0.5)) for x, y in points], np.int32)
        across, down = zip(*points, strict=True)
        box = (min(across), min(down), max(across), max(down))
        self._fill(outline, box, texture, corners, label, cv2.INTER_LINEAR)

    def limb(self, a: Vec, b: Vec, radii: Vec, texture: Image, label: int) -> None:
        """A tapered limb with round ends from a to b, its texture (uint8 (h, w, 3)) along it."""
        (ax, ay), (bx, by), (near, far) = a, b, radii
        dx, dy = bx - ax, by - ay
        length = math.hypot(dx, dy)
        if length < 1.0:  # seen end on
            dx, dy, length = 0.0, 1.0, 1.0
        tx, ty = dx / length, dy / length
        nx, ny = ty, -tx  # to the picture's right on a limb that hangs down
        frame = np.array(
            [(nx * near, ny * near), (tx * near, ty * near), a, (nx * far, ny * far), (tx * far, ty * far), b]
        )
        outline = (_LIMB_ENDS @ frame + 0.5 / _UNIT) * _UNIT
        wide = max(radii)
        left, top = ax - nx * wide, ay - ny * wide
        corners = ((left, top), (ax + nx * wide, ay + ny * wide), (left + dx, top + dy))
        box = (min(ax - near, bx - far), min(ay - near, by - far), max(ax + near, bx + far), max(ay + near, by + far))
        # Not interpolated: limbs are small, the camera blurs them, and it takes a third of the time.
        self._fill(outline.astype(np.int32), box, texture, corners, label, cv2.INTER_NEAREST)

    def _fill(
        self,
        outline: NDArray[np.int32],
        box: tuple[float, float, float, float],
        texture: Image,
        corners: tuple[Vec, Vec, Vec],
        label: int,
        flags: int,
    ) -> None:
        x0, y0 = max(int(box[0]) - 1, 0), max(int(box[1]) - 1, 0)
        x1, y1 = min(int(box[2]) + 2, self.width), min(int(box[3]) + 2, self.height)
        if x1 <= x0 or y1 <= y0:
            return
        rows, columns = texture.shape[:2]
        (ax, ay), (bx, by), (cx, cy) = corners
        matrix = np.array(
            (
                ((bx - ax) / columns, (cx - ax) / rows, ax - x0),
                ((by - ay) / columns, (cy - ay) / rows, ay - y0),
            )
        )
        size = (x1 - x0, y1 - y0)
        patch = cv2.warpAffine(texture, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        mask = self._mask[y0:y1, x0:x1]
        mask[:] = 0
        cv2.fillPoly(mask, [outline], 255, cv2.LINE_8, _SHIFT, (-x0 * _UNIT, -y0 * _UNIT))
        cv2.copyTo(patch, mask, self.image[y0:y1, x0:x1])
        cv2.fillPoly(self.labels, [outline], label, cv2.LINE_8, _SHIFT)


def _limb_ends() -> NDArray[np.float64]:
    """(10, 6): the corners of a limb as sums of (across, along, centre) of its near and of its far end."""
    near = [(-1.0, 0.0), (-0.7, -0.7), (0.0, -1.0), (0.7, -0.7), (1.0, 0.0)]
    far = [(1.0, 0.0), (0.7, 0.7), (0.0, 1.0), (-0.7, 0.7), (-1.0, 0.0)]
    return np.array([(*end, 1, 0, 0, 0) for end in near] + [(0, 0, 0, *end, 1) for end in far])


_LIMB_ENDS = _limb_ends()
