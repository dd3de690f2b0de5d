"""How hard the synthetic street is for colours alone, and how fast it is drawn.

python benchmarks/street_difficulty.py [--identities 60] [--cameras 3] [--frames 8] [--seeds 3]
"""

from __future__ import annotations

import argparse
import time

import cv2
from passerby_model.street import StreetConfig, StreetTracklet, generate
from passerby_model.street.difficulty import colour_baseline

# name, stripes, grey world, true silhouettes
VARIANTS = (
    ("6 stripes", 6, False, False),
    ("8 stripes", 8, False, False),
    ("6 stripes, grey world", 6, True, False),
    ("6 stripes, true silhouettes", 6, False, True),
    ("6 stripes, grey world, true silhouettes", 6, True, True),
)


def main() -> None:
    """Print rank-1 and mAP of HSV stripe histograms, and frames per second of one core."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--identities", type=int, default=60)
    parser.add_argument("--cameras", type=int, default=3)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3, help="streets to average over")
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    streets = [StreetConfig(asked.identities, asked.cameras, asked.frames, seed=seed) for seed in range(asked.seeds)]
    started = time.process_time()
    tracklets = [list(generate(street)) for street in streets]
    spent = time.process_time() - started
    print(f"{asked.identities} identities x {asked.cameras} cameras, same camera excluded, {asked.seeds} streets")
    print(f"chance rank-1 {100 / asked.identities:.1f}")
    for name, stripes, grey, masks in VARIANTS:
        results = [colour_baseline(seen, stripes=stripes, grey_world=grey, silhouette=masks) for seen in tracklets]
        rank1 = ", ".join(f"{100 * result.rank1:.1f}" for result in results)
        precision = ", ".join(f"{100 * result.mean_average_precision:.1f}" for result in results)
        print(f"{name:42s} rank-1 {rank1}   mAP {precision}")
    frames = sum(frame_count(seen) for seen in tracklets)
    print(f"{frames / spent:.0f} frames/s of processor time on one core, scenes included")


def frame_count(tracklets: list[StreetTracklet]) -> int:
    """Frames of all tracklets together."""
    return sum(len(tracklet.frames) for tracklet in tracklets)


if __name__ == "__main__":
    main()
