"""SQLite's errors as ours, and what is the matter with the disk of the data folder.

SQLite says `disk I/O error` for most of what the kernel refuses, and `malformed` for what cannot be read: which of them
it is, a small file in the folder tells. All but a full disk and a damaged database are UnavailableError: nothing of the
write stays, and repeating it works once the disk does again, without a restart.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from passerby.errors import DataLossError, InternalError, PasserbyError, ResourceExhaustedError, UnavailableError

from passerby_server.gallery import sealing

logger = logging.getLogger(__name__)

ROOM = 4 * 2**20
"""Bytes that have to be free: about a transaction of many tracklets."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room: of the disk, of the owner's quota, of a file by the process's limit."""
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
RETRY_SECONDS = 5.0
NOT_WRITABLE = frozenset({"STORAGE_FULL", "STORE_NOT_WRITABLE", "DISK_FAILED"})
"""Reasons of errors that concern whatever is to be written."""


def trouble(folder: Path) -> PasserbyError | None:
    """Why nothing can be written into the data folder at this moment; None if it can."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, ROOM)
            file.write(b"\0")
            os.fsync(file.fileno())
    except OSError as error:
        return _of_disk(error.errno, error.strerror or str(error))
    return None


@contextmanager
def translated_errors(folder: Path | None = None) -> Iterator[None]:
    """Raises SQLite's errors as ours; with a data `folder` its disk is looked at."""
    try:
        yield
    except sqlite3.Error as error:
        raise translated(error, folder) from error
    except UnicodeDecodeError as error:  # SQLite's message quotes what it cannot read
        raise DataLossError(
            "the gallery database is damaged: what it says of its tables is no text; restore the data folder from a backup",
            reason="STORE_DAMAGED",
        ) from error


def translated(error: sqlite3.Error, folder: Path | None = None) -> PasserbyError:
    """The error of ours that says what SQLite's does."""
    name = getattr(error, "sqlite_errorname", "")
    text = f"{error} ({name})" if name else str(error)
    if name.startswith("SQLITE_FULL"):
        return _of_disk(errno.ENOSPC, text)
    if str(error) == sealing.RAISED:
        return DataLossError(
            "a row that this changes is damaged in the store: restore the data folder from a backup",
            reason="ROW_DAMAGED",
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return UnavailableError(f"another program holds the gallery database: {text}", reason="STORE_BUSY")
    # What the disk does not let be read, SQLite calls damaged as well.
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        found = None if folder is None else trouble(folder)
        if found is not None and found.reason != "STORAGE_FULL":
            return _failed(text)
        return DataLossError(
            f"the gallery database is damaged: {text}; restore the data folder from a backup", reason="STORE_DAMAGED"
        )
    if name.startswith(("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return (None if folder is None else trouble(folder)) or _of_name(name, text)
    return InternalError(f"the gallery database failed: {text}", reason="STORE_FAILED")


def _of_name(name: str, text: str) -> PasserbyError:
    """By SQLite's word alone, where the disk does not say more."""
    return _failed(text) if name.startswith("SQLITE_IOERR") else _of_disk(errno.EACCES, text)


def _of_disk(number: int | None, text: str) -> PasserbyError:
    if number in FULL:
        return ResourceExhaustedError(f"the disk of the data folder is full: {text}", reason="STORAGE_FULL")
    if number in READ_ONLY:
        return UnavailableError(
            f"the data folder cannot be written: {text}; check its permissions, and whether its disk is read-only",
            reason="STORE_NOT_WRITABLE",
            retry_delay=RETRY_SECONDS,
        )
    return _failed(text)


def _failed(text: str) -> PasserbyError:
    return UnavailableError(
        f"the disk of the data folder fails: {text}", reason="DISK_FAILED", retry_delay=RETRY_SECONDS
    )


class Watch:
    """Whether the data folder could be written when that was last tried, and a line in the log when it changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.reason = ""
        """Of NOT_WRITABLE; empty: it could."""

    def note(self, error: BaseException | None) -> None:
        """How a write ended: other errors than NOT_WRITABLE are the write's own."""
        reason = getattr(error, "reason", "")
        if reason not in NOT_WRITABLE and error is not None:
            return
        before, self.reason = self.reason, reason
        if reason and not before:
            logger.error("nothing can be stored, searches go on: %s", error)
        elif before and not reason:
            logger.warning("the data folder can be written again")

    def look(self) -> str:
        """Tries; `reason` as it is then."""
        self.note(trouble(self._folder))
        return self.reason
