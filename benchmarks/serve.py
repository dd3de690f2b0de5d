"""Throughput of the server against that of its bare encoder, in the same run on the same machine.

    python benchmarks/serve.py --bundle BUNDLE [--clients 1 4 16] [--seconds 15] [--rounds 3] [--name NAME]

Load: EmbedTracklet with tracklets of 8 synthetic JPEG frames, from client threads that share the machine's cores with
the server. Peer: the encoder alone, called in a loop with whole batches of decoded frames. Rounds of the two
alternate; medians are printed. `ratio` is the server's frames/s over the bare encoder's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from common import running_server, save
from numpy.typing import NDArray
from passerby_client import Client
from passerby_model import preprocess, snippets
from passerby_model.backends import Backend, open_backend
from passerby_model.bundle import open_bundle
from passerby_model.street import StreetConfig, generate
from PIL import Image

FRAMES = 8


def tracklets(count: int) -> list[NDArray[np.uint8]]:
    """`count` synthetic tracklets, uint8 (8, 256, 128, 3)."""
    config = StreetConfig(identities=count, cameras=1, frames=FRAMES, seed=1)
    return [tracklet.frames for tracklet in generate(config)]


def jpegs(frames: NDArray[np.uint8]) -> list[bytes]:
    """Each frame as a JPEG of quality 90."""
    encoded = []
    for frame in frames:
        buffer = BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def bare(backend: Backend, batch: NDArray[np.uint8], seconds: float) -> float:
    """Frames per second of the encoder alone, for about `seconds`."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        backend.encode(batch)
        done += batch.shape[0] * batch.shape[1]
    return done / (time.perf_counter() - start)


def served(address: str, load: list[list[bytes]], clients: int, seconds: float) -> tuple[float, list[float]]:
    """Frames per second through the server with `clients` clients at once, and each request's latency in seconds."""
    latencies: list[float] = []
    stop = time.perf_counter() + seconds
    barrier = threading.Barrier(clients)

    def work(number: int) -> tuple[int, float]:
        done = 0
        with Client(address, timeout=300) as client:
            client.model_info()  # connect
            barrier.wait()
            while time.perf_counter() < stop:
                start = time.perf_counter()
                client.embed(load[(number + done) % len(load)])
                latencies.append(time.perf_counter() - start)
                done += 1
        return done, time.perf_counter()

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(work, range(clients)))
    elapsed = max(end for _, end in results) - start
    return FRAMES * sum(done for done, _ in results) / elapsed, latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="snippets in a batch of the bare encoder")
    parser.add_argument("--name", help="also write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    people = tracklets(16)
    load = [jpegs(frames) for frames in people]
    split = snippets.split(FRAMES, bundle.manifest.input.snippet_length)
    size = (bundle.manifest.input.height, bundle.manifest.input.width)
    cut = [np.stack([preprocess.resize(frame, *size) for frame in frames])[split] for frames in people]
    batch = np.concatenate(cut)[: arguments.batch]
    backend = open_backend(bundle)
    backend.encode(batch)
    alone: list[float] = []
    through: dict[int, list[float]] = {clients: [] for clients in arguments.clients}
    waits: dict[int, list[float]] = {clients: [] for clients in arguments.clients}
    with tempfile.TemporaryDirectory() as folder, running_server(arguments.bundle, Path(folder) / "data") as address:
        for _ in range(arguments.rounds):
            alone.append(bare(backend, batch, arguments.seconds))
            for clients in arguments.clients:
                rate, latencies = served(address, load, clients, arguments.seconds)
                through[clients].append(rate)
                waits[clients] += latencies
    peak = statistics.median(alone)
    rows = [
        {
            "clients": clients,
            "tracklets_per_s": round(statistics.median(rates) / FRAMES, 2),
            "ratio": round(statistics.median(rates) / peak, 3),
            "p50_ms": round(1e3 * float(np.percentile(waits[clients], 50))),
            "p95_ms": round(1e3 * float(np.percentile(waits[clients], 95))),
        }
        for clients, rates in through.items()
    ]
    print(f"bare {backend.name}: {peak / FRAMES:.2f} tracklets/s of {FRAMES} frames")
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if arguments.name:
        result = {
            "bundle": bundle.manifest.name,
            "backend": backend.name,
            "bare_tracklets_per_s": round(peak / FRAMES, 2),
            "served": rows,
        }
        print(save(arguments.name, result))


if __name__ == "__main__":
    main()
