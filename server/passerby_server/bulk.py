"""Bulk ingest: many tracklets over one stream, worked on side by side, each answered with its own status.

    reader --bounded--> one task for each tracklet --> answers --> caller

A slow reader of answers holds the whole stream back: a task keeps its place until its answer is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Self

from passerby.errors import UnavailableError
from passerby.v1 import tracklet_service_pb2 as v1

from passerby_server import convert
from passerby_server.config import Limits
from passerby_server.ingest import Ingester
from passerby_server.interceptors import bounded_status, check_message_size, explain

# Answers are messages, not trailers: enough that whoever sends a tracklet again knows every frame to leave out.
MAX_VIOLATIONS = 1000
Answer = v1.BulkIngestTrackletsResponse


class BulkIngest:
    """One stream. Leaving the block cancels what is still being worked on."""

    def __init__(
        self, ingester: Ingester, limits: Limits, *, draining: asyncio.Event, deadline: float | None = None
    ) -> None:
        """
        Args:
            limits: `max_bulk_in_flight` tracklets are worked on at the same time.
            draining: set when the server shuts down; no further tracklet is read then.
            deadline: of the whole stream, on the event loop's clock.
        """
        self._ingester = ingester
        self._places = asyncio.Semaphore(limits.max_bulk_in_flight)
        self._max_message_bytes = limits.max_message_bytes
        self._draining = draining
        self._deadline = deadline
        self._answers: asyncio.Queue[Answer | None] = asyncio.Queue(maxsize=1)
        self._failure: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def answers(self, requests: AsyncIterator[v1.BulkIngestTrackletsRequest]) -> AsyncIterator[Answer]:
        """The answers in the order in which they are ready.

        Raises:
            UnavailableError: the server began to shut down; what was read before is answered first.
        """
        self._tasks.add(asyncio.create_task(self._read(requests)))
        while (answer := await self._answers.get()) is not None:
            yield answer
        if self._failure is not None:
            raise self._failure

    async def _read(self, requests: AsyncIterator[v1.BulkIngestTrackletsRequest]) -> None:
        working: set[asyncio.Task[None]] = set()
        try:
            async with contextlib.aclosing(self._until_draining(requests)) as messages:
                async for message in messages:
                    await self._places.acquire()
                    task = asyncio.create_task(self._one(message))
                    for tasks in (working, self._tasks):
                        tasks.add(task)
                        task.add_done_callback(tasks.discard)
        except Exception as error:  # noqa: BLE001 - raised by `answers`, once everything before it is answered
            self._failure = error
        await asyncio.gather(*working)
        await self._answers.put(None)

    async def _until_draining(
        self, requests: AsyncIterator[v1.BulkIngestTrackletsRequest]
    ) -> AsyncGenerator[v1.BulkIngestTrackletsRequest, None]:
        draining = asyncio.create_task(self._draining.wait())
        following: asyncio.Task[v1.BulkIngestTrackletsRequest | None] | None = None
        try:
            while True:
                following = asyncio.create_task(_next(requests))
                await asyncio.wait({following, draining}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    raise UnavailableError("the server is shutting down; send the rest again", reason="SHUTTING_DOWN")
                message = following.result()
                if message is None:
                    return
                yield message
        finally:
            draining.cancel()
            # A caller that goes away cancels this in the middle of a read, which must not be left running.
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def _one(self, message: v1.BulkIngestTrackletsRequest) -> None:
        try:
            await self._answers.put(await self._answer(message))
        finally:
            self._places.release()

    async def _answer(self, message: v1.BulkIngestTrackletsRequest) -> Answer:
        request = message.request
        try:
            check_message_size(message, self._max_message_bytes)
            convert.check_request_id(request.request_id, "request.request_id", required=True)
            record = await self._ingester.ingest(request, deadline=self._deadline, patient=True)
        except Exception as error:  # noqa: BLE001 - one bad tracklet does not end the stream, whatever is bad about it
            return Answer(request_id=request.request_id, status=bounded_status(explain(error), most=MAX_VIOLATIONS))
        return Answer(request_id=request.request_id, tracklet=convert.tracklet_message(record))


async def _next(requests: AsyncIterator[v1.BulkIngestTrackletsRequest]) -> v1.BulkIngestTrackletsRequest | None:
    """The next request, None at the end: StopAsyncIteration is no result that a task should carry."""
    return await anext(requests, None)
