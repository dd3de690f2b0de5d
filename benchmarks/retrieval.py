"""Rank-1 and mAP of a bundle on labelled tracklets, measured through a real server over gRPC.

    python benchmarks/retrieval.py --bundle BUNDLE --data FOLDER [--part test] [--query-camera 1]
        [--identities FILE] [--max-frames N] [--name NAME]

The tracklets of all other cameras are bulk-indexed, those of the query camera searched; then every tracklet is searched
against all, with its own camera excluded. Frames go over the wire as they lie on disk.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import rank_over_server, running_server, save
from passerby_client import Client
from passerby_indexer.bulk import index
from passerby_model.datasets import Tracklet, read
from passerby_model.metrics import RankingResult


def measure(
    client: Client, gallery_id: str, queries: list[Tracklet], stored: list[Tracklet], *, by_name: bool
) -> RankingResult:
    """Bulk-indexes `stored` into a new gallery and ranks it for each query."""
    client.create_gallery(gallery_id)
    report = index(client, gallery_id, stored)
    if report.failed:
        raise RuntimeError(f"{len(report.failed)} tracklets were refused: {report.failed[0]}")
    print(
        f"{gallery_id}: {report.stored} tracklets, {report.frames} frames indexed in {report.seconds:.1f} s", flush=True
    )
    return rank_over_server(client, gallery_id, queries, stored, by_name=by_name)


def thinned(tracklet: Tracklet, most: int) -> Tracklet:
    """At most `most` frames of a tracklet, evenly spread; all of them when `most` is 0."""
    if not most or len(tracklet.frames) <= most:
        return tracklet
    chosen = np.linspace(0, len(tracklet.frames) - 1, most).round().astype(int)
    return replace(tracklet, frames=tuple(tracklet.frames[i] for i in chosen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", default="test", choices=["all", "train", "test"])
    parser.add_argument("--query-camera", default="1")
    parser.add_argument("--identities", type=Path, help="file of identities to keep, one a line")
    parser.add_argument("--max-frames", type=int, default=0, help="of each tracklet, evenly spread; 0 for all")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--name", help="also write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    lines = arguments.identities.read_text().splitlines() if arguments.identities else []
    wanted = [line for line in lines if line and not line.startswith("#")] or None
    everyone = read(arguments.data, part=arguments.part, identities=wanted).tracklets
    tracklets = [thinned(tracklet, arguments.max_frames) for tracklet in everyone]
    queries = [t for t in tracklets if t.camera == arguments.query_camera]
    stored = [t for t in tracklets if t.camera != arguments.query_camera]
    result: dict[str, object] = {"tracklets": len(tracklets), "frames": sum(len(t.frames) for t in tracklets)}
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(arguments.bundle, Path(folder) / "data", "--backend", arguments.backend) as address,
        Client(address, timeout=600) as client,
    ):
        info = client.model_info()
        result |= {"bundle": info.bundle_name, "fingerprint": info.model_fingerprint}
        for gallery, q, g in [("by-camera", queries, stored), ("all-against-all", tracklets, tracklets)]:
            ranking = measure(client, gallery, q, g, by_name=q is g)
            result[gallery] = {
                "queries": ranking.valid_queries,
                "gallery": len(g),
                "rank_1": round(100 * float(ranking.cmc[0]), 1),
                "mAP": round(100 * ranking.mean_average_precision, 1),
            }
            print(f"{gallery}: {result[gallery]}", flush=True)
    if arguments.name:
        print(save(arguments.name, result))


if __name__ == "__main__":
    main()
