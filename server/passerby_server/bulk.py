"""Bulk ingest: many tracklets over one stream, worked on side by side, each answered with its own status.

    reader --bounded--> one task for each tracklet --> answers --> caller

A slow reader of answers holds the whole stream back: a task keeps its place until its answer is taken. A caller that
is owed nothing and sends nothing for `limits.stream_idle_seconds` is taken for gone, and so is one that takes no answer
for as long (`interceptors.py`).

All streams together hold `limits.max_bulk_bytes` of tracklets that are not stored yet, and each of them one more message
that it has read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Self

from passerby.errors import UnavailableError
from passerby.v1 import tracklet_service_pb2 as v1

from passerby_server import convert, messages
from passerby_server.ingest import Ingester
from passerby_server.interceptors import bounded_status, check_message_size, explain, stream_idle
from passerby_server.sections import Limits
from passerby_server.telemetry.calls import item

# Answers are messages, not trailers: enough that whoever sends a tracklet again knows every frame to leave out.
MAX_VIOLATIONS = 1000
Answer = v1.BulkIngestTrackletsResponse


class ByteBudget:
    """Bytes that all streams of a server may hold together, given first come, first served. Lives on one event loop."""

    def __init__(self, most: int) -> None:
        self.left = most
        self._most = most
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> int:
        """Waits for `size` bytes; what `give` has to be given back. More than there is takes all there is."""
        wanted = min(size, self._most)
        if self._waiting or wanted > self.left:
            turn = (wanted, asyncio.get_running_loop().create_future())
            self._waiting.append(turn)
            try:
                await turn[1]
            except asyncio.CancelledError:
                if turn[1].done() and not turn[1].cancelled():
                    self.give(wanted)
                else:
                    self._waiting.remove(turn)
                    self._serve()
                raise
        else:
            self.left -= wanted
        return wanted

    def give(self, held: int) -> None:
        """Gives back what `take` gave."""
        self.left += held
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.left:
            wanted, turn = self._waiting[0]
            if turn.cancelled():
                return  # its task is about to take it out, and calls again
            self._waiting.popleft()
            self.left -= wanted
            turn.set_result(None)


class BulkIngest:
    """One stream. Leaving the block cancels what is still being worked on."""

    def __init__(
        self,
        ingester: Ingester,
        limits: Limits,
        *,
        budget: ByteBudget,
        draining: asyncio.Event,
        deadline: float | None = None,
    ) -> None:
        """
        Args:
            budget: of all streams together.
            limits: `max_bulk_in_flight` tracklets are worked on at the same time; `stream_idle_seconds` of silence.
            draining: set when the server shuts down; no further tracklet is read then.
            deadline: of the whole stream, on the event loop's clock.
        """
        self._ingester = ingester
        self._budget = budget
        self._places = asyncio.Semaphore(limits.max_bulk_in_flight)
        self._max_message_bytes = limits.max_message_bytes
        self._idle_seconds = limits.stream_idle_seconds
        self._draining = draining
        self._deadline = deadline
        self._answers: asyncio.Queue[Answer | None] = asyncio.Queue(maxsize=1)
        self._failure: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._working: set[asyncio.Task[None]] = set()
        self._active = 0.0  # when a message came or a tracklet was answered, on the loop's clock

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
            DeadlineExceededError: nothing came for `stream_idle_seconds`, and nothing was owed (STREAM_IDLE).
        """
        self._tasks.add(asyncio.create_task(self._read(requests)))
        while (answer := await self._answers.get()) is not None:
            yield answer
        if self._failure is not None:
            raise self._failure

    async def _read(self, requests: AsyncIterator[v1.BulkIngestTrackletsRequest]) -> None:
        try:
            async with contextlib.aclosing(self._until_draining(requests)) as messages:
                async for message in messages:
                    await self._places.acquire()
                    held = contextlib.ExitStack()
                    held.callback(self._budget.give, await self._budget.take(message.ByteSize()))
                    task = asyncio.create_task(self._one(message, held))
                    # Also here: a task that is cancelled at once never runs.
                    task.add_done_callback(lambda _, held=held: held.close())  # type: ignore[misc]
                    for tasks in (self._working, self._tasks):
                        tasks.add(task)
                        task.add_done_callback(tasks.discard)
        except Exception as error:  # noqa: BLE001 - raised by `answers`, once everything before it is answered
            self._failure = error
        await asyncio.gather(*self._working)
        await self._answers.put(None)

    async def _until_draining(
        self, requests: AsyncIterator[v1.BulkIngestTrackletsRequest]
    ) -> AsyncGenerator[v1.BulkIngestTrackletsRequest, None]:
        draining = asyncio.create_task(self._draining.wait())
        following: asyncio.Task[v1.BulkIngestTrackletsRequest | None] | None = None
        try:
            while True:
                following = asyncio.create_task(_next(requests))
                await self._first_of(following, draining)
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

    async def _first_of(self, *waited: asyncio.Task[Any]) -> None:
        """Waits until one of `waited` is done; raises DeadlineExceededError when the stream has gone silent before."""
        loop = asyncio.get_running_loop()
        self._active = loop.time()
        while not any(task.done() for task in waited):
            # The caller may well be waiting itself, as long as something is being worked on.
            left = self._idle_seconds if self._working else self._active + self._idle_seconds - loop.time()
            if left <= 0:
                raise stream_idle(self._idle_seconds)
            await asyncio.wait(waited, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    async def _one(self, message: v1.BulkIngestTrackletsRequest, held: contextlib.ExitStack) -> None:
        """Puts the answer to `message`; closes `held` once the message is not needed any more."""
        try:
            answer = await self._answer(message)
            del message
            held.close()  # whoever does not take its answers keeps no bytes from the others
            await self._answers.put(answer)
        finally:
            self._places.release()
            self._active = asyncio.get_running_loop().time()

    async def _answer(self, message: v1.BulkIngestTrackletsRequest) -> Answer:
        request = message.request
        with item() as ending:
            try:
                check_message_size(message, self._max_message_bytes)
                convert.check_request_id(request.request_id, "request.request_id", required=True)
                record = await self._ingester.ingest(request, deadline=self._deadline, patient=True)
            except Exception as error:  # noqa: BLE001 - one bad tracklet does not end the stream, whatever is bad about it
                public = explain(error)
                ending.failed(public)
                return Answer(request_id=request.request_id, status=bounded_status(public, most=MAX_VIOLATIONS))
        return Answer(request_id=request.request_id, tracklet=messages.tracklet_message(record))


async def _next(requests: AsyncIterator[v1.BulkIngestTrackletsRequest]) -> v1.BulkIngestTrackletsRequest | None:
    """The next request, None at the end: StopAsyncIteration is no result that a task should carry."""
    return await anext(requests, None)
