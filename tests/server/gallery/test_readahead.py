"""The store's file is read ahead of its check at the start, and SQLite keeps the locks that it has on it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from passerby_server.gallery.readahead import CHUNK, read_ahead
from passerby_server.gallery.store import DATABASE_NAME, Store

_CONVERT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0)
print(connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0])
"""
"""Needs the file for itself: refused while another process has a lock on it."""


def _in_memory(file: int, offset: int) -> bool:
    try:
        return os.preadv(file, [bytearray(4096)], offset, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False


def test_all_of_a_file_is_in_memory_afterwards(tmp_path):
    path, places = tmp_path / "file", (0, CHUNK + 4096, 2 * CHUNK)
    path.write_bytes(os.urandom(2 * CHUNK + 4096))
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)  # or looking at one page would fetch those behind it
        try:
            if all(_in_memory(file, place) for place in places):
                pytest.skip("this file system keeps its files in memory")
        except OSError as error:
            pytest.skip(f"this file system does not say what is in memory: {error}")
        with read_ahead(file):
            until = time.monotonic() + 30
            while not all(_in_memory(file, place) for place in places) and time.monotonic() < until:
                time.sleep(0.01)
        assert all(_in_memory(file, place) for place in places)
    finally:
        os.close(file)


def test_a_block_that_is_done_does_not_wait_for_the_rest(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as made:
        made.truncate(2**42)  # 4 TiB of nothing
    with path.open("rb") as opened:
        start = time.monotonic()
        with read_ahead(opened.fileno()):
            pass
        assert time.monotonic() - start < 60


def test_what_cannot_be_read_ahead_is_left_to_whoever_needs_it(tmp_path, caplog):
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with read_ahead(folder):
            pass
    finally:
        os.close(folder)
    assert "cannot be read ahead" in caplog.text


def test_sqlite_has_its_locks_as_long_as_a_store_is_open(tmp_path):
    def convert() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _CONVERT, str(tmp_path / DATABASE_NAME)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    store = Store(tmp_path)
    assert "database is locked" in convert().stderr
    store.close()
    assert convert().stdout == "delete\n"
