"""How long the audit keeps what it says: of tracklets that retention erased for a time, of all else for good."""

from __future__ import annotations

import json
import time
from datetime import timedelta

import pytest
from passerby.errors import DataLossError, FailedPreconditionError
from passerby_server import upkeep
from passerby_server.gallery import erasure, sealing
from passerby_server.gallery.embedded import EmbeddedGalleries
from passerby_server.gallery.types import GalleryOptions, RetentionRule
from passerby_server.upkeep import Upkeep

from tests.server.gallery.filling import SPACE, at, put

DAY = timedelta(days=1)
KEEP = 100 * DAY


@pytest.fixture
def galleries(tmp_path, clock):
    """With a gallery `g` that keeps ten days."""
    galleries = EmbeddedGalleries(tmp_path, maintained=False)
    galleries.create_gallery("g", "", SPACE)
    galleries.set_retention("g", [RetentionRule("", 10 * DAY)])
    yield galleries
    galleries.close()


def told(galleries, gallery_id="g", **about):
    found = galleries.list_audit(gallery_id, about.get("tracklet_id", ""), about.get("identity_id", ""), 1000).items
    return [entry.action for entry in found]


def expired(galleries, gallery_id="g"):
    found = galleries.list_audit(gallery_id, "", "", 1000).items
    return [json.loads(entry.detail) for entry in found if entry.action == "ExpireAudit"]


def store(galleries, *names, day=0, **said):
    for name in names:
        put(galleries, name, [1, 0, 0, 0], start_time=at(day * 1440), end_time=at(day * 1440), **said)


def test_only_what_retention_erased_goes_and_it_is_counted(galleries, clock):
    store(galleries, "old-1", "old-2", identity_id="ann")
    store(galleries, "erased", identity_id="bob")
    store(galleries, "deleted")
    galleries.delete_tracklet("g", "deleted")
    galleries.erase_identity("g", "bob", force=True)
    galleries.assign_identity("g", "old-2", "cleo")
    clock(20)
    assert galleries.apply_retention() == 2
    store(galleries, "present", day=20)
    before = told(galleries)
    assert before.count("IngestTracklet") == 5
    assert galleries.expire_audit(KEEP) == 0
    clock(120)
    galleries.set_retention("g", [])
    assert galleries.expire_audit(KEEP) == 3
    assert [action for action in told(galleries) if action != "ExpireAudit"] == [
        "CreateGallery", "SetRetention", "IngestTracklet", "IngestTracklet", "DeleteTracklet", "EraseIdentity",
        "ApplyRetention", "IngestTracklet", "SetRetention",
    ]  # fmt: skip
    assert expired(galleries) == [{"entries": 3, "before": "2026-05-21"}]
    assert told(galleries, tracklet_id="old-1") == []
    assert told(galleries, tracklet_id="erased") == ["IngestTracklet"]
    assert told(galleries, tracklet_id="deleted") == ["IngestTracklet", "DeleteTracklet"]
    assert told(galleries, identity_id="bob") == ["EraseIdentity"]
    assert galleries.expire_audit(KEEP) == 0


def test_one_entry_counts_them_all_and_is_sealed(galleries, clock, monkeypatch):
    monkeypatch.setattr(erasure, "AUDIT_BATCH", 2)
    for day in (0, 20, 40):
        clock(day)
        galleries.apply_retention()
        store(galleries, f"a{day}", f"b{day}", f"c{day}", day=day)
    clock(119)
    galleries.apply_retention()
    assert galleries.expire_audit(KEEP) == 3
    clock(150)
    assert galleries.expire_audit(KEEP) == 6
    assert expired(galleries) == [{"entries": 9, "before": "2026-06-20"}]
    with galleries._store.read() as connection:
        assert list(sealing.damaged_rows(connection)) == []
    galleries._store.write(
        lambda connection: connection.execute("UPDATE audit SET seal = seal + 1 WHERE action = 'ExpireAudit'")
    )
    clock(151)
    store(galleries, "late", day=0)
    galleries.apply_retention()
    clock(300)
    with pytest.raises(DataLossError):  # no count is made up
        galleries.expire_audit(KEEP)


def test_a_day_begins_at_midnight(galleries, clock):
    store(galleries, "old")
    clock(20)
    galleries.apply_retention()
    clock(100.45)  # 100 days after noon is noon; the day of it is not over
    assert galleries.expire_audit(KEEP) == 0
    clock(100.55)
    assert galleries.expire_audit(KEEP) == 1


def test_a_gallery_that_is_followed_keeps_what_must_not_come_back(galleries, clock):
    store(galleries, "old")
    clock(20)
    galleries.apply_retention()
    galleries.create_gallery("next", "", SPACE, options=GalleryOptions(follows="g"))
    clock(200)
    assert galleries.expire_audit(KEEP) == 0
    with pytest.raises(FailedPreconditionError) as caught:
        store(galleries, "old", gallery_id="next")
    assert caught.value.reason == "TRACKLET_DELETED"
    galleries.delete_gallery("next", force=True)
    assert galleries.expire_audit(KEEP) == 1


def test_a_gallery_that_is_deleted_keeps_its_count(galleries, clock):
    store(galleries, "old", "older")
    clock(20)
    galleries.apply_retention()
    clock(101)
    galleries.expire_audit(KEEP)
    store(galleries, "young", day=101)
    clock(120)
    galleries.apply_retention()
    galleries.delete_gallery("g", force=True)
    assert expired(galleries) == [{"entries": 2, "before": "2026-05-02"}]
    clock(300)
    assert galleries.expire_audit(KEEP) == 1
    assert expired(galleries)[0]["entries"] == 3


@pytest.mark.parametrize("keep", [KEEP, None])
def test_the_upkeep_does_it_once_a_day_or_never(galleries, clock, monkeypatch, keep):
    store(galleries, "old")
    clock(200)
    sweeps, expire, calls = [], galleries.expire_audit, []

    def expiring(keep):
        calls.append(keep)
        return expire(keep)

    monkeypatch.setattr(galleries, "rewrite_if_due", lambda: sweeps.append(1))
    monkeypatch.setattr(galleries, "expire_audit", expiring)

    def swept(count):
        while len(sweeps) < count:
            time.sleep(0.01)

    sweeping = Upkeep(galleries, 0.01, keep)
    swept(5)
    assert told(galleries).count("IngestTracklet") == (0 if keep else 1)
    assert len(calls) == (1 if keep else 0)
    monkeypatch.setattr(upkeep, "DAY_SECONDS", -1.0)
    sweeping._audit_due -= 86_400.0
    swept(len(sweeps) + 5)
    sweeping.close()
    assert (len(calls) > 1) == bool(keep)
