"""The file of the callers: each entry a name, its roles and galleries, and how it shows who it is.

    {"version": 1, "callers": [
      {"name": "entrance", "roles": ["ingester"], "galleries": ["station"], "token_id": "3f0c...", "token_sha256": "9a1e...",
       "create_time": "2026-01-05T10:00:00Z", "expire_time": null},
      {"name": "desk", "roles": ["reader"], "galleries": null, "certificate": "desk.example", ...}]}

A token is `psby_ID_SECRET`; the secret is 256 random bits in base64url. The file has its SHA-256 alone. A slow hash with
salt (scrypt, argon2) protects passwords, of which there are few enough to try; of 2**256 secrets nobody tries a part that
counts, and a slow hash would cost each call milliseconds, and let whoever sends wrong tokens use up the processor.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from passerby.errors import FailedPreconditionError
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

Role = Literal["reader", "ingester", "admin"]
TOKEN = re.compile(r"psby_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_VERSION = 1
_WORLD_WRITABLE = 0o002


class Entry(BaseModel):
    """One way for a caller to show who it is, and what it may do then. A caller may have several."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    roles: Annotated[frozenset[Role], Field(min_length=1)]
    galleries: frozenset[Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")]] | None
    """Ids of the galleries it may use; None for all, also those yet to be made."""
    token_id: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""
    token_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    certificate: Annotated[str, Field(max_length=253)] = ""
    """A name in the client certificate."""
    create_time: AwareDatetime
    expire_time: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_credential(self) -> Self:
        if bool(self.token_id) != bool(self.token_sha256) or bool(self.token_id) == bool(self.certificate):
            raise ValueError("an entry has either token_id and token_sha256, or certificate")
        if self.galleries is not None and (not self.galleries or "-" in self.galleries):
            raise ValueError("galleries is null for all, or names some; '-' is no gallery of its own")
        return self

    @property
    def credential(self) -> str:
        """`token:3f0c...` or `certificate:desk.example`; nothing of it is secret."""
        return f"token:{self.token_id}" if self.token_id else f"certificate:{self.certificate}"

    def expired(self, now: datetime) -> bool:
        return self.expire_time is not None and self.expire_time <= now


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    callers: tuple[Entry, ...]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        credentials = [entry.credential for entry in self.callers]
        if len(set(credentials)) < len(credentials):
            raise ValueError("two entries have the same credential")
        return self


Change = Callable[[tuple[Entry, ...]], tuple[Entry, ...]]
"""What becomes of the entries."""


def new_token() -> tuple[str, str, str]:
    """A new token, its id, and the SHA-256 of its secret in hex."""
    token_id, secret = secrets.token_hex(8), base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    return f"psby_{token_id}_{secret}", token_id, hashlib.sha256(secret.encode()).hexdigest()


def read(path: Path) -> tuple[Entry, ...]:
    """The entries of the file. Raises FailedPreconditionError (CALLERS_UNREADABLE) unless all of it can be trusted."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except OSError as error:
        raise _unreadable(f"{path}: {error.strerror}; `passerby token create` makes it") from error
    if mode & _WORLD_WRITABLE:
        raise _unreadable(f"every user of this machine can write to {path}: chmod 600 {path}")
    try:
        return _Content.model_validate_json(content).callers
    except ValidationError as error:
        # Its text would repeat the input.
        where = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)[:3]
        )
        raise _unreadable(f"{path} is no file of callers ({where})") from None


def change(path: Path, new: Change) -> tuple[Entry, ...]:
    """Replaces the entries by what `new` makes of them; the file is made when missing. Returns the new ones.

    Readers find either the old file or the new one, whole. Raises FailedPreconditionError as `read`.
    """
    with _alone(path):
        entries = _Content(version=_VERSION, callers=new(read(path) if path.exists() else ())).callers
        rows = [json.loads(entry.model_dump_json(exclude_defaults=True)) for entry in entries]
        for row, entry in zip(rows, entries, strict=True):
            row["roles"] = sorted(entry.roles)
            row["galleries"] = None if entry.galleries is None else sorted(entry.galleries)
        text = json.dumps({"version": _VERSION, "callers": rows}, indent=1) + "\n"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        before = path.stat() if path.exists() else None
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
                file.flush()
                if before is not None:
                    os.fchmod(file.fileno(), before.st_mode & 0o777)
                    if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                        # An administrator's change must not shut out the server's own user.
                        os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return entries


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One change at a time: the folder is locked, since the file itself is replaced."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unreadable(f"{path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
        os.fsync(folder)
    except OSError as error:
        raise _unreadable(f"cannot write {path}: {error.strerror}") from error
    finally:
        os.close(folder)


def _unreadable(message: str) -> FailedPreconditionError:
    return FailedPreconditionError(message, reason="CALLERS_UNREADABLE")


def now() -> datetime:
    """The time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)
