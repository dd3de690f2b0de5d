"""An API token with every call, for both kinds of channel; never over a connection that others can read."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, TypeVar, cast

import grpc
from passerby.errors import FailedPreconditionError, InvalidArgumentError

Channel = TypeVar("Channel")


class TokenChannel:
    """What stubs need of a channel; each call of theirs says `authorization: Bearer TOKEN`."""

    def __init__(self, channel: Any, token: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"),)

    def unary_unary(self, *args: Any, **options: Any) -> Callable[..., Any]:
        return self._bearing(self._channel.unary_unary(*args, **options))

    def unary_stream(self, *args: Any, **options: Any) -> Callable[..., Any]:
        return self._bearing(self._channel.unary_stream(*args, **options))

    def stream_unary(self, *args: Any, **options: Any) -> Callable[..., Any]:
        return self._bearing(self._channel.stream_unary(*args, **options))

    def stream_stream(self, *args: Any, **options: Any) -> Callable[..., Any]:
        return self._bearing(self._channel.stream_stream(*args, **options))

    def _bearing(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(request: Any, *, metadata: Any = None, **options: Any) -> Any:
            return method(request, metadata=(*(metadata or ()), *self._metadata), **options)

        return call


def bearing(channel: Channel, target: str, credentials: grpc.ChannelCredentials | None, token: str | None) -> Channel:
    """`channel`, with the token in each call if there is one.

    Raises InvalidArgumentError for what can be no token, FailedPreconditionError (TOKEN_UNPROTECTED) when it would travel
    to another machine without TLS.
    """
    if token is None:
        return channel
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidArgumentError("the token is empty, or has characters that no token has", reason="TOKEN_MALFORMED")
    if credentials is None and not on_this_machine(target):
        raise FailedPreconditionError(
            f"the token would travel to {target} where everybody can read it: connect with TLS (credentials, or "
            "PASSERBY_CA_FILE for the commands)",
            reason="TOKEN_UNPROTECTED",
        )
    return cast(Channel, TokenChannel(channel, token))  # stubs need no more of it


def on_this_machine(target: str) -> bool:
    """Whether a target HOST:PORT, or `unix:PATH`, is reached without a network."""
    if target.startswith("unix:"):
        return True
    host = target.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
