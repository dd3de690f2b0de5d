"""In which lane of the encoder's queue a call waits: whose share it takes, and whether it can wait for the others.

The lane travels in a context variable, into every task that is made inside the call; outside of calls it is nobody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from passerby.errors import InvalidArgumentError

PRIORITY_KEY = "x-passerby-priority"
"""Metadata of a call: `interactive` (the default) or `bulk`."""
BULK_METHODS = frozenset({"/passerby.v1.TrackletService/BulkIngestTracklets"})
"""Always bulk, whatever the metadata say."""
_LOOPBACK = ("127.", "::1", "::ffff:127.")


class Lane(NamedTuple):
    """`client` shares with other clients; `bulk` can wait for what is interactive."""

    client: str = ""
    bulk: bool = False


NOBODY = Lane()
_current: ContextVar[Lane] = ContextVar("passerby_lane", default=NOBODY)


def current() -> Lane:
    """The lane of the running call."""
    return _current.get()


@contextmanager
def entered(lane: Lane) -> Iterator[None]:
    """The block's work waits in `lane`."""
    token = _current.set(lane)
    try:
        yield
    finally:
        _current.reset(token)


def is_bulk(method: str, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
    """Whether a call can wait for the interactive ones. Raises InvalidArgumentError for an unknown priority."""
    priority = next((value for key, value in metadata if key == PRIORITY_KEY), "interactive")
    if priority not in ("interactive", "bulk"):
        raise InvalidArgumentError(
            f"the metadata {PRIORITY_KEY} is {str(priority)[:40]!r}; send interactive or bulk, or leave it out",
            reason="PRIORITY_UNKNOWN",
        )
    return priority == "bulk" or method in BULK_METHODS


def client_of_peer(peer: str) -> str:
    """Who calls, where nobody has to say: gRPC's `peer` as a name.

    The address without the port, so that more connections make no larger share; on this machine, where all addresses are
    the same, the connection.
    """
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    return peer if host.startswith(_LOOPBACK) else host
