"""docs/clients.md is run: its programs and its command, in order, against one real server."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from passerby_client import Client, RetryPolicy
from passerby_client._channel import DEFAULT_TIMEOUT_SECONDS, TIMEOUT_SECONDS_PER_FRAME

from tests.clients.conftest import crop
from tests.e2e.test_readme import ADDRESS, blocks, run
from tests.encoders import make_bundle
from tests.server.live import running

PAGE = (Path(__file__).resolve().parents[2] / "docs/clients.md").read_text()
SYNCHRONOUS, ASYNCHRONOUS, GROWING, ERRORS = blocks("python", PAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people: ten frames of ann, three of somebody in the yard."""
    made = tmp_path_factory.mktemp("clients-page")
    for name, colour, count in (("ann", (200, 30, 30), 10), ("yard", (30, 30, 200), 3)):
        (made / name).mkdir()
        for number in range(count):
            (made / name / f"{number}.jpg").write_bytes(crop(colour))
    return made


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with running(make_bundle(folder / "bundle"), folder / "data") as live:
        yield f"127.0.0.1:{live.port}"


def python(program: str, folder: Path, address: str) -> list[str]:
    """What the program prints, line by line."""
    words = [sys.executable, "-W", "error", "-c", program.replace(ADDRESS, address)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_programs(folder: Path, address: str) -> None:
    printed = python(SYNCHRONOUS, folder, address)
    assert len(printed) == 3 + 3 + 1
    assert printed[3].endswith(" galleries/museum/tracklets/ann-1")
    assert printed[-1] == "3 from the yard"
    printed = python(ASYNCHRONOUS, folder, address)
    assert printed[:2] == ["['entrance', 'yard']", "3 stored"]
    assert len(printed) == 5
    *early, last, end = python(GROWING, folder, address)
    assert early
    assert all(re.fullmatch(r"(4|8) \['ann', '', ''\]", line) for line in early)
    assert last == "10 ['ann', '', '']"
    assert end == "True galleries/museum/tracklets/live-1 10"
    assert python(ERRORS, folder, address) == ["there is no galleries/nowhere: create it first"]
    (follow,) = blocks("sh", PAGE)
    assert "ann-1" in run(follow, folder, address)


def test_figures_are_those_of_the_client() -> None:
    text = " ".join(PAGE.split())
    policy = RetryPolicy()
    assert f"{DEFAULT_TIMEOUT_SECONDS:g} by default, and {TIMEOUT_SECONDS_PER_FRAME} for each frame besides" in text
    assert f"{policy.attempts} attempts, {policy.initial_backoff} to {policy.max_backoff:g} s apart" in text
    in_flight = inspect.signature(Client.bulk_ingest).parameters["max_in_flight"].default
    assert f"at most `max_in_flight` tracklets ({in_flight})" in text
