"""Who calls: from a token or a client certificate to a caller, in microseconds, with the file as it is now.

The file is looked at before each call (one `stat`), so what `passerby token` does counts from the next call on. While it
cannot be read or trusted nobody is let in.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from passerby.errors import FailedPreconditionError, PermissionDeniedError, UnauthenticatedError, UnavailableError

from passerby_server.logs import event
from passerby_server.security import callers
from passerby_server.security.callers import Entry, Role

log = logging.getLogger(__name__)

_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call."""

    name: str
    credential: str
    roles: frozenset[Role]
    galleries: frozenset[str] | None
    """Ids; None for all."""

    def check_role(self, roles: Iterable[str]) -> None:
        """Raises PermissionDeniedError (ROLE) unless the caller has one of `roles`."""
        if self.roles.isdisjoint(roles):
            raise PermissionDeniedError(
                f"the caller {self.name} has the roles {', '.join(sorted(self.roles))}; this takes "
                f"{' or '.join(sorted(roles))}",
                reason="ROLE",
            )

    def check_gallery(self, gallery_id: str) -> None:
        """Raises PermissionDeniedError (GALLERY) for a gallery that is not the caller's, whether it exists or not."""
        if self.galleries is not None and gallery_id not in self.galleries:
            what = "all galleries at once" if gallery_id == "-" else "this gallery"
            raise PermissionDeniedError(f"the caller {self.name} may not use {what}", reason="GALLERY")


class Access:
    """The callers of a file. Raises FailedPreconditionError (CALLERS_UNREADABLE) when it cannot be read at first."""

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = path
        self._clock = clock
        self._seen = self._look()
        self._entries: dict[str, Entry] = {}
        self._trouble: UnavailableError | None = None
        self._index(callers.read(path))

    def identify(self, authorization: str | None, certificate_names: Callable[[], Iterable[str]]) -> Caller:
        """The caller with this `authorization` header (`Bearer TOKEN`), or without one with these names in its certificate.

        Raises:
            UnauthenticatedError: neither (TOKEN_MISSING), a wrong one (TOKEN_INVALID, CERTIFICATE_UNKNOWN), or one that
                has expired (CREDENTIAL_EXPIRED).
            UnavailableError: the file cannot be read now (CALLERS_UNREADABLE).
        """
        self._refresh()
        entry = self._by_certificate(certificate_names()) if authorization is None else self._by_token(authorization)
        if entry.expired(self._clock()):
            raise UnauthenticatedError(
                f"what the caller {entry.name} shows has expired; ask for a new token (`passerby token rotate`)",
                reason="CREDENTIAL_EXPIRED",
            )
        return Caller(entry.name, entry.credential, entry.roles, entry.galleries)

    def _by_token(self, authorization: str) -> Entry:
        scheme, _, token = authorization.partition(" ")
        parts = callers.TOKEN.fullmatch(token.strip()) if scheme.lower() == "bearer" else None
        entry = self._entries.get(f"token:{parts[1]}") if parts else None
        # The same work for an unknown id as for a wrong secret.
        digest = hashlib.sha256(parts[2].encode() if parts else b"").hexdigest()
        if not hmac.compare_digest(digest, entry.token_sha256 if entry else _NO_DIGEST) or entry is None:
            raise UnauthenticatedError("the token is not one that this server knows", reason="TOKEN_INVALID")
        return entry

    def _by_certificate(self, names: Iterable[str]) -> Entry:
        shown = list(names)
        found = [entry for name in shown if (entry := self._entries.get(f"certificate:{name}"))]
        if len(found) == 1:
            return found[0]
        if not shown:
            raise UnauthenticatedError(
                "the call says not who makes it: the commands take a token from PASSERBY_TOKEN_FILE, other clients send it in "
                "the header `authorization: Bearer TOKEN`; a client certificate counts only where the server has tls.client_ca",
                reason="TOKEN_MISSING",
            )
        raise UnauthenticatedError(
            "the client certificate names several callers" if found else "the client certificate names no known caller",
            reason="CERTIFICATE_UNKNOWN",
        )

    def _refresh(self) -> None:
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._index(callers.read(self._path))
            except FailedPreconditionError as error:
                log.error("all calls are refused: %s", error.message)  # noqa: TRY400
                self._entries = {}
                self._trouble = UnavailableError(
                    "the server cannot read who may call; its operator finds the reason in the log",
                    reason="CALLERS_UNREADABLE",
                    retry_delay=5.0,
                )
        if self._trouble is not None:
            raise self._trouble

    def _index(self, entries: Iterable[Entry]) -> None:
        self._entries = {entry.credential: entry for entry in entries}
        self._trouble = None
        event(log, logging.INFO, "callers read", entries=len(self._entries))

    def _look(self) -> tuple[int, ...] | str:
        """Changes when the file does."""
        try:
            found = os.stat(self._path)
        except OSError as error:
            return str(error.strerror)
        return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size, found.st_mode


def certificate_names(auth_context: Mapping[str, Iterable[bytes]]) -> list[str]:
    """Names in a client certificate: its subject alternative names; the common name only of one that has none."""
    for key in ("x509_subject_alternative_name", "x509_common_name"):
        if names := [name.decode(errors="replace") for name in auth_context.get(key, ())]:
            return names
    return []
