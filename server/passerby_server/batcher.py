"""The micro-batcher: snippets of many requests become one batch for the encoder.

    request -> admit (bounded) -> decode -> submit() -> queue --take--> batch -> backend, in its own thread
                                                                          |
    request <------- rows of that request, in order <------- split -------+

- **Bounded.** `admit` counts snippets from before they are decoded until they are encoded. When the bound is reached a
  request is refused at once with RESOURCE_EXHAUSTED and a RetryInfo; a *patient* one (a stream, which its caller can
  hold back) waits for room instead.
- **Full.** While a batch computes, the next one gathers. An idle encoder waits for more only as long as another request
  is being decoded, and at most `max_wait` seconds.
- **Warm.** Batches have a few sizes only, those that were warmed up.
- **Fair.** First in, first out. A long tracklet hands in a few batches at a time (`encoder.py`), so a short one behind
  it waits for those, not for all of it.
- **Never in vain.** Work whose caller went away or whose deadline passed is dropped before it is computed.
- **Checked.** A batch gives back as many rows as went in, in the same order, or fails as a whole with INTERNAL.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from passerby.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    PasserbyError,
    ResourceExhaustedError,
    UnavailableError,
)
from passerby_model.backends import Backend, Encoded

log = logging.getLogger(__name__)

# Bounds of the advised delay, in seconds: shorter is a stampede, longer outlives any burst.
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.1, 30.0
# Weight of the newest batch in the running mean of the encoder's speed.
_SPEED_WEIGHT = 0.2


@dataclass(eq=False, slots=True)
class _Work:
    """Snippets of one request that wait for the encoder; `taken` of them are in batches already."""

    snippets: NDArray[np.uint8]
    future: asyncio.Future[Encoded]
    arrival: float
    deadline: float | None
    taken: int = 0
    parts: dict[int, Encoded] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return len(self.snippets) - self.taken


class _Piece(NamedTuple):
    """The rows [start, stop) of one work, inside a batch."""

    work: _Work
    start: int
    stop: int


class Batcher:
    """Runs a backend for many callers. Lives on one event loop; `async with` starts and stops it."""

    def __init__(
        self,
        backend: Backend,
        *,
        max_batch: int,
        max_wait: float = 0.005,
        max_admitted: int = 512,
        workers: int = 1,
    ) -> None:
        """
        Args:
            max_batch: snippets in the largest batch.
            max_wait: seconds that a batch which is not full waits for a request that is being decoded.
            max_admitted: snippets decoded, waiting and computing at the same time.
            workers: batches that compute at the same time.
        """
        self.max_batch = max_batch
        self._backend = backend
        self._max_wait = max_wait
        self._max_admitted = max_admitted
        self._admitted = 0
        self._announced = 0
        self._room: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._queue: deque[_Work] = deque()
        self._arrived = asyncio.Event()
        self._seconds_a_snippet = 0.0
        self._closed = False
        self._worker_count = workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="passerby-encoder")
        self._workers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._workers = [asyncio.create_task(self._run()) for _ in range(self._worker_count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops at once; whoever still waits gets UNAVAILABLE. The batch in the backend is waited for."""
        self._closed = True
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for work in self._queue:
            _fail(work, _shutting_down())
        self._queue.clear()
        await asyncio.to_thread(self._threads.shutdown)

    @property
    def admitted(self) -> int:
        """Snippets that are being decoded, waiting or computing."""
        return self._admitted

    @contextlib.asynccontextmanager
    async def admit(self, snippets: int, *, patient: bool = False) -> AsyncIterator[None]:
        """Room for `snippets` snippets, held until the block ends.

        Raises:
            ResourceExhaustedError: there is no room (QUEUE_FULL, with a retry delay) and the caller is not `patient`.
        """
        # More than all there is could never be admitted.
        wanted = min(snippets, self._max_admitted)
        if self._admitted + wanted > self._max_admitted or (patient and self._room):
            if not patient:
                raise self._full()
            await self._wait_for_room(wanted)
        else:
            self._admitted += wanted
        try:
            yield
        finally:
            self._admitted -= wanted
            self._let_in()

    @contextlib.contextmanager
    def announce(self) -> Iterator[None]:
        """Says that a request is being decoded, so that a batch that is not full may wait for it."""
        self._announced += 1
        try:
            yield
        finally:
            self._announced -= 1
            self._arrived.set()

    def submit(self, snippets: NDArray[np.uint8], *, deadline: float | None = None) -> asyncio.Future[Encoded]:
        """Queues snippets to be encoded together with those of others. Cancel the future to drop them.

        Args:
            snippets: uint8 (S, N, H, W, 3), S >= 1; may be more than one batch.
            deadline: time on the event loop's clock after which nobody wants the answer.

        Returns:
            Of S rows, in the order of `snippets`; or of a DeadlineExceededError (the deadline passed before all were in
            a batch), an InternalError (the backend failed on a batch with some of them) or an UnavailableError (the
            batcher was stopped).

        Raises:
            InvalidArgumentError: no snippets.
            UnavailableError: the batcher has been stopped.
        """
        if len(snippets) == 0:
            raise InvalidArgumentError("there are no snippets to encode", reason="NO_FRAMES")
        if self._closed:
            raise _shutting_down()
        loop = asyncio.get_running_loop()
        work = _Work(snippets, loop.create_future(), loop.time(), deadline)
        self._queue.append(work)
        self._arrived.set()
        return work.future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            pieces = self._take(await self._gather())
            if not pieces:
                continue
            start = loop.time()
            try:
                encoded = await loop.run_in_executor(self._threads, self._compute, pieces)
            except asyncio.CancelledError:  # stopped: nobody will deliver what is being computed
                for piece in pieces:
                    _fail(piece.work, _shutting_down())
                raise
            except Exception as error:
                # Whatever it was, it ends with this batch: the next one has to be served.
                log.exception("a batch failed")
                for piece in pieces:
                    _fail(piece.work, _as_internal(error))
            else:
                self._deliver(pieces, encoded)
                self._learn_speed(loop.time() - start, _rows(pieces))

    async def _gather(self) -> int:
        """Waits until a batch should start; the snippets that wait then."""
        loop = asyncio.get_running_loop()
        while True:
            self._drop(loop.time())
            waiting = sum(work.left for work in self._queue)
            if waiting and (waiting >= self.max_batch or not self._announced):
                return waiting
            timeout = self._queue[0].arrival + self._max_wait - loop.time() if self._queue else None
            if timeout is not None and timeout <= 0:
                return waiting
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), timeout)

    def _drop(self, now: float) -> None:
        """Takes out work that nobody waits for any more."""
        for work in self._queue:
            if work.deadline is not None and work.deadline <= now:
                _fail(work, DeadlineExceededError("the deadline passed while the request waited for the encoder"))
        if any(work.future.done() for work in self._queue):
            self._queue = deque(work for work in self._queue if not work.future.done())

    def _take(self, waiting: int) -> list[_Piece]:
        room = batch_size(waiting, self.max_batch)
        pieces = []
        while room and self._queue:
            work = self._queue[0]
            count = min(room, work.left)
            pieces.append(_Piece(work, work.taken, work.taken + count))
            work.taken += count
            room -= count
            if not work.left:
                self._queue.popleft()
        return pieces

    def _compute(self, pieces: Sequence[_Piece]) -> Encoded:
        rows = [piece.work.snippets[piece.start : piece.stop] for piece in pieces]
        batch = rows[0] if len(rows) == 1 else np.concatenate(rows)
        encoded = self._backend.encode(batch)
        outputs = [encoded.descriptors, *encoded.masks.values()]
        if any(len(output) != len(batch) for output in outputs):
            raise InternalError(
                f"the backend gave back {[len(output) for output in outputs]} rows for {len(batch)} snippets",
                reason="ENCODER_CONTRACT",
            )
        return encoded

    def _deliver(self, pieces: Sequence[_Piece], encoded: Encoded) -> None:
        row = 0
        for work, start, stop in pieces:
            rows = slice(row, row + stop - start)
            row = rows.stop
            work.parts[start] = Encoded(
                encoded.descriptors[rows], {block: mask[rows] for block, mask in encoded.masks.items()}
            )
            if not work.future.done() and sum(len(part.descriptors) for part in work.parts.values()) == len(
                work.snippets
            ):
                work.future.set_result(_joined([work.parts[at] for at in sorted(work.parts)]))

    def _learn_speed(self, seconds: float, snippets: int) -> None:
        newest = seconds / snippets / self._worker_count
        old = self._seconds_a_snippet or newest
        self._seconds_a_snippet = (1 - _SPEED_WEIGHT) * old + _SPEED_WEIGHT * newest

    def _full(self) -> ResourceExhaustedError:
        # Half of the queue has to drain before coming back is worth while.
        delay = self._admitted * self._seconds_a_snippet / 2
        return ResourceExhaustedError(
            f"the server is busy: {self._admitted} snippets are waiting, at most {self._max_admitted} may; retry later",
            reason="QUEUE_FULL",
            retry_delay=min(max(delay, MIN_RETRY_DELAY), MAX_RETRY_DELAY),
        )

    async def _wait_for_room(self, wanted: int) -> None:
        turn = (wanted, asyncio.get_running_loop().create_future())
        self._room.append(turn)
        try:
            await turn[1]
        except asyncio.CancelledError:
            if turn[1].done() and not turn[1].cancelled():
                self._admitted -= wanted  # let in and cancelled in the same moment
            else:
                self._room.remove(turn)
            self._let_in()
            raise

    def _let_in(self) -> None:
        while self._room and self._admitted + self._room[0][0] <= self._max_admitted:
            wanted, turn = self._room.popleft()
            self._admitted += wanted
            turn.set_result(None)


def batch_size(waiting: int, max_batch: int) -> int:
    """Snippets of the next batch when `waiting` wait: the largest power of two among them, or a full batch.

    A runtime prepares itself for every new batch size (OpenVINO: 40 ms for a small network, each time); these few sizes
    are warmed up (`warm_up_sizes`), and on a CPU two small batches take no longer than one large.
    """
    return max_batch if waiting >= max_batch else 1 << (waiting.bit_length() - 1) if waiting else 0


def warm_up_sizes(max_batch: int) -> list[int]:
    """Every size that `batch_size` can give, ascending."""
    return sorted({batch_size(waiting, max_batch) for waiting in range(1, max_batch + 1)})


def _rows(pieces: Sequence[_Piece]) -> int:
    return sum(piece.stop - piece.start for piece in pieces)


def _joined(parts: Sequence[Encoded]) -> Encoded:
    if len(parts) == 1:
        return parts[0]
    return Encoded(
        np.concatenate([part.descriptors for part in parts]),
        {block: np.concatenate([part.masks[block] for part in parts]) for block in parts[0].masks},
    )


def _fail(work: _Work, error: PasserbyError) -> None:
    if not work.future.done():
        work.future.set_exception(error)


def _shutting_down() -> UnavailableError:
    return UnavailableError("the server is shutting down", reason="SHUTTING_DOWN")


def _as_internal(error: Exception) -> InternalError:
    if isinstance(error, InternalError):
        return error
    internal = InternalError(f"the encoder failed: {error}", reason="ENCODER_FAILED")
    internal.__cause__ = error
    return internal
