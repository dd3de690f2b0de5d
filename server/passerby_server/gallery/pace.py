"""Keeps re-ranking within its time: work that would be late is not begun, or given up between two steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FIRST_PACE = 4e-8
"""Seconds a unit of work before anything was measured: 1,000 candidates in 60 ms."""
OVERHEAD = 500
"""Work grows as M (M + OVERHEAD): each pair of candidates, and reading and encoding each."""
NEW_SHARE = 0.3
"""Weight of the last measurement."""
FORGETTING = 0.9
"""Factor on the pace after work that was not begun: one slow moment must not put an end to re-ranking."""


class LateError(Exception):
    """The work would not end in time. Never leaves the gallery."""


class Pace:
    """How long re-ranking takes on this machine, learned from what it took. Safe to use from any thread."""

    def __init__(self) -> None:
        self._pace = FIRST_PACE
        self._lock = threading.Lock()

    def expected(self, size: int) -> float:
        """Seconds that re-ranking `size` candidates is likely to take."""
        return self._pace * size * (size + OVERHEAD)

    def within(self, budget: float, size: int, work: Callable[[Callable[[], None]], T]) -> T:
        """What `work` gives, which calls the function that it is given between its steps.

        Raises LateError when it is likely to take, or has taken, longer than `budget` seconds.
        """
        if self.expected(size) > budget:
            with self._lock:
                self._pace *= FORGETTING
            raise LateError
        start = time.perf_counter()

        def check() -> None:
            if time.perf_counter() - start > budget:
                raise LateError

        try:
            result = work(check)
            check()
        finally:
            taken = (time.perf_counter() - start) / (max(size, 1) * (size + OVERHEAD))
            with self._lock:
                self._pace += NEW_SHARE * (taken - self._pace)
        return result


PACE = Pace()
"""Of this process: all galleries share its processors."""
