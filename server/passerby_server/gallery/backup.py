"""Backups of a data folder: made beside a running server, verified, restored.

A backup is a folder with the database as one file and `backup.json` with its size and sha256. The index is not in it:
it is built from the store. Everything else is: descriptors, thumbnails, names, the audit and the store's secrets, so a
backup is to be guarded as the data folder is. The store remembers its backups, for the receipts of later erasures.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from passerby.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)

from passerby_server.gallery import rows, schema, sealing
from passerby_server.gallery.disk import translated_errors
from passerby_server.gallery.erasure import Erasing
from passerby_server.gallery.files import discard, put_in_place, sync
from passerby_server.gallery.home import REWRITE_DELAY
from passerby_server.gallery.memory import carry_over, erased_since, memory_of
from passerby_server.gallery.snapshot import drop_snapshots
from passerby_server.gallery.store import (
    DATABASE_NAME,
    LOCK_NAME,
    RESTORING_SUFFIX,
    FolderLock,
    Store,
    keep_temporary_files,
)

MANIFEST_NAME = "backup.json"
FORMAT = 1
WAIT = 30.0
"""Seconds to wait for the running server's write under way."""
CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Backup:
    """What `backup.json` says: `galleries` gives the tracklets of each."""

    time: datetime
    schema_version: int
    size_bytes: int
    sha256: str
    galleries: dict[str, int]


@dataclass(frozen=True, slots=True)
class Damage:
    """What `check` found: SQLite's findings, names of tracklets of which what is said, the descriptor, the thumbnail or a
    kept frame is damaged, and table and key of other rows that are."""

    database: tuple[str, ...]
    tracklets: tuple[str, ...]
    rows: tuple[str, ...]
    descriptors: tuple[str, ...]
    thumbnails: tuple[str, ...]
    frames: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.database or self.tracklets or self.rows or self.descriptors or self.thumbnails or self.frames)


def back_up(data: Path, target: Path) -> Backup:
    """Copies the store of `data` as it is now into the new folder `target`, also while a server writes to it.

    Raises:
        NotFoundError: `data` holds no store. AlreadyExistsError: `target` exists.
        InvalidArgumentError: `target` is inside the data folder, where an erasure would have to reach it.
        FailedPreconditionError: the store has another schema version (start the server once), or cannot be written.
        DataLossError: the copy is damaged, since the store is.
    """
    target = target.absolute()
    if target.exists():
        raise AlreadyExistsError(f"{target} exists already: name a new folder", reason="BACKUP_EXISTS")
    if target.resolve().is_relative_to(data.resolve()):
        raise InvalidArgumentError.of("target", f"{target} is inside the data folder: name one outside")
    partial = target.with_name(f".{target.name}.partial")
    with _opened(data / DATABASE_NAME) as source:
        _check_version(source, data)
        sealing.keep_sealed(source)
        time = rows.now()
        # One at this place is gone: deleted by hand, or its making was killed.
        source.execute("DELETE FROM backups WHERE location = ?", (str(target),))
        number = source.execute("INSERT INTO backups (time, location) VALUES (?, ?)", (time, str(target))).lastrowid
        try:
            _make_folder(partial)
            backup = _copy(source, partial, time)
            put_in_place(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            source.execute("DELETE FROM backups WHERE backup_id = ?", (number,))
            raise
    return backup


def read_backup(folder: Path) -> Backup:
    """What a backup says of itself. Raises NotFoundError, InvalidArgumentError."""
    try:
        said = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise FailedPreconditionError(
                f"{folder} has backup format {said['format']}, this passerby knows {FORMAT}: use the newer one",
                reason="BACKUP_TOO_NEW",
            )
        return Backup(
            rows.from_microseconds(said["time"]),
            said["schema_version"],
            said["size_bytes"],
            said["sha256"],
            said["galleries"],
        )
    except OSError as error:
        raise NotFoundError(f"{folder} is no backup: {MANIFEST_NAME}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError(f"{folder / MANIFEST_NAME} is no description of a backup: {error!r}") from error


def restore(folder: Path, data: Path, *, force: bool = False) -> int:
    """Puts a verified backup in place of the store of `data`; how many identities were erased again.

    With `force` an existing store is replaced. Who was erased from it since the backup was made (EraseIdentity) is
    erased from the restored one too, where the existing store can still be read: before it is put in place, so that
    one that is killed leaves the existing store, or a restored one without them. The backups of the existing store stay
    known, for later receipts.

    Raises:
        NotFoundError, InvalidArgumentError: `folder` is no backup. DataLossError (BACKUP_DAMAGED): it is damaged.
        AlreadyExistsError (DATA_FOLDER_IN_THE_WAY): `data` holds something, and `force` was not given.
        FailedPreconditionError: a server uses `data` (DATA_FOLDER_IN_USE), or a newer passerby made the backup.

    A backup that an older passerby made is restored with the newest schema; the backup itself stays as it is.
    """
    backup = read_backup(folder)
    # The lock is there after every attempt, also one that failed.
    if not force and data.exists() and any(path.name != LOCK_NAME for path in data.iterdir()):
        raise AlreadyExistsError(
            f"{data} is not empty: choose another folder, or replace the galleries in it with --force",
            reason="DATA_FOLDER_IN_THE_WAY",
        )
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FolderLock(data)
    scratch = data / f"{DATABASE_NAME}{RESTORING_SUFFIX}"
    try:
        discard(scratch)  # of an attempt that was killed
        fresh = scratch / DATABASE_NAME
        version = _verified_copy(folder / DATABASE_NAME, fresh, backup)
        if version < len(schema.MIGRATIONS):
            Store(scratch).close()
            sync(fresh)
        erased = _remembered(data / DATABASE_NAME, fresh)
        if erased:
            keep_temporary_files(data)
            _erase_again(scratch, erased)
        # The old log first: SQLite would apply it to the new file.
        for suffix in ("-wal", "-shm", "-journal"):
            (data / f"{DATABASE_NAME}{suffix}").unlink(missing_ok=True)
        drop_snapshots(data)  # of the indexes of what is replaced
        put_in_place(fresh, data / DATABASE_NAME)
    finally:
        discard(scratch)
        lock.release()
    return len(erased)


def check(data: Path) -> Damage:
    """Reads all of a store, also beside a running server, and compares every checksum.

    Raises NotFoundError, or FailedPreconditionError for a store of another schema version (SCHEMA_OTHER).
    """
    with _opened(data / DATABASE_NAME) as connection:
        connection.execute("PRAGMA query_only = ON")
        _check_version(connection, data)
        findings = [row[0] for row in connection.execute("PRAGMA integrity_check(20)")]
        database = () if findings == ["ok"] else tuple(findings)
        tracklets = tuple(rows.name_of(connection, key) for _, key in sealing.damaged_tracklets(connection))
        others = (*sealing.damaged_rows(connection), *_orphans(connection))
        return Damage(database, tracklets, others, *_damaged_values(connection))


def _damaged_values(connection: sqlite3.Connection) -> Iterator[tuple[str, ...]]:
    """Names of tracklets with a damaged descriptor, of those with a damaged thumbnail, and of those with a damaged frame."""
    for table, column, join in (
        ("descriptors", "descriptor", "LEFT"),
        ("thumbnails", "thumbnail", ""),
        ("frames", "frame", ""),
    ):
        found = connection.execute(
            f"SELECT vector_id, {column}, checksum FROM tracklets {join} JOIN {table} USING (vector_id)"  # noqa: S608
        )
        crc = _thumbnail_crc if table == "thumbnails" else _value_crc
        damaged = [key for key, blob, checksum in found if not isinstance(blob, bytes) or crc(key, blob) != checksum]
        yield tuple(rows.name_of(connection, key) for key in dict.fromkeys(damaged))


def _value_crc(_: int, blob: bytes) -> int:
    return zlib.crc32(blob)


def _thumbnail_crc(vector_id: int, blob: bytes) -> int:
    return sealing.seal(vector_id, blob)


def _orphans(connection: sqlite3.Connection) -> list[str]:
    """Rows that belong to a tracklet or gallery that is not there: deleting takes them along, so only damage leaves them."""
    found = connection.execute("PRAGMA foreign_key_check").fetchall()
    return [f"{table} {row or ''}".strip() for table, row, _, _ in found]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise NotFoundError(
            f"{path.parent} holds no galleries: there is no {path.name} in it", reason="STORE_NOT_FOUND"
        )
    with translated_errors():
        connection = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
        sealing.prepare(connection)
        try:
            connection.execute("PRAGMA secure_delete = ON")
            yield connection
        finally:
            connection.close()


def _check_version(connection: sqlite3.Connection, where: Path) -> int:
    """The schema version; raises FailedPreconditionError unless it is a store, and of this version."""
    version, newest = _known_version(connection, where), len(schema.MIGRATIONS)
    if version != newest:
        raise FailedPreconditionError(
            f"{where} has schema version {version}, this passerby {newest}: start the server on it once, which migrates "
            "it, or use the passerby that wrote it",
            reason="SCHEMA_OTHER",
        )
    return version


def _known_version(connection: sqlite3.Connection, where: Path) -> int:
    """The schema version; raises FailedPreconditionError unless it is a store, and of a version that can be migrated."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != schema.APPLICATION_ID or version < 1:
        raise FailedPreconditionError(f"the database in {where} was not made by passerby", reason="NOT_A_STORE")
    if version > len(schema.MIGRATIONS):
        raise FailedPreconditionError(
            f"{where} has schema version {version}, this passerby knows versions up to {len(schema.MIGRATIONS)}: use the "
            "newer passerby that wrote it",
            reason="SCHEMA_TOO_NEW",
        )
    return int(version)


def _copy(source: sqlite3.Connection, folder: Path, time: int) -> Backup:
    """Fills `folder` from the open store."""
    path = folder / DATABASE_NAME
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as copy:
        # In one step, on one unchanging state: in several, each write of the server would begin it anew.
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        findings = [row[0] for row in copy.execute("PRAGMA quick_check(3)")]
        if findings != ["ok"]:
            raise DataLossError(f"the gallery database is damaged: {'; '.join(findings)}", reason="STORE_DAMAGED")
        version = _check_version(copy, folder)
        galleries = dict(
            copy.execute(
                "SELECT gallery_id, count(vector_id) FROM galleries LEFT JOIN tracklets USING (gallery_key) "
                "GROUP BY gallery_id ORDER BY gallery_id"
            ).fetchall()
        )
    size, digest = _hash(path)
    said: dict[str, Any] = {"format": FORMAT, "time": time, "schema_version": version, "size_bytes": size}
    said |= {"sha256": digest, "galleries": galleries}
    (folder / MANIFEST_NAME).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    for name in (DATABASE_NAME, MANIFEST_NAME):
        sync(folder / name)
    sync(folder)
    return Backup(rows.from_microseconds(time), version, size, digest, galleries)


def _verified_copy(source: Path, target: Path, backup: Backup) -> int:
    """Copies the database of a backup, and reads both back; its schema version."""
    try:
        _check_hash(source, backup)
        target.parent.mkdir(mode=0o700)
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        shutil.copyfile(source, target)
        sync(target)
        _check_hash(target, backup)
        with _opened(target) as connection:
            return _known_version(connection, source.parent)
    except OSError as error:
        raise FailedPreconditionError(
            f"{source} cannot be copied to {target.parent}: {error.strerror}", reason="STORE_NOT_WRITABLE"
        ) from error


def _check_hash(path: Path, backup: Backup) -> None:
    if _hash(path) != (backup.size_bytes, backup.sha256):
        raise DataLossError(f"{path} is damaged: it is not what {MANIFEST_NAME} says", reason="BACKUP_DAMAGED")


class _Scratch(Erasing):
    """A store without indexes, in a folder of its own, to erase in."""

    def __init__(self, folder: Path) -> None:
        self._store = Store(folder)
        self._live = {}
        self._damaged = {}
        self._rewrite_delay = REWRITE_DELAY
        with self._store.read() as connection:
            self._audit_key = rows.get_secrets(connection)["audit"]

    def close(self) -> None:
        self._store.close()


def _erase_again(folder: Path, found: list[tuple[str, str]]) -> None:
    """Erases identities from the store in `folder`, which is one durable file afterwards."""
    with contextlib.closing(_Scratch(folder)) as scratch:
        scratch.erase_again(found)
    sync(folder / DATABASE_NAME)


def _remembered(old: Path, fresh: Path) -> list[tuple[str, str]]:
    """Puts into `fresh` what it has to know of the store that it replaces; gallery and identity of who is to be erased."""
    memory = memory_of(old)
    if memory is None:
        return []
    with _opened(fresh) as connection:
        sealing.keep_sealed(connection)
        connection.execute("BEGIN IMMEDIATE")
        erased = erased_since(memory, connection)
        carry_over(memory, connection)
        connection.execute("COMMIT")
    return erased


def _hash(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _make_folder(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise FailedPreconditionError(
            f"cannot make {folder.parent}: {error.strerror}", reason="BACKUP_NOT_WRITABLE"
        ) from error
