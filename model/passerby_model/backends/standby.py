"""An encoder that runs while a better one is being prepared, and then makes way for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from passerby.errors import PasserbyError

from passerby_model.backends.base import Backend, BackendName, Encoded, EncoderSpec

log = logging.getLogger(__name__)


class StandbyBackend:
    """`now`, until `prepare`, called once in a thread of its own, has given another one; then that one.

    Both compute the same descriptors, within the limits of their parity reports: callers need not know which it is.
    Where `prepare` fails, `now` stays, and the log says why.
    """

    def __init__(self, now: Backend, prepare: Callable[[], Backend]) -> None:
        self._current = now
        self._prepare = prepare
        self._thread = threading.Thread(target=self._run, name="passerby-prepare", daemon=True)
        self._thread.start()

    @property
    def name(self) -> BackendName:
        return self._current.name

    @property
    def precision(self) -> str:
        return self._current.precision

    @property
    def spec(self) -> EncoderSpec:
        return self._current.spec

    def encode(self, snippets: NDArray[np.uint8]) -> Encoded:
        """See `Backend.encode`."""
        return self._current.encode(snippets)

    def join(self, timeout: float | None = None) -> None:
        """Waits until the other one is there, or has failed; at most `timeout` seconds."""
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            made = self._prepare()
        except PasserbyError as error:
            log.warning("the encoder stays on %s: %s", self.name, error.message)
        except Exception:
            log.exception("the encoder stays on %s", self.name)
        else:
            log.info("the encoder moves from %s to %s", self.name, made.name)
            self._current = made
