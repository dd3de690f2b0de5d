"""kill -9 in the middle of writes: what was acknowledged is there, once, searchable, and what was deleted stays so.

PASSERBY_KILLS sets how many kills (of each kind) a run makes; the default is short.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from datetime import timedelta

import numpy as np
import pytest
from passerby_server.gallery import schema
from passerby_server.gallery.embedded import open_galleries
from passerby_server.gallery.store import DATABASE_NAME
from passerby_server.gallery.types import ModelSpace, SearchQuery, TrackletFilter

KILLS = int(os.environ.get("PASSERBY_KILLS", "6"))
D = 64

# Four threads ingest, and delete every fifth of their own; the first one erases an identity now and then, which writes
# the whole file anew. A line is printed only after the gallery has answered.
# The first line of each run repeats the last request of the run before, which may or may not have been acknowledged.
WRITER = """
import faulthandler, sys, threading
from pathlib import Path
faulthandler.dump_traceback_later(50)  # one that hangs says where
import numpy as np
from passerby_server.gallery.embedded import open_galleries
from passerby_server.gallery.types import NewTracklet

folder, run = Path(sys.argv[1]), int(sys.argv[2])
galleries = open_galleries(folder)
say = threading.Lock()

def answer(text):
    with say:
        sys.stdout.write(text + "\\n")
        sys.stdout.flush()

def vector(number):
    return np.random.default_rng(number).normal(size=64).astype(np.float32)

def ingest(number):
    request = f"r{number}"
    tracklet = NewTracklet(f"t{number}", "c", identity_id=f"<person-{number}>")
    galleries.ingest("g", tracklet, vector(number), "f", b"jpeg", request, b"d")
    answer(f"stored {number}")

def work(thread):
    for turn in range(1_000_000):
        number = (run * 4 + thread) * 1_000_000 + turn
        ingest(number)
        if turn % 5 == 4:
            answer(f"deleting {number - 2}")
            galleries.delete_tracklet("g", f"t{number - 2}")
            answer(f"deleted {number - 2}")
        if turn % 5 == 3 and thread == 0:
            answer(f"deleting {number - 3}")
            galleries.erase_identity("g", f"<person-{number - 3}>", force=True, request_id=f"e{number}")
            answer(f"deleted {number - 3}")

for number in map(int, sys.argv[3:]):
    ingest(number)
answer("ready")
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def _vector(number):
    return np.random.default_rng(number).normal(size=D).astype(np.float32)


def _run_and_kill(folder, run, again, first, delay):
    """The lines that a writer printed before it was killed, `delay` seconds after one that begins with `first`."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(run), *map(str, again)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines: list[str] = []
    reached = threading.Event()

    def read():
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith(first):
                reached.set()
        process.stdout.close()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert reached.wait(60), lines
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        reader.join()
    return lines


def _listed(galleries):
    names: list[str] = []
    token = ""
    while True:
        page = galleries.list_tracklets("g", TrackletFilter(), 1000, token)
        names += [item.tracklet_id for item in page.items]
        token = page.next_page_token
        if not token:
            return names


def _in_any_file(folder, numbers):
    """Those of `numbers` whose descriptor or identity is in a file of the folder."""
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    return [n for n in numbers if _vector(n).tobytes() in content or f"<person-{n}>".encode() in content]


@pytest.mark.timeout(60 + 30 * KILLS)
def test_kill_loses_nothing_doubles_nothing_and_revives_nothing(tmp_path, caplog):
    dice = random.Random(20261121)
    galleries = open_galleries(tmp_path / "data")
    galleries.create_gallery("g", "", ModelSpace("f", D, "squared_euclidean"))
    galleries.close()
    stored: set[int] = set()
    deleting: set[int] = set()
    deleted: set[int] = set()
    again: list[int] = []
    for run in range(KILLS):
        # Every other time there has been a delete, however busy the machine is.
        first, delay = "deleted" if run % 2 else "ready", dice.uniform(0.05, 0.8)
        lines = [line.split() for line in _run_and_kill(tmp_path / "data", run, again, first, delay)]
        stored |= {int(line[1]) for line in lines if line[0] == "stored"}
        deleting |= {int(line[1]) for line in lines if line[0] == "deleting"}
        deleted |= {int(line[1]) for line in lines if line[0] == "deleted"}
        # A client repeats what it got no answer to: the next number of each thread.
        latest = [max((n for n in stored if n // 1_000_000 == run * 4 + t), default=None) for t in range(4)]
        again = [n + 1 for n in latest if n is not None] + [n for n in latest if n is not None and n not in deleting]

        galleries = open_galleries(tmp_path / "data", rewrite_delay=timedelta(0))
        galleries.rewrite_if_due()
        assert _in_any_file(tmp_path / "data", dice.sample(sorted(deleted), min(100, len(deleted)))) == []
        listed = _listed(galleries)
        assert [name for name, times in Counter(listed).items() if times > 1] == []
        assert {f"t{n}" for n in stored - deleting} <= set(listed)
        assert not {f"t{n}" for n in deleted} & set(listed)
        assert galleries.stats("g").tracklet_count == len(listed)
        for number in dice.sample(sorted(stored - deleting), min(30, len(stored - deleting))):
            hit = galleries.search("g", SearchQuery(_vector(number), "f", 1))[0]
            assert (hit.tracklet.tracklet_id, hit.distance) == (f"t{number}", 0.0)
            assert galleries.get_thumbnail("g", f"t{number}") == b"jpeg"
        galleries.close()
    assert len(stored) >= 2 * KILLS
    assert deleted
    assert "are lost" not in caplog.text


# Migration

OPENER = """
import sys
from pathlib import Path
from passerby_server.gallery.store import Store
sys.stdout.write("opening\\n")
sys.stdout.flush()
Store(Path(sys.argv[1])).close()
"""
TRACKLETS = 2000


def _old_store(path):
    """A store as the first version of the schema left it, killed: the log is still beside it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    schema.migrate(connection, schema.MIGRATIONS[:1])
    connection.execute("BEGIN")
    connection.execute("INSERT INTO galleries VALUES (1, 'g', '', 'f', 64, 'cosine', 1)")
    for number in range(TRACKLETS):
        connection.execute(
            "INSERT INTO tracklets VALUES (?, 1, ?, 'c', NULL, NULL, ?, 1, 1)", (number + 1, f"t{number}", "p")
        )
        blob = _vector(number).tobytes()
        connection.execute("INSERT INTO descriptors VALUES (?, ?, ?)", (number + 1, zlib.crc32(blob), blob))
        connection.execute("INSERT INTO thumbnails VALUES (?, ?)", (number + 1, f"jpeg {number}".encode() * 50))
        connection.execute("INSERT INTO audit VALUES (NULL, 1, 'IngestTracklet', 'g', ?, '')", (f"t{number}",))
    connection.execute("INSERT INTO audit VALUES (NULL, 1, 'DeleteTracklet', 'g', 'gone', '')")
    connection.execute("COMMIT")
    return connection


def _version(folder):
    """Schema version as a reader finds it, which the tables must bear out."""
    connection = sqlite3.connect(folder / DATABASE_NAME)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    columns = [row[1] for row in connection.execute("PRAGMA table_info(thumbnails)")]
    assert ("retention" in tables, "checksum" in columns) == (version >= 2, version >= 2)
    indexes = {"galleries_by_followed", "tracklets_in_order"}
    options = [row[1] for row in connection.execute("PRAGMA table_info(galleries)")]
    assert (indexes <= tables, "follows" in options) == (version >= 3, version >= 3)
    assert connection.execute("SELECT count(*) FROM thumbnails").fetchone() == (TRACKLETS,)
    connection.close()
    return version


@pytest.mark.timeout(60 + 15 * KILLS)
def test_kill_in_a_migration_leaves_the_old_schema_or_the_new_one(tmp_path):
    dice = random.Random(20261122)
    (tmp_path / "old").mkdir()
    connection = _old_store(tmp_path / "old" / DATABASE_NAME)
    folder, versions = tmp_path / "data", []
    for _ in range(KILLS):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "old", folder)
        process = subprocess.Popen([sys.executable, "-c", OPENER, str(folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(dice.uniform(0, 0.15))
        process.kill()
        process.communicate()
        versions.append(_version(folder))
        galleries = open_galleries(folder)
        assert _version(folder) == len(schema.MIGRATIONS)
        assert galleries.stats("g").tracklet_count == TRACKLETS
        number = dice.randrange(TRACKLETS)
        assert galleries.get_thumbnail("g", f"t{number}") == f"jpeg {number}".encode() * 50
        assert galleries.search("g", SearchQuery(_vector(number), "f", 1))[0].tracklet.tracklet_id == f"t{number}"
        assert [e.action for e in galleries.list_audit("g", "gone", "", 10).items] == ["DeleteTracklet"]
        galleries.close()
        content = b"".join(path.read_bytes() for path in folder.iterdir())
        assert b"gone" not in content  # the names of what had been deleted go with the migration
    connection.close()
    assert len(versions) == KILLS
