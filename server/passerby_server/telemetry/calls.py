"""The call that the running code belongs to: its id for log lines, its stages, the model that it began with.

It travels in a context variable: with every `await`, into tasks that are made inside the call, and into the threads of
`Runtime.reading` and `Runtime.writing`. Work that many calls share (a batch) belongs to none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from passerby.errors import PasserbyError

Stage = Literal["decode", "queue", "encode", "thumbnail", "search", "store"]
"""What a call passes through. `queue` is the wait for a place in a batch, `encode` from there to the descriptors."""


@dataclass(slots=True)
class Ending:
    """How a call ended: its status, and the reason of an error of ours."""

    code: str = "OK"
    reason: str = ""

    def failed(self, error: PasserbyError) -> None:
        self.code, self.reason = error.code.name, error.reason


class Observer(Protocol):
    """Who is told what calls do."""

    def item(self, call: Call) -> AbstractContextManager[Call]: ...

    def stage_ended(self, call: Call, stage: Stage, seconds: float, *, failed: bool) -> None: ...

    def trace_id(self, call: Call) -> str: ...


class Call:
    """One call of the API, or one item of a stream."""

    __slots__ = ("_start", "ending", "exits", "held", "method", "observer", "request_id", "span")

    def __init__(self, method: str, request_id: str, observer: Observer, span: Any = None) -> None:
        self.method = method
        """Without package and service: `SearchTracklets`."""
        self.request_id = request_id
        self.observer = observer
        self.span = span
        """OpenTelemetry's, None when nothing is traced."""
        self.ending = Ending()
        self.held: Any = None
        """What the call keeps from its beginning to its end: `Runtime` puts the model here."""
        self.exits = ExitStack()
        """Closed when the call ends."""
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._start

    def summary(self) -> dict[str, str]:
        """Fields of the log line about it."""
        reason = {"reason": self.ending.reason} if self.ending.reason else {}
        trace = {"trace_id": self.observer.trace_id(self)} if self.span is not None else {}
        return {"code": self.ending.code, **reason, "ms": f"{self.seconds * 1e3:.1f}", **trace}

    def took(self, stage: Stage, seconds: float, *, failed: bool = False) -> None:
        """Says that a stage has just ended, after `seconds`."""
        self.observer.stage_ended(self, stage, seconds, failed=failed)


_current: ContextVar[Call | None] = ContextVar("passerby_call", default=None)


def current() -> Call | None:
    """The call that the running code belongs to, None outside of all."""
    return _current.get()


@contextmanager
def begun(call: Call) -> Iterator[Call]:
    """The block belongs to `call`, which ends with it."""
    token = _current.set(call)
    try:
        with call.exits:
            yield call
    finally:
        _current.reset(token)


@contextmanager
def item() -> Iterator[Ending]:
    """The block works on one item of the running stream, and says how that ended; outside of a call, nobody is told."""
    call = _current.get()
    if call is None:
        yield Ending()
        return
    with call.observer.item(call) as made:
        yield made.ending


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """The block is a stage of the running call; outside of a call, nobody is told."""
    call = _current.get()
    if call is None:
        yield
        return
    start, failed = time.perf_counter(), True
    try:
        yield
        failed = False
    finally:
        call.took(name, time.perf_counter() - start, failed=failed)
