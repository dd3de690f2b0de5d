"""`passerby gallery reindex`: another model is served, a gallery is filled anew and switched, by one command."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_client import Client
from passerby_client._frames import FrameInput, frame
from passerby_indexer.bulk import index
from passerby_indexer.scan import scan

from tests.clients.conftest import crop
from tests.commands import Run
from tests.encoders import make_bundle
from tests.server.live import running


@dataclass(frozen=True)
class Switched:
    """A server of a second model, over a gallery `hall` of the first one."""

    client: Client
    folder: Path
    address: str


@pytest.fixture
def switched(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Switched]:
    """Eight tracklets of the folder, of which one is erased; one from a camera, live; one corrected."""
    first = make_bundle(tmp_path / "first", dim=8)
    second = make_bundle(tmp_path / "second", dim=16, seed=1, metric="cosine")
    with running(first, tmp_path / "store") as live, Client(f"127.0.0.1:{live.port}") as client:
        client.create_gallery("hall", display_name="Hall", false_match_rate=0.01)
        assert index(client, "hall", scan(folder), journal=tmp_path / "of-hall").stored == 8
        client.erase_identity("hall", "d", force=True)
        client.assign_identity("galleries/hall/tracklets/a.1.t1", "anna")
    with running(second, tmp_path / "store") as live, Client(f"127.0.0.1:{live.port}") as client:
        monkeypatch.setenv("PASSERBY_SERVER", f"127.0.0.1:{live.port}")
        yield Switched(client, folder, f"127.0.0.1:{live.port}")


def call(run: Run, switched: Switched, *arguments: object):
    return run("gallery", "reindex", "hall", "--from", switched.folder, *arguments, "--server", switched.address)


def test_a_gallery_is_filled_anew_and_switched(run: Run, switched: Switched, tmp_path: Path) -> None:
    client = switched.client
    old, new = client.get_gallery("hall").model_fingerprint, client.model_info().model_fingerprint
    assert old != new
    stored = "galleries/hall/tracklets/a.1.t1"
    before = client.search("hall", tracklet=stored)  # the old one goes on answering
    assert len(before.hits) == 5
    done = call(run, switched, "--fill-only", "--journal", tmp_path / "journal")
    assert (done.code, done.err) == (0, "")
    assert client.get_gallery("hall").model_fingerprint == old
    assert client.get_gallery("hall-next").follows == "galleries/hall"
    assert [hit.tracklet.name for hit in client.search("hall", tracklet=stored).hits] == [
        hit.tracklet.name for hit in before.hits
    ]
    done = call(run, switched, "--journal", tmp_path / "journal")
    assert done.code == 0
    assert "6 left out: the journal has them" in done.out
    assert "2 tracklets found there left out: hall does not hold them" in done.out
    assert f"hall is of model {new[:12]} now; the old one is hall-before" in done.out
    hall = client.get_gallery("hall")
    assert (hall.model_fingerprint, hall.descriptor_dim, hall.display_name) == (new, 16, "Hall")
    assert hall.false_match_rate == 0.01
    identities = sorted(tracklet.identity_id for tracklet in client.list_tracklets("hall"))
    assert identities == ["a", "anna", "b", "b", "c", "c"]
    hits = client.search("hall", frames=[crop((200, 100, 30))] * 3, top_k=10).hits  # with the new model
    assert len(hits) == 6
    assert client.get_gallery("hall-before").model_fingerprint == old
    done = run("gallery", "delete", "hall-before", "--force", "--server", switched.address)
    assert "gallery.db, gallery.db-wal" in done.out


def test_after_the_switch_nothing_is_sent_again(run: Run, switched: Switched, tmp_path: Path) -> None:
    assert call(run, switched).code == 0
    again = index(switched.client, "hall", scan(switched.folder), journal=tmp_path / "of-hall")
    assert (again.already, again.stored, again.failed) == (8, 0, [])


def test_what_the_folder_lacks_is_said_and_stays_in_the_old_one(run: Run, switched: Switched) -> None:
    shutil.rmtree(switched.folder / "b" / "1")
    done = call(run, switched)
    assert done.code == 1
    assert "galleries/hall/tracklets/b.1.t1" in done.err
    assert "hall is as before" in done.err
    assert switched.client.get_gallery("hall").descriptor_dim == 8
    said = json.loads(call(run, switched, "--allow-missing", "--keep-as", "hall-2025", "--json").out)
    assert said["missing"] == ["galleries/hall/tracklets/b.1.t1"]
    assert (said["gone"], said["replaced"]["missing_tracklet_count"]) == (2, 1)
    assert switched.client.get_tracklet("galleries/hall-2025/tracklets/b.1.t1").tracklet.identity_id == "b"
    done = run(
        "gallery", "replace", "hall", "hall-2025", "--keep-as", "hall-next", "--server", switched.address
    )  # and back again
    assert "the old one is hall-next" in done.out
    assert switched.client.get_gallery("hall").descriptor_dim == 8


def test_a_gallery_of_the_served_model_needs_no_reindex(run: Run, switched: Switched) -> None:
    switched.client.create_gallery("fresh")
    done = run("gallery", "reindex", "fresh", "--from", switched.folder, "--server", switched.address)
    assert done.code == 1
    assert "is of the model that is served now" in done.err
    switched.client.create_gallery("hall-next")
    done = call(run, switched)
    assert done.code == 1
    assert "delete it first" in done.err


def streamed(gallery: str, pictures: Sequence[FrameInput]) -> list[tracklet_v1.StreamTrackletRequest]:
    header = tracklet_v1.StreamTrackletRequest.Header(
        parent=f"galleries/{gallery}", tracklet_id="live", tracklet=resources.Tracklet(camera_id="3")
    )
    frames = [tracklet_v1.StreamTrackletRequest(frame=frame(picture)) for picture in pictures]
    return [tracklet_v1.StreamTrackletRequest(header=header), *frames]


def test_kept_frames_fill_a_gallery_anew(run: Run, tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "first", dim=8)
    second = make_bundle(tmp_path / "second", dim=16, seed=1)
    pictures = [crop((number, 2 * number, 255 - number)) for number in range(70)]
    with running(first, tmp_path / "store") as live, Client(f"127.0.0.1:{live.port}") as client:
        client.create_gallery("hall", keep_frames=True, descriptor_precision="fp16")
        client.create_gallery("plain")
        for gallery in ("hall", "plain"):
            client.ingest_tracklet(gallery, pictures[:7], camera="1", tracklet_id="short", identity="ann")
            client.ingest_tracklet(gallery, pictures, camera="2", tracklet_id="long")
            live.tracklets.StreamTracklet(iter(streamed(gallery, pictures[:40])), timeout=20)
        kept = {
            name: len(client.get_tracklet(f"galleries/hall/tracklets/{name}", frames=True).frames.frames)
            for name in ("short", "long", "live")
        }
        assert kept == {"short": 7, "long": 24, "live": 20}
        assert not client.get_tracklet("galleries/plain/tracklets/short", frames=True).frames.frames
        assert not client.get_tracklet("galleries/hall/tracklets/short").frames.frames
    with running(second, tmp_path / "store") as live, Client(f"127.0.0.1:{live.port}") as client:
        server = f"127.0.0.1:{live.port}"
        done = run("gallery", "reindex", "hall", "--kept-frames", "--server", server)
        assert (done.code, done.out.splitlines()[0].split(" in ")[0]) == (0, "3 tracklets (51 frames) stored")
        stored = {tracklet.name.rpartition("/")[2]: tracklet for tracklet in client.list_tracklets("hall")}
        assert {name: tracklet.frame_count for name, tracklet in stored.items()} == {"short": 7, "long": 70, "live": 40}
        assert stored["short"].identity_id == "ann"
        expected = client.embed(pictures[:7]).tracklet_descriptor
        found = client.get_tracklet("galleries/hall/tracklets/short", descriptor=True).tracklet_descriptor
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-3)
        assert client.get_gallery("hall").descriptor_precision == resources.DESCRIPTOR_PRECISION_FP16
        np.testing.assert_array_equal(found.values, np.array(found.values, np.float16))
        again = client.get_tracklet("galleries/hall/tracklets/long", frames=True).frames.frames
        assert len(again) == 24  # and kept for the next model
        done = run("gallery", "reindex", "plain", "--kept-frames", "--server", server)
        assert done.code == 1
        assert "galleries/plain/tracklets/short" in done.err
        assert run("gallery", "reindex", "plain", "--server", server).code == 2


def test_one_damaged_frame_keeps_the_others_from_nothing(run: Run, tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "first", dim=8)
    second = make_bundle(tmp_path / "second", dim=16, seed=1)
    with running(first, tmp_path / "store") as live, Client(f"127.0.0.1:{live.port}") as client:
        client.create_gallery("hall", keep_frames=True)
        for number in range(3):
            frames = [crop((40 * number, 9, 9))] * 3
            client.ingest_tracklet("hall", frames, camera="1", tracklet_id=f"t{number}")
    with contextlib.closing(sqlite3.connect(tmp_path / "store" / "gallery.db")) as store, store:
        store.execute("UPDATE frames SET checksum = checksum + 1 WHERE vector_id = 1 AND number = 2")
    with running(second, tmp_path / "store") as live, Client(f"127.0.0.1:{live.port}") as client:
        arguments = ("gallery", "reindex", "hall", "--kept-frames", "--server", f"127.0.0.1:{live.port}")
        done = run(*arguments)
        assert done.code == 1
        assert done.out.startswith("2 tracklets (6 frames) stored")
        assert "a kept frame of galleries/hall/tracklets/t0 is damaged" in done.err
        assert client.get_gallery("hall").descriptor_dim == 8
        assert run(*arguments, "--allow-missing").code == 0
        assert sorted(tracklet.name[-2:] for tracklet in client.list_tracklets("hall")) == ["t1", "t2"]
