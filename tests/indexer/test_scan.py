"""What is found on disk, and when it was seen."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby.names import TRACKLET_ID
from passerby_indexer.bulk import stored_id
from passerby_indexer.cli import DataFormat
from passerby_indexer.scan import known_identity, scan
from passerby_model.datasets import Format, Tracklet
from passerby_model.street import StreetConfig
from passerby_model.street.writer import write


def tracklet(identity: str, camera: str, name: str) -> Tracklet:
    return Tracklet(identity, camera, name, (Path("x.jpg"),))


def test_a_plain_folder_and_a_limit(folder: Path) -> None:
    assert [found.key for found in scan(folder, limit=3)] == ["a/1/t1", "a/2/t1", "b/1/t1"]
    assert len(scan(folder)) == 8
    assert {found.start_time for found in scan(folder)} == {None}


def test_mars(shared: Path) -> None:
    found = scan(shared / "data/real_tracklets/ward")
    assert len(found) == 210
    assert stored_id(found[0]) == found[0].tracklet_id == "0001C1T0001"


def test_a_street_has_times(tmp_path: Path) -> None:
    write(StreetConfig(identities=2, cameras=2, frames=2, seed=3), tmp_path / "street")
    found = scan(tmp_path / "street")
    assert len(found) == 4
    assert all(one.start_time and one.end_time and one.start_time <= one.end_time for one in found)


def test_times_are_read_as_written(folder: Path) -> None:
    record = {"identity": "a", "camera": "1", "tracklet": "t1", "start_time": "2026-01-05T11:08:01.054Z"}
    record["end_time"] = "2026-01-05T12:08:02+01:00"
    (folder / "street.json").write_text(json.dumps({"tracklets": [record]}))
    assert {one.key: (one.start_time, one.end_time) for one in scan(folder) if one.start_time} == {
        "a/1/t1": (datetime(2026, 1, 5, 11, 8, 1, 54000, UTC), datetime(2026, 1, 5, 11, 8, 2, tzinfo=UTC))
    }


def test_a_manifest_names_images_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "people.csv"
    manifest.write_text(
        "identity,camera,tracklet,frame,start_time,end_time\n"
        "ann,entrance,t1,data/a/1/t1/*.jpg,2026-11-21T09:14:03Z,2026-11-21T09:14:07Z\n"
        "bob,yard,t2,data/b/1/t1/000.jpg,,\n"
    )
    ann, bob = scan(manifest)
    assert (ann.key, len(ann.frames), ann.start_time) == (
        "ann/entrance/t1",
        3,
        datetime(2026, 11, 21, 9, 14, 3, 0, UTC),
    )
    assert (bob.key, len(bob.frames), bob.start_time) == ("bob/yard/t2", 1, None)


def test_the_command_knows_every_format() -> None:
    assert {one.value for one in DataFormat} == set(get_args(Format))


@pytest.mark.parametrize("text", ["{", "{}", '{"tracklets": [{}]}', "[]"], ids=["torn", "empty", "record", "list"])
def test_a_broken_street_json_says_what_to_do(folder: Path, text: str) -> None:
    (folder / "street.json").write_text(text)
    with pytest.raises(InvalidArgumentError, match=r"street\.json: not as .* move it away"):
        scan(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        scan(tmp_path / "gone")


def test_junk_and_distractors_of_mars_are_nobody() -> None:
    assert known_identity(tracklet("0000", "1", "0000C1T0001")) == ""
    assert known_identity(tracklet("00-1", "1", "00-1C1T0001")) == ""
    assert known_identity(tracklet("0001", "1", "0001C1T0001")) == "0001"
    assert known_identity(tracklet("0000", "c1", "t1")) == "0000"


def test_stored_ids_are_valid_and_never_meet() -> None:
    odd = [
        tracklet("a", "b.c", "t"),
        tracklet("a.b", "c", "t"),
        tracklet("a", "b", "c.t"),
        tracklet("a", "b", "ä"),
        tracklet("a", "b", "ö"),
        tracklet("a", "b", "x" * 300),
        tracklet("a", "b", "x" * 301),
        tracklet("a", "b", "t"),
        tracklet("0001", "1", "0001C1T0001"),
    ]
    made = [stored_id(one) for one in odd] + [stored_id(one, "north-") for one in odd]
    assert len(set(made)) == len(made)
    assert all(TRACKLET_ID.fullmatch(one) for one in made)
    assert stored_id(tracklet("a", "b", "t")) == "a.b.t"
    assert stored_id(tracklet("a", "b", "t"), "north-") == "a.north-b.t"
