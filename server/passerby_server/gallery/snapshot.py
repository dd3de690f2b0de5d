"""An index on disk, so that a start need not train it again. Derived from the store, never trusted more than it.

    passerby index 1 | length of header | header (JSON) | ids, int64 | FAISS's bytes | HMAC-SHA256 of all before

The key of the HMAC is a secret of the store: bytes that somebody else made, or that the disk changed, never reach
FAISS, whose reader is not made for hostile files. The header says of which gallery, model and kind it is, and which
entry of the store's audit was the last (its sequence number, and its time, since a restored backup counts anew from
an earlier number). A snapshot is written beside the old one and renamed, so a crash leaves the old one or none.
Deleting a tracklet deletes the snapshots of its gallery, which hold its code.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import sqlite3
import struct
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from passerby_server.gallery.descriptors import StoppedError

logger = logging.getLogger(__name__)

MAGIC = b"passerby index 2\n"
"""In snapshots of format 1 the centre of a list may be one descriptor, whose tracklet was erased since: they are not read."""
_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 32
CHUNK_BYTES = 16 * 2**20
"""Written (and waited for), or checked, at once."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a snapshot is of. `effort` is the index's; `sequence` and `sequence_time` are the store's last audit entry."""

    gallery_key: int
    fingerprint: str
    metric: str
    dimension: int
    factory: str
    parameters: str
    effort: int
    count: int
    sequence: int
    sequence_time: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A verified snapshot: ids int64 (n,), ascending, and FAISS's bytes, uint8 (m,)."""

    header: Header
    ids: NDArray[np.int64]
    codes: NDArray[np.uint8]


def path_of(folder: Path, gallery_key: int) -> Path:
    """Where the snapshot of a gallery lies; it is written beside that, with `.new` behind the name."""
    return folder / f"index-{gallery_key}.snapshot"


def drop_snapshots(folder: Path, gallery_key: int | None = None) -> list[Path]:
    """Deletes the snapshots of a gallery (None: of all), finished or not; which files those were."""
    pattern = f"index-{'*' if gallery_key is None else gallery_key}.snapshot*"
    dropped = []
    for path in sorted(folder.glob(pattern)):
        path.unlink(missing_ok=True)
        dropped.append(path)
    return dropped


def last_entry(connection: sqlite3.Connection) -> tuple[int, int]:
    """The store's sequence number and its time: those of the last audit entry, (0, 0) before the first."""
    found = connection.execute("SELECT audit_id, time FROM audit ORDER BY audit_id DESC LIMIT 1").fetchone()
    return found or (0, 0)


def is_past(connection: sqlite3.Connection, header: Header) -> bool:
    """Whether the store has been where the snapshot was made; not so after a restore of an older state."""
    if header.sequence == 0:
        return True
    found = connection.execute("SELECT time FROM audit WHERE audit_id = ?", (header.sequence,)).fetchone()
    return found is not None and found[0] == header.sequence_time


def write(path: Path, key: bytes, snapshot: Snapshot, stop: threading.Event) -> None:
    """Writes `path` anew. Raises OSError, and StoppedError once `stop` is set; what it wrote until then is removed."""
    header = json.dumps(asdict(snapshot.header)).encode()
    parts: list[Any] = [MAGIC + _LENGTH.pack(len(header)) + header, snapshot.ids.astype("<i8"), snapshot.codes]
    digest = hmac.new(key, digestmod="sha256")
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            for part in parts:
                _write(file, digest, memoryview(part).cast("B"), stop)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def read(path: Path, key: bytes) -> Snapshot | None:
    """The snapshot at `path`; None, with the reason in the log, unless the store's key made every bit of it."""
    try:
        content = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("the index's snapshot %s cannot be read (%s): built from the store", path.name, error.strerror)
        return None
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    expected = hmac.new(key, digestmod="sha256")
    for start in range(0, len(body), CHUNK_BYTES):
        expected.update(body[start : start + CHUNK_BYTES].data)
    if len(content) < _DIGEST_BYTES or not hmac.compare_digest(expected.digest(), digest.tobytes()):
        logger.warning("the index's snapshot %s is damaged or not this store's: built from the store", path.name)
        return None
    start = len(MAGIC) + _LENGTH.size
    if body[: len(MAGIC)].tobytes() != MAGIC:
        logger.info("the index's snapshot %s is of another version: built from the store", path.name)
        return None
    (length,) = _LENGTH.unpack(body[len(MAGIC) : start].tobytes())
    try:
        header = Header(**json.loads(body[start : start + length].tobytes()))
    except TypeError:  # other fields
        logger.warning("the index's snapshot %s is of another version: built from the store", path.name)
        return None
    middle = start + length + 8 * header.count
    ids = np.frombuffer(body[start + length : middle].tobytes(), "<i8").astype(np.int64)
    return Snapshot(header, ids, body[middle:])


def _write(file: BinaryIO, digest: hmac.HMAC, part: memoryview, stop: threading.Event) -> None:
    for start in range(0, len(part), CHUNK_BYTES):
        if stop.is_set():
            raise StoppedError
        digest.update(part[start : start + CHUNK_BYTES])
        file.write(part[start : start + CHUNK_BYTES])
        os.fdatasync(file.fileno())  # all at the end would hold up others' commits, and be long after `stop`
