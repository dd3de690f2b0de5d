"""Bytes that bulk streams may hold together."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

from passerby.v1 import resources_pb2 as resources
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_server.bulk import ByteBudget

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
        frames = resources.FrameSequence(frames=[raw(image) for image in crops(4, height=256, width=128)])
        requests = [
            tracklet_v1.BulkIngestTrackletsRequest(
                request=tracklet_v1.IngestTrackletRequest(
                    parent=gallery,
                    tracklet=resources.Tracklet(camera_id="1"),
                    frames=frames,
                    request_id=str(uuid.uuid4()),
                )
            )
            for _ in range(40)
        ]
        answers = list(server.tracklets.BulkIngestTracklets(iter(requests), timeout=60))
        assert {answer.request_id for answer in answers} == {request.request.request_id for request in requests}
        assert all(answer.WhichOneof("result") == "tracklet" for answer in answers)
