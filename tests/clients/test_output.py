"""What the commands write: tables that fit, times with their zone, words in number."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from passerby.v1.search_service_pb2 import SearchTrackletsResponse
from passerby.v1.tracklet_service_pb2 import ErasureReceipt
from passerby_client import Client
from passerby_client.commands._result_picture import how_searched
from passerby_client.commands._wording import in_flags
from passerby_client.commands.common import (
    counted,
    local_time,
    parse_duration,
    print_receipt,
    show_duration,
    time_span,
    zone_of,
)

from tests.clients.conftest import crop
from tests.commands import Run

HALF_PAST_FIVE = "2026-11-21 14:31:00"  # 9:01 UTC in UTC+05:30


@pytest.fixture(autouse=True)
def india(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine five and a half hours ahead of UTC."""
    monkeypatch.setenv("TZ", "<+0530>-5:30")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def stamp(*parts: int) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(datetime(*parts, tzinfo=UTC))  # type: ignore[arg-type,misc]
    return made


def test_times_are_local_and_their_zone_is_named() -> None:
    start, end = stamp(2026, 11, 21, 9, 1), stamp(2026, 11, 21, 9, 1, 5)
    assert local_time(start) == HALF_PAST_FIVE
    assert local_time(start, zone=True) == f"{HALF_PAST_FIVE} UTC+05:30"
    assert time_span(start, end, zone=True) == f"{HALF_PAST_FIVE} - 14:31:05 UTC+05:30"
    assert time_span(Timestamp(), Timestamp(), zone=True) == ""
    assert zone_of([]) == "UTC+05:30"


def test_summer_time_in_a_part_of_a_column_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    assert zone_of([stamp(2026, 1, 1), stamp(2026, 7, 1)]) == "UTC+01:00 / UTC+02:00"


@pytest.mark.parametrize("width", [44, 60, 80, 200])
def test_no_id_and_no_time_is_broken(run: Run, people: str, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    searched = run("search", "-g", people, "--tracklet", "ann-1", "--group", "--rerank").out
    for table in (searched, run("tracklet", "list", "-g", people).out):
        rows = [line for line in table.splitlines() if "ann-2" in line]
        assert len(rows) == 1
        assert "2026-11-21 14:32:00" in rows[0]
        assert "(UTC+05:30)" in table
        if width >= 60:
            assert max(map(len, table.splitlines())) <= width
        assert ("- 14:32:05" in rows[0]) == (width == 200 or (width == 80 and table is not searched))
    assert run("gallery", "list").out.count(people) == 1


def test_what_is_piped_is_whole_and_ends_without_spaces(run: Run, people: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = run("search", "-g", people, "--tracklet", "ann-1", "--group", "--rerank").out
    assert "re-ranked" in table
    assert f"{HALF_PAST_FIVE[:-4]}2:00 - 14:32:05" in table
    assert all(line == line.rstrip() for line in table.splitlines())


def test_receipts_name_the_zone(run: Run, people: str) -> None:
    receipt = run("tracklet", "delete", f"galleries/{people}/tracklets/bob-1").out
    assert "UTC+05:30" in receipt.splitlines()[0]


def test_backups_in_a_receipt_have_local_times(capsys: pytest.CaptureFixture[str]) -> None:
    print_receipt(ErasureReceipt(unreachable_copies=["backup of 2026-11-21 09:01:00 UTC in /b"]))
    assert f"backup of {HALF_PAST_FIVE} UTC+05:30 in /b" in capsys.readouterr().out


def test_a_picture_says_how_was_searched() -> None:
    answer = SearchTrackletsResponse(reranked=True)
    assert "no filter" in how_searched({}, answer)
    told = how_searched(
        {
            "group_by_identity": True,
            "rerank": True,
            "cameras": ["c1", "c2"],
            "labels": {"coat": "red"},
            "end_time": datetime(2026, 11, 21, 9, 1, tzinfo=UTC),
        },
        answer,
    )
    assert told == (
        f"one hit for each identity; re-ranked; only camera c1, c2; labels coat=red; before {HALF_PAST_FIVE}"
    )
    assert "not re-ranked" in how_searched({"rerank": True}, SearchTrackletsResponse())


@pytest.mark.parametrize(("name", "problem"), [("no/x.png", "no folder"), ("x.pdfx", ".png or .jpg")])
def test_a_picture_is_refused_before_the_search(run: Run, tmp_path: Path, name: str, problem: str) -> None:
    arguments = ("search", "-g", "g", "--tracklet", "t", "--server", "127.0.0.1:1", "--timeout", 1)
    done = run(*arguments, "--picture", tmp_path / name)
    assert (done.code, done.out, problem in done.err) == (1, "", True)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("query_camera_id: is required with exclude_query_camera", "--query-camera: is required with --exclude-query-camera"),
        ("filter.end_time: is not after filter.start_time", "--before: is not after --after"),
        ("header.search.travel_windows[0].max_time: needs it", "--travel: needs it"),
        ("travel_windows: need query_start_time and query_end_time, or", "--travel: need --query-time, or"),
        ("gallery.false_match_rate: is 2", "--false-match-rate: is 2"),
        ("frames.frames[1]: is no image", "b.png: is no image"),
        ("limits.max_top_k is 5", "limits.max_top_k is 5"),
    ],
)  # fmt: skip
def test_fields_of_the_api_are_said_as_options(message: str, said: str) -> None:
    assert in_flags(message, [Path("a.png"), Path("b.png")]) == said


def test_a_frame_that_is_no_image_is_named_by_its_file(run: Run, people: str, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"no image")
    assert f"passerby: {tmp_path / '0.png'}: " in run("search", "-g", people, "--frames", tmp_path).err


def test_a_gallery_that_is_missing_is_told_from_near_ones(run: Run, people: str) -> None:
    for command in ("gallery show TYPO", "gallery delete TYPO", "search -g TYPO --tracklet t", "tracklet list -g TYPO"):
        done = run(*command.replace("TYPO", people + "x").split())
        assert done.code == 1
        assert f'there is no gallery "{people}x"; there is {people}' in done.err
    assert "`passerby gallery list`" in run("gallery", "show", "zz").err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--server", "localhost"), "'localhost': HOST:PORT is needed"),
        (("--server", "http://localhost:50051"), "HOST:PORT is needed, without http://"),
        (("--rerank-option", "k9=5"), "'k9' is none of k1, k2"),
        (("--rerank-option", "k1=abc"), "k1=abc is no whole number"),
        (("--rerank-option", "time_budget=soon"), "time_budget=soon is no time such as 0.5s"),
        (("--query-time", "2026-11-21T10:00Z..2026-11-21T09:00Z"), "ends before it starts"),
    ],
)
def test_wrong_options_are_said_in_own_words(run: Run, arguments: tuple[str, str], problem: str) -> None:
    done = run("search", "-g", "g", "--tracklet", "t", *arguments)
    assert done.code == 2
    assert problem in " ".join(done.err.replace("\u2502", " ").split())


@pytest.mark.parametrize(("count", "said"), [(0, "0 galleries"), (1, "1 gallery"), (1200, "1,200 galleries")])
def test_nouns_are_counted(count: int, said: str) -> None:
    assert counted(count, "gallery") == said


@pytest.mark.parametrize("text", ["30d", "36h", "45m", "90s", "0s"])
def test_a_duration_is_shown_as_it_is_given(text: str) -> None:
    assert show_duration(parse_duration(text)) == text


def test_a_rule_that_erases_at_once_counts_first(run: Run, client: Client, gallery: str) -> None:
    for name, end in (("old", datetime(2020, 1, 1, tzinfo=UTC)), ("new", None)):
        client.ingest_tracklet(gallery, [crop((9, 9, 9))], camera="c1", tracklet_id=name, start_time=end, end_time=end)
    refused = run("gallery", "retention", gallery, "--camera", "c1=30d")
    assert (refused.code, refused.out) == (1, "")
    assert f"no rule was set: 1 tracklet of gallery {gallery} is older by now" in refused.err
    assert client.get_retention(gallery) == {}
    assert run("gallery", "retention", gallery, "--camera", "c2=30d").code == 0
    done = run("gallery", "retention", gallery, "--keep", "30d", "--force")
    assert (done.code, done.out) == (0, "all other cameras: 30d\n")


def test_nobody_is_not_erased(run: Run, people: str) -> None:
    for flags in ((), ("--force",)):
        done = run("tracklet", "erase", "nobody", "-g", people, *flags)
        assert (done.code, done.err) == (1, f'passerby: there is no identity "nobody" in gallery {people}\n')
    counts = run("tracklet", "erase", "ann", "-g", people)
    assert counts.out == f'2 tracklets of "ann" in gallery {people} would be erased: --force erases\n'


def test_a_tracklet_is_named_by_its_id_and_gallery_too(run: Run, people: str) -> None:
    assert f"galleries/{people}/tracklets/bob-1" in run("tracklet", "show", "bob-1", "-g", people).out
    split = run("tracklet", "split", "bob", "bob-1", "-g", people)
    assert re.fullmatch(rf"change \d+: 1 tracklet of gallery {people}\n", split.out), split.err
    assert run("tracklet", "delete", "bob-1", "-g", people).code == 0
    assert run("tracklet", "show", "bob-1", "-g", people).code == 1


def test_a_folder_that_comes_late_is_followed(run: Run, people: str, tmp_path: Path) -> None:
    late = tmp_path / "late"
    command = ("search", "-g", people, "--frames", late, "--follow", "--json", "--until-quiet")
    gone = run(*command, 0.3)
    assert (gone.code, f"{late}: there is no such folder" in gone.err) == (1, True)

    def write() -> None:
        time.sleep(0.3)
        late.mkdir()
        (late / "0.png").write_bytes(crop((205, 30, 30)))

    writer = threading.Thread(target=write)
    writer.start()
    done = run(*command, 3)
    writer.join()
    assert json.loads(done.out)["hits"][0]["tracklet"]["identity_id"] == "ann"
