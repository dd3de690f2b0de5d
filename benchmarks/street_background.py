"""What frames of a street have in common, the person or the background: correlation of pixels at the same place.

python benchmarks/street_background.py [--identities 12] [--cameras 5] [--seed 2019]
"""

from __future__ import annotations

import argparse
import json

import cv2
import numpy as np
from numpy.typing import NDArray
from passerby_model.street import StreetConfig, generate

GAPS = (1, 3, 8, 16)  # frames between the two that are compared


def main() -> None:
    """Print the mean correlation for each gap, over all tracklets, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--identities", type=int, default=12)
    parser.add_argument("--cameras", type=int, default=5)
    parser.add_argument("--seed", type=int, default=2019)
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    found: dict[int, list[tuple[float, float]]] = {gap: [] for gap in GAPS}
    for tracklet in generate(StreetConfig(asked.identities, asked.cameras, 24, seed=asked.seed)):
        person = tracklet.labels > 0
        for gap in GAPS:
            first, later = tracklet.frames[0], tracklet.frames[gap]
            background = likeness(first, later, ~person[0] & ~person[gap])
            found[gap].append((background, likeness(first, later, person[0] & person[gap])))
    rows = [(gap, np.nanmean(values, axis=0).round(3).tolist()) for gap, values in found.items()]
    figures = [{"frames_apart": gap, "background": values[0], "person": values[1]} for gap, values in rows]
    print(
        json.dumps({"command": "python benchmarks/street_background.py", **vars(asked), "figures": figures}, indent=2)
    )


def likeness(a: NDArray[np.uint8], b: NDArray[np.uint8], where: NDArray[np.bool_]) -> float:
    """Correlation of the pixels of two frames, uint8 (H, W, 3), where `where`; NaN for less than 20 of them."""
    if where.sum() < 20:
        return float("nan")
    return float(np.corrcoef(a[where].ravel(), b[where].ravel())[0, 1])


if __name__ == "__main__":
    main()
