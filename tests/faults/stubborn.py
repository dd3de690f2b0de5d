"""An encoder that throws or hangs when it is told to, put under a running server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.server.live import LiveServer


class Stubborn:
    """`before` is called with each batch before it is encoded, in the encoder's thread."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.batches = 0

    def before(self, snippets: NDArray[np.uint8]) -> None:
        self.batches += 1
        assert self.gate.wait(60)
        if self.failure is not None:
            raise self.failure


@contextmanager
def stubborn(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubborn]:
    """Puts a `Stubborn` before the server's encoder; the gate is open afterwards."""
    backend: Any = type(server.server.runtime.loaded.backend)
    encode: Callable[..., Any] = backend.encode
    made = Stubborn()

    def encode_stubbornly(self: Any, snippets: NDArray[np.uint8]) -> Any:
        made.before(snippets)
        return encode(self, snippets)

    with monkeypatch.context() as patch:
        patch.setattr(backend, "encode", encode_stubbornly)
        try:
            yield made
        finally:
            made.gate.set()
            made.failure = None
