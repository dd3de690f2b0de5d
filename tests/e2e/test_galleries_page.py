"""docs/galleries.md is run: its commands, in order, against a real server and its data folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from passerby_client import Client
from passerby_server.sections import Upkeep

from tests.clients.conftest import crop
from tests.e2e.test_readme import blocks, run
from tests.encoders import make_bundle
from tests.server.live import LiveServer, running

PAGE = (Path(__file__).resolve().parents[2] / "docs/galleries.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("galleries-page")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    with running(make_bundle(folder / "bundle"), folder / "data") as live:
        with Client(f"127.0.0.1:{live.port}") as client:
            client.create_gallery("station")
            for name in ("ann", "bob"):
                for number in (1, 2):
                    frames = [crop((50 * number, 100, 30))] * 2
                    client.ingest_tracklet(
                        "station", frames, camera="entrance", tracklet_id=f"{name}-{number}", identity=name
                    )
        yield live


def test_commands(server: LiveServer, folder: Path) -> None:
    erase, keep, correct, back_up = blocks("sh", PAGE)
    address = f"127.0.0.1:{server.port}"
    printed = run(erase, folder, address)
    assert "2 tracklets would be erased" in printed
    assert "gallery.db, gallery.db-wal" in printed
    assert "no backup that this server knows of" in printed
    assert "EraseIdentity" in printed
    printed = run(keep, folder, address)
    assert printed.count("camera entrance: 7 days") == 2
    assert printed.endswith("all other cameras: for ever\n")
    printed = run(correct, folder, address)
    assert [f"change {number}: " in printed for number in (2, 3)] == [True, True]
    assert "SplitIdentity" in printed
    assert "undone in 1 tracklets" in printed
    printed = run(back_up, folder)
    assert "1 galleries, 2 tracklets" in printed
    assert printed.endswith("sound\n")
    with Client(address) as client:
        assert [t.identity_id for t in client.list_tracklets("station")] == ["robert", "robert"]
        receipt = client.delete_tracklet("galleries/station/tracklets/bob-2")
    assert str(folder / "backups/monday") in receipt.unreachable_copies[0]
    assert receipt.HasField("rewrite_due_time")


def test_files_are_those_of_the_table(server: LiveServer, folder: Path) -> None:
    named = set(re.findall(r"`([\w.-]+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))))
    there = {path.name for path in (folder / "data").iterdir()}
    assert {"gallery.db", "gallery.db-wal", "gallery.db-shm", "lock"} <= named & there
    assert there <= named


def test_settings_are_those_of_the_server() -> None:
    said = dict(re.findall(r"^\| `upkeep\.(\w+)` \| (\S+) \|", PAGE, re.MULTILINE))
    assert said == {name: str(value) for name, value in Upkeep().model_dump().items()}
