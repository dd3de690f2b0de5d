"""Searches take turns at what Python does one at a time anyway.

Reading rows and computing with short arrays gives the interpreter's lock away at every step. Among several threads
each step then waits for a thread to be woken, and searches of eight threads at once take twice the processor time of
the same searches one after the other. Whoever has the turn finds no other search in its way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 0.01
"""Seconds after which a search goes on without its turn: the one before it may wait for a disk."""

_turn = threading.Lock()


@contextmanager
def turn() -> Iterator[None]:
    """For a few milliseconds of small steps, and nothing that waits for other searches. Not to be nested."""
    mine = _turn.acquire(timeout=PATIENCE)
    try:
        yield
    finally:
        if mine:
            _turn.release()
