"""The server under load, beside its bare encoder: in one run, on one machine, with the load generator on the same cores.

    python benchmarks/serve.py --bundle BUNDLE [--parts ...] [--seconds 15] [--overload 60] [--rounds 3] [--name NAME]

Tracklets of 8 drawn JPEG frames of 256 x 128. Parts:

- saturated  frames/s of 16 clients that send all the time, over those of the encoder alone, called in a loop with whole
             batches of decoded frames; rounds of the two alternate, medians. Target: `--ratio` (0.95; 0.85 for a light
             model).
- lone       one client's p50 over decoding and encoding the same tracklets in this process; alternating. Target 1.15.
- small      GetModelInfo a second, 32 clients.
- load       calls at 50, 80, 100 and 400 % of the saturated rate with exponential gaps, whatever the answers do, each
             with a deadline of 10 s: percentiles, and at 400 % for `--overload` seconds the answered calls over the
             saturated ones (target 0.9), how soon refusals came (target: p99 below 50 ms) and the server's memory.
- bulk       p95 of a client that asks, thinks for 50 ms and asks again, with a bulk ingest running over that without
             (target 3); what the bulk ingest stores a second, alone and beside it.

Server and bare encoder run with the defaults, what `passerby bundle tune` found put aside.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import save, server_process
from load import (
    FRAMES,
    INFO,
    Measured,
    bulk_ingest,
    closed_loop,
    embed_requests,
    jpegs,
    memory,
    open_loop,
    sequence,
    tracklets,
)
from numpy.typing import NDArray
from passerby.v1 import model_service_pb2 as model_v1
from passerby_client import Client
from passerby_model import snippets
from passerby_model.backends import Backend, default_max_batch, open_backend
from passerby_model.backends.cores import usable_cores
from passerby_model.bundle import Bundle, open_bundle
from passerby_server.decode import Decoder
from passerby_server.sections import Limits

PARTS = ("saturated", "lone", "small", "load", "bulk")
CLIENTS = 16
SMALL_CLIENTS = 32
LOADS = (0.5, 0.8, 1.0)
OVERLOAD = 4.0
DEADLINE = 10.0
THINK_SECONDS = 0.05
# Memory that is still being taken in this part of the overload is that of a server that fills up, not of one that leaks.
FILLING = 0.25


@dataclass
class Bench:
    """One server, and the same encoder in this process."""

    address: str
    pid: int
    bundle: Bundle
    backend: Backend
    people: list[list[bytes]]
    seconds: float
    rounds: int
    peak: float = 0.0
    """Tracklets a second at saturation."""

    @property
    def requests(self) -> list[bytes]:
        return embed_requests(self.people)

    def decoded(self) -> list[NDArray[np.uint8]]:
        """Each tracklet as the encoder takes it, uint8 (S, N, H, W, 3)."""
        return [asyncio.run(self._decode(frames)) for frames in self.people]

    async def _decode(self, frames: list[bytes]) -> NDArray[np.uint8]:
        size = self.bundle.manifest.input
        decoder = Decoder(size.height, size.width, Limits(), usable_cores())
        try:
            pixels = await decoder.decode(sequence(frames).frames, 0, "frames")
        finally:
            decoder.close()
        return pixels[snippets.split(len(frames), size.snippet_length)]


async def saturated(bench: Bench) -> dict[str, Any]:
    """Throughput of the server over that of the bare encoder."""
    batch_size = default_max_batch(bench.bundle.manifest.input.snippet_length)
    cut = np.concatenate(await asyncio.to_thread(bench.decoded))
    batch = np.concatenate([cut] * -(-batch_size // len(cut)))[:batch_size]
    bench.backend.encode(batch)
    alone, through = [], []
    for _ in range(bench.rounds):
        alone.append(await asyncio.to_thread(_bare, bench.backend, batch, bench.seconds))
        measured = await closed_loop(bench.address, bench.requests, CLIENTS, bench.seconds)
        through.append(len(measured.answered) / measured.seconds)
    bench.peak, bare = statistics.median(through), statistics.median(alone)
    return {
        "bare_tracklets_per_s": round(bare, 2),
        "served_tracklets_per_s": round(bench.peak, 2),
        "ratio": round(bench.peak / bare, 3),
        "rounds": [[round(a, 2), round(b, 2)] for a, b in zip(alone, through, strict=True)],
    }


def _bare(backend: Backend, batch: NDArray[np.uint8], seconds: float) -> float:
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        backend.encode(batch)
        done += batch.shape[0] * batch.shape[1]
    return done / FRAMES / (time.perf_counter() - start)


async def lone(bench: Bench) -> dict[str, Any]:
    """Latency of one client over decoding and encoding in this process."""
    here: list[float] = []
    served: list[float] = []
    size = bench.bundle.manifest.input
    decoder = Decoder(size.height, size.width, Limits(), usable_cores())
    split = snippets.split(FRAMES, size.snippet_length)
    messages = [model_v1.EmbedTrackletRequest.FromString(request).frames.frames for request in bench.requests]
    for _ in range(bench.rounds):
        stop = time.perf_counter() + bench.seconds / 2
        while time.perf_counter() < stop:
            start = time.perf_counter()
            pixels = await decoder.decode(messages[len(here) % len(messages)], 0, "frames")
            await asyncio.to_thread(bench.backend.encode, pixels[split])
            here.append(time.perf_counter() - start)
        served += (await closed_loop(bench.address, bench.requests, 1, bench.seconds / 2)).answered
    decoder.close()
    medians = statistics.median(here), statistics.median(served)
    return {
        "decode_and_encode_ms": round(1e3 * medians[0], 1),
        "served_p50_ms": round(1e3 * medians[1], 1),
        "ratio": round(medians[1] / medians[0], 3),
    }


async def small(bench: Bench) -> dict[str, Any]:
    """Calls that do next to nothing."""
    return (await closed_loop(bench.address, [b""], SMALL_CLIENTS, bench.seconds, method=INFO)).row()


async def load(bench: Bench, overload_seconds: float) -> dict[str, Any]:
    """An open loop at several rates."""
    rows: dict[str, Any] = {}
    for part in LOADS:
        measured = await open_loop(
            bench.address, bench.requests, part * bench.peak, bench.seconds * 2, timeout=DEADLINE
        )
        rows[f"{part:.0%}"] = measured.row()
    found: list[float] = []
    watching = asyncio.create_task(memory(bench.pid, overload_seconds / 60, found))
    measured = await open_loop(bench.address, bench.requests, OVERLOAD * bench.peak, overload_seconds, timeout=DEADLINE)
    watching.cancel()
    filled = found[int(FILLING * len(found)) :]
    rows[f"{OVERLOAD:.0%}"] = measured.row() | {
        "goodput": round(len(measured.answered) / measured.seconds / bench.peak, 3),
        "memory_mb": {
            "begin": round(found[0]),
            "filled": round(filled[0]),
            "end": round(filled[-1]),
            "most": round(max(found)),
        },
    }
    return rows


async def bulk(bench: Bench, client: Client) -> dict[str, Any]:
    """An interactive client without and with a bulk ingest; rounds alternate."""
    client.create_gallery("bulk")
    quiet, busy = Measured(), Measured()
    stored: dict[str, list[float]] = {"alone": [], "beside": []}

    async def asking(into: Measured) -> None:
        measured = await closed_loop(bench.address, bench.requests, 1, bench.seconds, pause=THINK_SECONDS)
        into.answered += measured.answered
        into.seconds += measured.seconds

    async def storing(name: str, meanwhile: Awaitable[None]) -> None:
        stop, start = asyncio.Event(), time.perf_counter()
        task = asyncio.create_task(bulk_ingest(bench.address, "galleries/bulk", bench.people, stop))
        await meanwhile
        stop.set()
        stored[name].append(await task / (time.perf_counter() - start))

    for _ in range(bench.rounds):
        await asking(quiet)
        await storing("beside", asking(busy))
        await storing("alone", asyncio.sleep(bench.seconds))
    p95 = [float(np.percentile(measured.answered, 95)) for measured in (quiet, busy)]
    return {
        "without": quiet.row(),
        "with": busy.row(),
        "p95_ratio": round(p95[1] / p95[0], 2),
        "stored_per_s": {name: round(statistics.median(rates), 2) for name, rates in stored.items()},
    }


def verdicts(result: dict[str, Any], least_ratio: float) -> list[tuple[str, float, str, bool]]:
    """What was measured of each target: name, figure, target, met."""
    overload = f"{OVERLOAD:.0%}"
    wanted: list[tuple[str, Callable[[], float], str, Callable[[float], bool]]] = [
        ("saturated over bare", lambda: result["saturated"]["ratio"], f">= {least_ratio}", lambda x: x >= least_ratio),
        ("lone p50 over decode + encode", lambda: result["lone"]["ratio"], "<= 1.15", lambda x: x <= 1.15),
        ("goodput at 400 %", lambda: result["load"][overload]["goodput"], ">= 0.9", lambda x: x >= 0.9),
        ("refusals at 400 %, p99 ms", lambda: result["load"][overload]["refusal_ms"]["p99"], "< 50", lambda x: x < 50),
        ("memory at 400 %, end over filled", lambda: _growth(result["load"][overload]), "<= 1.05", lambda x: x <= 1.05),
        ("interactive p95 with bulk over without", lambda: result["bulk"]["p95_ratio"], "<= 3", lambda x: x <= 3),
    ]
    rows = []
    for name, figure, target, met in wanted:
        try:
            value = figure()
        except KeyError:  # the part was left out, or nothing was refused
            continue
        rows.append((name, value, target, met(value)))
    return rows


def _growth(row: dict[str, Any]) -> float:
    return round(float(row["memory_mb"]["end"] / row["memory_mb"]["filled"]), 3)


async def measure(bench: Bench, parts: list[str], overload_seconds: float) -> dict[str, Any]:
    """All `parts`; the saturated rate is measured first whenever the load part needs it."""
    result: dict[str, Any] = {}
    with Client(bench.address, timeout=300) as client:
        steps: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "saturated": lambda: saturated(bench),
            "lone": lambda: lone(bench),
            "small": lambda: small(bench),
            "load": lambda: load(bench, overload_seconds),
            "bulk": lambda: bulk(bench, client),
        }
        for name, step in steps.items():
            if name in parts or (name == "saturated" and "load" in parts):
                result[name] = await step()
                print(name, result[name], flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--overload", type=float, default=60.0, help="seconds at 400 %%")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--ratio", type=float, default=0.95, help="target of saturated over bare: 0.85 for a light model"
    )
    parser.add_argument("--name", help="also write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    people = [jpegs(frames) for frames in tracklets(16)]
    with (
        tempfile.TemporaryDirectory() as folder,
        server_process(
            arguments.bundle, Path(folder) / "data", "--set", "cache.tuning=false", "--log-level", "warning"
        ) as (address, pid),
    ):
        bench = Bench(address, pid, bundle, open_backend(bundle), people, arguments.seconds, arguments.rounds)
        result = asyncio.run(measure(bench, arguments.parts, arguments.overload))
    rows = verdicts(result, arguments.ratio)
    for name, value, target, met in rows:
        print(f"{name:40s} {value:8.3f}  target {target:8s} {'met' if met else 'MISSED'}")
    if arguments.name:
        targets = [{"what": name, "figure": value, "target": target, "met": met} for name, value, target, met in rows]
        about = {"bundle": bundle.manifest.name, "backend": bench.backend.name, "precision": bench.backend.precision}
        print(save(arguments.name, about | {"targets": targets} | result))


if __name__ == "__main__":
    main()
