"""Which snippets the encoder takes next. Policy alone: no clock, no thread, no event loop of its own.

- **Interactive before bulk.** A batch is of one kind. Bulk gets one when nothing else waits, and otherwise as much as
  `bulk_share` of the snippets: it is never starved, and never slows the others by more than that share.
- **Small bulk batches** for a minute after an interactive request: a batch in the network cannot be interrupted, and
  the next query waits for what is left of it. A quarter of a batch costs a CPU a few per cent of its throughput.
- **Fair between clients**, within either kind: `Turns`.
- **A client's own requests** go first in, first out. A long tracklet hands in two batches at a time (`encoder.py`), so
  a short one of the same client waits for those and not for all of it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from passerby_model.backends import Encoded

from passerby_server.lanes import NOBODY, Lane
from passerby_server.telemetry.calls import Call

T = TypeVar("T")

# Seconds after the last interactive request in which bulk keeps to small batches.
INTERACTIVE_MEMORY = 60.0
# Part of the largest batch that is a small one, and a client's turn among others.
SMALL_PART = 4


@dataclass(eq=False, slots=True)
class Work:
    """Snippets of one request that wait for the encoder; `taken` of them are in batches already.

    `arrival`, `deadline` and `started` (in its first batch): on the event loop's clock, in seconds.
    """

    snippets: NDArray[np.uint8]
    future: asyncio.Future[Encoded]
    arrival: float
    deadline: float | None = None
    lane: Lane = NOBODY
    call: Call | None = None  # whose stages are timed
    started: float = 0.0
    taken: int = 0
    parts: dict[int, Encoded] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Snippets that are in no batch yet."""
        return len(self.snippets) - self.taken


class Piece(NamedTuple):
    """The rows [start, stop) of one work, inside a batch."""

    work: Work
    start: int
    stop: int


class Plan(NamedTuple):
    """What the next batch would be taken from: `waiting` snippets, of which at most `most` go into it."""

    bulk: bool
    waiting: int
    most: int
    oldest: float
    """When the first of the work arrived."""
    owed: bool = False
    """Bulk that goes before interactive work, which waits too."""


class Turns(Generic[T]):
    """Items of many clients, each client's in their order, the clients in turn: surplus round robin.

    A turn lasts until the client has been given `quantum`. What it was given beyond that, since items are not cut, its
    next turns pay for, also when it has nothing waiting meanwhile. A newcomer's turn is the last one.
    Source: deficit round robin (Shreedhar and Varghese, SIGCOMM 1995), with debts instead of savings.
    """

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()
        self._credit: dict[str, int] = {}

    def __iter__(self) -> Iterator[T]:
        for line in self._lines.values():
            yield from line

    def add(self, client: str, item: T) -> None:
        """`item` waits behind those of the same client."""
        if client not in self._lines:
            self._lines[client], self._credit[client] = deque(), self._quantum
        self._lines[client].append(item)

    def next(self) -> T | None:
        """The item whose turn it is; it stays where it is. None when nothing waits."""
        if not any(self._lines.values()):
            self._lines.clear()
            self._credit.clear()
            return None
        while True:
            client, line = next(iter(self._lines.items()))
            if self._credit[client] <= 0:
                self._credit[client] += self._quantum
                self._lines.move_to_end(client)
            elif not line:
                del self._lines[client], self._credit[client]
            else:
                return line[0]

    def charge(self, cost: int, *, done: bool) -> None:
        """What `next` gave has been given `cost`; with `done` it leaves."""
        client, line = next(iter(self._lines.items()))
        self._credit[client] -= cost
        if done:
            line.popleft()

    def keep(self, wanted: Callable[[T], bool]) -> None:
        """Takes out all items that are not `wanted`."""
        for client, line in self._lines.items():
            if not all(wanted(item) for item in line):
                self._lines[client] = deque(item for item in line if wanted(item))


class BatchQueue:
    """Work that waits for the encoder, in the order in which it gets it."""

    def __init__(self, max_batch: int, bulk_share: float) -> None:
        """
        Args:
            max_batch: snippets in the largest batch.
            bulk_share: least share of the snippets that bulk gets while interactive work waits, in [0, 1).
        """
        self.max_batch = max_batch
        self._small = batch_size(max(1, max_batch // SMALL_PART), max_batch)  # one that is warmed up
        self._interactive: Turns[Work] = Turns(self._small)
        self._bulk: Turns[Work] = Turns(self._small)
        self._owed_each = bulk_share / (1 - bulk_share)
        self._owed = 0.0
        self._last_interactive = float("-inf")

    def __iter__(self) -> Iterator[Work]:
        yield from self._interactive
        yield from self._bulk

    def add(self, work: Work) -> None:
        """Queues `work`."""
        if work.lane.bulk:
            self._bulk.add(work.lane.client, work)
        else:
            self._last_interactive = work.arrival
            self._interactive.add(work.lane.client, work)

    def plan(self, now: float) -> Plan | None:
        """What `take` would take from at this moment; None when nothing waits."""
        interactive, bulk = _left(self._interactive), _left(self._bulk)
        most = self._small if now - self._last_interactive < INTERACTIVE_MEMORY else self.max_batch
        if bulk and (not interactive or self._owed >= min(bulk, self._small)):
            return Plan(True, bulk, most, min(work.arrival for work in self._bulk), owed=interactive > 0)
        if interactive:
            return Plan(False, interactive, self.max_batch, min(work.arrival for work in self._interactive))
        return None

    def take(self, plan: Plan) -> list[Piece]:
        """The next batch, of `plan`: one of the sizes of `batch_size`."""
        turns = self._bulk if plan.bulk else self._interactive
        room = size = batch_size(plan.waiting, plan.most)
        pieces = []
        while room and (work := turns.next()) is not None:
            count = min(room, work.left)
            pieces.append(Piece(work, work.taken, work.taken + count))
            work.taken += count
            room -= count
            turns.charge(count, done=not work.left)
        if plan.bulk:
            self._owed = max(0.0, self._owed - size)
        else:
            self._owed = self._owed + size * self._owed_each if _left(self._bulk) else 0.0
        return pieces

    def keep(self, wanted: Callable[[Work], bool]) -> None:
        """Takes out all work that is not `wanted`."""
        for turns in (self._interactive, self._bulk):
            turns.keep(wanted)


def batch_size(waiting: int, max_batch: int) -> int:
    """Snippets of the next batch when `waiting` wait: the largest power of two among them, or a full batch.

    A runtime prepares itself for every new batch size (OpenVINO: 40 ms for a small network, each time); these few sizes
    are warmed up (`warm_up_sizes`), and on a CPU two small batches take no longer than one large.
    """
    return max_batch if waiting >= max_batch else 1 << (waiting.bit_length() - 1) if waiting else 0


def warm_up_sizes(max_batch: int) -> list[int]:
    """Every size that a batch can have, ascending."""
    return sorted({batch_size(waiting, max_batch) for waiting in range(1, max_batch + 1)})


def _left(turns: Turns[Work]) -> int:
    return sum(work.left for work in turns)
