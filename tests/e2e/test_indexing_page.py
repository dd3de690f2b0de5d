"""docs/indexing.md is run: its commands, on a manifest and a video as it describes them, against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from passerby_client import Client
from passerby_indexer.tracks import MAX_FRAMES
from passerby_indexer.video import JPEG_QUALITY

from tests.e2e.test_readme import blocks, run
from tests.encoders import make_bundle
from tests.indexer.conftest import picture
from tests.server.live import running

PAGE = (Path(__file__).resolve().parents[2] / "docs/indexing.md").read_text()
MANIFEST, TRACKS = blocks("csv", PAGE)
DATA_SETS, VIDEOS = blocks("sh", PAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("indexing-page")
    (made / "people.csv").write_text(MANIFEST)
    for number, name in enumerate(("ann", "bob")):
        (made / "walks" / name).mkdir(parents=True)
        for frame in range(3):
            (made / "walks" / name / f"{frame}.jpg").write_bytes(picture(10 * number + frame))
    (made / "hall.txt").write_text(TRACKS)
    writer = cv2.VideoWriter(str(made / "hall.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (160, 120))
    for _ in range(3):
        writer.write(np.full((120, 160, 3), 90, np.uint8))
    writer.release()
    return made


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with running(make_bundle(folder / "bundle"), folder / "data") as live:
        yield f"127.0.0.1:{live.port}"


def test_commands(folder: Path, address: str) -> None:
    printed = run(DATA_SETS, folder, address)
    assert "2 tracklets (6 frames) stored in galleries/station" in printed
    assert "2 tracklets (6 frames) stored in galleries/unnamed" in printed
    printed = run(VIDEOS, folder, address)
    assert "2 tracklets (3 frames) stored in galleries/station" in printed
    assert "2 left out" in run(VIDEOS, folder, address)
    with Client(address) as client:
        stored = {t.name.rpartition("/")[2]: t for t in client.list_tracklets("station")}
        unknown = {(t.camera_id, t.identity_id) for t in client.list_tracklets("unnamed")}
    assert set(stored) == {
        "ann.entrance.t1",
        "bob.yard.t1",
        "hall.hall-20260131T120000Z-1",
        "hall.hall-20260131T120000Z-2",
    }
    assert stored["ann.entrance.t1"].start_time.ToDatetime(tzinfo=UTC) == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert stored["hall.hall-20260131T120000Z-1"].frame_count == 2
    assert unknown == {("north-entrance", ""), ("north-yard", "")}


def test_figures_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    assert f"at most {MAX_FRAMES:,} frames" in text
    assert f"JPEG (quality {JPEG_QUALITY})" in text
