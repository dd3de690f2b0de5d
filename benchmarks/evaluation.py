"""Ranking figures of a MARS-size set: by tiles, and as the protocol is usually written down.

    python benchmarks/evaluation.py [--queries N] [--gallery N] [--width D] [--rounds N] [--threads N] [--name NAME]

Both methods get the same synthetic descriptors, each run in a process of its own, turn by turn; medians are printed,
and the peak of memory above the descriptors. They have to agree on CMC and mAP.
"""

from __future__ import annotations

import argparse

import numpy as np
from common import save
from descriptors import MARS, DescriptorSet, measure, median
from numpy.typing import NDArray
from passerby_model.metrics import evaluate_descriptors

Figures = tuple[float, float]  # mAP, rank-1


def by_tiles(data: DescriptorSet) -> Figures:
    """What passerby does."""
    result = evaluate_descriptors(
        data.query, data.gallery, data.query_ids, data.gallery_ids, data.query_cameras, data.gallery_cameras
    )
    return result.mean_average_precision, float(result.cmc[0])


def transcription(data: DescriptorSet) -> Figures:
    """The protocol's definition, straight: the whole matrix, all of it sorted, then one query after the other."""
    distances = (
        (data.query**2).sum(axis=1)[:, None] + (data.gallery**2).sum(axis=1)[None] - 2.0 * data.query @ data.gallery.T
    )
    order = np.argsort(distances, axis=1)
    precisions, first = [], []
    for query, ranked in enumerate(order):
        same_person = data.gallery_ids[ranked] == data.query_ids[query]
        same_camera = data.gallery_cameras[ranked] == data.query_cameras[query]
        hits = same_person[~(same_person & same_camera) & (data.gallery_ids[ranked] != -1)]
        if hits.any():
            precisions.append(_average_precision(hits))
            first.append(bool(hits[0]))
    return float(np.mean(precisions)), float(np.mean(first))


def _average_precision(hits: NDArray[np.bool_]) -> float:
    precision = np.cumsum(hits) / (np.arange(len(hits)) + 1.0)
    return float((precision * hits).sum() / hits.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=MARS["queries"])
    parser.add_argument("--gallery", type=int, default=MARS["gallery"])
    parser.add_argument("--width", type=int, default=MARS["width"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", help="also write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in MARS}
    turns = [
        (measure(by_tiles, sizes, arguments.threads), measure(transcription, sizes, arguments.threads))
        for _ in range(arguments.rounds)
    ]
    ours, theirs = ([turn[method] for turn in turns] for method in (0, 1))
    np.testing.assert_allclose(ours[0].value, theirs[0].value, atol=1e-5)  # near ties in the last bit
    result: dict[str, object] = {
        **sizes,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "mAP": round(100 * ours[0].value[0], 2),
        "rank_1": round(100 * ours[0].value[1], 2),
        "by_tiles": median(ours),
        "transcription": median(theirs),
        "ratio": round(median(theirs)["seconds"] / median(ours)["seconds"], 2),
    }
    for name, figure in result.items():
        print(f"{name}: {figure}")
    if arguments.name:
        print(save(arguments.name, result))


if __name__ == "__main__":
    main()
