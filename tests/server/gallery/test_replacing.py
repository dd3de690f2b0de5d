"""A gallery of a new model takes the old one's place: with what people said, without whom was erased, and back again."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest
from passerby.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from passerby_server.gallery.backup import check
from passerby_server.gallery.embedded import EmbeddedGalleries, open_galleries
from passerby_server.gallery.store import DATABASE_NAME
from passerby_server.gallery.types import GalleryOptions, ModelSpace, NewTracklet, RetentionRule, TrackletFilter

from tests.server.gallery.filling import SPACE, ask, at, ids, put, reason

NEW = ModelSpace("sha256:two", 2, "cosine")


def put_new(galleries, name, vector, **said):
    return put(galleries, name, vector, gallery_id="g-next", fingerprint=NEW.fingerprint, **said)


@pytest.fixture
def both(tmp_path):
    """`g` with four tracklets, corrected, and `g-next` of another model that follows it and has them too."""
    galleries = open_galleries(tmp_path / "data")
    galleries.create_gallery("g", "Station", SPACE, options=GalleryOptions("int8", 0.01))
    for number in range(4):
        said = {"start_time": at(number), "end_time": at(number + 1), "labels": {"gate": str(number)}}
        put(galleries, f"t{number}", [number, 0, 0, 0], thumbnail=b"old", request_id=f"r{number}", **said)
    galleries.assign_identity("g", "t0", "ann")
    galleries.merge_identities("g", "robert", ["ann"])
    galleries.set_retention("g", [RetentionRule("c1", timedelta(days=36500))])
    galleries.create_gallery("g-next", "", NEW, options=GalleryOptions(follows="g"))
    for number in range(4):
        put_new(galleries, f"t{number}", [1, number], identity_id="folder")
    yield galleries
    galleries.close()


def replace(galleries, **options):
    return galleries.replace_gallery("g", "g-next", "g-before", **({"allow_missing": False} | options))


def test_what_people_said_goes_along_and_the_new_model_answers(both):
    done = replace(both)
    assert (done.gallery.gallery_id, done.gallery.space, done.gallery.display_name) == ("g", NEW, "Station")
    assert (done.retired.gallery_id, done.retired.space, done.retired.options.follows) == ("g-before", SPACE, "g")
    assert done.gallery.options == GalleryOptions("int8", 0.01)
    assert done.missing_count == 0
    wanted = {one._space: str(one._wanted) for one in both._live.values()}
    assert wanted == {SPACE: "SQ8", NEW: "SQ8"}
    found = {item.tracklet_id: item for item in both.list_tracklets("g", TrackletFilter(), 10).items}
    assert [found[f"t{n}"].identity_id for n in range(4)] == ["robert", "", "", ""]
    assert (found["t2"].labels, found["t2"].start_time, found["t2"].camera_id) == ({"gate": "2"}, at(2), "c1")
    assert both.get_thumbnail("g", "t1") == b"old"
    assert both.get_retention("g") == both.get_retention("g-before") == (RetentionRule("c1", timedelta(days=36500)),)
    assert ids(both.search("g", ask([1, 3], 1, fingerprint=NEW.fingerprint))) == ["t3"]
    assert ids(both.search("g-before", ask([2, 0, 0, 0], 1))) == ["t2"]
    with pytest.raises(FailedPreconditionError) as caught:
        both.search("g", ask([2, 0, 0, 0], 1))
    assert reason(caught) == "MODEL_MISMATCH"
    with pytest.raises(NotFoundError):
        both.get_gallery("g-next")


def test_corrections_from_before_can_be_undone_after(both):
    change = both.merge_identities("g", "eve", ["robert"]).change_id
    replace(both)
    assert both.undo_identity_change("g", change).tracklet_count == 1
    assert both.get_tracklet("g", "t0").identity_id == "robert"
    assert both.get_tracklet("g-before", "t0").identity_id == "eve"  # as it was when it was retired


def test_it_is_all_there_after_a_restart_and_can_be_put_back(both, tmp_path):
    replace(both)
    put(both, "later", [1, 9], fingerprint=NEW.fingerprint)
    both.assign_identity("g", "t1", "zoe")
    both.close()
    again = open_galleries(tmp_path / "data")
    with pytest.raises(FailedPreconditionError) as caught:
        again.replace_gallery("g", "g-before", "g-next", allow_missing=False)
    assert reason(caught) == "TRACKLETS_MISSING"
    assert again.replace_gallery("g", "g-before", "g-next", allow_missing=True).missing_count == 1
    assert again.get_gallery("g").space == SPACE
    assert ids(again.search("g", ask([1, 0, 0, 0], 1))) == ["t1"]
    assert again.get_tracklet("g", "t1").identity_id == "zoe"
    assert [item.tracklet_id for item in again.list_tracklets("g-next", TrackletFilter(), 9).items][-1] == "later"
    again.close()


def test_retries_from_before_find_their_tracklet(both):
    again = {"start_time": at(2), "end_time": at(3), "labels": {"gate": "2"}, "thumbnail": b"old", "request_id": "r2"}
    before = put(both, "t2", [2, 0, 0, 0], **again)
    request = {"request_id": "11111111-2222-4333-8444-555555555555"}
    first = replace(both, **request)
    assert put(both, "t2", [2, 0, 0, 0], **again) == before
    assert replace(both, **request) == first


def test_request_ids_mean_what_they_meant(both):
    """A client with one id per tracklet stored it in both galleries: its requests differ, since they name them."""
    for name, digest in (("u", b"to g"), ("v", b"to g"), ("left", b"to g")):
        put(both, name, [1, 2, 3, 4], request_id=f"id-{name}", request_digest=digest)
    put_new(both, "u", [1, 2], request_id="id-u", request_digest=b"to g-next")
    put_new(both, "v", [1, 2], request_id="id-v2", request_digest=b"to g-next")
    deleted = both.get_tracklet("g", "t3")
    both.delete_tracklet("g", "t3")
    replace(both, allow_missing=True)
    said = {"fingerprint": NEW.fingerprint, "request_digest": b"to g"}
    assert put(both, "u", [1, 2], request_id="id-u", **said).tracklet_id == "u"
    with pytest.raises(AlreadyExistsError) as taken:
        put(both, "v", [1, 2], request_id="id-v2", **said)
    assert reason(taken) == "TRACKLET_EXISTS"
    assert put(both, "left", [1, 2], request_id="id-left", **said).tracklet_id == "left"  # it was not deleted
    with pytest.raises(InvalidArgumentError):
        put(both, "t3", [1, 2], request_id="r3", **said)
    again = {"start_time": deleted.start_time, "end_time": deleted.end_time, "labels": deleted.labels}
    with pytest.raises(FailedPreconditionError) as caught:
        put(both, "t3", [3, 0, 0, 0], thumbnail=b"old", request_id="r3", **again)
    assert reason(caught) == "TRACKLET_DELETED"


def test_the_gallery_is_the_one_that_its_clients_know(both):
    """Their journals tell it by its name and the time of its making."""
    before = both.get_gallery("g").create_time
    assert both.get_gallery("g-next").create_time != before
    replace(both)
    assert both.get_gallery("g").create_time == before


@pytest.mark.parametrize("how", ["tracklet", "identity", "everywhere", "retention"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_who_is_erased_is_erased_from_both(both, how, when):
    if when == "after":
        replace(both)
    other = "g-next" if when == "before" else "g-before"
    if how == "tracklet":
        receipt = both.delete_tracklet("g", "t0")
    elif how == "retention":
        receipt = None
        both.set_retention("g", [RetentionRule("c1", timedelta(days=1))])
        assert both.apply_retention() >= 4
    else:
        everywhere = "-" if how == "everywhere" else "g"
        assert both.erase_identity(everywhere, "robert", force=False).tracklet_count == 2
        erasure = both.erase_identity(everywhere, "robert", force=True)
        receipt = erasure.receipt
        assert erasure.tracklet_count == 2
    if receipt is not None:
        assert set(receipt.tracklet_names) == {"galleries/g/tracklets/t0", f"galleries/{other}/tracklets/t0"}
    for name in ("g", other):
        with pytest.raises(NotFoundError):
            both.get_tracklet(name, "t0")
    text = str([entry for name in ("g", other) for entry in both.list_audit(name, "", "", 1000).items])
    assert "'t0'" not in text
    assert how not in ("identity", "everywhere") or "robert" not in text
    if when == "before":
        with pytest.raises(FailedPreconditionError) as caught:
            put_new(both, "t0", [1, 0])
        assert reason(caught) == "TRACKLET_DELETED"
    if when == "after" and how == "tracklet":  # in the gallery itself it may be stored anew
        assert put(both, "t0", [1, 0], fingerprint=NEW.fingerprint).tracklet_id == "t0"


@pytest.mark.parametrize("parent", ["g", "-"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_only_the_follower_holds_of_somebody_is_erased_too(both, when, parent):
    """Of a camera that was moved to the new gallery already; after the switch, what stayed behind in the old one."""
    if when == "before":
        put_new(both, "alone", [3, 3], identity_id="robert")
    else:
        put(both, "alone", [3, 3, 3, 3], identity_id="robert")
        replace(both, allow_missing=True)
    other = "g-next" if when == "before" else "g-before"
    assert both.erase_identity(parent, "robert", force=False).tracklet_count == 3
    erasure = both.erase_identity(parent, "robert", force=True)
    assert erasure.tracklet_count == 3
    assert sorted(erasure.receipt.tracklet_names) == sorted(
        ["galleries/g/tracklets/t0", f"galleries/{other}/tracklets/t0", f"galleries/{other}/tracklets/alone"]
    )
    assert erasure.receipt.left_in == ()
    with pytest.raises(NotFoundError):
        both.get_tracklet(other, "alone")
    space = NEW if when == "before" else SPACE
    descriptor = np.ones(space.descriptor_dim)
    assert ids(both.search(other, ask(descriptor, 9, fingerprint=space.fingerprint))) == ["t1", "t2", "t3"]
    assert [entry.action for entry in both.list_audit(other, "", "robert", 9).items][-1] == "EraseIdentity"


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_the_gallery_says_shows_another_loses_the_erased_name_alone(both, when):
    """The follower knows it by the name that people have corrected since."""
    if when == "after":
        replace(both)
        both.assign_identity("g", "t0", "bob")
    other, name = ("g-next", "folder") if when == "before" else ("g-before", "robert")
    assert both.erase_identity("g", name, force=False).tracklet_count == 0
    assert both.erase_identity("g", name, force=True).tracklet_count == 0
    shown = "robert" if when == "before" else "bob"
    assert both.get_tracklet("g", "t0").identity_id == both.get_tracklet(other, "t0").identity_id == shown
    assert all(item.identity_id != name for item in both.list_tracklets(other, TrackletFilter(), 9).items)


def test_an_erasure_that_does_not_reach_the_followed_gallery_names_it(both):
    put(both, "more", [5, 0, 0, 0], identity_id="folder")
    both.create_gallery("g-other", "", NEW, options=GalleryOptions(follows="g"))
    receipt = both.erase_identity("g-next", "folder", force=True).receipt
    assert receipt.left_in == ("g",)
    assert len(receipt.tracklet_names) == 4
    put_new(both, "more", [1, 0])
    assert both.delete_tracklet("g-next", "more").left_in == ("g",)
    assert both.delete_tracklet("g", "more").left_in == ()


def test_no_byte_of_who_is_erased_is_left_of_either_model(both, tmp_path):
    secrets = []
    for name, gallery_id, fingerprint, width in (
        ("g", "g", SPACE.fingerprint, 4),
        ("next", "g-next", NEW.fingerprint, 2),
    ):
        vector, thumbnail = (
            np.random.default_rng(width).normal(size=width).astype(np.float32),
            f"<face {name}>".encode(),
        )
        said = {"gallery_id": gallery_id, "fingerprint": fingerprint, "thumbnail": thumbnail}
        put(both, "sighting-17", vector, identity_id="<wilhelmina>", **said)
        secrets += [vector.tobytes(), thumbnail]
    secrets += [b"<wilhelmina>", b"sighting-17"]

    def found():
        everywhere = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
        return [secret for secret in secrets if secret in everywhere]

    assert found() == secrets
    both.erase_identity("g", "<wilhelmina>", force=True)
    assert found() == []


@pytest.mark.parametrize("retired", ["g-before", "g-next"])
def test_names_of_what_stays_behind_are_erased_with_it(both, retired):
    """A tracklet that the new gallery lacks: its entries in the audit follow it to where it will be deleted."""
    put(both, "left", [5, 0, 0, 0])
    both.replace_gallery("g", "g-next", retired, allow_missing=True)
    both.delete_tracklet(retired, "left")
    entries = [entry for name in ("g", retired) for entry in both.list_audit(name, "", "", 1000).items]
    assert "left" not in [entry.tracklet_id for entry in entries]
    assert both.list_audit("g", "t1", "", 10).items[0].action == "IngestTracklet"


def test_a_retired_gallery_that_stays_is_named_when_the_other_is_deleted(both):
    replace(both)
    receipt = both.delete_gallery("g", force=True).receipt
    assert receipt.left_in == ("g-before",)
    assert both.get_gallery("g-before").options.follows == ""


def test_impossible_replacements_are_refused(both):
    both.create_gallery("h", "", NEW)
    both.create_gallery("g-before", "", SPACE)
    for arguments, expected, name in (
        (("g", "h", "x"), FailedPreconditionError, "NOT_A_FOLLOWER"),
        (("g-next", "g", "x"), FailedPreconditionError, "NOT_A_FOLLOWER"),
        (("g", "g-next", "g-before"), AlreadyExistsError, "GALLERY_EXISTS"),
        (("none", "g-next", "x"), NotFoundError, "GALLERY_NOT_FOUND"),
        (("g", "none", "x"), NotFoundError, "GALLERY_NOT_FOUND"),
    ):
        with pytest.raises(expected) as caught:
            both.replace_gallery(*arguments, allow_missing=False)
        assert reason(caught) == name
    put(both, "alone", [7, 0, 0, 0])
    with pytest.raises(FailedPreconditionError) as caught:
        both.replace_gallery("g", "g-next", "x", allow_missing=False)
    assert reason(caught) == "TRACKLETS_MISSING"
    assert both.get_gallery("g").space == SPACE
    for options in (GalleryOptions(follows="g-next"), GalleryOptions("galaxy"), GalleryOptions("", 1.5)):
        with pytest.raises(InvalidArgumentError):
            both.create_gallery("j", "", NEW, options=options)


# Replaces, in a transaction that is killed before its end.
KILLED = """
import os, sys
from pathlib import Path
from passerby_server.gallery import ledger, replacing
from passerby_server.gallery.embedded import open_galleries

def kill(*_, **__):
    os.kill(os.getpid(), 9)

galleries = open_galleries(Path(sys.argv[1]))
replacing.ledger.record = kill
galleries.replace_gallery("g", "g-next", "g-before", allow_missing=False)
"""


def test_killed_in_the_middle_the_old_one_answers(both, tmp_path):
    both.close()
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "data")], check=False).returncode == -9
    again = open_galleries(tmp_path / "data")
    assert again.get_gallery("g").space == SPACE
    assert ids(again.search("g", ask([3, 0, 0, 0], 1))) == ["t3"]
    assert again.get_tracklet("g-next", "t0").identity_id == "folder"
    assert replace(again).gallery.space == NEW
    again.close()


# Options of a gallery


def test_each_gallery_has_its_kind_of_index(tmp_path):
    folder = tmp_path / "data"
    galleries = EmbeddedGalleries(folder, index="exact", maintained=False)
    galleries.create_gallery("g", "", SPACE, options=GalleryOptions("int8"))
    galleries.create_gallery("h", "", SPACE)
    rng = np.random.default_rng(0)
    for gallery_id in ("g", "h"):
        for number in range(300):
            put(galleries, f"t{number}", rng.normal(size=4), gallery_id=gallery_id)
    galleries.maintain()
    stats = galleries.stats("g")
    assert (stats.index_kind, stats.index_lag, stats.audited_queries, stats.recall) == ("SQ8", 0, 0, None)
    assert galleries.stats("h").index_kind == "exact"
    galleries.update_gallery("g", index_kind="fp16", display_name="G", false_match_rate=0.2)
    galleries.update_gallery("h", index_kind="int8")
    galleries.maintain()
    assert [galleries.stats(name).index_kind for name in ("g", "h")] == ["SQfp16", "SQ8"]
    assert galleries.get_gallery("g").options == GalleryOptions("fp16", 0.2)
    galleries.update_gallery("h", index_kind="")
    galleries.update_gallery("g", false_match_rate=0.0)
    galleries.maintain()
    galleries.close()
    again = EmbeddedGalleries(folder, index="exact", maintained=False)
    again.maintain()
    assert again.get_gallery("g").options == GalleryOptions("fp16", None)
    assert [again.stats(name).index_kind for name in ("g", "h")] == ["SQfp16", "exact"]
    with pytest.raises(InvalidArgumentError):
        again.update_gallery("g", index_kind="galaxy")
    again.close()


def test_an_index_that_failed_lags_until_it_is_rebuilt(both, monkeypatch):
    (live,) = [one for one in both._live.values() if len(one.index) and one._space == SPACE]
    live.stale = True
    assert both.stats("g").index_lag == 4
    assert ids(both.search("g", ask([1, 0, 0, 0], 1))) == ["t1"]
    assert both.stats("g").index_lag == 0


# Kept frames


def put_frames(galleries, name, frames, *, gallery_id="g", space=SPACE):
    vector = np.full(space.descriptor_dim, len(frames), np.float32)
    return galleries.ingest(gallery_id, NewTracklet(name, "c1"), vector, space.fingerprint, b"", "", b"", frames)


def test_frames_are_kept_where_they_are_to_be_and_erased_with_their_tracklet(tmp_path):
    folder = tmp_path / "data"
    galleries = open_galleries(folder)
    galleries.create_gallery("g", "", SPACE, options=GalleryOptions(keep_frames=True))
    galleries.create_gallery("h", "", SPACE)
    frames = [b"<frame %d>" % number for number in range(12)]
    for gallery_id in ("g", "h"):
        put_frames(galleries, "t", frames, gallery_id=gallery_id)
    put_frames(galleries, "u", [b"<other>"])
    galleries.close()
    galleries = open_galleries(folder)
    assert galleries.get_gallery("g").options.keep_frames
    assert galleries.get_frames("g", "t") == tuple(frames)
    assert galleries.get_frames("h", "t") == ()
    galleries.delete_tracklet("g", "t")
    everywhere = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"<frame 3>" not in everywhere
    assert b"<other>" in everywhere
    galleries.close()


def test_a_damaged_frame_is_found(tmp_path):
    folder = tmp_path / "data"
    galleries = open_galleries(folder)
    galleries.create_gallery("g", "", SPACE, options=GalleryOptions(keep_frames=True))
    put_frames(galleries, "t", [b"<frame one>", b"<frame two>"])
    galleries.close()
    database = folder / DATABASE_NAME
    database.write_bytes(database.read_bytes().replace(b"<frame two>", b"<frame twp>"))
    assert check(folder).frames == ("galleries/g/tracklets/t",)
    galleries = open_galleries(folder)
    with pytest.raises(DataLossError) as caught:
        galleries.get_frames("g", "t")
    assert reason(caught) == "FRAME_DAMAGED"
    assert ids(galleries.search("g", ask([2, 2, 2, 2]))) == ["t"]
    galleries.close()


def test_kept_frames_go_along_unless_the_new_gallery_has_its_own(tmp_path):
    galleries = open_galleries(tmp_path / "data")
    galleries.create_gallery("g", "", SPACE, options=GalleryOptions(keep_frames=True))
    galleries.create_gallery("g-next", "", NEW, options=GalleryOptions(follows="g", keep_frames=True))
    for name in ("t", "u"):
        put_frames(galleries, name, [b"old one", b"old two"])
    put_frames(galleries, "t", [b"new"], gallery_id="g-next", space=NEW)
    put_frames(galleries, "u", [], gallery_id="g-next", space=NEW)
    assert replace(galleries).gallery.options == GalleryOptions(keep_frames=True)
    assert galleries.get_frames("g", "t") == (b"new",)
    assert galleries.get_frames("g", "u") == (b"old one", b"old two")
    galleries.close()
