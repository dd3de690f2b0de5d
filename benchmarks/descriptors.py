"""Descriptors to measure with, and methods measured each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARS = {"queries": 1980, "gallery": 11310, "width": 2048}
"""Sizes of the MARS test set as usually evaluated: 626 people, and nearly a third of the gallery distractors."""

PEOPLE_PER_ITEM = 626 / 8062
DISTRACTORS = 3248 / 11310
LATENT = 64
"""People differ in this many ways; the descriptors are a random, rectified map of it, as after a ReLU."""


@dataclass(frozen=True)
class DescriptorSet:
    """Queries and gallery: descriptors float32 (Q, D) and (G, D), identities and cameras int64 (Q,) and (G,)."""

    query: NDArray[np.float32]
    gallery: NDArray[np.float32]
    query_ids: NDArray[np.int64]
    gallery_ids: NDArray[np.int64]
    query_cameras: NDArray[np.int64]
    gallery_cameras: NDArray[np.int64]


def clustered(queries: int, gallery: int, width: int, seed: int = 0) -> DescriptorSet:
    """People as clusters that overlap, with a shift for each of six cameras; distractors have identity 0."""
    rng = np.random.default_rng(seed)
    people = max(2, round(PEOPLE_PER_ITEM * (1.0 - DISTRACTORS) * gallery))
    centres = rng.standard_normal((people + 1, LATENT), np.float32)
    shifts = 0.5 * rng.standard_normal((6, LATENT), np.float32)
    to_width = rng.standard_normal((LATENT, width), np.float32) / np.float32(np.sqrt(LATENT))

    def items(count: int, ids: NDArray[np.int64], cameras: NDArray[np.int64]) -> NDArray[np.float32]:
        found = np.empty((count, width), np.float32)
        for start in range(0, count, 500):  # by parts: the peak of memory is to be the measured method's
            part = slice(start, min(start + 500, count))
            noise = rng.standard_normal((part.stop - start, LATENT), np.float32)
            own = np.where(ids[part, None] == 0, rng.standard_normal(noise.shape, np.float32), centres[ids[part]])
            np.maximum((own + shifts[cameras[part]] + 0.9 * noise) @ to_width, 0.0, out=found[part])
        return found

    query_ids, gallery_ids = rng.integers(1, people + 1, queries), rng.integers(1, people + 1, gallery)
    gallery_ids[rng.random(gallery) < DISTRACTORS] = 0
    query_cameras, gallery_cameras = rng.integers(6, size=queries), rng.integers(6, size=gallery)
    query = items(queries, query_ids, query_cameras)
    return DescriptorSet(
        query, items(gallery, gallery_ids, gallery_cameras), query_ids, gallery_ids, query_cameras, gallery_cameras
    )


@dataclass(frozen=True)
class Measured:
    """One run: seconds, the peak of resident memory above what the descriptors and the program took, what came out."""

    seconds: float
    peak_mib: float
    value: Any


def measure(method: Callable[[DescriptorSet], Any], sizes: dict[str, int], threads: int) -> Measured:
    """Runs `method` on `clustered(**sizes)` in a new process with `threads` threads for numpy's matrix products."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)  # read by the new process when it loads numpy
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_measured, method, sizes).result()


def _measured(method: Callable[[DescriptorSet], Any], sizes: dict[str, int]) -> Measured:
    data = clustered(**sizes)
    warm_up = np.ones((256, 256), np.float32)
    warm_up @ warm_up  # starts the threads
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    start = time.perf_counter()
    value = method(data)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(seconds, (peak - before) / 2**20, value)


def median(runs: list[Measured]) -> dict[str, float]:
    """Median seconds and the largest peak of several runs, rounded for a result file."""
    return {
        "seconds": round(float(np.median([run.seconds for run in runs])), 3),
        "peak_mib": round(max(run.peak_mib for run in runs), 1),
    }
