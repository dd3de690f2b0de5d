"""Indexing against a real server: everything stored once, bad frames named, runs resumed, the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

import pytest
from passerby.errors import InvalidArgumentError, NotFoundError, UnavailableError
from passerby_client import Client, RetryPolicy
from passerby_indexer.bulk import IndexReport, index
from passerby_indexer.scan import scan
from passerby_model.datasets import Tracklet
from passerby_model.street import StreetConfig
from passerby_model.street.writer import write

from tests.clients.faulty import faulty_server
from tests.commands import Run
from tests.indexer.conftest import picture


def stored(client: Client, gallery: str) -> dict[str, int]:
    """Frames of each stored tracklet, by source; fails when one is there twice."""
    found = list(client.list_tracklets(gallery))
    frames = {tracklet.labels["source"]: tracklet.frame_count for tracklet in found}
    assert len(frames) == len(found)
    return frames


def test_everything_is_stored_with_what_is_known_of_it(client: Client, gallery: str, folder: Path) -> None:
    seen: list[int] = []
    report = index(client, gallery, scan(folder), on_progress=lambda r: seen.append(r.done))
    assert (report.stored, report.frames, report.failed, report.unreadable) == (8, 24, [], [])
    assert report.seconds > 0
    assert seen == sorted(seen)
    assert seen[-1] == 8
    tracklet = client.get_tracklet(f"galleries/{gallery}/tracklets/a.2.t1").tracklet
    assert (tracklet.identity_id, tracklet.camera_id, tracklet.frame_count) == ("a", "2", 3)
    assert tracklet.labels["source"] == "a/2/t1"


def test_a_repeated_run_stores_nothing_twice(client: Client, gallery: str, folder: Path) -> None:
    index(client, gallery, scan(folder))
    again = index(client, gallery, scan(folder))
    assert again.stored == 8
    assert again.failed == []
    assert len(stored(client, gallery)) == 8


def test_an_interrupted_run_is_resumed_by_its_journal(
    client: Client, gallery: str, folder: Path, tmp_path: Path
) -> None:
    tracklets = scan(folder)

    def until_interrupted() -> Iterator[Tracklet]:
        yield from tracklets[:5]
        raise KeyboardInterrupt

    journal = tmp_path / "j.jsonl"
    with pytest.raises(KeyboardInterrupt):
        index(client, gallery, until_interrupted(), journal=journal, readers=1)
    before = len(journal.read_text().splitlines())
    assert before >= 1
    report = index(client, gallery, tracklets, journal=journal)
    assert report.already == before
    assert report.stored == 8 - before
    assert report.done == 8
    assert stored(client, gallery) == {tracklet.key: 3 for tracklet in tracklets}
    assert index(client, gallery, tracklets, journal=journal).stored == 0


def test_a_journal_of_a_deleted_gallery_counts_for_nothing(
    client: Client, gallery: str, folder: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "j.jsonl"
    index(client, gallery, scan(folder), journal=journal)
    client.delete_gallery(gallery, force=True)
    client.create_gallery(gallery)
    assert index(client, gallery, scan(folder), journal=journal).stored == 8
    assert len(stored(client, gallery)) == 8


def test_unreadable_frames_are_named_and_left_out(client: Client, gallery: str, folder: Path) -> None:
    text = folder / "a/1/t1/001.jpg"
    text.write_text("not an image")
    torn = folder / "b/2/t1/002.jpg"
    torn.write_bytes(torn.read_bytes()[:200])
    empty = folder / "c/1/t1/000.jpg"
    empty.write_bytes(b"")
    dangling = folder / "d/1/t1/003.jpg"
    dangling.symlink_to(folder / "nowhere")
    report = index(client, gallery, scan(folder))
    assert {frame.path for frame in report.unreadable} == {text, torn, empty, dangling}
    assert all(frame.error for frame in report.unreadable)
    assert report.failed == []
    assert report.stored == 8
    frames = stored(client, gallery)
    assert [frames[key] for key in ("a/1/t1", "b/2/t1", "c/1/t1", "d/1/t1", "d/2/t1")] == [2, 2, 2, 3, 3]


def test_a_tracklet_without_a_good_frame_fails_and_the_run_goes_on(client: Client, gallery: str, folder: Path) -> None:
    for path in (folder / "a/1/t1").iterdir():
        path.write_text("not an image")
    for path in (folder / "b/1/t1").iterdir():
        path.write_bytes(b"")
    report = index(client, gallery, scan(folder))
    assert sorted(failure.source for failure in report.failed) == ["a/1/t1", "b/1/t1"]
    assert all("not one of its frames" in failure.error for failure in report.failed)
    assert len(report.unreadable) == 6
    assert report.stored == 6
    assert report.done == 8


def test_two_folders_with_the_same_names_do_not_replace_each_other(
    client: Client, gallery: str, folder: Path, tmp_path: Path
) -> None:
    index(client, gallery, scan(folder))
    other = tmp_path / "other/a/1/t1"
    other.mkdir(parents=True)
    (other / "1.jpg").write_bytes((folder / "d/2/t1/000.jpg").read_bytes())
    clash = index(client, gallery, scan(tmp_path / "other"))
    assert [failure.source for failure in clash.failed] == ["a/1/t1"]
    apart = index(client, gallery, scan(tmp_path / "other"), camera_prefix="south-")
    assert apart.stored == 1
    assert {t.camera_id for t in client.list_tracklets(gallery)} == {"1", "2", "south-1"}


def test_identities_can_be_left_out(client: Client, gallery: str, folder: Path) -> None:
    index(client, gallery, scan(folder), identities=False)
    assert {tracklet.identity_id for tracklet in client.list_tracklets(gallery)} == {""}


def test_times_of_a_street_are_stored(client: Client, gallery: str, tmp_path: Path) -> None:
    write(StreetConfig(identities=2, cameras=1, frames=2, seed=3), tmp_path / "street")
    found = scan(tmp_path / "street")
    index(client, gallery, found)
    times = {one.key: (one.start_time, one.end_time) for one in found}
    for tracklet in client.list_tracklets(gallery):
        start, end = times[tracklet.labels["source"]]
        assert start is not None
        assert end is not None
        assert abs((tracklet.start_time.ToDatetime(tzinfo=UTC) - start).total_seconds()) < 0.001
        assert abs((tracklet.end_time.ToDatetime(tzinfo=UTC) - end).total_seconds()) < 0.001


def test_progress_is_shown_by_one_thread_at_a_time(tmp_path: Path) -> None:
    for number in range(20):
        for camera, content in (("1", picture(number)), ("2", b"")):  # the second: settled by the thread that reads
            place = tmp_path / f"data/{number:02d}/{camera}/t1"
            place.mkdir(parents=True)
            (place / "0.jpg").write_bytes(content)
    threads, counts, showing = set(), [], threading.Lock()

    def show(report: IndexReport) -> None:
        assert showing.acquire(blocking=False), "two threads at the same time"
        before = report.done
        time.sleep(0.005)
        assert report.done == before
        threads.add(threading.get_ident())
        counts.append(report.done)
        showing.release()

    with faulty_server() as (address, _), Client(address) as client:
        report = index(client, "g", scan(tmp_path / "data"), on_progress=show)
    assert (report.stored, len(report.failed)) == (20, 20)
    assert counts == list(range(1, 41))
    assert len(threads) == 2


def test_no_gallery(client: Client, folder: Path) -> None:
    with pytest.raises(NotFoundError):
        index(client, "nowhere", scan(folder))


def test_a_server_that_breaks_off_is_found_again(folder: Path, tmp_path: Path) -> None:
    with faulty_server() as (address, faults), Client(address, retry=RetryPolicy(initial_backoff=0.01)) as client:
        faults.break_after = 3
        report = index(client, "g", scan(folder), journal=tmp_path / "j.jsonl", max_in_flight=2)
    assert report.stored == 8
    assert len(faults.stored) == 8


def test_a_server_that_stays_away_ends_the_run_and_the_journal_keeps_what_was_done(
    folder: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "j.jsonl"
    retry = RetryPolicy(attempts=2, initial_backoff=0.01)
    with faulty_server() as (address, faults), Client(address, retry=retry) as client:
        faults.break_after = 4
        faults.errors["BulkIngestTracklets"].extend([None, *[UnavailableError("gone")] * 5])
        with pytest.raises(UnavailableError):
            index(client, "g", scan(folder), journal=journal, max_in_flight=1)
        assert len(journal.read_text().splitlines()) == 4
        faults.errors.clear()
        report = index(client, "g", scan(folder), journal=journal)
    assert (report.already, report.stored) == (4, 4)
    assert len(faults.stored) == 8


def test_a_refusal_of_something_else_is_not_repaired(folder: Path) -> None:
    with faulty_server() as (address, faults), Client(address) as client:
        faults.item_errors.append(InvalidArgumentError.of("tracklet.camera_id", "is not liked"))
        report = index(client, "g", scan(folder))
    assert [failure.error for failure in report.failed] == ["tracklet.camera_id: is not liked"]
    assert len(faults.requests("item")) == 8


def test_command_creates_indexes_and_sums_up(run: Run, client: Client, gallery: str, folder: Path) -> None:
    new = gallery + "-new"
    assert "create it first" in run("index", folder, "--gallery", new).err
    done = run("index", folder, "--gallery", new, "--create", "--limit", 5, "--camera-prefix", "n-", "--no-identities")
    assert done.code == 0
    assert done.out.startswith(f"5 tracklets (15 frames) stored in galleries/{new} in ")
    assert {t.camera_id for t in client.list_tracklets(new)} == {"n-1", "n-2"}
    whole = ("index", folder, "--gallery", new, "--create", "--camera-prefix", "n-", "--no-identities")
    assert re.fullmatch(
        rf"8 tracklets \(24 frames\) are in galleries/{new}: 3 stored in [\d.]+ s, [\d.]+ tracklets/s; "
        "5 were there already\n",
        run(*whole).out,
    )
    assert len(stored(client, new)) == 8
    assert run(*whole).out == f"nothing new: 8 tracklets (24 frames) were in galleries/{new} already\n"


def test_command_reports_problems_and_status_1(run: Run, gallery: str, folder: Path) -> None:
    bad = folder / "a/1/t1/001.jpg"
    bad.write_text("not an image")
    done = run("index", folder, "--gallery", gallery)
    assert done.code == 0, "a frame left out is no failure"
    assert f"{bad}: " in done.err
    for path in (folder / "b/1/t1").iterdir():
        path.write_text("not an image")
    failed = run("index", folder, "--gallery", gallery, "--no-identities", "--camera-prefix", "x", "--json")
    assert failed.code == 1
    summary = json.loads(failed.out)
    assert summary["stored"] == 7
    assert summary["failed"] == [{"source": "b/1/t1", "error": "not one of its frames can be read"}]
    assert len(summary["unreadable"]) == 4


def test_command_with_a_journal_goes_on(run: Run, gallery: str, folder: Path, tmp_path: Path) -> None:
    options = ["--gallery", gallery, "--journal", tmp_path / "j.jsonl", "--json"]
    assert json.loads(run("index", folder, *options, "--limit", 3).out)["stored"] == 3
    summary = json.loads(run("index", folder, *options).out)
    assert (summary["already_stored"], summary["stored"]) == (3, 5)


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["gone", "-g", "g"], 1, "gone: no such folder"),
        ([".", "-g", "g", "--format", "zip"], 2, "zip"),
        (["."], 2, "--gallery"),
        ([".", "-g", "g", "--limit", "0"], 2, "--limit"),
    ],
    ids=["no-folder", "format", "no-gallery", "limit"],
)
def test_command_mistakes(run: Run, arguments: list[str], code: int, problem: str) -> None:
    done = run("index", *arguments)
    assert done.code == code
    assert problem in done.err


def test_ctrl_c_says_how_to_go_on(folder: Path) -> None:
    with faulty_server() as (address, faults):
        faults.free = 1
        faults.hold.clear()  # the first is stored, and the run can only end by the interrupt
        command = [sys.executable, "-m", "passerby_client.cli", "index", str(folder), "-g", "g", "--server", address]
        # A shell without job control starts what runs in the background with SIGINT ignored; children inherit that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        finally:
            signal.signal(signal.SIGINT, before)
        with process:
            deadline = time.monotonic() + 30
            while not faults.stored and time.monotonic() < deadline:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert "run the same command again to go on: nothing is stored twice" in err
    assert "Traceback" not in err


def test_a_terminal_sees_progress(folder: Path) -> None:
    ours, theirs = os.openpty()
    with faulty_server() as (address, _):
        command = [sys.executable, "-m", "passerby_client.cli", "index", str(folder), "-g", "g", "--server", address]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        )
    os.close(theirs)
    shown = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert done.returncode == 0
    assert done.stdout.startswith("8 tracklets (24 frames) stored in galleries/g in ")
    assert "indexing" in shown
    assert "8/8" in shown
    assert "/s" in shown


def test_a_report_counts_what_is_settled() -> None:
    assert IndexReport("galleries/g", stored=2, already=3).done == 5
