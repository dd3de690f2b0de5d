"""What callers are told of the disk's troubles, and that they end with it. On real disks: tests/faults/test_disk_life.py."""

from __future__ import annotations

import errno
import os
import sqlite3
import time

import pytest
from passerby.errors import DataLossError, InternalError, ResourceExhaustedError, UnavailableError
from passerby_server.gallery import disk
from passerby_server.gallery.store import Store
from passerby_server.upkeep import Upkeep

from tests.server.gallery.filling import put


def failing(monkeypatch, number):
    """What the kernel says to whoever wants room on the disk; None: nothing."""

    def allocate(*_):
        if number:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", allocate)


def of_sqlite(name, words="words of its own"):
    error = sqlite3.OperationalError(words)
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (errno.ENOSPC, ResourceExhaustedError, "STORAGE_FULL"),
        (errno.EDQUOT, ResourceExhaustedError, "STORAGE_FULL"),
        (errno.EFBIG, ResourceExhaustedError, "STORAGE_FULL"),
        (errno.EROFS, UnavailableError, "STORE_NOT_WRITABLE"),
        (errno.EACCES, UnavailableError, "STORE_NOT_WRITABLE"),
        (errno.EPERM, UnavailableError, "STORE_NOT_WRITABLE"),
        (errno.EIO, UnavailableError, "DISK_FAILED"),
        (errno.ESTALE, UnavailableError, "DISK_FAILED"),
        (errno.ENODEV, UnavailableError, "DISK_FAILED"),
    ],
)
@pytest.mark.parametrize("name", ["SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_READONLY", "SQLITE_CANTOPEN"])
def test_what_sqlite_calls_one_thing_is_told_apart(tmp_path, monkeypatch, name, number, kind, reason):
    failing(monkeypatch, number)
    error = disk.translated(of_sqlite(name), tmp_path)
    assert (type(error), error.reason) == (kind, reason)
    assert os.strerror(number) in error.message
    assert kind is ResourceExhaustedError or error.retry_delay == disk.RETRY_SECONDS


def test_a_disk_that_does_again_or_is_not_known_leaves_sqlites_word(tmp_path):
    for folder in (tmp_path, None):
        for name, reason in (
            ("SQLITE_IOERR_FSYNC", "DISK_FAILED"),
            ("SQLITE_READONLY_DBMOVED", "STORE_NOT_WRITABLE"),
            ("SQLITE_FULL", "STORAGE_FULL"),
            ("SQLITE_BUSY", "STORE_BUSY"),
            ("SQLITE_CORRUPT", "STORE_DAMAGED"),
            ("SQLITE_ERROR", "STORE_FAILED"),
        ):
            error = disk.translated(of_sqlite(name), folder)
            assert error.reason == reason
            assert "words of its own" in error.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "damaged"), [(errno.EIO, False), (errno.EROFS, False), (errno.ENOSPC, True)])
def test_what_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch, number, damaged):
    failing(monkeypatch, number)
    error = disk.translated(of_sqlite("SQLITE_CORRUPT"), tmp_path)
    assert (type(error), error.reason) == (
        (DataLossError, "STORE_DAMAGED") if damaged else (UnavailableError, "DISK_FAILED")
    )


def test_a_read_that_failed_spoils_no_later_one(tmp_path):
    """A connection whose read ended before it had begun was kept in a transaction."""
    store = Store(tmp_path)
    with store.read() as connection:
        pass
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_READ else 0)
    for _ in range(2):
        with pytest.raises(InternalError), store.read():
            pass
    connection.set_authorizer(None)
    with store.read() as again:
        assert again.execute("SELECT count(*) FROM galleries").fetchone() == (0,)
    store.close()


def test_it_is_known_from_a_look_or_a_write_and_logged_once(gallery, monkeypatch, caplog):
    assert (gallery.unwritable, gallery.check_disk()) == ("", "")
    failing(monkeypatch, errno.EROFS)
    assert gallery.check_disk() == gallery.check_disk() == gallery.unwritable == "STORE_NOT_WRITABLE"
    put(gallery, "t1", [1, 0, 0, 0], request_id="00000000-0000-4000-8000-000000000001")  # SQLite had no trouble
    assert gallery.unwritable == ""
    failing(monkeypatch, errno.EIO)
    gallery.check_disk()
    # A write that had nothing to write says nothing of the disk, nor does one that is refused for what it is.
    put(gallery, "t1", [1, 0, 0, 0], request_id="00000000-0000-4000-8000-000000000001")
    with pytest.raises(Exception, match="exists already"):
        put(gallery, "t1", [1, 0, 0, 0])
    assert gallery.unwritable == "DISK_FAILED"
    failing(monkeypatch, None)
    assert gallery.check_disk() == ""
    told = [record.message.split(",")[0] for record in caplog.records if record.name == disk.__name__]
    assert told == ["nothing can be stored", "the data folder can be written again"] * 2


def test_the_upkeep_looks(gallery, monkeypatch):
    failing(monkeypatch, errno.ENOSPC)
    upkeep = Upkeep(gallery, 3600)
    end = time.monotonic() + 10
    while not gallery.unwritable and time.monotonic() < end:
        time.sleep(0.01)
    upkeep.close()
    assert gallery.unwritable == "STORAGE_FULL"
