"""What the running call may do. It travels in a context variable, into every task that is made inside the call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from google.protobuf.message import Message
from passerby.errors import PasserbyError


class Permit:
    """Of a call to a server that knows no callers: everything is allowed, nothing is recorded."""

    @property
    def client(self) -> str:
        """Whom limits and shares are for; empty where callers are not known."""
        return ""

    @property
    def galleries(self) -> frozenset[str] | None:
        """Ids of the galleries that the caller may see; None for all."""
        return None

    def admit(self, request: Message) -> None:
        """Raises PermissionDeniedError when the request is about a gallery that is not the caller's."""

    def check_gallery(self, gallery_id: str, role: str = "") -> None:
        """The same for one item of a stream; also raises UnauthenticatedError when the caller has been revoked since.

        role: which the item takes besides those of the method.
        """

    def check_again(self, gallery_id: str, role: str = "") -> None:
        """The same for an item that was let in before, and has taken its time."""

    def note(self, message: Message) -> None:
        """Takes up whom and what one message of a stream is about."""

    async def begin(self) -> None:
        """Records that a stream begins. Raises UnavailableError (AUDIT_FAILED)."""

    async def answering(self) -> None:
        """Before each answer of a stream: returns once whom it tells of is on record. Raises UnavailableError (AUDIT_FAILED)."""

    async def done(self, answer: Message | None = None) -> None:
        """Returns once the call's success is on record; nothing is answered before. Raises UnavailableError (AUDIT_FAILED)."""

    def failed(self, error: PasserbyError) -> None:
        """Records that the call ended with `error`."""

    def gone(self) -> None:
        """Records that the caller went away."""


OPEN = Permit()
# No default: what runs outside of a call is allowed nothing.
_current: ContextVar[Permit] = ContextVar("passerby_permit")


def current() -> Permit:
    """The running call's. Raises LookupError outside of all."""
    return _current.get()


@contextmanager
def entered(permit: Permit) -> Iterator[None]:
    """The block is a call with `permit`."""
    token = _current.set(permit)
    try:
        yield
    finally:
        _current.reset(token)
