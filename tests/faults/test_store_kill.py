"""kill -9 in the middle of writes: what was acknowledged is there, once, searchable, and what was deleted stays so."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
from passerby_server.gallery.embedded import open_galleries
from passerby_server.gallery.types import ModelSpace, SearchQuery, TrackletFilter

KILLS = int(os.environ.get("PASSERBY_KILLS", "6"))
D = 64

# Four threads ingest, and delete every fifth of their own; a line is printed only after the gallery has answered.
# The first line of each run repeats the last request of the run before, which may or may not have been acknowledged.
WRITER = """
import sys, threading
from pathlib import Path
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
    galleries.ingest("g", NewTracklet(f"t{number}", "c"), vector(number), "f", b"jpeg", request, b"d")
    answer(f"stored {number}")

def work(thread):
    for turn in range(1_000_000):
        number = (run * 4 + thread) * 1_000_000 + turn
        ingest(number)
        if turn % 5 == 4:
            answer(f"deleting {number - 2}")
            galleries.delete_tracklet("g", f"t{number - 2}")
            answer(f"deleted {number - 2}")

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


@pytest.mark.timeout(60 + 30 * KILLS)
def test_kill_loses_nothing_doubles_nothing_and_revives_nothing(tmp_path):
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

        galleries = open_galleries(tmp_path / "data")
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
