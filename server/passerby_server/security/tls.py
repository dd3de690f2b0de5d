"""TLS: the server's certificate, and whose client certificates it demands; new files are taken without a restart.

gRPC asks for the certificate before every handshake, so what the files hold is looked at then: a renewed pair is used
by the next connection, those that are open keep theirs. Certificate and key are two files, so a reader may find one of
each: a pair counts once it has passed a handshake in memory. One that does not is logged, and the old one stays.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
from passerby.errors import FailedPreconditionError

from passerby_server.logs import event
from passerby_server.sections import Tls

log = logging.getLogger(__name__)

WARN_DAYS = 14
"""A certificate that ends sooner is loaded with a warning."""
RETRY_SECONDS = 60.0
"""A refused pair is tried again after this: its certificate may begin to be valid only in a moment."""


@dataclass(frozen=True, slots=True)
class _Files:
    """What the files of the settings hold."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None

    def for_grpc(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(self.key, self.certificate)], root_certificates=self.client_ca
        )


class Certificates:
    """The certificates in use. Raises FailedPreconditionError (TLS_FILES) when the first ones cannot be used."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._lock = threading.Lock()
        self._in_use = self._read()
        self._refused: _Files | None = None
        self._retry_at = 0.0
        self._said = ""
        self.expire_time = self._check(self._in_use)
        """When the certificate in use ends."""

    @classmethod
    def of(cls, settings: Tls) -> Certificates | None:
        """Those of the settings; None when they name none."""
        if settings.certificate is None or settings.key is None:
            return None
        return cls(settings.certificate, settings.key, settings.client_ca)

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`. Without a client CA no client certificate is asked for; with one, each caller needs it."""
        self._say()
        return grpc.dynamic_ssl_server_credentials(
            self._in_use.for_grpc(),
            self.renewed,  # type: ignore[arg-type]  # None is "no change"; the stubs do not say so
            require_client_authentication=self._client_ca is not None,
        )

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificates when the files hold others than those in use, and good ones; else None."""
        with self._lock:  # gRPC shakes hands in several threads
            found = None
            try:
                found = self._read()
                if found == self._in_use or (found == self._refused and time.monotonic() < self._retry_at):
                    return None
                self.expire_time = self._check(found)
            except FailedPreconditionError as error:
                self._refused, self._retry_at = found, time.monotonic() + RETRY_SECONDS
                # Said once for each trouble, not at each of the connections that meet it.
                if error.message != self._said:
                    self._said = error.message
                    log.error("the new certificate is refused, the old one stays in use: %s", error.message)  # noqa: TRY400
                return None
            self._in_use, self._refused, self._said = found, None, ""
            self._say()
            return found.for_grpc()

    def _read(self) -> _Files:
        parts = []
        for path in (self._certificate, self._key, self._client_ca):
            try:
                parts.append(path.read_bytes() if path else None)
            except OSError as error:
                raise FailedPreconditionError(f"{path}: {error.strerror}", reason="TLS_UNREADABLE") from error
        certificate, key, client_ca = parts
        return _Files(certificate or b"", key or b"", client_ca)

    def _check(self, found: _Files) -> datetime:
        """When the certificate ends; raises FailedPreconditionError unless a TLS handshake with the files succeeds."""
        try:
            if self._client_ca is not None:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(self._client_ca)
        except (ssl.SSLError, OSError) as error:
            raise FailedPreconditionError(
                f"{self._client_ca} holds no certificates in PEM ({_reason(error)})", reason="TLS_FILES"
            ) from error
        try:
            expire_time = _handshake(self._certificate, self._key)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise FailedPreconditionError(
                f"{self._certificate} and {self._key} are not a valid certificate and its unencrypted key, both in PEM "
                f"({_reason(error)})",
                reason="TLS_FILES",
            ) from error
        if self._read() != found:
            raise FailedPreconditionError("the certificate's files changed while they were read", reason="TLS_FILES")
        return expire_time

    def _say(self) -> None:
        days = (self.expire_time - datetime.now(UTC)).total_seconds() / 86_400
        level = logging.WARNING if days < WARN_DAYS else logging.INFO
        event(log, level, "certificate loaded", file=self._certificate, ends=f"{self.expire_time:%Y-%m-%dT%H:%M:%SZ}")


def _handshake(certificate: Path, key: Path) -> datetime:
    """Shakes hands in memory with a client that trusts this very certificate; when it ends."""
    serving, calling = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    serving.load_cert_chain(certificate, key, password=_no_password)
    calling.check_hostname = False
    calling.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # no need of the authority that issued it
    calling.load_verify_locations(certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(there, back, server_side=True)
    client = calling.wrap_bio(back, there)
    waiting: list[Callable[[], None]] = [client.do_handshake, server.do_handshake]
    for _ in range(10):
        waiting = [step for step in waiting if not _done(step)]
    peer = client.getpeercert()
    if waiting or not peer:
        raise ValueError("the handshake did not end")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(peer["notAfter"])), UTC)


def _done(step: Callable[[], None]) -> bool:
    try:
        step()
    except ssl.SSLWantReadError:
        return False
    return True


def _no_password() -> str:
    # Otherwise OpenSSL asks the terminal.
    raise ValueError("the key is encrypted")


def _reason(error: Exception) -> str:
    return (
        getattr(error, "verify_message", "")
        or getattr(error, "reason", "")
        or getattr(error, "strerror", "")
        or str(error)
    )
