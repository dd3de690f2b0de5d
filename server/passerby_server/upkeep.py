"""What the server does by itself, on time: erase what is older than its retention, write files anew after deletions, and
see whether the disk can be written.

One thread, which waits on the monotonic clock: setting the wall clock back delays nothing. Retention itself compares
stored times with the wall clock, so a clock that goes back never erases early.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from passerby.errors import ResourceExhaustedError, UnavailableError

from passerby_server.gallery.types import Galleries
from passerby_server.logs import event

log = logging.getLogger(__name__)

DAY_SECONDS = 86_400.0


class Upkeep:
    """Sweeps the galleries every `seconds`, first at once. A failed sweep is logged and tried again with the next.

    `audit_keep` is for what their audit says of tracklets that retention erased, looked for once a day; None keeps it.
    """

    def __init__(self, galleries: Galleries, seconds: float, audit_keep: timedelta | None = None) -> None:
        self._galleries = galleries
        self._seconds = seconds
        self._audit_keep = audit_keep
        self._audit_due = -DAY_SECONDS
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="passerby-upkeep", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """Lets the next sweep begin now."""
        self._wake.set()

    def close(self) -> None:
        """Stops after the sweep under way."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._sweep()
            self._wake.wait(self._seconds)
            self._wake.clear()

    def _expire_audit(self) -> None:
        now = time.monotonic()
        if self._audit_keep is None or now < self._audit_due:
            return
        if expired := self._galleries.expire_audit(self._audit_keep):
            event(log, logging.INFO, "old entries of the galleries' audit were deleted", count=expired)
        self._audit_due = now + DAY_SECONDS

    def _apply_retention(self) -> None:
        if erased := self._galleries.apply_retention():
            event(log, logging.INFO, "retention erased tracklets", count=erased)

    def _rewrite(self) -> None:
        if self._galleries.rewrite_if_due():
            event(log, logging.INFO, "the files of the galleries were written anew after deletions")

    def _sweep(self) -> None:
        try:
            for work in (self._galleries.check_disk, self._apply_retention, self._expire_audit, self._rewrite):
                _attempt(work)
        except (UnavailableError, ResourceExhaustedError) as error:
            event(log, logging.WARNING, "upkeep is put off to the next sweep", reason=error.reason)


def _attempt(work: Callable[[], object]) -> None:
    """What is wrong with one kind of upkeep keeps nobody from the others, unless the store or its disk is it."""
    try:
        work()
    except (UnavailableError, ResourceExhaustedError):
        raise
    except Exception:
        log.exception("upkeep failed; it is tried again with the next sweep")
