"""Calls in progress, in all and of each client: what is beyond a limit is refused before any work is done for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from passerby.errors import ResourceExhaustedError

from passerby_server.sections import Limits

RETRY_SECONDS = 1.0


class CallLimits:
    """Counts the calls of one server. Lives on one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.calls = 0
        """Calls in progress."""
        self.streams = 0
        """Of these, streams."""
        self._calls_of: Counter[str] = Counter()
        self._streams_of: Counter[str] = Counter()

    @contextmanager
    def counted(self, client: str, *, streaming: bool) -> Iterator[None]:
        """The block is a call of `client`.

        Raises:
            ResourceExhaustedError: too many calls (TOO_MANY_REQUESTS) or streams (TOO_MANY_STREAMS) are in progress, or
                too many of this client (TOO_MANY_REQUESTS_OF_CLIENT, TOO_MANY_STREAMS_OF_CLIENT).
        """
        self._check(client, streaming)
        self._add(client, streaming, 1)
        try:
            yield
        finally:
            self._add(client, streaming, -1)

    def _check(self, client: str, streaming: bool) -> None:
        limits = self._limits
        if self.calls >= limits.max_requests:
            raise _busy("TOO_MANY_REQUESTS", "calls are in progress")
        if self._calls_of[client] >= limits.max_requests_per_client:
            raise _busy("TOO_MANY_REQUESTS_OF_CLIENT", "calls of this client are in progress")
        if streaming and self.streams >= limits.max_streams:
            raise _busy("TOO_MANY_STREAMS", "streams are open")
        if streaming and self._streams_of[client] >= limits.max_streams_per_client:
            raise _busy("TOO_MANY_STREAMS_OF_CLIENT", "streams of this client are open")

    def _add(self, client: str, streaming: bool, count: int) -> None:
        self.calls += count
        self.streams += count * streaming
        for counter, change in ((self._calls_of, count), (self._streams_of, count * streaming)):
            counter[client] += change
            if not counter[client]:
                del counter[client]  # clients come and go: none is remembered


def _busy(reason: str, what: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"the server is busy: too many {what}; retry later", reason=reason, retry_delay=RETRY_SECONDS
    )
