"""What it costs and saves to decode large JPEGs at a half, a quarter or an eighth of their size.

    python benchmarks/reduced_jpeg.py --bundle BUNDLE [--people 12] [--rounds 5] [--threads 1] [--name NAME]

Drawn people, enlarged to 2, 4 and 8 times the encoder's input, JPEG quality 90. `factor` is the least size, in inputs,
at which a JPEG is decoded before it is resized to the input: 1 is straight at it, 2 is what the server does. Printed:
milliseconds a frame for decoding and resizing (median of the rounds, whole and reduced in turn), and the cosine of the
descriptors to those of the whole pictures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from common import save
from numpy.typing import NDArray
from passerby_model import preprocess
from passerby_model.backends import open_backend
from passerby_model.bundle import open_bundle
from passerby_model.street import StreetConfig, generate
from PIL import Image

SCALES = (2, 4, 8)
FACTORS = (1, 2)
Crops = list[list[bytes]]


def enlarged(people: int, length: int, height: int, width: int) -> Crops:
    """JPEGs of `people` tracklets of `length` frames, each height x width."""
    made = []
    for tracklet in generate(StreetConfig(identities=people, cameras=1, frames=length, seed=3)):
        jpegs = []
        for frame in tracklet.frames:
            buffer = BytesIO()
            large = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
            large.save(buffer, "JPEG", quality=90)
            jpegs.append(buffer.getvalue())
        made.append(jpegs)
    return made


def timed(crops: Crops, read: Callable[[bytes], NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], float]:
    """uint8 (people, frames, height, width, 3), and seconds a frame."""
    start = time.perf_counter()
    pixels = np.stack([np.stack([read(data) for data in jpegs]) for jpegs in crops])
    return pixels, (time.perf_counter() - start) / pixels[:, :, 0, 0, 0].size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", help="also write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    backend, size = open_backend(bundle, threads=arguments.threads), bundle.manifest.input
    height, width = size.height, size.width

    def reader(factor: int) -> Callable[[bytes], NDArray[np.uint8]]:
        """`factor` 0: the whole picture."""
        asked = (
            None
            if not factor
            else (height * factor // preprocess.REDUCED_FACTOR, width * factor // preprocess.REDUCED_FACTOR)
        )
        return lambda data: preprocess.resize(preprocess.decode(data, resized_to=asked), height, width)

    rows = []
    for scale in SCALES:
        crops = enlarged(arguments.people, size.snippet_length, height * scale, width * scale)
        seconds: dict[int, list[float]] = {factor: [] for factor in (0, *FACTORS)}
        descriptors = {}
        for _ in range(arguments.rounds):
            for factor, found in seconds.items():
                pixels, took = timed(crops, reader(factor))
                found.append(took)
                if factor not in descriptors:
                    made = np.concatenate([backend.encode(snippet[None]).descriptors for snippet in pixels])
                    descriptors[factor] = made / np.linalg.norm(made, axis=1, keepdims=True)
        for factor in FACTORS:
            cosines = (descriptors[0] * descriptors[factor]).sum(axis=1)
            row = {
                "frame": f"{height * scale} x {width * scale}",
                "factor": factor,
                "whole_ms": round(1e3 * statistics.median(seconds[0]), 2),
                "reduced_ms": round(1e3 * statistics.median(seconds[factor]), 2),
                "least_cosine": round(float(cosines.min()), 5),
                "median_cosine": round(float(np.median(cosines)), 5),
            }
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if arguments.name:
        print(save(arguments.name, {"bundle": bundle.manifest.name, "rows": rows}))


if __name__ == "__main__":
    main()
