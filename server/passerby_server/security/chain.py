"""Records that cannot be changed unnoticed: one JSON object a line, each sealed together with the seal before it.

    {"seq":7,"time":"2026-01-05T10:00:00.000000Z","event":"SearchTracklets",...,"mac":"5f0c..."}

`mac` is HMAC-SHA-256 over the `mac` of the line before and the line's own bytes up to it. A plain hash chain would be worked
out anew by whoever edits a line; for this one they need the key too, so a copy of the records (a backup, a collector of
logs, a volume that others mount) can be given away and still be checked. Whoever has the key can forge: the server must
have it, so an intruder in the server can. Cutting off the newest records leaves a valid chain: for that, the last seal
noted elsewhere is asked for (`Head`).

A file begins with a record `Segment`, which repeats the seal before it, so that older files can be deleted; a record
`Retention` says which. Names of people and tracklets are never in a record: `Key.pseudonym` stands for them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passerby.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError

Record = dict[str, Any]
SEGMENT = "Segment"
RETENTION = "Retention"
STOPPED = "ServerStopped"
EVENTS = frozenset({SEGMENT, RETENTION, STOPPED, "ServerStarted", "AuditResumed", "Refused"})
"""What a record may be about besides a method of the API."""
NO_MAC = bytes(32)
"""Stands before the first record of all."""
_LINE = re.compile(rb'(\{.*),"mac":"([0-9a-f]{64})"\}\n')
_NAME = re.compile(r"audit-(\d{12})\.jsonl")


@dataclass(frozen=True, slots=True)
class Key:
    """Two keys from one secret: of the seals, and of what stands for names."""

    seal: bytes
    names: bytes

    @classmethod
    def of(cls, secret: bytes) -> Key:
        return cls(
            hmac.digest(secret, b"passerby audit seal", "sha256"),
            hmac.digest(secret, b"passerby audit names", "sha256"),
        )

    def pseudonym(self, kind: str, gallery_id: str, name: str) -> str:
        """What stands for a name: `identity:` or `tracklet:` and 32 hex digits; identities are those of all galleries."""
        # Only the name, which is last, may hold any character.
        text = f"{kind}\0{gallery_id if kind == 'tracklet' else ''}\0{name}".encode()
        return f"{kind}:{hmac.digest(self.names, text, 'sha256').hex()[:32]}"


@dataclass(frozen=True, slots=True)
class Head:
    """The newest record: how many there are with it, and its seal."""

    seq: int = 0
    mac: bytes = NO_MAC

    def __str__(self) -> str:
        return f"{self.seq}:{self.mac.hex()}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """The other way round; raises InvalidArgumentError."""
        if not re.fullmatch(r"\d{1,15}:[0-9a-f]{64}", text):
            raise InvalidArgumentError(f"{text!r} is no head as `passerby audit verify` prints it (NUMBER:SEAL)")
        seq, _, mac = text.partition(":")
        return cls(int(seq), bytes.fromhex(mac))


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found to be whole."""

    records: int
    first: Record | None
    last: Record | None
    head: Head
    unfinished_bytes: int
    """Of a last line that a running server is writing, or that a crash cut off."""


def load_key(path: Path) -> Key:
    """The key in the file. Raises NotFoundError, FailedPreconditionError (AUDIT_KEY)."""
    try:
        text = path.read_text("ascii").strip()
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: there is no such key of the audit", reason="AUDIT_KEY") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPreconditionError(f"the key of the audit in {path} cannot be read", reason="AUDIT_KEY") from error
    if mode & 0o007:
        raise FailedPreconditionError(
            f"every user of this machine can read {path}: chmod 600 {path}", reason="AUDIT_KEY"
        )
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise FailedPreconditionError(f"{path} is no key of the audit: 64 hex digits", reason="AUDIT_KEY")
    return Key.of(bytes.fromhex(text))


def make_key(path: Path) -> Key:
    """Makes a file with a new key, for its owner alone. Raises FailedPreconditionError (AUDIT_KEY)."""
    secret = secrets.token_bytes(32)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secret.hex()}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FailedPreconditionError(f"cannot make {path}: {error.strerror}", reason="AUDIT_KEY") from error
    return Key.of(secret)


def seal(key: Key, before: Head, record: Record) -> tuple[bytes, Head]:
    """The line of the record that follows `before`, numbered, and the head that it makes."""
    body = json.dumps({"seq": before.seq + 1} | record, separators=(",", ":"), ensure_ascii=False).encode()[:-1]
    mac = _mac(key, before.mac, body)
    return body + f',"mac":"{mac.hex()}"}}\n'.encode(), Head(before.seq + 1, mac)


def unseal(key: Key, before: Head | None, line: bytes) -> tuple[Record, Head]:
    """The record of a line. `before`: None for the first of a file whose predecessor is gone. Raises ValueError."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError("is no sealed record")
    record: Record = json.loads(match[1] + b"}")
    if before is None:
        if record.get("event") != SEGMENT:
            raise ValueError("the file does not begin with its first record")
        before = Head(record["seq"] - 1, bytes.fromhex(record["previous"]))
    if not hmac.compare_digest(_mac(key, before.mac, match[1]), bytes.fromhex(match[2].decode())):
        raise ValueError("its seal does not fit: this record or the one before was changed, or the key is another one")
    if record["seq"] != before.seq + 1:
        raise ValueError("records are missing before it")
    return record, Head(record["seq"], bytes.fromhex(match[2].decode()))


def segments(folder: Path) -> list[Path]:
    """The files with records, oldest first."""
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else []


def segment_name(first: int) -> str:
    """Of the file whose first record has this number."""
    return f"audit-{first:012}.jsonl"


def _first_number(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def read(folder: Path, key: Key) -> Iterator[Record]:
    """All records, oldest first. Raises as `walk`."""
    return (record for record, _ in walk(folder, key))


def walk(folder: Path, key: Key) -> Iterator[tuple[Record, Head]]:
    """All records, oldest first, each once its seal has been checked, with the head that it makes. Of files that a running
    server deletes for their age meanwhile it leaves out what it has not come to.

    Raises DataLossError (AUDIT_TAMPERED) with file and line where the chain breaks.
    """
    head: Head | None = None
    deleted = missing = 0
    vanished = False
    for path in _until_the_newest(folder):
        try:
            file = path.open("rb")
        except FileNotFoundError:  # taken by a server's retention since it was listed; the newest records say so
            vanished = True
            continue
        with file:
            if vanished and head is not None:
                missing, head = _first_number(path) - 1, None
            vanished = False
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # being written, or cut off by a crash: nothing was given away on its account
                try:
                    record, head = unseal(key, head, line)
                except (ValueError, KeyError, TypeError) as error:
                    raise tampered(f"{path}, line {number}: {error}") from error
                if record["event"] == RETENTION:
                    deleted = max(deleted, record["deleted_to"])
                yield record, head
    if missing > deleted:
        raise tampered(f"the records before number {missing + 1} are missing, and no retention deleted them")


def _until_the_newest(folder: Path) -> Iterator[Path]:
    """The files with records, oldest first, also those that are begun while it is asked for them."""
    last = ""
    while files := [path for path in segments(folder) if path.name > last]:
        last = files[-1].name
        yield from files


def verify(folder: Path, key: Key, noted: Head | None = None) -> Verified:
    """Checks every seal, that none is missing, and that the record `noted` earlier is still the same.

    Raises DataLossError (AUDIT_TAMPERED), NotFoundError without any records.
    """
    files = segments(folder)
    if not files:
        raise NotFoundError(f"there are no audit records in {folder}")
    first: Record | None = None
    last: Record | None = None
    count, head, deleted, found = 0, Head(), 0, None
    for last, head in walk(folder, key):
        count, first = count + 1, first or last
        if last["event"] == RETENTION:
            deleted = max(deleted, last["deleted_to"])
        if noted and head.seq == noted.seq:
            found = head
    if first is not None and first["seq"] - 1 > deleted:
        raise tampered(
            f"{files[0]}: the records before number {first['seq']} are missing, and no retention deleted them"
        )
    if noted and noted.seq > deleted and found != noted:
        raise tampered(f"record {noted.seq} is missing or another one than was noted: the newest records were cut off")
    if last is None:  # each file is made with its first record in it
        raise tampered(f"{files[0]} holds no whole record")
    tail = segments(folder)[-1].read_bytes()
    return Verified(count, first, last, head, len(tail) - (tail.rfind(b"\n") + 1))


def tampered(message: str) -> DataLossError:
    return DataLossError(f"the audit was tampered with or is damaged: {message}", reason="AUDIT_TAMPERED")


def _mac(key: Key, before: bytes, body: bytes) -> bytes:
    return hmac.new(key.seal, before + body, hashlib.sha256).digest()
