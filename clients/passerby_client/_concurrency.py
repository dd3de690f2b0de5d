"""Tasks and threads behind one set of names: the asynchronous client uses the first of each pair, the generated
synchronous one the second."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

AsyncSource = AsyncIterable[T] | Iterable[T]
"""What a caller may hand over to be taken from lazily."""
Source = Iterable[T]

AsyncSemaphore = asyncio.Semaphore
Semaphore = threading.Semaphore

async_sleep = asyncio.sleep
sleep = time.sleep

# What ends a task or a generator from outside; nothing ends a thread.
ASYNC_CANCELLED: tuple[type[BaseException], ...] = (asyncio.CancelledError, GeneratorExit)
CANCELLED: tuple[type[BaseException], ...] = (GeneratorExit,)


async def async_made(make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`make(...)`, which may read files, in a thread: the event loop goes on."""
    return await asyncio.to_thread(make, *args, **kwargs)


def made(make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`make(...)`."""
    return make(*args, **kwargs)


async def async_each(source: AsyncSource[T]) -> AsyncIterator[T]:
    """The items of `source`. A plain iterable is taken from in a thread: it may wait, and read files."""
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
        return
    items, end = iter(source), object()
    while (found := await asyncio.to_thread(next, items, end)) is not end:
        yield found  # type: ignore[misc]  # the end is caught above


def each(source: Source[T]) -> Iterator[T]:
    """The items of `source`."""
    return iter(source)


class AsyncMailbox(Generic[T]):
    """A queue without bounds."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[T] = asyncio.Queue()

    def put(self, item: T) -> None:
        self._queue.put_nowait(item)

    async def get(self, timeout: float | None = None) -> T:  # noqa: ASYNC109 (as of the other one)
        """The next item. Raises TimeoutError when none comes for `timeout` seconds."""
        async with asyncio.timeout(timeout):
            return await self._queue.get()


class Mailbox(Generic[T]):
    """A queue without bounds."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[T] = queue.SimpleQueue()

    def put(self, item: T) -> None:
        self._queue.put(item)

    def get(self, timeout: float | None = None) -> T:
        """The next item. Raises TimeoutError when none comes for `timeout` seconds."""
        try:
            return self._queue.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None


class AsyncWorkers:
    """Work beside the caller's own: tasks. `stop` cancels what is left."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Callable[P, Awaitable[None]], *args: P.args, **kwargs: P.kwargs) -> asyncio.Task[None]:
        """Begins `work(...)`, which does not raise."""

        async def run() -> None:
            await work(*args, **kwargs)

        task = asyncio.create_task(run(), name=_name(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Calls `act` after `seconds`."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            act()

        self.start(wait)

    async def wait(self, started: asyncio.Task[None], seconds: float) -> None:
        """Waits until what was started is over, at most `seconds`."""
        await asyncio.wait({started}, timeout=seconds)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Workers:
    """Work beside the caller's own: daemon threads, which end by themselves. `stop` cancels what has not begun."""

    def __init__(self) -> None:
        self._timers: set[threading.Timer] = set()

    def start(self, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> threading.Thread:
        """Begins `work(...)`, which does not raise."""
        thread = threading.Thread(target=work, args=args, kwargs=kwargs, name=_name(work), daemon=True)
        thread.start()
        return thread

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Calls `act` after `seconds`."""

        def fire() -> None:
            self._timers.discard(timer)
            act()

        timer = threading.Timer(seconds, fire)
        timer.daemon = True
        self._timers.add(timer)
        timer.start()

    def wait(self, started: threading.Thread, seconds: float) -> None:
        """Waits until what was started is over, at most `seconds`."""
        started.join(timeout=seconds)

    def stop(self) -> None:
        for timer in tuple(self._timers):
            timer.cancel()


AsyncWorker = asyncio.Task[None]
Worker = threading.Thread


def _name(work: Callable[..., object]) -> str:
    return f"passerby-client-{work.__name__.strip('_')}"
