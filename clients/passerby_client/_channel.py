"""A channel and what is done with it, for coroutines and for threads: the pairs differ in nothing but that.

Errors of gRPC become those of `passerby.errors` here. A call on a channel that is closed raises ChannelClosed; one that
is under way when it is closed ends with CancelledError, in both kinds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
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
        return await attempt(seconds)
    except grpc.RpcError as raised:
        raise from_rpc_error(raised) from None
    except grpc.aio.UsageError:
        raise ChannelClosed from None
    except asyncio.CancelledError:
        raise _whose_cancellation() from None


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
    try:
        async for message in call:
            yield message
    except grpc.RpcError as raised:
        raise from_rpc_error(raised) from None
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
        return UnavailableError(
            f"no passerby server answers at {target}; start one with `passerby serve`, or name another "
            f"(--server, PASSERBY_SERVER): {error.message}",
            reason=error.reason,
        )
    return error


def _whose_cancellation() -> BaseException:
    """gRPC ends the calls of a closed channel as if their task had been cancelled; a cancelled task is to end."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return asyncio.CancelledError()
    return CancelledError("the client was closed during the call")


def _closed(raised: ValueError) -> Exception:
    """gRPC's word for a closed channel is a ValueError; any other one is a fault, and stays what it is."""
    return ChannelClosed() if "closed" in str(raised) else raised
