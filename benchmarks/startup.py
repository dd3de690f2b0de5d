"""Time from the start of `passerby serve` to health SERVING and to the first answered search; that search and the next ones.

    python benchmarks/startup.py --bundle bundles/street-ward-cosam45 --rounds 5 --name startup

Three ways in turn, round after round: OpenVINO with an empty cache folder, with a filled one, and ONNX Runtime. The
gallery has one tracklet, which is searched for by its frames, as JPEG. Medians, and ratios to the empty cache.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
from common import running_server, save
from grpc_health.v1 import health_pb2, health_pb2_grpc
from load import jpegs
from passerby_client import Client
from passerby_model.bundle import open_bundle
from passerby_model.street import StreetConfig, generate

WAYS = {"empty cache": "openvino", "filled cache": "openvino", "onnxruntime": "onnxruntime"}
GALLERY = "startup"
NEXT = 10
"""Searches after the first one, whose median it is compared with."""


def frames_of_one(snippet_length: int) -> list[bytes]:
    """A drawn person, as many frames as a snippet has, as JPEG."""
    config = StreetConfig(identities=1, cameras=1, frames=max(2, snippet_length), height=256, width=128, seed=5)
    return jpegs(next(generate(config)).frames[:snippet_length])


def start(bundle: Path, data: Path, frames: list[bytes], *flags: str) -> tuple[float, float, float, float]:
    """Seconds until health says SERVING, and until a search is answered, from the start of the process; seconds of that
    search, and of the next ones (median)."""
    begin = time.perf_counter()
    with running_server(bundle, data, *flags) as address:
        with grpc.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            asked = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        if asked.status != health_pb2.HealthCheckResponse.SERVING:
            raise RuntimeError("the server printed its ready line but health is not SERVING")
        serving = time.perf_counter() - begin
        with Client(address) as client:
            if GALLERY not in [gallery.name.rpartition("/")[2] for gallery in client.list_galleries()]:
                client.create_gallery(GALLERY)
                client.ingest_tracklet(GALLERY, frames, camera="1")
            client.get_gallery(GALLERY)  # connects
            before, searches = time.perf_counter() - begin, []
            for _ in range(1 + NEXT):
                at = time.perf_counter()
                client.search(GALLERY, frames=frames, top_k=1)
                searches.append(time.perf_counter() - at)
        return serving, before + searches[0], searches[0], statistics.median(searches[1:])


def main() -> None:
    """Parse flags, measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of the encoder; 0 for all cores")
    parser.add_argument("--name", help="also write benchmarks/results/NAME.json")
    options = parser.parse_args()
    manifest = open_bundle(options.bundle).manifest
    frames = frames_of_one(manifest.input.snippet_length)
    times: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        filled, data = root / "filled", root / "data"
        threads = ["--threads", str(options.threads)]
        # Fills the cache, the gallery, and the system's own cache of files.
        start(options.bundle, data, frames, "--backend", "openvino", "--cache", str(filled), *threads)
        for number in range(options.rounds):
            for way, backend in WAYS.items():
                cache = filled if way == "filled cache" else root / f"empty{number}-{backend}"
                flags = ["--backend", backend, "--cache", str(cache), *threads]
                times[way].append(start(options.bundle, data, frames, *flags))
    rows = {way: [statistics.median(column) for column in zip(*found, strict=True)] for way, found in times.items()}
    base = rows["empty cache"]
    for way, (serving, answered, first, following) in rows.items():
        print(
            f"{way:13} serving {serving:5.2f} s ({serving / base[0]:.2f}), "
            f"first search answered {answered:5.2f} s ({answered / base[1]:.2f}); it took {1e3 * first:.0f} ms, "
            f"the next {1e3 * following:.0f} ms"
        )
    if options.name:
        result: dict[str, object] = {
            "bundle": manifest.name,
            "rounds": options.rounds,
            "threads": options.threads,
            "seconds": {
                way: {"serving": round(s, 3), "answered": round(a, 3), "ratio_serving": round(s / base[0], 3)}
                | {
                    "ratio_answered": round(a / base[1], 3),
                    "first_search": round(first, 4),
                    "next_searches": round(n, 4),
                }
                for way, (s, a, first, n) in rows.items()
            },
        }
        print(save(options.name, result))


if __name__ == "__main__":
    main()
