"""A channel and what is done with it, for coroutines and for threads: the pairs differ in nothing but that.

Errors of gRPC become those of `passerby.errors` here. A call on a channel that is closed raises ChannelClosed; one that
is under way when it is closed ends with CancelledError, in both kinds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import grpc
from passerby.errors import CancelledError, FailedPreconditionError, PasserbyError, UnavailableError, from_rpc_error

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_TIMEOUT_SECONDS = 30.0
# An encoder on a small CPU does some 5 snippets of 4 frames a second: a long tracklet is given its time.
TIMEOUT_SECONDS_PER_FRAME = 0.25
# What gRPC servers accept unless told otherwise.
DEFAULT_MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# A thousand hits with their thumbnails.
DEFAULT_MAX_RECEIVE_BYTES = 64 * 1024 * 1024
# gRPC's own pause before it dials again starts at 1 s and grows to 120 s: a restarted server would not be noticed.
RECONNECT_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)

# grpc.aio's word for a message that could not be sent, and how long the server's own word is awaited then.
LOST_WRITE = "Internal error from Core"
LOST_WRITE_SECONDS = 1.0

# Of a name with several addresses, such as localhost, gRPC tells the last one's trouble alone: that may hide what TLS said.
NO_SERVER = (
    "start one with `passerby serve`, or name another (--server, PASSERBY_SERVER); one with TLS takes --ca-file or "
    "PASSERBY_CA_FILE"
)
_OTHER_HOST = "its certificate does not name this host: connect by a name that it has, or have one made that names it"
_CLOSED = (
    "something there closes the connection: a server with TLS (trust its authority: --ca-file, PASSERBY_CA_FILE), or one that "
    "asks for a client certificate (PASSERBY_CLIENT_CERTIFICATE, PASSERBY_CLIENT_KEY)"
)
TLS_HINTS = (
    ("Hostname Verification", _OTHER_HOST),
    ("is not in peer certificate", _OTHER_HOST),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the authority that signed its certificate is not in the trusted file, or the certificate has expired (--ca-file, "
        "PASSERBY_CA_FILE)",
    ),
    ("WRONG_VERSION_NUMBER", "what is there speaks no TLS: connect without --ca-file and PASSERBY_CA_FILE"),
    ("Socket closed", _CLOSED),
    ("Connection reset", _CLOSED),
)
"""What gRPC says when TLS fails, and what to do then."""

Answer = TypeVar("Answer")
Options = Sequence[tuple[str, int | str]]


class ChannelClosed(Exception):  # noqa: N818 (never reaches a caller)
    """The channel was closed before the call began."""


def async_channel(target: str, credentials: grpc.ChannelCredentials | None, options: Options) -> grpc.aio.Channel:
    """A channel of the running event loop. Raises FailedPreconditionError when none is running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise FailedPreconditionError(
            "an AsyncClient belongs to the event loop on which it is made: make it in a coroutine",
            reason="NO_EVENT_LOOP",
        ) from None
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)


def channel(target: str, credentials: grpc.ChannelCredentials | None, options: Options) -> grpc.Channel:
    """A channel for threads."""
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


async def async_answer(attempt: Callable[[float], Awaitable[Answer]], seconds: float) -> Answer:
    """One attempt of a call that has one answer, with a deadline. Raises PasserbyError, ChannelClosed."""
    try:
        call: Any = attempt(seconds)
        ending = _Ending(call)
        found: Answer = await call
    except grpc.RpcError as raised:
        error = await ending.of_server(raised)
        raise error or UnavailableError("the answer was lost at the end of the call") from None
    except grpc.aio.UsageError:
        raise ChannelClosed from None
    except asyncio.CancelledError:
        raise _whose_cancellation() from None
    return found


def answer(attempt: Callable[[float], Answer], seconds: float) -> Answer:
    """One attempt of a call that has one answer, with a deadline. Raises PasserbyError, ChannelClosed."""
    try:
        return attempt(seconds)
    except grpc.RpcError as raised:
        raise from_rpc_error(raised) from None
    except ValueError as raised:
        raise _closed(raised) from None


def async_open_stream(method: Callable[..., Any], requests: AsyncIterator[Any], timeout: float | None) -> Any:
    """The call of a method with many requests and many answers. Raises ChannelClosed."""
    try:
        return method(requests, timeout=timeout)
    except grpc.aio.UsageError:
        raise ChannelClosed from None


def open_stream(method: Callable[..., Any], requests: Iterator[Any], timeout: float | None) -> Any:
    """The call of a method with many requests and many answers. Raises ChannelClosed."""
    try:
        return method(requests, timeout=timeout)
    except ValueError as raised:
        raise _closed(raised) from None


async def async_answers(call: Any) -> AsyncIterator[Any]:
    """The answers of an open stream. Raises PasserbyError."""
    ending = _Ending(call)
    try:
        async for message in call:
            yield message
    except grpc.RpcError as raised:
        error = await ending.of_server(raised)
        if error is not None:
            raise error from None
    except asyncio.CancelledError:
        raise _whose_cancellation() from None


def answers(call: Any) -> Iterator[Any]:
    """The answers of an open stream. Raises PasserbyError."""
    try:
        yield from call
    except grpc.RpcError as raised:
        raise from_rpc_error(raised) from None


def explained(error: PasserbyError, target: str) -> PasserbyError:
    """`error`; a failure to connect says where to, in words."""
    if isinstance(error, UnavailableError) and "connect" in error.message.lower():
        # The first word of gRPC's that fits.
        hint = next((hint for word, hint in TLS_HINTS if word in error.message), NO_SERVER)
        return UnavailableError(f"no passerby server answers at {target}; {hint}: {error.message}", reason=error.reason)
    return error


class _Ending:
    """How the server ended an asynchronous call.

    When a server ends a call while a message to it is on its way, grpc.aio puts "Internal error from Core" over the
    server's own status, or before it, as it happens (https://github.com/grpc/grpc/issues/36066). So each status is noted
    as it comes, and the server's is told from gRPC's.
    """

    def __init__(self, call: Any) -> None:
        self._said: grpc.aio.AioRpcError | None = None
        self._known = asyncio.Event()
        call.add_done_callback(self._note)

    async def of_server(self, raised: grpc.RpcError) -> PasserbyError | None:
        """The error behind `raised`; None when the server had ended the call in order."""
        if not isinstance(raised, grpc.aio.AioRpcError) or raised.details() != LOST_WRITE:
            return from_rpc_error(raised)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOST_WRITE_SECONDS):
                await self._known.wait()
        if self._said is None:  # the connection broke, too
            return UnavailableError("the connection broke while a message was sent")
        return None if self._said.code() is grpc.StatusCode.OK else from_rpc_error(self._said)

    def _note(self, call: Any) -> None:
        details = _at_once(call.details())
        if self._said is None and details != LOST_WRITE:
            code, trailing = _at_once(call.code()), _at_once(call.trailing_metadata())
            self._said = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)
            self._known.set()


def _at_once(known: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that need not wait for it; None for one that would."""
    try:
        known.send(None)
    except StopIteration as done:
        return done.value
    known.close()
    return None


def _whose_cancellation() -> BaseException:
    """gRPC ends the calls of a closed channel as if their task had been cancelled; a cancelled task is to end."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return asyncio.CancelledError()
    return CancelledError("the client was closed during the call")


def _closed(raised: ValueError) -> Exception:
    """gRPC's word for a closed channel is a ValueError; any other one is a fault, and stays what it is."""
    return ChannelClosed() if "closed" in str(raised) else raised
