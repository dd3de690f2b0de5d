"""k-reciprocal re-ranking of a MARS-size set: by tiles and sparse, and as the method is usually coded, dense.

    python benchmarks/rerank.py [--queries N] [--gallery N] [--width D] [--rounds N] [--threads N] [--name NAME]
        [--blocks] [--without-transcription] [--profile]

Both methods get the same synthetic descriptors and include the distances, each run in a process of its own, turn by
turn; medians are printed, and the peak of memory above the descriptors (the result is in it). --blocks takes the
result block by block and keeps each query's ten nearest, as one does where the whole of it is too large; with
--without-transcription the only way for 100,000 items:

    python benchmarks/rerank.py --queries 2000 --gallery 98000 --width 256 --rounds 1 --blocks --without-transcription
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from typing import Any

import numpy as np
from common import save
from descriptors import MARS, DescriptorSet, Measured, clustered, measure, median
from numpy.typing import NDArray
from passerby_model.metrics import evaluate
from passerby_model.neighbours import nearest_columns
from passerby_model.rerank import k_reciprocal_blocks, k_reciprocal_descriptors

K1, K2, ORIGINAL_WEIGHT = 20, 6, 0.3
NEAREST = 10


def by_tiles(data: DescriptorSet) -> NDArray[np.float32]:
    """What passerby does."""
    return k_reciprocal_descriptors(data.query, data.gallery, k1=K1, k2=K2, original_weight=ORIGINAL_WEIGHT)


def in_blocks(data: DescriptorSet) -> NDArray[np.int32]:
    """The same without ever holding the result: int32 (Q, NEAREST), the nearest gallery items."""
    nearest = np.empty((len(data.query), NEAREST), np.int32)
    for rows, distances in k_reciprocal_blocks(data.query, data.gallery, k1=K1, k2=K2, original_weight=ORIGINAL_WEIGHT):
        nearest[rows] = nearest_columns(distances, NEAREST)
    return nearest


def profiled(data: DescriptorSet) -> None:
    """`by_tiles`, and the functions in which its time goes."""
    profile = cProfile.Profile()
    profile.runcall(by_tiles, data)
    pstats.Stats(profile).sort_stats("tottime").print_stats(15)


def transcription(data: DescriptorSet) -> NDArray[np.float32]:
    """The method straight from its description, in the usual way: N x N distances, order and V, all dense, loops.

    A yardstick, not used by passerby: three Euclidean matrices are put together and squared, all rows are sorted in
    full, and every step visits one item after the other.
    """
    queries = len(data.query)
    across = _euclidean(data.query, data.gallery)
    within, beyond = _euclidean(data.query, data.query), _euclidean(data.gallery, data.gallery)
    distances = np.block([[within, across], [across.T, beyond]]) ** 2
    distances = (distances / distances.max(axis=0)).T
    order = np.argsort(distances, axis=1).astype(np.int32)
    encoding = _dense_encoding(distances, order)
    expanded = np.zeros_like(encoding)
    for item in range(len(encoding)):
        expanded[item] = encoding[order[item, :K2]].mean(axis=0)
    holders = [np.flatnonzero(expanded[:, item]) for item in range(len(expanded))]
    jaccard = np.empty((queries, len(expanded)), np.float32)
    for query in range(queries):
        shared = np.zeros(len(expanded), np.float32)
        for column in np.flatnonzero(expanded[query]).tolist():
            shared[holders[column]] += np.minimum(expanded[query, column], expanded[holders[column], column])
        jaccard[query] = 1.0 - shared / (2.0 - shared)
    mixed = (1.0 - ORIGINAL_WEIGHT) * jaccard + ORIGINAL_WEIGHT * distances[:queries]
    return np.ascontiguousarray(mixed[:, queries:])


def _euclidean(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2.0 * a @ b.T
    found: NDArray[np.float32] = np.sqrt(np.maximum(squared, 0.0))
    return found


def _dense_encoding(distances: NDArray[np.float32], order: NDArray[np.int32]) -> NDArray[np.float32]:
    """V, float32 (N, N)."""
    encoding = np.zeros_like(distances)
    for item in range(len(distances)):
        own = _reciprocal(order, item, K1)
        members = own
        for candidate in own.tolist():
            theirs = _reciprocal(order, candidate, round(K1 / 2))
            if len(np.intersect1d(theirs, own)) > 2 / 3 * len(theirs):
                members = np.append(members, theirs)
        members = np.unique(members)
        weights = np.exp(-distances[item, members])
        encoding[item, members] = weights / weights.sum()
    return encoding


def _reciprocal(order: NDArray[np.int32], item: int, k: int) -> NDArray[np.int32]:
    """Those of the item's k + 1 nearest that have it among theirs."""
    forward = order[item, : k + 1]
    backward = order[forward, : k + 1]
    return forward[np.nonzero(backward == item)[0]]


def agreement(ours: Measured, theirs: Measured, data: DescriptorSet) -> dict[str, float]:
    """How far the two results are apart, and the mAP of each.

    Neighbours whose distances differ in the last bit may change places; so the largest difference is no measure
    alone, and the share of differences beyond the golden tolerance stands beside it.
    """
    apart = np.abs(ours.value - theirs.value)
    labels = (data.query_ids, data.gallery_ids, data.query_cameras, data.gallery_cameras)
    return {
        "largest_difference": float(apart.max()),
        "share_beyond_1e-5": float((apart > 1e-5).mean()),
        "mAP": round(100 * evaluate(ours.value, *labels).mean_average_precision, 3),
        "mAP_transcription": round(100 * evaluate(theirs.value, *labels).mean_average_precision, 3),
    }


def main() -> None:
    arguments = _parse()
    sizes = {name: getattr(arguments, name) for name in MARS}
    ours = in_blocks if arguments.blocks else by_tiles
    methods = [ours] if arguments.without_transcription else [ours, transcription]
    runs: dict[str, list[Measured]] = {method.__name__: [] for method in methods}
    for _ in range(arguments.rounds):
        for method in methods:
            runs[method.__name__].append(measure(method, sizes, arguments.threads))
    result: dict[str, Any] = {**sizes, "threads": arguments.threads, "rounds": arguments.rounds}
    result |= {name: median(found) for name, found in runs.items()}
    if len(methods) == 2:
        result["ratio"] = round(result["transcription"]["seconds"] / result[ours.__name__]["seconds"], 2)
        if ours is by_tiles:
            data = clustered(**sizes)
            result |= agreement(runs["by_tiles"][0], runs["transcription"][0], data)
    for name, figure in result.items():
        print(f"{name}: {figure}")
    if arguments.profile:
        measure(profiled, sizes, arguments.threads)
    if arguments.name:
        print(save(arguments.name, result))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=MARS["queries"])
    parser.add_argument("--gallery", type=int, default=MARS["gallery"])
    parser.add_argument("--width", type=int, default=MARS["width"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", action="store_true", help="take the result block by block")
    parser.add_argument("--without-transcription", action="store_true")
    parser.add_argument("--profile", action="store_true", help="also print where the time goes, from one more run")
    parser.add_argument("--name", help="also write benchmarks/results/NAME.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
