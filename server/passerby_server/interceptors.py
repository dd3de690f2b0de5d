"""Around every call of our API: limits on messages and calls, the one mapping of errors to statuses, a log line.

- A `PasserbyError` becomes its status with AIP-193 details.
- Anything else is logged with a traceback under an `error_id` and answered as plain INTERNAL with that id: what broke
  inside is the operator's business, not the caller's.
- A message above the limit gets RESOURCE_EXHAUSTED that says what to do. gRPC itself refuses those above
  four times the limit (`connections.py`) before reading them, with its own words.
- A stream whose caller falls silent is ended, so that a half-open connection does not keep its place for ever.
- To gRPC unary calls are streams of one message: those are handled from their headers on, whereas a unary handler is
  called once the message is there, however much of it is held until then, from whomever, for however long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from passerby.errors import (
    STATUS_METADATA_KEY,
    DeadlineExceededError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    PasserbyError,
    ResourceExhaustedError,
)

from passerby_server import lanes
from passerby_server.call_limits import CallLimits
from passerby_server.logs import event
from passerby_server.sections import Limits
from passerby_server.security.gate import API_PREFIX, Gate
from passerby_server.security.permit import OPEN, Permit, entered
from passerby_server.telemetry.telemetry import Telemetry

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
# gRPC gives up on trailers above 8 KiB, in which base64 makes details a third and percent-encoding a message up to three
# times as large: cut texts, not whole errors. All in bytes of UTF-8.
MAX_ERROR_TEXT = 500
MAX_VIOLATION_TEXT = 150
MAX_VIOLATIONS = 10
_GONE_SECONDS = 0.05
"""Within which gRPC says that the caller of a call is gone, once it has said that no message comes."""
_CALLERS_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Context = grpc.aio.ServicerContext[Any, Any]


Unparsed = Callable[[], Message]
"""A message as it came: called, it is parsed, or raises what is wrong with it. A caller who is refused costs no parsing."""


class Guard(grpc.aio.ServerInterceptor):
    """The interceptor; one for a server, since it counts the calls in progress."""

    def __init__(self, limits: Limits, telemetry: Telemetry | None = None) -> None:
        self._limits = limits
        self._telemetry = telemetry or Telemetry()
        self.gate = Gate()
        """Who may call; set before the server listens."""
        self._in_progress = CallLimits(limits)

    @property
    def calls(self) -> int:
        """Calls in progress."""
        return self._in_progress.calls

    @property
    def streams(self) -> int:
        """Of these, streams."""
        return self._in_progress.streams

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the handlers of our own API; of the others (health, reflection) the gate says who may call them."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(API_PREFIX):
            return self.gate.foreign(method, handler)
        # In a bulk stream one large message must not end the rest: `bulk.py` answers it by itself. It also knows alone
        # whether a silent caller waits for answers.
        limit = None if handler.stream_stream else self._limits.max_message_bytes
        codecs: dict[str, Any] = {
            "request_deserializer": _unparsed(handler.request_deserializer, limit),
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(self._unary_unary(method, handler.unary_unary), **codecs)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(self._stream_unary(method, handler.stream_unary), **codecs)
        return grpc.stream_stream_rpc_method_handler(self._stream_stream(method, handler.stream_stream), **codecs)

    def _unary_unary(self, method: str, behaviour: Any) -> Any:
        async def call(requests: AsyncIterator[Unparsed], context: Context) -> Message:
            async with self._guarded(method, context, streaming=False) as permit:
                message = await _only_message(requests, self._limits.stream_idle_seconds)
                permit.admit(message)
                answer = self._check_answer(await behaviour(message, context))
                await permit.done(answer)
                return answer

        return call

    def _stream_unary(self, method: str, behaviour: Any) -> Any:
        async def call(requests: AsyncIterator[Unparsed], context: Context) -> Message:
            async with self._guarded(method, context, streaming=True) as permit:
                await permit.begin()
                messages = _all_parsed(requests, self._limits.stream_idle_seconds)
                answer = self._check_answer(await behaviour(messages, context))
                await permit.done(answer)
                return answer

        return call

    def _stream_stream(self, method: str, behaviour: Any) -> Any:
        # A coroutine that writes, not a generator: when the caller goes away in the middle of a write, the generator
        # below is closed at once and not when the garbage collector finds it.
        async def call(requests: AsyncIterator[Unparsed], context: Context) -> None:
            async with (
                self._guarded(method, context, streaming=True) as permit,
                contextlib.aclosing(behaviour(_all_parsed(requests), context)) as answers,
            ):
                await permit.begin()
                async for answer in answers:
                    await permit.answering()
                    await self._write(context, answer)
                await permit.done()

        return call

    @contextlib.asynccontextmanager
    async def _guarded(self, method: str, context: Context, *, streaming: bool) -> AsyncIterator[Permit]:
        permit, request_id = OPEN, _request_id(context)
        client = lanes.client_of_peer(context.peer())
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        with self._telemetry.call(method, request_id, context.invocation_metadata() or ()) as call:
            try:
                permit = await self.gate.enter(method, context, request_id)
                client = permit.client or client
                lane = lanes.Lane(client, lanes.is_bulk(method, context.invocation_metadata() or ()))
                with entered(permit), lanes.entered(lane), self._in_progress.counted(lane.client, streaming=streaming):
                    yield permit
            except asyncio.CancelledError:
                call.ending.code = "CANCELLED"
                permit.gone()
                raise
            except grpc.aio.AbortError:
                call.ending.code = "ABORTED"
                raise
            except Exception as error:  # noqa: BLE001 - the one place where any error becomes a status
                public = explain(error, method=method)
                call.ending.failed(public)
                permit.failed(public)
                status = bounded_status(public)
                await context.abort(
                    public.code,
                    status.message,
                    trailing_metadata=((REQUEST_ID_KEY, request_id), (STATUS_METADATA_KEY, status.SerializeToString())),
                )
            finally:
                event(log, logging.INFO, "call", method=method, client=client, **call.summary())

    async def _write(self, context: Context, answer: Message) -> None:
        """Writes one answer of a stream. Raises DeadlineExceededError (ANSWERS_UNREAD) when nobody takes it."""
        seconds = self._limits.stream_idle_seconds
        try:
            async with asyncio.timeout(seconds):
                await context.write(self._check_answer(answer))
        except TimeoutError as error:
            raise answers_unread(seconds) from error

    def _check_answer(self, answer: Message) -> Message:
        size = answer.ByteSize()
        if size > self._limits.max_message_bytes:
            raise ResourceExhaustedError(
                f"the answer would be {size:,} bytes, at most {self._limits.max_message_bytes:,} are allowed; "
                "ask for fewer entries, or leave the thumbnails out",
                reason="ANSWER_TOO_LARGE",
            )
        return answer


def explain(error: Exception, **fields: str) -> PasserbyError:
    """The error as its caller may see it. Ours stay as they are; a fault of the server is logged and hidden."""
    if isinstance(error, PasserbyError) and not isinstance(error, InternalError):
        return error
    error_id = uuid.uuid4().hex
    details = " ".join(f"{key}={value}" for key, value in fields.items())
    log.error("internal error error_id=%s %s", error_id, details, exc_info=error)
    return InternalError(
        f"internal error; the server's log has the details under error_id {error_id}",
        reason=error.reason if isinstance(error, InternalError) else "",
        metadata={"error_id": error_id},
    )


def bounded_status(error: PasserbyError, *, most: int = MAX_VIOLATIONS) -> status_pb2.Status:
    """The error's status with texts and violations (at most `most`) cut to what fits into gRPC's trailers."""
    violations = [
        FieldViolation(_cut(where, MAX_VIOLATION_TEXT), _cut(what, MAX_VIOLATION_TEXT))
        for where, what in error.violations[:most]
    ]
    return type(error)(
        _cut(error.message, MAX_ERROR_TEXT),
        reason=error.reason,
        metadata={key: _cut(value, MAX_VIOLATION_TEXT) for key, value in error.metadata.items()},
        violations=violations,
        retry_delay=error.retry_delay,
    ).to_status()


def stream_idle(seconds: float) -> DeadlineExceededError:
    """The error of a stream whose caller has sent nothing for `seconds`."""
    return DeadlineExceededError(
        f"no message came for {seconds:g} s (limits.stream_idle_seconds), so the server ended the stream; "
        "send what was not answered again, on a new one",
        reason="STREAM_IDLE",
    )


def answers_unread(seconds: float) -> DeadlineExceededError:
    """The error of a stream whose caller has taken no answer for `seconds`."""
    return DeadlineExceededError(
        f"no answer was taken for {seconds:g} s (limits.stream_idle_seconds), so the server ended the stream; read the "
        "answers while you send",
        reason="ANSWERS_UNREAD",
    )


def check_message_size(message: Message, limit: int) -> None:
    """Raises ResourceExhaustedError when the message has more than `limit` bytes."""
    if (size := message.ByteSize()) > limit:
        raise _message_too_large(size, limit)


def _message_too_large(size: int, limit: int) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"the message is {size:,} bytes, at most {limit:,} are allowed; "
        "send long tracklets frame by frame with StreamTracklet",
        reason="MESSAGE_TOO_LARGE",
    )


def _unparsed(deserialize: Any, limit: int | None) -> Callable[[bytes], Unparsed]:
    def keep(data: bytes) -> Unparsed:
        def parse() -> Message:
            nonlocal data
            taken, data = data, b""  # gRPC keeps this function until the call's end
            if limit is not None and len(taken) > limit:
                raise _message_too_large(len(taken), limit)
            try:
                message: Message = deserialize(taken)
            except DecodeError as error:
                raise InvalidArgumentError("the message is malformed", reason="MESSAGE_MALFORMED") from error
            return message

        return parse

    return keep


def _cut(text: str, longest: int) -> str:
    data = text.encode()
    return text if len(data) <= longest else data[: longest - 3].decode(errors="ignore") + "..."


async def _only_message(requests: AsyncIterator[Unparsed], seconds: float) -> Message:
    """The message of a unary call, awaited for `seconds` at most. Raises DeadlineExceededError (MESSAGE_UNFINISHED)."""
    try:
        async with asyncio.timeout(seconds):
            request = await anext(requests)
    except StopAsyncIteration:
        await asyncio.sleep(_GONE_SECONDS)  # a caller that went away looks the same: then this is cancelled meanwhile
        raise InvalidArgumentError("the call has no message", reason="MESSAGE_MISSING") from None
    except TimeoutError as error:
        raise DeadlineExceededError(
            f"the message was not there after {seconds:g} s (limits.stream_idle_seconds), so the server ended the call",
            reason="MESSAGE_UNFINISHED",
        ) from error
    return request()


async def _all_parsed(requests: AsyncIterator[Unparsed], idle_seconds: float | None = None) -> AsyncIterator[Message]:
    """The messages, each awaited for `idle_seconds` at most. Raises DeadlineExceededError (STREAM_IDLE)."""
    coming = aiter(requests)
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                request = await anext(coming)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise stream_idle(idle_seconds or 0.0) from error
        yield request()


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _CALLERS_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
