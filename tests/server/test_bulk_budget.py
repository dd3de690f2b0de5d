"""Bytes that bulk streams may hold together."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

from passerby.v1 import resources_pb2 as resources
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_server import lanes
from passerby_server.bulk import BulkIngest, ByteBudget
from passerby_server.ingest import Ingester
from passerby_server.runtime import Runtime
from passerby_server.sections import Limits
from passerby_server.security.permit import OPEN, entered

from tests.encoders import make_bundle
from tests.server.live import running
from tests.server.pictures import crops, raw

MIB = 1024 * 1024


def test_bytes_are_given_in_the_order_in_which_they_are_asked_for() -> None:
    async def main() -> None:
        budget = ByteBudget(10)
        order: list[str] = []

        async def one(name: str, size: int) -> None:
            held = await budget.take(size)
            order.append(name)
            await asyncio.sleep(0.001)
            budget.give(held)

        first = await budget.take(8)
        tasks = [asyncio.create_task(one(name, size)) for name, size in (("all", 99), ("gone", 5), ("small", 1))]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        assert order == []
        budget.give(first)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["all", "small"]
        assert budget.left == 10

    asyncio.run(main())


def test_whoever_is_cancelled_gives_back_what_it_was_given() -> None:
    async def main() -> None:
        budget = ByteBudget(10)
        first = await budget.take(10)
        waiting = [asyncio.create_task(budget.take(6)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # and its task has not run yet
        budget.give(first)
        waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert waiting[2].result() == 6
        budget.give(6)
        assert budget.left == 10

    asyncio.run(main())


def test_a_bulk_stream_larger_than_the_budget_comes_through(tmp_path: Path) -> None:
    limits = {"max_bulk_bytes": MIB}
    with running(make_bundle(tmp_path / "bundle"), tmp_path / "data", limits=limits) as server:
        gallery = server.new_gallery()
        requests = _requests(gallery, 40)
        answers = list(server.tracklets.BulkIngestTracklets(iter(requests), timeout=60))
        assert {answer.request_id for answer in answers} == {request.request.request_id for request in requests}
        assert all(answer.WhichOneof("result") == "tracklet" for answer in answers)


def test_answers_that_nobody_takes_hold_no_bytes(tmp_path: Path) -> None:
    async def main(runtime: Runtime, gallery: str) -> None:
        budget, going_on = ByteBudget(MIB), asyncio.Event()

        async def messages() -> AsyncIterator[tracklet_v1.BulkIngestTrackletsRequest]:
            for request in _requests(gallery, 4):
                yield request
            await going_on.wait()

        limits = Limits(max_bulk_in_flight=4)
        async with BulkIngest(Ingester(runtime), limits, budget=budget, draining=asyncio.Event()) as bulk:
            answers = bulk.answers(messages())
            first = await anext(answers)
            async with asyncio.timeout(20):  # the other three are stored, their answers are not taken
                while budget.left < MIB:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert len(bulk._working) > 1
            going_on.set()
            assert len({first.request_id, *[answer.request_id async for answer in answers]}) == 4
        assert budget.left == MIB

    with running(make_bundle(tmp_path / "bundle"), tmp_path / "data") as server:
        gallery = server.new_gallery()
        server.on_loop(lambda: _permitted(main(server.server.runtime, gallery)))


async def _permitted(call: Coroutine[Any, Any, None]) -> None:
    with entered(OPEN), lanes.entered(lanes.Lane("client", bulk=True)):
        await call


def _requests(gallery: str, count: int) -> list[tracklet_v1.BulkIngestTrackletsRequest]:
    frames = resources.FrameSequence(frames=[raw(image) for image in crops(4, height=256, width=128)])
    requests = [tracklet_v1.BulkIngestTrackletsRequest() for _ in range(count)]
    for message in requests:
        tracklet = resources.Tracklet(camera_id="1")
        request = tracklet_v1.IngestTrackletRequest(
            parent=gallery, tracklet=tracklet, frames=frames, request_id=str(uuid.uuid4())
        )
        message.request.CopyFrom(request)
    return requests
