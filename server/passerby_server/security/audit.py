"""Writes the audit: records from many calls, one `fdatasync` for all that wait, so that each is on the disk before its
call is answered.

A thread of its own writes. While it waits for the disk, further records gather, and are written together. When the disk
refuses, what waits fails and so do the calls: nobody gets an answer of which there is no record.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import queue
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path

from passerby.errors import FailedPreconditionError, UnavailableError

from passerby_server.logs import event
from passerby_server.security import chain
from passerby_server.security.chain import Head, Key, Record

log = logging.getLogger(__name__)

MAX_BATCH = 1024
SEGMENT_BYTES = 16 << 20
"""A file of records ends with its day (UTC), or when it is this large."""
SWEEP_SECONDS = 600.0
TAIL_BYTES = 16 << 10
"""Far more than a record has."""
_DAY = 86_400


class AuditLog:
    """The audit of one server, open for writing.

    Raises FailedPreconditionError when the folder is in use or cannot be written, or its key is missing (AUDIT_KEY);
    DataLossError (AUDIT_TAMPERED) when its newest file is damaged.
    """

    def __init__(self, folder: Path, key_file: Path | None = None, *, keep_days: float = 0.0) -> None:
        self._folder, self._keep_days = folder, keep_days
        key_file = key_file or folder / "key"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(folder)
        except OSError as error:
            raise FailedPreconditionError(f"cannot use {folder} for the audit: {error.strerror}") from error
        self._head, self._file, self._size, self._day = Head(), -1, 0, ""
        try:
            files = chain.segments(folder)
            self.key: Key = chain.load_key(key_file) if files or key_file.exists() else chain.make_key(key_file)
            self._resume(files)
        except BaseException:
            os.close(self._lock)
            raise
        self.broken = False
        """Whether the last attempt to write failed."""
        self._queue: queue.SimpleQueue[tuple[Record, Future[None]] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="passerby-audit")
        self._thread.start()

    def append(self, name: str, **fields: object) -> Future[None]:
        """Adds a record; the result comes once it is durable, or UnavailableError (AUDIT_FAILED)."""
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # a caller that goes away must not take the record along
        with self._closing:
            if self._closed:
                future.set_exception(_refusal("the server is going down"))
            else:
                self._queue.put(({"time": _now(), "event": name} | fields, future))
        return future

    async def ready(self) -> None:
        """Returns at once, unless writing failed before: then tries again. Raises UnavailableError (AUDIT_FAILED)."""
        if self.broken:
            await asyncio.wrap_future(self.append("AuditResumed"))

    @property
    def head(self) -> Head:
        """The newest durable record."""
        return self._head

    def close(self) -> None:
        """Writes what waits, and ends; what is appended afterwards fails. May be repeated, also at the same time."""
        with self._closing:
            first, self._closed = not self._closed, True
            if first:
                self._queue.put(({"time": _now(), "event": chain.STOPPED}, Future()))
                self._queue.put(None)
        self._thread.join()
        if first:
            event(log, logging.INFO, "audit closed", head=self._head)
            if self._file >= 0:
                os.close(self._file)
            os.close(self._lock)

    def _run(self) -> None:
        swept = -SWEEP_SECONDS
        while True:
            if time.monotonic() - swept >= SWEEP_SECONDS:
                swept = time.monotonic()
                self._sweep()
            try:
                item = self._queue.get(timeout=SWEEP_SECONDS)
            except queue.Empty:
                continue
            batch: list[tuple[Record, Future[None]]] = []
            while item is not None and len(batch) < MAX_BATCH:
                batch.append(item)
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            else:
                if item is None:
                    self._commit(batch)
                    return
                batch.append(item)
            self._commit(batch)

    def _commit(self, batch: list[tuple[Record, Future[None]]]) -> None:
        try:
            self._write([record for record, _ in batch])
        except Exception as error:  # raised again in every call whose record was in the batch
            if not isinstance(error, OSError):
                log.exception("the audit failed")
            if not self.broken:
                log.error("the audit cannot be written, so calls are refused: %s", error)  # noqa: TRY400
            self.broken = True
            failure = _refusal("the operator finds the reason in the server's log")
            for _, future in batch:
                future.set_exception(failure)
            return
        self.broken = False
        for _, future in batch:
            future.set_result(None)

    def _write(self, records: list[Record]) -> None:
        """Writes and syncs the records; on OSError nothing of them stays."""
        if not records:
            return
        if self._day != records[0]["time"][:10] or self._size >= SEGMENT_BYTES:
            self._begin_segment(records[0]["time"])
        head, lines = self._head, []
        for record in records:
            line, head = chain.seal(self.key, head, record)
            lines.append(line)
        data = b"".join(lines)
        _put(self._file, self._size, data)
        self._size += len(data)
        self._head = head

    def _begin_segment(self, time_: str) -> None:
        """Goes on in a new file; on OSError in the old one, as if nothing had been tried."""
        record = {"time": time_, "event": chain.SEGMENT, "previous": self._head.mac.hex()}
        line, head = chain.seal(self.key, self._head, record)
        path = self._folder / chain.segment_name(head.seq)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _put(file, 0, line)
            _sync_folder(self._folder)
        except OSError:
            os.close(file)
            with suppress(OSError):
                path.unlink()
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._size, self._day, self._head = file, len(line), time_[:10], head

    def _resume(self, files: list[Path]) -> None:
        """Goes on where the newest file ends; what a crash left of a line goes, since it was never acknowledged."""
        while files:
            last, head, whole = files[-1], None, 0
            with last.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        break
                    try:
                        record, head = chain.unseal(self.key, head, line)
                    except (ValueError, KeyError, TypeError) as error:
                        raise chain.tampered(
                            f"{last}, line {number}: {error}. `passerby audit verify` says more; to go on, move the folder "
                            "elsewhere: the server makes a new one"
                        ) from error
                    whole += len(line)
            if head is not None:
                self._file = os.open(last, os.O_WRONLY | os.O_CLOEXEC)
                self._head, self._size, self._day = head, whole, record["time"][:10]
                event(log, logging.INFO, "audit opened", head=head)
                return
            last.unlink()  # made, and not yet written
            files.pop()

    def _sweep(self) -> None:
        """Deletes files whose newest record is older than `keep_days`, having recorded that."""
        if not self._keep_days:
            return
        try:
            oldest = _now(-self._keep_days * _DAY)
            files = chain.segments(self._folder)
            if files and _last_time(files[-1]) < oldest:
                self._begin_segment(_now())
                files = chain.segments(self._folder)
            gone = list(takewhile(lambda path: _last_time(path) < oldest, files[:-1]))
            if gone:
                following = files[files.index(gone[-1]) + 1]
                deleted_to = int(following.stem.partition("-")[2]) - 1
                self._write([{"time": _now(), "event": chain.RETENTION, "deleted_to": deleted_to}])
                for path in gone:
                    path.unlink()
                event(log, logging.INFO, "old audit records deleted", files=len(gone))
        except Exception:  # whatever is in the way: all audited calls wait for this thread
            log.exception("old audit records could not be deleted; it is tried again")


def _refusal(why: str) -> UnavailableError:
    return UnavailableError(
        f"the audit cannot be written, and nothing is answered without its record; {why}",
        reason="AUDIT_FAILED",
        retry_delay=5.0,
    )


def _last_time(path: Path) -> str:
    """When the newest record of a file was made; empty without any. Reads not much more than that record."""
    with path.open("rb") as file:
        size, span = file.seek(0, os.SEEK_END), TAIL_BYTES
        while True:
            file.seek(max(0, size - span))
            lines = file.read().split(b"\n")
            if span >= size or len(lines) > 2:  # a part of a line, a whole one, and what a crash left of another
                break
            span *= 2
    whole = lines[:-1]
    time_: str = json.loads(whole[-1])["time"] if whole else ""
    return time_


def _now(offset: float = 0.0) -> str:
    return f"{datetime.fromtimestamp(time.time() + offset, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def _lock(folder: Path) -> int:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise FailedPreconditionError(f"another server writes the audit in {folder}", reason="AUDIT_IN_USE") from error
    return file


def _put(file: int, size: int, data: bytes) -> None:
    """Makes `data` durable behind the first `size` bytes of a file; on OSError these alone stay."""
    try:
        os.ftruncate(file, size)  # also what a failed attempt left: it was never acknowledged
        written = 0
        while written < len(data):
            written += os.pwrite(file, data[written:], size + written)
        os.fdatasync(file)
    except OSError:
        with suppress(OSError):
            os.ftruncate(file, size)
        raise


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
