"""The durable store: SQLite in WAL mode with synchronous=FULL, so that what a commit acknowledged survives kill -9
and power loss.

One connection writes, behind a queue: the thread that finds the writer free commits everything that waits as one
transaction (group commit: one fsync for many), each write in a savepoint of its own so that a refused one takes
nothing else with it. Readers have connections of their own and see the last commit.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from passerby.errors import FailedPreconditionError, UnavailableError

from passerby_server.gallery import schema, sealing, wal
from passerby_server.gallery.disk import Watch, translated, translated_errors
from passerby_server.gallery.files import discard
from passerby_server.gallery.readahead import read_ahead

T = TypeVar("T")

logger = logging.getLogger(__name__)

DATABASE_NAME = "gallery.db"
LOCK_NAME = "lock"
RESTORING_SUFFIX = ".restoring"
"""Of the folder in which a restore prepares the database."""
BUSY_TIMEOUT = 10.0
"""Seconds that a connection waits for another one's lock; ours never hold one that long."""
MAX_GROUP = 64
"""Writes of one transaction at most: bounds what a crash can undo of what was not acknowledged yet."""
SCRUB_WAIT = 0.2
"""Seconds that a delete waits for reads to end, to take what it deleted out of the log as well."""
IDLE_READERS = 8
"""Reading connections kept open between reads."""


def keep_temporary_files(folder: Path) -> None:
    """Has SQLite make the copy of a rewrite in `folder`, unless the operator chose a place: it is of people, too, and
    stays on the volume that was chosen for them."""
    os.environ.setdefault("SQLITE_TMPDIR", str(folder.absolute()))


class FolderLock:
    """Exclusive use of a data folder by one process.

    The kernel drops a flock with its process, however that ends: a lock left behind by a crash never blocks a start.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._file = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FailedPreconditionError(
                f"cannot use {folder} as data folder: {error.strerror}", reason="STORE_NOT_WRITABLE"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 32).decode("ascii", "replace").strip()
            os.close(self._file)
            raise FailedPreconditionError(
                f"data folder {folder} is in use by another passerby server (process {holder or 'unknown'}): "
                "stop that one or choose another folder",
                reason="DATA_FOLDER_IN_USE",
            ) from error
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        os.close(self._file)


class _Write(Generic[T]):
    """One queued write and what became of it."""

    def __init__(self, change: Callable[[sqlite3.Connection], T], publish: Callable[[T], None], *, scrub: bool) -> None:
        self.change = change
        self.publish = publish
        self.scrub = scrub
        self.done = False
        self.value: T | None = None
        self.error: BaseException | None = None

    def finish(self, error: BaseException | None) -> None:
        self.error = self.error or error
        self.done = True


class Store:
    """An open store. Raises FailedPreconditionError and DataLossError as `schema.migrate` and `sealing.verify` say."""

    def __init__(self, folder: Path) -> None:
        with ExitStack() as undo:
            _make_folder(folder)
            self.path = folder / DATABASE_NAME
            self.disk = Watch(folder)
            self._lock = FolderLock(folder)
            undo.callback(self._lock.release)
            # Of a restore that was killed: it blocks nothing, but what is in it must not outlast an erasure.
            discard(folder / f"{DATABASE_NAME}{RESTORING_SUFFIX}")
            # Open as long as the database is: closing it earlier would take SQLite's locks away.
            self._file = _make_private(self.path)
            undo.callback(os.close, self._file)
            with translated_errors(folder):
                self._writer = self._connect()
                undo.callback(self._writer.close)
                self._prepare()
            undo.pop_all()
        self._writer_lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._queue: list[_Write[Any]] = []
        self._readers_lock = threading.Condition()
        self._readers: list[sqlite3.Connection] = []
        self._reading = 0
        self._scrub_wanted = False
        self._closed = False

    def write(
        self,
        change: Callable[[sqlite3.Connection], T],
        publish: Callable[[T], None] = lambda _: None,
        *,
        scrub: bool = False,
    ) -> T:
        """Runs `change` in a transaction and returns its value once that is durable.

        `publish` then gets the value, before any later write begins: what it derives is derived in storing order. It
        must not raise. Whatever `change` raises undoes this change alone and is raised here.

        `scrub` says that the change deletes: the write-ahead log, which holds the deleted content until then, is
        emptied too. A read that takes longer than SCRUB_WAIT prevents that; then it is tried again after each later
        write, and at close and open.
        """
        write = _Write(change, publish, scrub=scrub)
        with self._queue_lock:
            self._queue.append(write)
        with self._writer_lock:
            if not write.done:
                self._commit_group(write)
        if write.error is not None:
            raise write.error
        return cast(T, write.value)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A reading connection on one unchanging state of the store."""
        with translated_errors(self.path.parent), self._reader() as connection:
            try:
                connection.execute("BEGIN")
                connection.execute("SELECT 1 FROM sqlite_schema").fetchone()  # the snapshot starts with the first read
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def rewrite(self) -> tuple[Path, ...]:
        """Writes the whole database anew and empties the log; the files that were rewritten.

        SQLite writes zeros over what is deleted (secure_delete), but a row that moved to another page before may leave
        a copy in the slack of the old one: VACUUM copies what is there and nothing else. Reads go on meanwhile, writes
        wait. It takes room for two more copies: the log beside the database, and an unlinked file where SQLite keeps
        temporary ones (SQLITE_TMPDIR). Raises UnavailableError (REWRITE_BLOCKED) when a read still needs the log after
        BUSY_TIMEOUT, ResourceExhaustedError when the disk is full: the rewrite stays due then.
        """
        with self._writer_lock, translated_errors(self.path.parent):
            if self._closed:
                raise UnavailableError("the gallery is closed: the server is going down", reason="SHUTTING_DOWN")
            self._writer.execute("VACUUM")
            busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise UnavailableError(
                    "what was deleted is gone from the galleries, but a long read still holds the write-ahead log: it is "
                    "emptied after a later write",
                    reason="REWRITE_BLOCKED",
                )
            self._writer.execute("DELETE FROM upkeep WHERE name = 'rewrite_due'")
            self._scrub_wanted = False
            return self.files

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that a delete has written over: the database and its log; none while a read kept the log from that."""
        return () if self._scrub_wanted else (self.path, self._log)

    @property
    def _log(self) -> Path:
        return self.path.with_name(f"{self.path.name}-wal")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Holds back all writes."""
        with self._writer_lock:
            yield

    def close(self) -> None:
        """Closes all connections, which folds the log into the database, and gives the folder free. Idempotent.

        Reads under way end first, further ones raise UnavailableError. Must not be called within a read.
        """
        with self._writer_lock, self._readers_lock:
            if self._closed:
                return
            self._closed = True
            self._readers_lock.wait_for(lambda: self._reading == 0)
            for reader in self._readers:
                reader.close()
            self._readers.clear()
            self._writer.close()
            os.close(self._file)
            self._lock.release()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        for pragma in ("foreign_keys = ON", "synchronous = FULL", "secure_delete = ON", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        sealing.prepare(connection)
        return connection

    def _prepare(self) -> None:
        commits = wal.commits(self._log)
        self._writer.execute("PRAGMA journal_mode = WAL")
        with read_ahead(self._file):
            sealing.verify(self._writer, self.path)
        _, read, _ = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if lost := wal.lost(commits, read):
            logger.error(
                "%s is damaged: %d acknowledged commits at least are lost; see the backups", self._log.name, lost
            )
        schema.migrate(self._writer)
        sealing.keep_sealed(self._writer)
        # A crash may have left erased content in the log; nobody reads yet, so this always succeeds.
        self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """A reading connection that nobody else uses meanwhile."""
        with self._readers_lock:
            if self._closed:
                raise UnavailableError("the gallery is closed: the server is going down", reason="SHUTTING_DOWN")
            self._reading += 1
            connection = self._readers.pop() if self._readers else None
        try:
            if connection is None:
                connection = self._connect()
                connection.execute("PRAGMA query_only = ON")
            yield connection
        finally:
            self._return_reader(connection)

    def _return_reader(self, connection: sqlite3.Connection | None) -> None:
        with self._readers_lock:
            kept = not self._closed and len(self._readers) < IDLE_READERS
            if connection is not None and kept and not connection.in_transaction:
                self._readers.append(connection)
            elif connection is not None:
                connection.close()
            self._reading -= 1
            self._readers_lock.notify_all()

    def _commit_group(self, own: _Write[Any]) -> None:
        """Commits the waiting writes, `own` among them. Called by the one thread that holds the writer lock."""
        while not own.done:
            with self._queue_lock:
                group, self._queue = self._queue[:MAX_GROUP], self._queue[MAX_GROUP:]
            error: BaseException | None = None
            try:
                with translated_errors(self.path.parent):
                    if self._transact(group):
                        self.disk.note(None)
            except Exception as raised:  # noqa: BLE001 - raised again in every thread whose write was in the group
                error = raised
                self.disk.note(raised)
            finally:
                for write in group:
                    write.finish(error or (None if write.done else UnavailableError("the server is going down")))

    def _transact(self, group: list[_Write[Any]]) -> bool:
        """Whether anything was written."""
        if self._closed:
            raise UnavailableError("the gallery is closed: the server is going down", reason="SHUTTING_DOWN")
        before = self._writer.total_changes
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            for write in group:
                self._attempt(write)
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise
        for write in group:
            if write.error is None:
                write.publish(write.value)
            write.done = True
        if any(write.scrub for write in group):
            self._scrub(SCRUB_WAIT)
        elif self._scrub_wanted:
            self._scrub(0.0)
        return self._writer.total_changes > before

    def _scrub(self, wait: float) -> None:
        """Empties the log unless a read still needs it after `wait` seconds. The commit stands whatever happens."""
        self._scrub_wanted = True
        try:
            self._writer.execute(f"PRAGMA busy_timeout = {int(wait * 1000)}")
            try:
                busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT * 1000)}")
            self._scrub_wanted = bool(busy)
        except sqlite3.Error:
            logger.exception("the write-ahead log still holds deleted content; it is emptied after a later write")

    def _attempt(self, write: _Write[Any]) -> None:
        self._writer.execute("SAVEPOINT one_write")
        try:
            write.value = write.change(self._writer)
        except Exception as error:  # raised again in the thread that asked for the write
            if not self._writer.in_transaction:
                raise  # a full disk ends the whole transaction, not only this savepoint
            self._writer.execute("ROLLBACK TO one_write")
            write.error = translated(error, self.path.parent) if isinstance(error, sqlite3.Error) else error
        self._writer.execute("RELEASE one_write")


def _make_folder(folder: Path) -> None:
    """Makes the folder, if absent, for its owner alone. One that was there keeps its mode, which may be meant so."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (mode := folder.stat().st_mode & 0o777) & 0o077:
            logger.warning(
                "other users can enter the data folder %s (mode %o): what is stored in it is its owner's alone, but they may "
                "see file names%s; unless that is meant: chmod 700 %s",
                folder,
                mode,
                ", delete files and put others in their place" if mode & 0o022 else "",
                folder,
            )
    except OSError as error:
        raise FailedPreconditionError(
            f"cannot use {folder} as data folder: {error.strerror}", reason="STORE_NOT_WRITABLE"
        ) from error


def _make_private(database: Path) -> int:
    """Makes the database, if absent, for its owner alone, and opens it; SQLite gives its log the same mode.

    The folder's mode does not do: a folder that was there before, such as a mounted volume, may be open to others.
    """
    try:
        for path in (database, *(database.with_name(database.name + suffix) for suffix in ("-wal", "-shm"))):
            if path.exists() and path.stat().st_mode & 0o077:
                path.chmod(0o600)
        return os.open(database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FailedPreconditionError(
            f"cannot keep {database} to its owner alone: {error.strerror}; check who owns the data folder",
            reason="STORE_NOT_WRITABLE",
        ) from error
