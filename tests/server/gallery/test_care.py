"""Erasing, keeping for a time, correcting: what the records say before and after, and what is left where."""

from __future__ import annotations

import json
import logging
import os
import time
from datetime import timedelta

import pytest
from passerby.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, ResourceExhaustedError
from passerby_server.gallery import ledger
from passerby_server.gallery.embedded import open_galleries
from passerby_server.gallery.store import Store
from passerby_server.gallery.types import RetentionRule, TrackletFilter
from passerby_server.upkeep import Upkeep

from tests.server.gallery.filling import SPACE, START, ask, at, ids, put, reason

DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def opened(folder):
    galleries = open_galleries(folder, rewrite_delay=timedelta(0))
    galleries.create_gallery("g", "", SPACE)
    yield galleries
    galleries.close()


def _audit(galleries, gallery_id="g", **about):
    return galleries.list_audit(gallery_id, about.get("tracklet_id", ""), about.get("identity_id", ""), 1000).items


def _everywhere(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def _listed(galleries):
    return [item.tracklet_id for item in galleries.list_tracklets("g", TrackletFilter(), 1000).items]


# Erasing an identity


def test_erasing_reaches_all_galleries_and_leaves_others_alone(opened):
    opened.create_gallery("h", "", SPACE)
    put(opened, "a", [1, 0, 0, 0], identity_id="ann")
    put(opened, "b", [2, 0, 0, 0], identity_id="bob")
    put(opened, "c", [3, 0, 0, 0], gallery_id="h", identity_id="ann")
    assert opened.erase_identity("-", "ann", force=False).tracklet_count == 2
    assert opened.erase_identity("g", "ann", force=True).tracklet_count == 1
    erasure = opened.erase_identity("-", "ann", force=True)
    assert (erasure.tracklet_count, erasure.receipt.tracklet_names) == (1, ("galleries/h/tracklets/c",))
    assert ids(opened.search("g", ask([0, 0, 0, 0]))) == ["b"]
    assert opened.search("h", ask([0, 0, 0, 0])) == ()
    with pytest.raises(InvalidArgumentError):
        opened.erase_identity("g", "", force=True)
    with pytest.raises(NotFoundError):
        opened.erase_identity("absent", "ann", force=True)


def test_the_name_goes_from_corrections_of_tracklets_that_stay(opened, folder):
    put(opened, "t", [1, 0, 0, 0], identity_id="<Quackenbush>")
    put(opened, "u", [1, 0, 0, 0], identity_id="<other>")
    merged = opened.merge_identities("g", "<other>", ["<Quackenbush>"])
    assert b"<Quackenbush>" in _everywhere(folder)
    opened.erase_identity("g", "<Quackenbush>", force=True)
    assert b"<Quackenbush>" not in _everywhere(folder)
    assert _listed(opened) == ["t", "u"]  # whoever they show now was not erased
    assert opened.undo_identity_change("g", merged.change_id).tracklet_count == 0  # and does not become her again
    assert opened.get_tracklet("g", "t").identity_id == "<other>"
    digest = ledger.pseudonym(opened._audit_key, "identity", "", "<Quackenbush>")
    merge, erase = _audit(opened, identity_id="<Quackenbush>")
    assert json.loads(merge.detail)["merged"] == [digest]
    assert json.loads(erase.detail) == {"identity": digest, "tracklets": 0}


def test_a_digest_of_the_audit_tells_nothing_without_the_stores_key(opened, tmp_path):
    other = open_galleries(tmp_path / "other")
    other.create_gallery("g", "", SPACE)
    put(opened, "t", [1, 0, 0, 0])
    put(other, "t", [1, 0, 0, 0])
    receipts = [galleries.delete_tracklet("g", "t") for galleries in (opened, other)]
    assert len({receipt.subject_digest for receipt in receipts if receipt}) == 2
    other.close()


def test_requests_keep_no_digest_that_a_name_could_be_guessed_from(opened, folder):
    put(opened, "t", [1, 0, 0, 0])
    opened.assign_identity("g", "t", "ann", "r1")
    opened.erase_identity("g", "ann", force=True, request_id="r2")
    everything = _everywhere(folder)
    for parts in (("t", "ann"), ("ann",), ("t",)):
        assert ledger.digest_of(*parts) not in everything


def test_erasing_whose_rewrite_fails_can_be_repeated_for_its_receipt(opened, monkeypatch):
    put(opened, "t", [1, 0, 0, 0], identity_id="ann")

    def full(_):
        raise ResourceExhaustedError("the disk is full", reason="STORAGE_FULL")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "rewrite", full)
        with pytest.raises(ResourceExhaustedError):
            opened.erase_identity("g", "ann", force=True, request_id="r1")
    assert opened.search("g", ask([1, 0, 0, 0])) == ()
    erasure = opened.erase_identity("g", "ann", force=True, request_id="r1")
    assert erasure.tracklet_count == 1
    assert "gallery.db" in erasure.receipt.rewritten_files
    assert not opened.rewrite_if_due()


def test_the_copy_of_a_rewrite_stays_on_the_volume_of_the_data(folder, monkeypatch):
    monkeypatch.delenv("SQLITE_TMPDIR", raising=False)
    open_galleries(folder).close()
    assert os.environ["SQLITE_TMPDIR"] == str(folder)
    monkeypatch.setenv("SQLITE_TMPDIR", "/elsewhere")
    open_galleries(folder).close()
    assert os.environ["SQLITE_TMPDIR"] == "/elsewhere", "whoever runs the server has the last word"


def test_deletions_share_one_rewrite_within_the_delay(folder, clock):
    galleries = open_galleries(folder, rewrite_delay=DAY)
    galleries.create_gallery("g", "", SPACE)
    for name in "tuv":
        put(galleries, name, [1, 0, 0, 0])
    first = galleries.delete_tracklet("g", "t")
    clock(0.5)
    second = galleries.delete_tracklet("g", "u")
    assert [receipt.rewrite_due_time for receipt in (first, second) if receipt] == [START + DAY] * 2
    assert not galleries.rewrite_if_due()
    clock(1)
    assert galleries.rewrite_if_due()
    assert not galleries.rewrite_if_due()
    galleries.delete_tracklet("g", "v")
    clock(-30)  # a clock that went back puts nothing off
    assert galleries.rewrite_if_due()
    galleries.close()


# Retention


def test_retention_goes_by_camera_and_by_when_it_was_seen(opened, clock):
    put(opened, "old", [1, 0, 0, 0], camera_id="gate", start_time=at(-60 * 24 * 9), end_time=at(-60 * 24 * 9))
    put(opened, "untimed", [2, 0, 0, 0], camera_id="gate")
    put(opened, "door", [3, 0, 0, 0], camera_id="door")
    put(opened, "ahead", [4, 0, 0, 0], camera_id="hall", start_time=at(0), end_time=START + 400 * DAY)
    opened.set_retention("g", [RetentionRule("", 10 * DAY), RetentionRule("door", 30 * DAY)])
    left, count = {}, {}
    for day in (0, 2, 9, 11, 29, 31):
        clock(day)
        count[day] = opened.apply_retention()
        left[day] = sorted(_listed(opened))
        assert sorted(ids(opened.search("g", ask([0, 0, 0, 0])))) == left[day]
    assert left[0] == ["ahead", "door", "old", "untimed"]
    assert left[2] == left[9] == ["ahead", "door", "untimed"]
    assert left[11] == left[29] == ["door"]
    assert left[31] == []
    assert count == {0: 0, 2: 1, 9: 0, 11: 2, 29: 0, 31: 1}
    told = [json.loads(entry.detail) for entry in _audit(opened) if entry.action == "ApplyRetention"]
    assert [(one["tracklets"], one["rule"]) for one in told] == [
        (1, "all cameras: 864000 s"),
        (2, "all cameras: 864000 s"),
        (1, "door: 2.592e+06 s"),
    ]


def test_retention_is_kept_over_a_restart_and_taken_back(opened, folder, clock):
    opened.set_retention("g", [RetentionRule("gate", DAY)])
    opened.close()
    again = open_galleries(folder)
    assert again.get_retention("g") == (RetentionRule("gate", DAY),)
    put(again, "t", [1, 0, 0, 0], camera_id="gate")
    assert again.set_retention("g", []) == ()
    clock(100)
    assert again.apply_retention() == 0
    again.close()


def test_a_clock_that_goes_back_erases_nothing_early_and_keeps_nothing_for_years(opened, clock, caplog):
    opened.set_retention("g", [RetentionRule("", 10 * DAY)])
    put(opened, "before", [1, 0, 0, 0])
    clock(3650)
    put(opened, "ahead", [2, 0, 0, 0])
    clock(1)
    assert opened.apply_retention() == 0
    assert "gone back" in caplog.text
    clock(10.5)
    assert (opened.apply_retention(), _listed(opened)) == (1, ["ahead"])
    clock(11.5)
    assert (opened.apply_retention(), _listed(opened)) == (1, [])


def test_a_clock_that_is_wrong_for_a_moment_erases_nothing_early(folder, clock):
    """A machine without a battery begins in 1970; the network tells it the time once the server runs."""
    galleries = open_galleries(folder)
    galleries.create_gallery("g", "", SPACE)
    galleries.set_retention("g", [RetentionRule("", 10 * DAY)])
    put(galleries, "t", [1, 0, 0, 0], request_id="r1", request_digest=b"d")
    stored = galleries.get_tracklet("g", "t").create_time
    galleries.close()
    clock(-20_000)
    galleries = open_galleries(folder)
    assert galleries.apply_retention() == 0
    clock(1)
    assert galleries.apply_retention() == 0
    galleries.close()
    galleries = open_galleries(folder)
    assert _listed(galleries) == ["t"]
    assert galleries.get_tracklet("g", "t").create_time == stored
    put(galleries, "u", [1, 0, 0, 0], request_id="r2")  # takes along what has expired
    assert galleries.find_request("g", "r1", b"d") is not None
    clock(10.5)
    assert (galleries.apply_retention(), _listed(galleries)) == (1, ["u"])
    galleries.close()


def test_a_clock_that_goes_back_loses_no_order_and_keeps_no_request_for_years(folder, clock):
    """Stored at day 0, ahead at 3650, and back at 1: order, snapshot, request ids and the rewrite hold over restarts."""
    clock(3650)
    galleries = open_galleries(folder)
    galleries.create_gallery("g", "", SPACE)
    put(galleries, "first", [1, 0, 0, 0], request_id="r1")
    put(galleries, "gone", [1, 0, 0, 0])
    galleries.delete_tracklet("g", "gone")
    galleries.close()
    clock(1)
    galleries = open_galleries(folder)
    put(galleries, "second", [1, 0, 0, 0])
    assert _listed(galleries) == ["first", "second"]
    assert ids(galleries.search("g", ask([1, 0, 0, 0]))) == ["first", "second"]  # equal distances in storing order
    assert [entry.action for entry in _audit(galleries)][-1] == "IngestTracklet"
    assert put(galleries, "first", [1, 0, 0, 0], request_id="r1").tracklet_id == "first"  # a retry is one still
    assert galleries.rewrite_if_due()  # not only in ten years
    galleries.close()
    clock(10)
    galleries = open_galleries(folder)
    assert galleries.find_request("g", "r1", b"anything") is None  # forgotten a week after the clock was right again
    galleries.close()


def test_upkeep_goes_on_after_a_failure(opened, monkeypatch, caplog):
    put(opened, "t", [1, 0, 0, 0], start_time=at(-600), end_time=at(-600))
    opened.set_retention("g", [RetentionRule("", timedelta(seconds=1))])
    sweep, turns = opened.apply_retention, []

    def failing_once():
        turns.append(1)
        if len(turns) == 1:
            raise RuntimeError("once")
        return sweep()

    monkeypatch.setattr(opened, "apply_retention", failing_once)
    with caplog.at_level(logging.ERROR):
        upkeep = Upkeep(opened, 0.01)
        while _listed(opened):
            time.sleep(0.01)
        upkeep.close()
    assert caplog.text.count("upkeep failed") == 1


# Corrections


@pytest.fixture
def people(opened):
    for number, name in enumerate(["ann", "ann", "bob", "cleo", ""]):
        put(opened, f"t{number}", [number, 0, 0, 0], identity_id=name)
    return opened


def _identities(galleries):
    return [item.identity_id for item in galleries.list_tracklets("g", TrackletFilter(), 1000).items]


def test_a_merge_is_undone_exactly(people):
    change = people.merge_identities("g", "ann", ["bob", "cleo"], "r1")
    assert (change.tracklet_count, _identities(people)) == (2, ["ann", "ann", "ann", "ann", ""])
    again = people.merge_identities("g", "ann", ["cleo", "bob"], "r1")
    assert (again.change_id, again.tracklet_count) == (0, 2)
    assert people.undo_identity_change("g", change.change_id, "r2").tracklet_count == 2
    assert people.undo_identity_change("g", change.change_id, "r2").tracklet_count == 2
    assert _identities(people) == ["ann", "ann", "bob", "cleo", ""]
    with pytest.raises(FailedPreconditionError) as caught:
        people.undo_identity_change("g", change.change_id)
    assert reason(caught) == "CHANGE_UNDONE"
    actions = [entry.action for entry in _audit(people)]
    assert actions[-2:] == ["MergeIdentities", "UndoIdentityChange"]


def test_undoing_does_not_run_over_what_was_said_since(people):
    change = people.merge_identities("g", "ann", ["bob", "cleo"])
    people.assign_identity("g", "t3", "dora")
    with pytest.raises(FailedPreconditionError, match="galleries/g/tracklets/t3") as caught:
        people.undo_identity_change("g", change.change_id)
    assert reason(caught) == "IDENTITY_MOVED"
    assert _identities(people) == ["ann", "ann", "ann", "dora", ""]


def test_a_merge_is_undone_for_what_is_left_of_it(people):
    change = people.merge_identities("g", "ann", ["bob", "cleo"])
    people.delete_tracklet("g", "t2")
    assert people.undo_identity_change("g", change.change_id).tracklet_count == 1
    assert _identities(people) == ["ann", "ann", "cleo", ""]


def test_a_split_moves_the_named_ones_and_is_undone(people):
    change = people.split_identity("g", "ann", ["t1"], "anna")
    assert _identities(people) == ["ann", "anna", "bob", "cleo", ""]
    people.undo_identity_change("g", change.change_id)
    assert _identities(people)[:2] == ["ann", "ann"]
    for wrong in (["t2"], ["t1", "t2"]):
        with pytest.raises(FailedPreconditionError):
            people.split_identity("g", "ann", wrong, "anna")
    with pytest.raises(NotFoundError):
        people.split_identity("g", "ann", ["absent"], "anna")
    assert _identities(people)[:2] == ["ann", "ann"]


def test_wrong_corrections_are_refused(people):
    for wrong in (
        lambda: people.merge_identities("g", "ann", ["ann", "bob"]),
        lambda: people.merge_identities("g", "", ["bob"]),
        lambda: people.merge_identities("g", "ann", []),
        lambda: people.split_identity("g", "ann", [], "x"),
        lambda: people.split_identity("g", "ann", ["t0"], "ann"),
    ):
        with pytest.raises(InvalidArgumentError):
            wrong()
    with pytest.raises(NotFoundError) as caught:
        people.merge_identities("g", "ann", ["bob", "nobody"])
    assert reason(caught) == "IDENTITY_NOT_FOUND"
    people.create_gallery("h", "", SPACE)
    change = people.merge_identities("g", "ann", ["bob"])
    with pytest.raises(NotFoundError) as caught:
        people.undo_identity_change("h", change.change_id)
    assert reason(caught) == "CHANGE_NOT_FOUND"


def test_assignment_has_a_number_to_undo_it_by(people):
    _, number = people.assign_identity("g", "t4", "dora")
    people.undo_identity_change("g", number)
    assert _identities(people)[4] == ""
