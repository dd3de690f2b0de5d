"""One loaded model, and the calls that use it: a model that was replaced is closed once the last of them has ended."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from passerby_server.telemetry.calls import Call

if TYPE_CHECKING:
    from passerby_server.runtime import Loaded


class Generation:
    """Lives on one event loop."""

    def __init__(self, loaded: Loaded, closing: AsyncExitStack) -> None:
        """`closing` frees what belongs to this model alone."""
        self.loaded = loaded
        self.users = 0
        """Calls that began with this model and have not ended."""
        self._closing = closing
        self._left = asyncio.Event()

    def of(self, call: Call | None) -> Generation:
        """The one that `call` began with: this one, if it is the first that the call asks for."""
        if call is None:
            return self
        if call.held is None:
            call.held = self
            self.users += 1
            call.exits.callback(self._leave, call)
        held: Generation = call.held
        return held

    async def close(self) -> None:
        """Frees the model now, whoever uses it."""
        await self._closing.aclose()

    async def retire(self) -> None:
        """Frees the model once nobody uses it; new calls must not come to it any more."""
        while self.users:
            self._left.clear()
            await self._left.wait()
        await self.close()

    def _leave(self, call: Call) -> None:
        call.held = None  # whatever still points to an ended call must not keep a model in memory
        self.users -= 1
        self._left.set()
