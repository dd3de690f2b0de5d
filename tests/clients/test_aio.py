"""What only the asynchronous client can do; everything else is tested with both kinds."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from passerby.errors import CancelledError, FailedPreconditionError, PasserbyError
from passerby.v1 import tracklet_service_pb2
from passerby_client import Client, tracklet_request
from passerby_client.aio import AsyncClient

from tests.clients.faulty import faulty_server

CROP = np.zeros((8, 4, 3), dtype=np.uint8)


def generator() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "clients/unasync.py"
    spec = importlib.util.spec_from_file_location("client_generate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_synchronous_client_is_made_of_the_asynchronous_one() -> None:
    made = generator()
    assert made.differences() == []
    assert made.synchronous(
        "async def f(x: AsyncIterator[int]) -> int:\n    return (await self._g(x)).y\n", "m.py"
    ) == (
        "# Made of _async/m.py by clients/unasync.py: edit that one.\n"
        "def f(x: Iterator[int]) -> int:\n    return self._g(x).y\n"
    )


def test_both_have_the_same_methods_with_the_same_arguments() -> None:
    def signatures(client: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(client, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in methods if name[0] != "_"}

    assert signatures(Client) == signatures(AsyncClient)
    assert len(signatures(Client)) > 20


def test_it_is_made_on_an_event_loop() -> None:
    with pytest.raises(FailedPreconditionError, match="in a coroutine"):
        AsyncClient("127.0.0.1:1")


def test_calls_share_one_client_side_by_side() -> None:
    async def main(address: str) -> int:
        async with AsyncClient(address) as client:
            return len(await asyncio.gather(*(client.model_info() for _ in range(6))))

    with faulty_server() as (address, faults):
        faults.barrier = threading.Barrier(6)  # no call is answered before all six are there
        assert asyncio.run(main(address)) == 6


def test_a_cancelled_task_ends_as_cancelled_and_the_client_goes_on() -> None:
    async def main(address: str) -> str:
        async with AsyncClient(address) as client:
            call = asyncio.create_task(client.model_info(timeout=30))
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            return (await client.wait_until_ready()).server_version

    with faulty_server() as (address, faults):
        faults.delay = 0.3
        assert asyncio.run(main(address)) == "0"


def test_a_call_under_way_when_the_client_is_closed_says_so() -> None:
    async def main(address: str) -> None:
        client = AsyncClient(address)
        call = asyncio.create_task(client.model_info(timeout=30))
        await asyncio.sleep(0.1)
        await client.close()
        with pytest.raises(CancelledError, match="closed during the call"):
            await call

    with faulty_server() as (address, faults):
        faults.delay = 0.5
        asyncio.run(main(address))


def test_the_servers_word_is_heard_over_a_message_that_could_not_be_sent(address: str) -> None:
    """Some of these refusals meet a message on its way, which grpc.aio reports as INTERNAL."""

    async def refused(client: AsyncClient) -> str:
        frames = [np.zeros((64, 32, 3), np.uint8)] * 40
        try:
            return f"{len([answer async for answer in client.stream_search('g', frames, top_k=0)])} answers"
        except PasserbyError as error:
            return f"{error.reason} {error.message}"

    async def main() -> set[str]:
        async with AsyncClient(address) as client:
            return {said for _ in range(8) for said in await asyncio.gather(*(refused(client) for _ in range(10)))}

    assert asyncio.run(main()) == {"TOP_K_OUT_OF_RANGE header.search.top_k: 0 is not between 1 and 1000"}


def test_bulk_ingest_takes_from_an_asynchronous_source() -> None:
    async def source() -> AsyncIterator[tracklet_service_pb2.IngestTrackletRequest]:
        for number in range(20):
            await asyncio.sleep(0)
            yield tracklet_request("g", [CROP], camera="1", tracklet_id=f"t{number}")

    async def main(address: str) -> int:
        async with AsyncClient(address) as client:
            return len([result async for result in client.bulk_ingest(source(), max_in_flight=4)])

    with faulty_server() as (address, faults):
        assert asyncio.run(main(address)) == 20
    assert len(faults.stored) == 20


def test_a_source_that_waits_does_not_hold_the_event_loop() -> None:
    released = threading.Event()

    def source() -> Iterator[tracklet_service_pb2.IngestTrackletRequest]:
        assert released.wait(20)
        yield tracklet_request("g", [CROP], camera="1")

    async def main(address: str) -> int:
        async with AsyncClient(address) as client:
            results = client.bulk_ingest(source())
            first = asyncio.ensure_future(anext(results))
            await client.model_info()
            released.set()
            await first
            return len([result async for result in results])

    with faulty_server() as (address, _):
        assert asyncio.run(main(address)) == 0


def test_a_cancelled_bulk_run_leaves_no_task() -> None:
    async def main(address: str) -> set[str]:
        async with AsyncClient(address) as client:

            async def run() -> None:
                requests = (tracklet_request("g", [CROP], camera="1") for _ in iter(int, 1))
                async for _ in client.bulk_ingest(requests, max_in_flight=3):
                    pass

            task = asyncio.create_task(run())
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.1)
            return {left.get_name() for left in asyncio.all_tasks()}

    with faulty_server() as (address, faults):
        left = asyncio.run(main(address))
    assert faults.stored
    assert not {name for name in left if name.startswith("passerby-client-")}
