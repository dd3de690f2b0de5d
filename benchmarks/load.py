"""Load on a running server: tracklets as JPEGs, sent by a closed loop (as fast as answers come) or an open one (at a rate).

Requests are serialised once and sent over raw stubs: what is measured is the server, on a machine that both share.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from passerby.errors import from_rpc_error
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_model.street import StreetConfig, generate
from PIL import Image

FRAMES = 8
# Seconds that a closed loop runs before it counts.
WARM_UP = 5.0
EMBED = "/passerby.v1.ModelService/EmbedTracklet"
INFO = "/passerby.v1.ModelService/GetModelInfo"
BULK = "/passerby.v1.TrackletService/BulkIngestTracklets"
Call = Callable[..., Any]


def tracklets(count: int) -> list[NDArray[np.uint8]]:
    """`count` drawn tracklets, uint8 (8, 256, 128, 3)."""
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


def sequence(frames: list[bytes]) -> resources.FrameSequence:
    return resources.FrameSequence(frames=[resources.Frame(encoded=frame) for frame in frames])


def embed_requests(load: list[list[bytes]]) -> list[bytes]:
    """One serialised EmbedTracklet request for each tracklet."""
    return [model_v1.EmbedTrackletRequest(frames=sequence(frames)).SerializeToString() for frames in load]


@dataclass
class Measured:
    """What came of a load: seconds of each call that was answered, of each that was refused, and other ends by name."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, other: Measured) -> None:
        """Counts the calls of `other` too; its seconds are not added."""
        self.answered += other.answered
        self.refused += other.refused
        for name, count in other.failed.items():
            self.failed[name] = self.failed.get(name, 0) + count

    def row(self) -> dict[str, Any]:
        """As figures: calls a second, milliseconds."""
        row: dict[str, Any] = {"per_s": round(len(self.answered) / self.seconds, 2)} | _percentiles(self.answered, "ms")
        if self.refused:
            row |= {"refused": len(self.refused)} | _percentiles(self.refused, "refusal_ms")
            row["refusal_ms"]["most"] = round(1e3 * max(self.refused), 1)
        return row | ({"failed": self.failed} if self.failed else {})


def _percentiles(seconds: list[float], name: str) -> dict[str, dict[str, float]]:
    if not seconds:
        return {}
    return {name: {f"p{p}": round(1e3 * float(np.percentile(seconds, p)), 1) for p in (50, 95, 99)}}


@asynccontextmanager
async def calls(address: str, method: str, connections: int = 1) -> AsyncIterator[list[Call]]:
    """`method` over so many connections, bytes in, bytes out."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", 64 << 20)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(connections)]
    try:
        yield [channel.unary_unary(method) for channel in channels]
    finally:
        for channel in channels:
            await channel.close()


async def one(call: Call, request: bytes, measured: Measured, *, timeout: float = 60.0) -> None:  # noqa: ASYNC109
    """Makes one call and notes how it ended."""
    start = time.perf_counter()
    try:
        await call(request, timeout=timeout)
        measured.answered.append(time.perf_counter() - start)
    except grpc.aio.AioRpcError as raised:
        took, error = time.perf_counter() - start, from_rpc_error(raised)
        if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            measured.refused.append(took)
        else:
            name = f"{error.code.name} {error.reason}"
            measured.failed[name] = measured.failed.get(name, 0) + 1


async def closed_loop(
    address: str, requests: list[bytes], clients: int, seconds: float, *, method: str = EMBED, pause: float = 0.0
) -> Measured:
    """`clients` connections, each sending the next request when the last one was answered, for `seconds`."""
    measured = Measured()

    async def client(call: Call, number: int) -> None:
        await one(call, requests[number % len(requests)], Measured())  # connect, warm
        while time.perf_counter() < stop:
            ended = Measured()
            await one(call, requests[number % len(requests)], ended)
            # By the end of the call: what is under way at the begin is answered inside, as much as is left at the end.
            if begin <= time.perf_counter() < stop:
                measured.add(ended)
            number += 1
            await asyncio.sleep(pause)

    begin = time.perf_counter() + min(WARM_UP, seconds / 3)
    stop = begin + seconds
    async with calls(address, method, clients) as made:
        await asyncio.gather(*(client(call, number) for number, call in enumerate(made)))
    measured.seconds = seconds
    return measured


async def open_loop(
    address: str,
    requests: list[bytes],
    rate: float,
    seconds: float,
    *,
    timeout: float,  # noqa: ASYNC109 - gRPC's own
    connections: int = 8,
) -> Measured:
    """`rate` calls a second with exponential gaps, whatever the answers do, for `seconds`; then waits for the rest."""
    measured, gaps = Measured(), random.Random(1)
    tasks: set[asyncio.Task[None]] = set()
    async with calls(address, EMBED, connections) as made:
        await asyncio.gather(*(one(call, requests[0], Measured()) for call in made))
        start = due = time.perf_counter()
        number = 0
        while due < start + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            call = made[number % len(made)]
            task = asyncio.create_task(one(call, requests[number % len(requests)], measured, timeout=timeout))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
            due += gaps.expovariate(rate)
        # Answers that come after the end count as long as the load lasted: the queue was full at its end as at its begin.
        answered = len(measured.answered)
        measured.seconds = time.perf_counter() - start
        await asyncio.gather(*tasks)
    if rate * seconds > 2 * answered:
        measured.answered = measured.answered[:answered]
    else:
        measured.seconds = time.perf_counter() - start
    return measured


async def bulk_ingest(address: str, gallery: str, load: list[list[bytes]], stop: asyncio.Event) -> int:
    """Stores tracklets over one stream until `stop`; how many were acknowledged."""

    async def requests() -> AsyncIterator[tracklet_v1.BulkIngestTrackletsRequest]:
        number = 0
        while not stop.is_set():
            yield tracklet_v1.BulkIngestTrackletsRequest(
                request=tracklet_v1.IngestTrackletRequest(
                    parent=gallery,
                    tracklet=resources.Tracklet(camera_id="1"),
                    frames=sequence(load[number % len(load)]),
                    request_id=str(uuid.uuid4()),
                )
            )
            number += 1

    stored = 0
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.stream_stream(
            BULK,
            request_serializer=tracklet_v1.BulkIngestTrackletsRequest.SerializeToString,
            response_deserializer=tracklet_v1.BulkIngestTrackletsResponse.FromString,
        )
        async for answer in call(requests()):
            stored += answer.WhichOneof("result") == "tracklet"
    return stored


async def memory(pid: int, every: float, found: list[float]) -> None:
    """Appends the process' resident memory, in MB, every `every` seconds, until it is cancelled."""
    while True:
        found.append(resident(pid))
        await asyncio.sleep(every)


def resident(pid: int) -> float:
    """Resident memory of a process, in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
