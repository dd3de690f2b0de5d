"""The connection under `Client`: the channel with its stubs, and how one call is made.

A call has one deadline over all its attempts; between them the connection may be closed by another thread.
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
    from_rpc_error,
)
from passerby.v1 import (
    gallery_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    search_service_pb2_grpc,
    tracklet_service_pb2_grpc,
)

from passerby_client._retry import RetryPolicy

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_TIMEOUT_SECONDS = 30.0
# An encoder on a small CPU does some 5 snippets of 4 frames a second: a long tracklet is given its time.
TIMEOUT_SECONDS_PER_FRAME = 0.25
# What gRPC servers accept unless told otherwise.
DEFAULT_MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# A thousand hits with their thumbnails.
DEFAULT_MAX_RECEIVE_BYTES = 64 * 1024 * 1024
# gRPC's own pause before it dials again starts at 1 s and grows to 120 s: a restarted server would not be noticed.
_RECONNECT_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)

Response = TypeVar("Response")


class Connection:
    """A channel to a server, with the stubs of all services; the arguments are those of `Client`."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
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
            *_RECONNECT_OPTIONS,
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_receive_bytes),
            *options,
        ]
        self._channel = (
            grpc.insecure_channel(target, options=channel_options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options=channel_options)
        )
        self._galleries = gallery_service_pb2_grpc.GalleryServiceStub(self._channel)
        self._tracklets = tracklet_service_pb2_grpc.TrackletServiceStub(self._channel)
        self._searches = search_service_pb2_grpc.SearchServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
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
            except grpc.RpcError as raised:
                error = from_rpc_error(raised)
            pause = 0.1
            if isinstance(error, DeadlineExceededError) or time.monotonic() + pause >= deadline:
                raise UnavailableError(f"no passerby server answers at {self.target} after {timeout:g} s") from error
            if not isinstance(error, UnavailableError):
                raise error
            time.sleep(pause)

    def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """SERVING, NOT_SERVING or UNKNOWN: of the whole server, or of one service (`passerby.v1.SearchService`)."""
        request = health_pb2.HealthCheckRequest(service=service)
        status = self._call(self._health.Check, request, timeout).status  # type: ignore[attr-defined]  # stubs lack it
        return health_pb2.HealthCheckResponse.ServingStatus.Name(status)

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError("the client is closed; make a new one", reason="CLIENT_CLOSED")

    def _once(self, attempt: Callable[[float], Response], seconds: float) -> Response:
        """One attempt; FailedPreconditionError when the client was closed before it began."""
        self._check_open()
        try:
            return attempt(seconds)
        except ValueError:  # gRPC's word for a channel that another thread closed in between
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
            except grpc.RpcError as raised:
                error = self._error(raised)
            delay = self._retry.delay(error, attempt)
            if delay is None or time.monotonic() + delay >= deadline:
                raise error
            time.sleep(delay)

    def _pages(self, method: Callable[..., Response], request: Any, timeout: float | None) -> Iterator[Response]:
        while True:
            page = self._call(method, request, timeout)
            yield page
            request.page_token = page.next_page_token  # type: ignore[attr-defined]
            if not request.page_token:
                return

    def _error(self, raised: grpc.RpcError) -> PasserbyError:
        """The error behind a failed call; a failure to connect says where to, in words."""
        error = from_rpc_error(raised)
        if isinstance(error, UnavailableError) and "connect" in error.message.lower():
            return UnavailableError(
                f"no passerby server answers at {self.target}; start one with `passerby serve`, or name another "
                f"(--server, PASSERBY_SERVER): {error.message}",
                reason=error.reason,
            )
        return error
