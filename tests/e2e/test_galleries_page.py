"""docs/galleries.md is run: its commands, in order, against a real server and its data folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from passerby_client import Client
from passerby_indexer.bulk import index
from passerby_indexer.scan import scan
from passerby_server.sections import Upkeep

from tests.clients.conftest import crop
from tests.e2e.test_readme import blocks, run
from tests.encoders import make_bundle
from tests.indexer.conftest import picture
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
    erase, keep, correct, options, _, back_up = blocks("sh", PAGE)
    address = f"127.0.0.1:{server.port}"
    printed = run(erase, folder, address)
    assert '2 tracklets of "ann" in gallery station would be erased' in printed
    assert "gallery.db, gallery.db-wal" in printed
    assert "no backup that this server knows of" in printed
    assert "EraseIdentity" in printed
    printed = run(keep, folder, address)
    assert printed.count("camera entrance: 7d") == 2
    assert printed.endswith("all other cameras: for ever\n")
    printed = run(correct, folder, address)
    assert [f"change {number}: " in printed for number in (2, 3)] == [True, True]
    assert "SplitIdentity" in printed
    assert "undone in 1 tracklet of gallery station" in printed
    printed = run(options, folder, address)
    assert "false-match rate  0.001" in printed
    assert "fp16" in printed
    assert "exact, 0.0 MiB" in printed
    printed = run(back_up, folder)
    assert "3 galleries, 2 tracklets" in printed
    assert printed.endswith("sound\n")
    with Client(address) as client:
        assert [t.identity_id for t in client.list_tracklets("station")] == ["robert", "robert"]
        receipt = client.delete_tracklet("galleries/station/tracklets/bob-2")
    assert str(folder / "backups/monday") in receipt.unreachable_copies[0]
    assert receipt.HasField("rewrite_due_time")


def test_a_new_model(folder: Path) -> None:
    (block,) = [block for block in blocks("sh", PAGE) if "reindex" in block]
    for number, name in enumerate(("ann", "bob")):
        place = folder / "tracklets" / name / "c1" / "t1"
        place.mkdir(parents=True)
        (place / "0.png").write_bytes(picture(number))
    bundle = make_bundle(folder / "served")
    with running(bundle, folder / "other") as live, Client(f"127.0.0.1:{live.port}") as client:
        client.create_gallery("hall")
        index(client, "hall", scan(folder / "tracklets"))
        client.erase_identity("hall", "bob", force=True)
        make_bundle(bundle, seed=1)
        printed = run(block, folder, f"127.0.0.1:{live.port}")
        assert "tracklets found there left out: hall does not hold them" in printed
        assert re.search(r"^ ?hall-next ", printed, re.MULTILINE)
        assert "the old one is hall-before" in printed
        assert client.get_gallery("hall").model_fingerprint == client.model_info().model_fingerprint
        assert [tracklet.identity_id for tracklet in client.list_tracklets("hall")] == ["ann"]
        assert [gallery.name for gallery in client.list_galleries()] == ["galleries/hall"]


def test_files_are_those_of_the_table(server: LiveServer, folder: Path) -> None:
    named = set(re.findall(r"`([\w.-]+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))))
    there = {path.name for path in (folder / "data").iterdir()}
    assert {"gallery.db", "gallery.db-wal", "gallery.db-shm", "lock"} <= named & there
    assert there <= named


def test_settings_are_those_of_the_server() -> None:
    said = dict(re.findall(r"^\| `upkeep\.(\w+)` \| (\S+) \|", PAGE, re.MULTILINE))
    assert said == {name: str(value) for name, value in Upkeep().model_dump().items()}
