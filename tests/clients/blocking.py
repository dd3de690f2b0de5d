"""An asynchronous client that blocks, so that one test body serves both kinds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Self

from passerby_client.aio import AsyncClient

LONGEST_WAIT = 120.0


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LONGEST_WAIT)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`function(...)` on the loop, and what it awaits."""

        async def call() -> Any:
            result = function(*args, **kwargs)
            return await result if asyncio.iscoroutine(result) else result

        return self.run(call())

    def tasks(self) -> list[str]:
        """Names of all tasks, the one that looks among them."""
        names: list[str] = self.call(lambda: [task.get_name() for task in asyncio.all_tasks()])
        return names


@contextmanager
def running_loop() -> Iterator[Loop]:
    box: list[asyncio.AbstractEventLoop] = []
    ready, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        box.append(asyncio.get_running_loop())
        ready.set()
        await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="event-loop")
    thread.start()
    ready.wait(10)
    try:
        yield Loop(box[0])
    finally:
        box[0].call_soon_threadsafe(stop.set)
        thread.join(30)


class _Items:
    """An asynchronous iterator as a plain one."""

    def __init__(self, loop: Loop, items: AsyncIterator[Any]) -> None:
        self._loop = loop
        self._items = items

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        end = object()
        item = self._loop.run(_next(self._items, end))
        if item is end:
            raise StopIteration
        return item

    def close(self) -> None:
        self._loop.run(self._items.aclose())  # type: ignore[attr-defined]


async def _next(items: AsyncIterator[Any], end: object) -> Any:
    return await anext(items, end)


class Blocking:
    """`AsyncClient` with methods that block and iterators that are plain."""

    def __init__(self, loop: Loop, *args: Any, **kwargs: Any) -> None:
        self._loop = loop
        self._client = loop.call(AsyncClient, *args, **kwargs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        return self._method(attribute) if callable(attribute) else attribute

    def _method(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = self._loop.call(method, *args, **kwargs)
            return _Items(self._loop, result) if hasattr(result, "__anext__") else result

        return call
