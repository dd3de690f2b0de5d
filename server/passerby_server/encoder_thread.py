"""A thread for calls into the backend that can be left behind: a call that hangs cannot be stopped, only given up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
_NUMBERS = itertools.count(1)


class HungError(Exception):
    """A call did not come back in time; its thread is left behind."""


class EncoderThread(Generic[T]):
    """Runs calls one after the other. Once `run` has raised HungError, the thread takes no more of them."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], T], asyncio.Future[T]] | None] = queue.SimpleQueue()
        # A daemon: the process must be able to end although a call hangs.
        name = f"passerby-encoder-{next(_NUMBERS)}"
        self.left_behind = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still runs: one that was left behind ends when its call comes back."""
        return self._thread.is_alive()

    async def run(self, call: Callable[[], T], seconds: float) -> T:
        """What `call` returns or raises; HungError when it takes longer than `seconds`."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((call, done))
        try:
            async with asyncio.timeout(seconds):
                return await done
        except TimeoutError:
            if done.done() and not done.cancelled():
                raise  # the call's own
            self.left_behind = True
            self.close()
            raise HungError from None

    def close(self) -> None:
        """The thread ends after the call that it is in."""
        self._calls.put(None)

    def join(self, seconds: float) -> None:
        """Waits for the thread's end, at most `seconds`."""
        self._thread.join(seconds)

    def _serve(self) -> None:
        while (item := self._calls.get()) is not None:
            call, done = item
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - whatever it was, whoever waits is told
                self._tell(done, error=error)
            else:
                self._tell(done, result=result)
            del item, call, done

    @staticmethod
    def _tell(done: asyncio.Future[T], *, result: T | None = None, error: BaseException | None = None) -> None:
        def tell() -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            done.get_loop().call_soon_threadsafe(tell)
