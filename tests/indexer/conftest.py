from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(seed: int) -> bytes:
    """A small JPEG; another for each seed."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Plain layout: identities a to d, cameras 1 and 2, one tracklet t1 each of 3 frames: 8 tracklets, 24 frames."""
    root = tmp_path / "data"
    for number, (identity, camera) in enumerate((i, c) for i in "abcd" for c in "12"):
        place = root / identity / camera / "t1"
        place.mkdir(parents=True)
        for frame in range(3):
            (place / f"{frame:03d}.jpg").write_bytes(picture(10 * number + frame))
    return root
