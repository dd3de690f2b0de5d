"""Callers made for a test, and their tokens."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import grpc
from passerby_server.security import callers
from passerby_server.security.callers import Entry, Role

from tests.server.live import Stubs

EVERYTHING = None


class Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Sends `authorization` with every call."""

    def __init__(self, *values: str) -> None:
        self._values = values

    def _intercept(self, continuation, details, request):
        metadata = [*(details.metadata or ()), *(("authorization", value) for value in self._values)]
        return continuation(details._replace(metadata=metadata), request)

    intercept_unary_unary = intercept_stream_unary = intercept_stream_stream = _intercept


def add(
    file: Path,
    name: str,
    *roles: Role,
    galleries: Iterable[str] | None = EVERYTHING,
    expire_time: datetime | None = None,
    certificate: str = "",
) -> str:
    """Adds a caller; its token."""
    token, token_id, digest = callers.new_token()
    credential = {"certificate": certificate} if certificate else {"token_id": token_id, "token_sha256": digest}
    entry = Entry(
        name=name,
        roles=frozenset(roles),
        galleries=None if galleries is None else frozenset(galleries),
        create_time=callers.now(),
        expire_time=expire_time,
        **credential,
    )
    callers.change(file, lambda entries: (*entries, entry))
    return token


def remove(file: Path, name: str) -> None:
    callers.change(file, lambda entries: tuple(entry for entry in entries if entry.name != name))


def set_roles(file: Path, name: str, *roles: Role) -> None:
    """What `name` may do from now on."""

    def changed(entry: Entry) -> Entry:
        return entry.model_copy(update={"roles": frozenset(roles)}) if entry.name == name else entry

    callers.change(file, lambda entries: tuple(map(changed, entries)))


def stubs_of(port: int, *tokens: str, credentials: grpc.ChannelCredentials | None = None) -> Stubs:
    """Stubs that send these tokens."""
    return Stubs(port, credentials, [Bearer(*(f"Bearer {token}" for token in tokens))] if tokens else [])
