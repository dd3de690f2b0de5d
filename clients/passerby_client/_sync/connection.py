# Made of _async/connection.py by clients/unasync.py: edit that one.
"""The connection under `Client`: the channel with its stubs, and how one call is made.

A call has one deadline over all its attempts; between them the connection may be closed by somebody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from passerby.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    PasserbyError,
    UnavailableError,
)
from passerby.v1 import (
    gallery_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    search_service_pb2_grpc,
    tracklet_service_pb2_grpc,
)

from passerby_client._channel import (
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_MAX_RECEIVE_BYTES,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_SECONDS,
    RECONNECT_OPTIONS,
    TIMEOUT_SECONDS_PER_FRAME,
    ChannelClosed,
    answer,
    channel,
    explained,
    open_stream,
)
from passerby_client._concurrency import sleep
from passerby_client._retry import RetryPolicy
from passerby_client._token import bearing

Response = TypeVar("Response")


class Connection:
    """A channel to a server, with the stubs of all services; the arguments are those of `Client`."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        retry: RetryPolicy | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_receive_bytes: int = DEFAULT_MAX_RECEIVE_BYTES,
        options: Sequence[tuple[str, int | str]] = (),
    ) -> None:
        if timeout <= 0 or max_message_bytes < 1 or max_receive_bytes < 1:
            raise InvalidArgumentError("timeout, max_message_bytes and max_receive_bytes must be above 0")
        self.target = target
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._max_message_bytes = max_message_bytes
        self._closed = False
        channel_options = [
            *RECONNECT_OPTIONS,
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_receive_bytes),
            *options,
        ]
        self._channel = channel(target, credentials, channel_options)
        calls = bearing(self._channel, target, credentials, token)
        self._galleries = gallery_service_pb2_grpc.GalleryServiceStub(calls)
        self._tracklets = tracklet_service_pb2_grpc.TrackletServiceStub(calls)
        self._searches = search_service_pb2_grpc.SearchServiceStub(calls)
        self._models = model_service_pb2_grpc.ModelServiceStub(calls)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def close(self) -> None:
        """Closes the connection; calls under way end with CancelledError, further ones with FailedPreconditionError."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def wait_until_ready(self, timeout: float = 60.0) -> model_service_pb2.GetModelInfoResponse:
        """Waits until the server answers, at most `timeout` seconds; what it answers says which model it runs.

        Raises UnavailableError when there is no answer by then.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self._once(
                    lambda seconds: self._models.GetModelInfo(
                        model_service_pb2.GetModelInfoRequest(), timeout=seconds, wait_for_ready=True
                    ),
                    max(deadline - time.monotonic(), 0.0),
                )
            except (UnavailableError, DeadlineExceededError) as raised:
                error = raised
            pause = 0.1
            if isinstance(error, DeadlineExceededError) or time.monotonic() + pause >= deadline:
                raise UnavailableError(f"no passerby server answers at {self.target} after {timeout:g} s") from error
            sleep(pause)

    def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """SERVING, NOT_SERVING or UNKNOWN: of the whole server, or of one service (`passerby.v1.SearchService`)."""
        request = health_pb2.HealthCheckRequest(service=service)
        answer = self._call(self._health.Check, request, timeout)  # type: ignore[attr-defined]  # stubs lack it
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError("the client is closed; make a new one", reason="CLIENT_CLOSED")

    def _once(self, attempt: Callable[[float], Response], seconds: float) -> Response:
        """One attempt; FailedPreconditionError when the client was closed before it began."""
        self._check_open()
        try:
            return answer(attempt, seconds)
        except ChannelClosed:  # by somebody else, in between
            self._check_open()
            raise

    def _stream(self, method: Callable[..., Any], requests: Iterator[Any], timeout: float | None = None) -> Any:
        """An open stream of requests and answers; FailedPreconditionError when the client is closed."""
        self._check_open()
        try:
            return open_stream(method, requests, timeout)
        except ChannelClosed:
            self._check_open()
            raise

    def _timeout_for(self, frame_count: int, timeout: float | None) -> float:
        return timeout if timeout is not None else self._timeout + TIMEOUT_SECONDS_PER_FRAME * frame_count

    def _call(self, method: Callable[..., Response], request: Any, timeout: float | None) -> Response:
        return self._attempts(lambda seconds: method(request, timeout=seconds), timeout)

    def _attempts(self, attempt_once: Callable[[float], Response], timeout: float | None) -> Response:
        """One call with its retries, all within one deadline."""
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._once(attempt_once, max(deadline - time.monotonic(), 0.0))
            except PasserbyError as raised:
                error = explained(raised, self.target)
            delay = self._retry.delay(error, attempt)
            if delay is None or time.monotonic() + delay >= deadline:
                raise error
            sleep(delay)

    def _pages(self, method: Callable[..., Response], request: Any, timeout: float | None) -> Iterator[Response]:
        while True:
            page = self._call(method, request, timeout)
            yield page
            request.page_token = page.next_page_token  # type: ignore[attr-defined]
            if not request.page_token:
                return
