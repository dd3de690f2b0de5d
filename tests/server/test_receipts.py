"""Receipts of erasures tell a caller of its own galleries alone."""

from __future__ import annotations

from pathlib import Path

from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import tracklet_service_pb2 as tracklet_v1

from tests.encoders import make_bundle
from tests.server.live import running
from tests.server.pictures import crops, sequence
from tests.server.security import callers

HIDDEN = "galleries that you may not use, 1 in number, hold the same people"


def test_a_receipt_names_no_gallery_that_is_not_the_callers(tmp_path: Path) -> None:
    file = tmp_path / "callers.json"
    boss_token = callers.add(file, "boss", "admin")
    local_token = callers.add(file, "local", "admin", galleries=["station", "old"])
    with running(make_bundle(tmp_path / "bundle"), tmp_path / "data", access={"file": file}) as live:
        boss, local = callers.stubs_of(live.port, boss_token), callers.stubs_of(live.port, local_token)
        for name, follows in (("station", ""), ("secret", "station"), ("vault", ""), ("old", "vault")):
            said = resources.Gallery(follows=f"galleries/{follows}" if follows else "")
            boss.galleries.CreateGallery(gallery_v1.CreateGalleryRequest(gallery_id=name, gallery=said), timeout=20)
            for tracklet in ("t1", "t2", "t3"):
                parent, identity = f"galleries/{name}", "ann" if tracklet == "t1" else "bob"
                boss.ingest(parent, sequence(crops(3)), tracklet_id=tracklet, identity_id=identity)
        erase = tracklet_v1.EraseIdentityRequest(parent="galleries/station", identity_id="ann", force=True)
        erased = local.tracklets.EraseIdentity(erase, timeout=20)
        assert erased.tracklet_count == 2
        assert list(erased.receipt.tracklets) == ["galleries/station/tracklets/t1"]
        for stubs, tracklet, said_of_it in (
            (local, "t2", HIDDEN),
            (boss, "t3", "galleries/vault holds the same people"),
        ):
            delete = tracklet_v1.DeleteTrackletRequest(name=f"galleries/old/tracklets/{tracklet}")
            assert list(stubs.tracklets.DeleteTracklet(delete, timeout=20).receipt.unreachable_copies) == [said_of_it]
        drop = gallery_v1.DeleteGalleryRequest(name="galleries/station", force=True)
        assert list(local.galleries.DeleteGallery(drop, timeout=20).receipt.unreachable_copies) == [HIDDEN]
        boss.close()
        local.close()
