"""The micro-batcher: snippets of many requests become one batch for the encoder.

    request -> admit (bounded) -> decode -> submit() -> queue --take--> batch -> backend, in its own thread
                                                                          |
    request <------- rows of that request, in order <------- split -------+

- **Bounded.** `admit` counts snippets from before they are decoded until they are encoded (`admission.py`). When there is
  no room a request is refused at once; a *patient* one (a stream, which its caller can hold back) waits for it instead.
- **Full.** While a batch computes, the next one gathers. An idle encoder waits for more only as long as another request
  is being decoded, and at most `max_wait` seconds. With several workers another batch begins beside it once it is full,
  or has waited for `BESIDE_WAIT` seconds; small bulk batches never do.
- **Warm.** Batches have a few sizes only, those that were warmed up.
- **Fair.** Interactive before bulk, clients in turn (`queueing.py`). Bulk does not begin while a query is being decoded.
- **Never in vain.** Work whose caller went away, or whose deadline is going to pass while other work waits, is dropped
  before it is computed.
- **Checked.** A batch gives back as many rows as went in, in the same order, or fails as a whole with INTERNAL.
- **Watched.** A batch that takes longer than `watchdog` seconds is given up with INTERNAL, and its thread left behind.
  A new thread tries a single snippet before it takes work again. While no thread works, `healthy` is False: whoever
  waits gets INTERNAL, and new work UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray
from passerby.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    PasserbyError,
    UnavailableError,
)
from passerby_model.backends import Backend, Encoded

from passerby_server import lanes
from passerby_server.admission import CAUTION, Room
from passerby_server.batches import deliver, note_start, rows
from passerby_server.encoder_thread import EncoderThread, HungError
from passerby_server.queueing import BatchQueue, Piece, Plan, Work
from passerby_server.telemetry.calls import current

log = logging.getLogger(__name__)

# Threads left behind with calls that hang, beyond which no further one is tried: each holds its memory.
MAX_LEFT_BEHIND = 4
# Longest time, in seconds, that bulk leaves the encoder to a query whose frames are being decoded: otherwise the query
# would find a batch begun that cannot be interrupted.
BULK_HOLD = 0.05
# Seconds that work waits at most for the batch that computes, before another batch than a full one begins beside it: both
# are slower then.
BESIDE_WAIT = 1.0
# Weight of the newest batch in the running mean of the encoder's speed.
_SPEED_WEIGHT = 0.2
# Seconds between looks at whether one of the hanging calls came back, and before a backend that throws is tried again.
_RETRY_SECONDS = 1.0


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
        bulk_share: float = 0.1,
        watchdog: float = 60.0,
        on_health: Callable[[bool], None] = lambda healthy: None,
    ) -> None:
        """
        Args:
            max_batch: snippets in the largest batch.
            max_wait: seconds that a batch which is not full waits for a request that is being decoded.
            max_admitted: snippets decoded, waiting and computing at the same time.
            workers: batches that compute at the same time.
            bulk_share: least share of the snippets that bulk gets while interactive work waits, in [0, 1).
            watchdog: seconds after which a batch counts as hanging.
            on_health: is called on the event loop with each change of `healthy`.
        """
        self.max_batch = max_batch
        self.healthy = True
        """Whether any thread can encode."""
        self._backend = backend
        self._max_wait = max_wait
        self._watchdog = watchdog
        self._on_health = on_health
        self._room = Room(max_admitted)
        self._announced = {False: 0, True: 0}  # requests that are being decoded: interactive, bulk
        self._queue = BatchQueue(max_batch, bulk_share)
        self._arrived = asyncio.Event()
        self._closed = False
        self._worker_count = workers
        self._hung_workers = 0
        self._computing = 0  # batches
        self._threads: list[EncoderThread[Encoded]] = []
        self._workers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._workers = [asyncio.create_task(self._run()) for _ in range(self._worker_count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops at once; whoever still waits gets UNAVAILABLE. The batch in the backend is waited for, unless it hangs."""
        self._closed = True
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._fail_all(_shutting_down())
        for thread in self._threads:
            thread.close()
            # A hanging call has had its time already.
            await asyncio.to_thread(thread.join, 0.0 if thread.left_behind else self._watchdog)

    @property
    def admitted(self) -> int:
        """Snippets that are being decoded, waiting or computing."""
        return self._room.used

    @property
    def waiting(self) -> int:
        """Snippets that are decoded and in no batch yet."""
        return sum(work.left for work in self._queue)

    @property
    def left_behind(self) -> int:
        """Threads that were left behind with a call that hangs, and still run."""
        return sum(thread.left_behind and thread.alive for thread in self._threads)

    @contextlib.asynccontextmanager
    async def admit(
        self, snippets: int, *, patient: bool = False, deadline: float | None = None
    ) -> AsyncIterator[None]:
        """Room for `snippets` snippets of the running call's lane, held until the block ends. Args and errors: as `room`."""
        with await self.room(snippets, patient=patient, deadline=deadline):
            yield

    async def room(
        self, snippets: int, *, patient: bool = False, deadline: float | None = None
    ) -> contextlib.ExitStack:
        """Room for `snippets` snippets of the running call's lane; what is closed to give it back, in any context.

        Args:
            patient: wait for room instead of being refused.
            deadline: time on the event loop's clock after which nobody wants the answer.

        Raises:
            ResourceExhaustedError: no room (QUEUE_FULL), or too much ahead for the deadline (QUEUE_TOO_LONG); with a
                retry delay.
        """
        lane = lanes.current()
        if patient:
            held = await self._room.wait(snippets, lane)
        else:
            remaining = None if deadline is None else deadline - asyncio.get_running_loop().time()
            held = self._room.enter(snippets, lane, remaining)
        room = contextlib.ExitStack()
        room.callback(self._room.leave, held, lane, patient=patient)
        return room

    @contextlib.contextmanager
    def announce(self) -> Iterator[None]:
        """Says that a request is being decoded, so that a batch that is not full may wait for it."""
        bulk = lanes.current().bulk
        self._announced[bulk] += 1
        try:
            yield
        finally:
            self._announced[bulk] -= 1
            self._arrived.set()

    def submit(self, snippets: NDArray[np.uint8], *, deadline: float | None = None) -> asyncio.Future[Encoded]:
        """Queues snippets, in the running call's lane, to be encoded with those of others. Cancel the future to drop them.

        Args:
            snippets: uint8 (S, N, H, W, 3), S >= 1; may be more than one batch.
            deadline: time on the event loop's clock after which nobody wants the answer.

        Returns:
            Of S rows, in the order of `snippets`; or of a DeadlineExceededError (the deadline passed before all were in
            a batch), an InternalError (the backend failed or hung on a batch with some of them) or an UnavailableError
            (the batcher was stopped).

        Raises:
            InvalidArgumentError: no snippets.
            UnavailableError: the batcher has been stopped, or the backend hangs (ENCODER_HUNG).
        """
        if len(snippets) == 0:
            raise InvalidArgumentError("there are no snippets to encode", reason="NO_FRAMES")
        if self._closed:
            raise _shutting_down()
        if not self.healthy:
            raise UnavailableError(
                "the encoder does not answer; the server tries to recover: retry later",
                reason="ENCODER_HUNG",
                retry_delay=min(self._watchdog, 30.0),
            )
        loop = asyncio.get_running_loop()
        work = Work(snippets, loop.create_future(), loop.time(), deadline, lanes.current(), current())
        self._queue.add(work)
        self._arrived.set()
        return work.future

    async def _run(self) -> None:
        """One worker: a batch at a time, each in the worker's thread, until it is cancelled."""
        loop = asyncio.get_running_loop()
        thread = self._new_thread()
        while True:
            pieces = self._queue.take(await self._gather())
            start = loop.time()
            note_start(pieces, start)
            try:
                encoded = await self._encoded(pieces, thread)
            except asyncio.CancelledError:  # stopped: nobody will deliver what is being computed
                _fail_pieces(pieces, _shutting_down())
                raise
            except HungError:
                _fail_pieces(pieces, _hung(self._watchdog))
                thread = await self._recovered(np.zeros_like(pieces[0].work.snippets[:1]))
            except Exception as error:
                # Whatever it was, it ends with this batch: the next one has to be served.
                log.exception("a batch failed")
                _fail_pieces(pieces, _as_internal(error))
            else:
                deliver(pieces, encoded, loop.time())

    async def _encoded(self, pieces: Sequence[Piece], thread: EncoderThread[Encoded]) -> Encoded:
        start = asyncio.get_running_loop().time()
        self._computing += 1
        try:
            encoded = await thread.run(partial(self._compute, pieces), self._watchdog)
            self._learn_speed(asyncio.get_running_loop().time() - start, rows(pieces))
            return encoded
        finally:
            self._computing -= 1
            self._arrived.set()  # whoever waited because this batch computed

    async def _gather(self) -> Plan:
        """Waits until a batch should start; what it is to be taken from."""
        loop = asyncio.get_running_loop()
        free = loop.time()
        while True:
            self._drop(loop.time())
            plan, timeout = self._queue.plan(loop.time()), math.inf
            if plan is not None:
                timeout = self._wait_until(plan, free) - loop.time()
                if timeout <= 0:
                    return plan
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), None if timeout == math.inf else timeout)

    def _wait_until(self, plan: Plan, free: float) -> float:
        """Until when a batch of `plan` waits for what is being decoded, on the loop's clock; `free`: since when the encoder
        has nothing to do."""
        if self._computing and plan.most < self.max_batch:
            return math.inf  # bulk makes way for what is interactive
        if self._computing and plan.waiting < plan.most:
            return plan.oldest + BESIDE_WAIT
        if plan.bulk and not plan.owed and self._announced[False]:
            return free + BULK_HOLD
        coming = self._announced[False] or (plan.bulk and self._announced[True])
        return plan.oldest + self._max_wait if coming and plan.waiting < plan.most else free

    def _drop(self, now: float) -> None:
        """Takes out work that nobody waits for any more, or will when it is done, if other work can have its place."""
        waiting = [work for work in self._queue if not work.future.done()]
        snippets = min(self.max_batch, self.waiting)
        done = now + CAUTION * snippets * (self._computing + 1) * self._room.seconds_a_snippet
        late = [(work, work.deadline) for work in waiting if work.deadline is not None and work.deadline <= done]
        for work, deadline in late:
            # Alone it is tried whatever the estimate says: nothing is won by leaving it, and the estimate may be wrong.
            if deadline <= now or len(late) < len(waiting):
                text = (
                    "the deadline passes before the encoder can have an answer: retry later, or with a later deadline"
                )
                _fail(work, DeadlineExceededError(text))
        self._queue.keep(lambda work: not work.future.done())

    def _compute(self, pieces: Sequence[Piece]) -> Encoded:
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

    async def _recovered(self, probe: NDArray[np.uint8]) -> EncoderThread[Encoded]:
        """A thread in which the backend has encoded `probe`, uint8 (1, N, H, W, 3), however long that takes to come."""
        log.error("the encoder hangs: no answer to a batch in %g s (batching.watchdog_seconds)", self._watchdog)
        self._hung_workers += 1
        self._say_health()
        thread = None
        while thread is None:
            await self._until_few_are_left_behind()
            tried = self._new_thread()
            try:
                await tried.run(partial(self._backend.encode, probe), self._watchdog)
                thread = tried
            except asyncio.CancelledError:
                tried.left_behind = True  # most likely it hangs as the one before: not to be waited for
                raise
            except HungError:
                log.error("the encoder still hangs; %d threads are left behind", self.left_behind)  # noqa: TRY400
            except Exception:
                log.exception("the encoder fails where it hung before")
                tried.close()
                await asyncio.sleep(_RETRY_SECONDS)
        self._hung_workers -= 1
        self._say_health()
        log.warning("the encoder answers again")
        return thread

    async def _until_few_are_left_behind(self) -> None:
        if self.left_behind < MAX_LEFT_BEHIND:
            return
        log.critical(
            "the encoder hangs for good: %d threads are left behind, no further one is tried until one of their calls "
            "comes back; restart the server",
            self.left_behind,
        )
        while self.left_behind >= MAX_LEFT_BEHIND:  # noqa: ASYNC110 - no event tells that a thread has ended
            await asyncio.sleep(_RETRY_SECONDS)

    def _new_thread(self) -> EncoderThread[Encoded]:
        self._threads = [thread for thread in self._threads if thread.alive]
        self._threads.append(EncoderThread())
        return self._threads[-1]

    def _say_health(self) -> None:
        healthy = self._hung_workers < self._worker_count
        if not healthy:
            self._fail_all(_hung(self._watchdog))
        if healthy != self.healthy:
            self.healthy = healthy
            self._on_health(healthy)

    def _fail_all(self, error: PasserbyError) -> None:
        for work in self._queue:
            _fail(work, error)
        self._queue.keep(lambda _: False)

    def _learn_speed(self, seconds: float, snippets: int) -> None:
        newest = seconds / snippets / self._computing
        old = self._room.seconds_a_snippet or newest
        self._room.seconds_a_snippet = (1 - _SPEED_WEIGHT) * old + _SPEED_WEIGHT * newest


def _fail_pieces(pieces: Sequence[Piece], error: PasserbyError) -> None:
    for piece in pieces:
        _fail(piece.work, error)


def _fail(work: Work, error: PasserbyError) -> None:
    if not work.future.done():
        work.future.set_exception(error)


def _shutting_down() -> UnavailableError:
    return UnavailableError("the server is shutting down", reason="SHUTTING_DOWN")


def _hung(seconds: float) -> InternalError:
    return InternalError(f"the encoder gave no answer in {seconds:g} s", reason="ENCODER_HUNG")


def _as_internal(error: Exception) -> InternalError:
    if isinstance(error, InternalError):
        return error
    internal = InternalError(f"the encoder failed: {error}", reason="ENCODER_FAILED")
    internal.__cause__ = error
    return internal
