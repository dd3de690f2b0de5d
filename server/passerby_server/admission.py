"""Who is let in to be decoded and encoded: room for a bounded number of snippets, and whom it goes to.

- An *impatient* request (a unary call) gets its room at once or RESOURCE_EXHAUSTED with a RetryInfo; also when what is
  ahead of it would take longer than its deadline allows.
- A *patient* one (a stream, whose caller it holds back) waits. Those that wait take turns by client, interactive ones
  before bulk, and impatient newcomers leave the room that the next of them waits for: it is not overtaken for ever.
- The patient together hold at most half of the room, and so does any one client's impatient: neither a flood of streams
  nor one busy client shuts the others out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from passerby.errors import ResourceExhaustedError

from passerby_server.lanes import Lane
from passerby_server.queueing import Turns

# Bounds of the advised delay, in seconds: shorter is a stampede, longer outlives any burst.
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.1, 30.0
CAUTION = 1.25
"""What takes so long by the estimate is reckoned to take this many times as long: an answer just after its deadline was
computed in vain, and a full queue is always near the deadline."""
# Snippets that a waiting client's turn is worth: some eight tracklets of 8 frames.
_TURN = 16


@dataclass(eq=False, slots=True)
class _Waiter:
    wanted: int
    lane: Lane
    admitted: asyncio.Future[None]


class Room:
    """Room for `most` snippets. Lives on one event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0
        """Snippets that are let in: being decoded, waiting or computing."""
        self.seconds_a_snippet = 0.0
        """How fast they leave; what refuses a request whose deadline is too near."""
        self._half = max(1, most // 2)
        self._patient = 0
        self._held: Counter[str] = Counter()  # by the impatient requests of each client
        self._waiting: tuple[Turns[_Waiter], Turns[_Waiter]] = (Turns(_TURN), Turns(_TURN))

    def enter(self, snippets: int, lane: Lane, remaining: float | None) -> int:
        """Room for an impatient request; the snippets that `leave` has to be given back.

        Args:
            remaining: seconds until its deadline.

        Raises:
            ResourceExhaustedError: no room (QUEUE_FULL), or none that would be in time (QUEUE_TOO_LONG).
        """
        # More than all there is could never be let in.
        wanted = min(snippets, self._half)
        client = self._held[lane.client]
        if self.used + wanted + self._promised() > self.most or client + wanted > self._half:
            raise self._full(client)
        ahead = sum(min(held, client + wanted) for held in self._held.values()) * self.seconds_a_snippet
        if remaining is not None and CAUTION * ahead > remaining:
            raise _too_late(ahead, remaining)
        self._add(wanted, lane, patient=False)
        return wanted

    async def wait(self, snippets: int, lane: Lane) -> int:
        """Room for a patient request, once there is some; the snippets that `leave` has to be given back."""
        wanted = min(snippets, self._half)
        waiter = _Waiter(wanted, lane, asyncio.get_running_loop().create_future())
        self._waiting[lane.bulk].add(lane.client, waiter)
        self._let_in()
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                self.leave(wanted, lane, patient=True)  # let in and cancelled in the same moment
            else:
                self._waiting[lane.bulk].keep(lambda other: other is not waiter)
                self._let_in()
            raise
        return wanted

    def leave(self, wanted: int, lane: Lane, *, patient: bool) -> None:
        """Gives back what `enter` or `wait` gave."""
        self._add(-wanted, lane, patient=patient)
        self._let_in()

    def _add(self, snippets: int, lane: Lane, *, patient: bool) -> None:
        self.used += snippets
        if patient:
            self._patient += snippets
            return
        self._held[lane.client] += snippets
        if not self._held[lane.client]:
            del self._held[lane.client]

    def _next(self) -> tuple[Turns[_Waiter], _Waiter] | None:
        """Who is let in next of those that wait, if the patient ones may hold that much."""
        for turns in self._waiting:
            waiter = turns.next()
            if waiter is not None:
                return (turns, waiter) if self._patient + waiter.wanted <= self._half else None
        return None

    def _promised(self) -> int:
        following = self._next()
        return following[1].wanted if following else 0

    def _let_in(self) -> None:
        while (following := self._next()) and self.used + following[1].wanted <= self.most:
            turns, waiter = following
            gone = waiter.admitted.cancelled()  # and its task has not run yet
            turns.charge(0 if gone else waiter.wanted, done=True)
            if gone:
                continue
            self._add(waiter.wanted, waiter.lane, patient=True)
            waiter.admitted.set_result(None)

    def _full(self, client: int) -> ResourceExhaustedError:
        # Half of the queue has to drain before coming back is worth while.
        return ResourceExhaustedError(
            f"the server is busy: {self.used} snippets are waiting, {client} of them this client's; "
            f"at most {self.most} may, {self._half} of one client; retry later",
            reason="QUEUE_FULL",
            retry_delay=_bounded(self.used * self.seconds_a_snippet / 2),
        )


def _too_late(ahead: float, remaining: float) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"the server is busy: what is waiting takes about {ahead:.1f} s, the call's deadline is in {remaining:.1f} s; "
        "retry later, or with a later deadline",
        reason="QUEUE_TOO_LONG",
        retry_delay=_bounded(ahead - remaining),
    )


def _bounded(delay: float) -> float:
    return min(max(delay, MIN_RETRY_DELAY), MAX_RETRY_DELAY)
