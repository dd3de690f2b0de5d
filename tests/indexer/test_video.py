"""Videos and their tracks: crops where the boxes are, times by the frame rate, resumed by the journal, the command."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
from passerby.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from passerby_client import Client
from passerby_indexer import tracks as tracks_module
from passerby_indexer import video as video_module
from passerby_indexer.bulk import index
from passerby_indexer.tracks import read_tracks
from passerby_indexer.video import TrackedVideo

from tests.commands import Run

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
FRAMES, RATE, SIZE = 20, 5.0, (160, 120)
RED, BLUE = (0, 0, 220), (220, 0, 0)  # BGR


def picture(number: int) -> np.ndarray:
    """Frame `number` (from 1): a red person that walks to the right, and in frames 6 to 15 a blue one that stands."""
    drawn = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    drawn[20:80, 4 * number : 4 * number + 30] = RED
    if 6 <= number <= 15:
        drawn[50:110, 120:150] = BLUE
    return drawn


BOXES = "".join(
    [f"{n},1,{4 * n},20,30,60,0.9,-1,-1,-1\n" for n in range(1, FRAMES + 1)]
    + [f"{n},2,120,50,30,60,0.8,-1,-1,-1\n" for n in range(6, 16)]
)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, SIZE)
    assert writer.isOpened()
    for number in range(1, FRAMES + 1):
        writer.write(picture(number))
    writer.release()
    return path


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    path = tmp_path / "walk.txt"
    path.write_text(BOXES)
    return path


def nothing(source: str) -> bool:
    return False


def colour(data: bytes) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == (60, 30, 3)
    mean: np.ndarray = decoded.reshape(-1, 3).mean(axis=0)
    return mean


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_crops_are_where_the_boxes_are_and_times_by_the_rate(
    video: Path, boxes: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "folder":
        video = tmp_path / "frames"
        video.mkdir()
        for number in range(1, FRAMES + 1):
            cv2.imwrite(str(video / f"{number:06d}.png"), picture(number))
    found = TrackedVideo(video, boxes, camera="c1", start=NOON, rate=RATE if kind == "folder" else None)
    blue, red = found.tracklets(nothing)  # in the order in which they end
    assert (len(blue.frames), len(red.frames)) == (10, 20)
    for tracklet, expected in ((blue, BLUE), (red, RED)):
        for crop in tracklet.frames:
            np.testing.assert_allclose(colour(crop.image), expected, atol=12)
    assert (red.start_time, red.end_time) == (NOON, NOON + timedelta(seconds=19 / RATE))
    assert blue.start_time == NOON + timedelta(seconds=1)
    assert (red.camera, red.identity, red.key) == ("c1", "", f"{video.name}#1")
    assert red.tracklet_id == f"{video.stem}-20260131T120000Z-1"


def test_tracks_are_stored_and_a_second_run_decodes_nothing(
    client: Client, gallery: str, video: Path, boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = TrackedVideo(video, boxes, camera="c1", start=NOON)
    journal = tmp_path / "j"
    first = index(client, gallery, found, journal=journal, limit=1, camera_prefix="north-")
    assert (first.stored, first.frames, first.failed) == (1, 10, [])
    decoded: list[int] = []
    frames = video_module._file_frames

    def watched(path: Path, wanted: frozenset[int]):
        for number, image in frames(path, wanted):
            decoded.append(number)
            yield number, image

    monkeypatch.setattr(video_module, "_file_frames", watched)
    second = index(client, gallery, found, journal=journal, camera_prefix="north-")
    assert (second.stored, second.already) == (1, 1)
    assert decoded == list(range(1, 21))
    third = index(client, gallery, found, journal=journal, camera_prefix="north-")
    assert (third.stored, third.already, len(decoded)) == (0, 2, 20)
    stored = {t.labels["source"]: t for t in client.list_tracklets(gallery)}
    assert set(stored) == {"walk.avi#1", "walk.avi#2"}
    assert stored["walk.avi#1"].camera_id == "north-c1"
    assert stored["walk.avi#1"].name.endswith("/north-c1.walk-20260131T120000Z-1")
    assert stored["walk.avi#1"].end_time.ToDatetime(tzinfo=UTC) == NOON + timedelta(seconds=19 / RATE)
    again = index(client, gallery, found, camera_prefix="north-")  # without a journal: answered, not stored again
    assert (again.stored, again.failed, client.gallery_stats(gallery).tracklet_count) == (2, [], 2)


def test_what_cannot_be_cropped_is_named(client: Client, gallery: str, video: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "b.txt"
    boxes.write_text("1,1,10,20,30,60,1\n2,1,500,20,30,60,1\n25,1,10,20,30,60,1\n30,2,1,1,9,9,1\n")
    report = index(client, gallery, TrackedVideo(video, boxes, camera="c1"))
    assert [(str(frame.path), frame.error.partition(" ")[0]) for frame in report.unreadable] == [
        (f"{video}#2", "the"),
        (f"{video}#25", "the"),
        (f"{video}#30", "the"),
    ]
    assert "outside of the 160 x 120 picture" in report.unreadable[0].error
    assert "ends before it" in report.unreadable[1].error
    assert [(failure.source, failure.error) for failure in report.failed] == [
        ("walk.avi#2", "not one of its frames can be read")
    ]
    (stored,) = client.list_tracklets(gallery)
    assert (stored.frame_count, stored.HasField("start_time")) == (1, False)


def test_tracks_of_the_mot_challenge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gt.txt"
    path.write_text(
        "2,7,1,2,3,4,1,1,0.5\n"  # annotation: a pedestrian
        "1,7,1,2,3,4,1,1,0.5\n\n"
        "1,8,1,2,3,4,1,3,1.0\n"  # a car
        "1,9,1,2,3,4,0,1,1.0\n"  # does not count
        "5 10 1.5 2 3 4 -1 -1 -1 -1\n"  # a tracker's line, with blanks
    )
    assert [(track.name, [box.frame for box in track.boxes]) for track in read_tracks(path)] == [
        ("7", [1, 2]),
        ("10", [5]),
    ]
    monkeypatch.setattr(tracks_module, "MAX_FRAMES", 4)
    path.write_text("".join(f"{n},3,1,1,9,9,1\n" for n in range(10, 0, -1)))
    assert [(track.name, [box.frame for box in track.boxes]) for track in read_tracks(path)] == [
        ("3", [1, 2, 3, 4]),
        ("3p2", [5, 6, 7, 8]),
        ("3p3", [9, 10]),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no boxes"),
        ("1,2,3\n", "line 1: '1,2,3' is no box"),
        ("1,1,1,1,9,9,1\n1,one,1,1,9,9,1\n", "line 2"),
        ("0,1,1,1,9,9,1\n", "frames from 1"),
        ("1.5,1,1,1,9,9,1\n", "whole numbers"),
        ("1,1,nan,1,9,9,1\n", "is no box"),
        ("1,1,1,1,9,9,1\n1,1,2,2,9,9,1\n", "track 1 is in frame 1 twice"),
    ],
)
def test_files_that_are_no_tracks(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=problem):
        read_tracks(path)


def test_videos_that_cannot_be_used(video: Path, boxes: Path, tmp_path: Path) -> None:
    def tracked(path: Path, **options) -> TrackedVideo:
        return TrackedVideo(path, boxes, camera="c1", **options)

    with pytest.raises(NotFoundError, match="no such video"):
        tracked(tmp_path / "gone.mp4")
    with pytest.raises(InvalidArgumentError, match="no time zone"):
        tracked(video, start=datetime(2026, 1, 1))
    with pytest.raises(InvalidArgumentError, match="does not say how many frames"):
        tracked(tmp_path, start=NOON)
    with pytest.raises(InvalidArgumentError, match="not above 0"):
        tracked(video, start=NOON, rate=0.0)
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(InvalidArgumentError, match="no video that OpenCV can read"):
        list(tracked(broken).tracklets(nothing))
    with pytest.raises(InvalidArgumentError, match="holds no images"):
        list(tracked(tmp_path / "empty").tracklets(nothing))


def test_without_opencv_the_extra_is_named(video: Path, boxes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(FailedPreconditionError, match=r"pip install 'passerby\[video\]'"):
        TrackedVideo(video, boxes, camera="c1")


def test_the_command(run: Run, client: Client, gallery: str, video: Path, boxes: Path) -> None:
    command = ("index", video, "--gallery", gallery, "--tracks", boxes)
    done = run(*command, "--camera", "c1", "--start", "2026-01-31T12:00:00Z", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["stored"] == 2
    starts = sorted(t.start_time.ToDatetime(tzinfo=UTC) for t in client.list_tracklets(gallery))
    assert starts == [NOON, NOON + timedelta(seconds=1)]
    assert "'--camera'" in run(*command).err
    assert "add --tracks FILE" in run("index", video, "-g", gallery, "--camera", "c1").err
    assert "do not go with --tracks" in run(*command, "--camera", "c1", "--no-identities").err


def test_a_real_video(client: Client, gallery: str, shared: Path) -> None:
    folder = shared / "data/real_video/pets09_s2l1"
    found = TrackedVideo(folder / "video.mp4", folder / "gt/gt.txt", camera="pets", start=NOON)
    report = index(client, gallery, found, limit=3)
    assert (report.stored, report.failed) == (3, [])
    for stored in client.list_tracklets(gallery):
        name = stored.labels["source"].rpartition("#")[2]
        track = next(track for track in found.tracks if track.name == name)
        assert stored.frame_count == len(track.boxes)
        expected = NOON + timedelta(seconds=(track.boxes[0].frame - 1) / 7)
        assert abs(stored.start_time.ToDatetime(tzinfo=UTC) - expected) < timedelta(milliseconds=1)
