"""The server under mixed load for a long time: does it stay as fast, and does its memory stay what it was?

    python benchmarks/soak.py --bundle BUNDLE [--minutes 20] [--name NAME]

All at once: four clients that search with 8 JPEG frames, one bulk ingest that never ends, calls that are cancelled half-way,
frames that are no pictures, connections that come and go. Every twentieth of the time: searches a second, their p95,
memory, threads and open files of the server, and how many tracklets it holds.

Memory grows with the gallery (the index and SQLite's cache); `mb_a_1000_tracklets` is the growth of the second half over
what was stored in it. Without the bulk ingest (`--no-bulk`) nothing is stored, and memory has to stay flat.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from common import save, server_process
from load import EMBED, Measured, bulk_ingest, calls, embed_requests, jpegs, one, resident, sequence, tracklets
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as search_v1
from passerby_client import Client
from passerby_model.bundle import open_bundle

SEARCH = "/passerby.v1.SearchService/SearchTracklets"
SEARCHERS = 4
SAMPLES = 20


class Soak:
    """The load, until `stop`."""

    def __init__(self, address: str, people: list[list[bytes]]) -> None:
        self.address = address
        self.people = people
        self.stop = asyncio.Event()
        self.searches = Measured()
        self.cancelled = self.refused_frames = self.connects = 0

    async def run(self, *, bulk: bool) -> None:
        """Everything at once."""
        work = [self.search(), self.cancel(), self.send_rubbish(), self.come_and_go()]
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
            if bulk:
                group.create_task(bulk_ingest(self.address, "galleries/soak", self.people, self.stop))

    async def search(self) -> None:
        requests = [
            search_v1.SearchTrackletsRequest(
                parent="galleries/soak", frames=sequence(frames), top_k=10
            ).SerializeToString()
            for frames in self.people
        ]

        async def client(call: Any, number: int) -> None:
            while not self.stop.is_set():
                await one(call, requests[number % len(requests)], self.searches)
                number += 1

        async with calls(self.address, SEARCH, SEARCHERS) as made:
            await asyncio.gather(*(client(call, number) for number, call in enumerate(made)))

    async def cancel(self) -> None:
        requests = embed_requests(self.people)
        async with calls(self.address, EMBED) as (call,):
            while not self.stop.is_set():
                under_way = [call(request, timeout=30) for request in requests[:4]]
                await asyncio.sleep(0.02)
                for each in under_way:
                    each.cancel()
                await asyncio.gather(*under_way, return_exceptions=True)
                self.cancelled += len(under_way)
                await asyncio.sleep(1)

    async def send_rubbish(self) -> None:
        frames = resources.FrameSequence(frames=[resources.Frame(encoded=b"no picture" * 100)] * 8)
        request = model_v1.EmbedTrackletRequest(frames=frames).SerializeToString()
        async with calls(self.address, EMBED) as (call,):
            while not self.stop.is_set():
                try:
                    await call(request, timeout=30)
                except grpc.aio.AioRpcError as error:
                    self.refused_frames += error.code() is grpc.StatusCode.INVALID_ARGUMENT
                await asyncio.sleep(0.5)

    async def come_and_go(self) -> None:
        host, _, port = self.address.rpartition(":")
        while not self.stop.is_set():
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"PRI * HTTP/2.0\r\n")
            writer.close()
            self.connects += 1
            await asyncio.sleep(0.2)


async def soak(address: str, pid: int, people: list[list[bytes]], seconds: float, *, bulk: bool) -> dict[str, Any]:
    """Runs the load for `seconds`; its figures."""
    running, rows, start = Soak(address, people), [], time.perf_counter()
    task = asyncio.create_task(running.run(bulk=bulk))
    with Client(address, timeout=300) as client:
        for number in range(SAMPLES):
            before = len(running.searches.answered)
            await asyncio.sleep(max(0.0, start + (number + 1) * seconds / SAMPLES - time.perf_counter()))
            if task.done():
                break
            latest = running.searches.answered[before:]
            stats = await asyncio.to_thread(client.gallery_stats, "soak")
            rows.append(_sample(pid, time.perf_counter() - start, latest, seconds / SAMPLES, stats.tracklet_count))
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    running.stop.set()
    await task
    half, last = rows[len(rows) // 2], rows[-1]
    stored = last["tracklets"] - half["tracklets"]
    return {
        "minutes": round(seconds / 60, 1),
        "searches": {"refused": len(running.searches.refused), "failed": running.searches.failed},
        "cancelled": running.cancelled,
        "refused_frames": running.refused_frames,
        "connects": running.connects,
        "growth_mb": {
            "first_half": round(half["mb"] - rows[0]["mb"], 1),
            "second_half": round(last["mb"] - half["mb"], 1),
        },
        "mb_a_1000_tracklets": round(1000 * (last["mb"] - half["mb"]) / stored, 2) if stored else None,
        "samples": rows,
    }


def _sample(pid: int, at: float, latest: list[float], seconds: float, tracklet_count: int) -> dict[str, Any]:
    return {
        "minute": round(at / 60, 1),
        "searches_per_s": round(len(latest) / seconds, 2),
        "p95_ms": round(1e3 * float(np.percentile(latest, 95))) if latest else None,
        "mb": round(resident(pid), 1),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "tracklets": tracklet_count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--no-bulk", action="store_true", help="store nothing while it runs")
    parser.add_argument("--name", help="also write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    people = [jpegs(frames) for frames in tracklets(16)]
    with (
        tempfile.TemporaryDirectory() as folder,
        server_process(arguments.bundle, Path(folder) / "data", "--log-level", "warning") as (address, pid),
    ):
        with Client(address, timeout=300) as client:
            client.create_gallery("soak")
            for number, frames in enumerate(people):
                client.ingest_tracklet("soak", frames, camera="1", identity=str(number))
        result = asyncio.run(soak(address, pid, people, 60 * arguments.minutes, bulk=not arguments.no_bulk))
    print({key: value for key, value in result.items() if key != "samples"})
    if arguments.name:
        print(save(arguments.name, {"bundle": open_bundle(arguments.bundle).manifest.name} | result))


if __name__ == "__main__":
    main()
