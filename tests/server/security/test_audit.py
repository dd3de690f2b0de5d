"""The audit of a real server: who did what to whom is on record before the answer, without a name of anybody."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from passerby.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_server.security import chain, gate

from tests.server.live import LiveServer, Stubs, refused, running
from tests.server.pictures import crops, sequence
from tests.server.process import serving
from tests.server.security import callers
from tests.server.security.test_access import _call

PERSON = "Wilhelmina Quackenbush"
STATION = "galleries/station"


class Audited:
    """A server with an audit; `records` are those there are now."""

    def __init__(self, live: LiveServer, folder: Path) -> None:
        self.live, self.folder, self.file = live, folder, folder.parent / "callers.json"
        self.key = chain.load_key(folder / "key")
        self.boss = callers.stubs_of(live.port, callers.add(self.file, "boss", "admin"))
        self.boss.galleries.CreateGallery(gallery_v1.CreateGalleryRequest(gallery_id="station"), timeout=20)

    def records(self, first: int = 0) -> list[chain.Record]:
        return [record for record in chain.read(self.folder, self.key) if record["seq"] > first]

    @property
    def count(self) -> int:
        return len(self.records())

    def identity(self, name: str) -> str:
        return self.key.pseudonym("identity", "", name)

    def tracklet(self, name: str, gallery: str = "station") -> str:
        return self.key.pseudonym("tracklet", gallery, name)


@pytest.fixture
def audited(bundle: Path, tmp_path: Path) -> Iterator[Audited]:
    callers.add(tmp_path / "callers.json", "first", "admin")
    access, folder = {"file": tmp_path / "callers.json"}, {"folder": tmp_path / "audit"}
    with running(bundle, tmp_path / "data", access=access, audit=folder) as live:
        server = Audited(live, tmp_path / "audit")
        yield server
        server.boss.close()


def _search(stubs: Stubs, **fields: Any) -> search_v1.SearchTrackletsResponse:
    query = fields or {"frames": sequence(crops(2, seed=1))}
    request = search_v1.SearchTrackletsRequest(parent=STATION, top_k=5, **query)
    return stubs.search.SearchTracklets(request, timeout=20)


def _said(record: chain.Record) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("seq", "time", "credential", "mac")}


def test_what_a_day_leaves_behind(audited: Audited) -> None:
    boss, before = audited.boss, audited.count
    frames = sequence(crops(3, seed=1))
    boss.ingest(STATION, frames, tracklet_id="t1", identity_id=PERSON)
    assert len(_search(boss, query_camera_id="9", frames=frames).hits) == 1
    boss.tracklets.GetTracklet(tracklet_v1.GetTrackletRequest(name=f"{STATION}/tracklets/t1"), timeout=20)
    boss.tracklets.AssignIdentity(
        tracklet_v1.AssignIdentityRequest(name=f"{STATION}/tracklets/t1", identity_id="ann"), timeout=20
    )
    boss.tracklets.EraseIdentity(
        tracklet_v1.EraseIdentityRequest(parent="galleries/-", identity_id="ann", force=True), timeout=20
    )
    boss.galleries.GetGallery(gallery_v1.GetGalleryRequest(name=STATION), timeout=20)  # tells of nobody
    person, ann, tracklet = audited.identity(PERSON), audited.identity("ann"), audited.tracklet("t1")
    common = {"caller": "boss", "peer": "127.0.0.1", "code": "OK"}
    found = [_said(record) for record in audited.records(before)]
    assert all(len(record.pop("request_id")) == 32 for record in found)
    assert found == [
        common
        | {"event": "IngestTracklet", "gallery": "station", "about": [person, tracklet], "items": {"station": 1}},
        common | {"event": "SearchTracklets", "gallery": "station", "query": "frames", "hits": 1, "about": [person]},
        common | {"event": "GetTracklet", "gallery": "station", "about": [tracklet, person]},
        common | {"event": "AssignIdentity", "gallery": "station", "about": [ann, tracklet]},
        common | {"event": "EraseIdentity", "gallery": "-", "about": [ann], "force": 1, "tracklet_count": 1},
    ]
    assert all(record["credential"].startswith("token:") for record in audited.records(before))


def test_names_beyond_those_of_a_record_cost_nothing(audited: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    pseudonym = chain.Key.pseudonym

    def counting(self: chain.Key, kind: str, gallery_id: str, name: str) -> str:
        made.append(name)
        return pseudonym(self, kind, gallery_id, name)

    before = audited.count
    request = search_v1.SearchTrackletsRequest(parent=STATION, tracklet=f"{STATION}/tracklets/t1")
    request.filter.identity_ids.extend(f"p{number}" for number in range(20_000))
    with monkeypatch.context() as watched:
        watched.setattr(chain.Key, "pseudonym", counting)
        assert isinstance(
            refused(partial(audited.boss.search.SearchTracklets, request, timeout=20)), InvalidArgumentError
        )
        audited.boss.galleries.ListAuditEntries(gallery_v1.ListAuditEntriesRequest(parent=STATION), timeout=20)
    assert made == [f"p{number}" for number in range(gate.MAX_NAMES)]
    record, _ = audited.records(before)
    assert record["about"] == [audited.identity(f"p{number}") for number in range(gate.MAX_NAMES)]
    assert record["about_more"] == 20_001 - gate.MAX_NAMES


def test_a_search_is_on_the_disk_before_its_answer(audited: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    audited.boss.ingest(STATION, sequence(crops(3, seed=1)), tracklet_id="t1")
    syncing, sync = threading.Event(), os.fdatasync
    go_on = threading.Event()

    def slow(file: int) -> None:
        syncing.set()
        assert go_on.wait(20)
        sync(file)

    monkeypatch.setattr(os, "fdatasync", slow)
    answer = audited.boss.search.SearchTracklets.future(
        search_v1.SearchTrackletsRequest(parent=STATION, tracklet=f"{STATION}/tracklets/t1"), timeout=30
    )
    assert syncing.wait(20)
    time.sleep(0.2)
    assert not answer.done()
    go_on.set()
    assert answer.result(20) is not None
    assert audited.records()[-1]["event"] == "SearchTracklets"


def test_without_its_record_nothing_is_answered(audited: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    boss = audited.boss
    boss.ingest(STATION, sequence(crops(3, seed=1)), tracklet_id="t1")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", full)
        for _ in range(2):
            error = refused(partial(_search, boss, tracklet=f"{STATION}/tracklets/t1"))
            assert isinstance(error, UnavailableError)
            assert error.reason == "AUDIT_FAILED"
        # What would be recorded is not even begun; what would not be goes on.
        request = tracklet_v1.DeleteTrackletRequest(name=f"{STATION}/tracklets/t1")
        assert refused(partial(boss.tracklets.DeleteTracklet, request, timeout=20)).reason == "AUDIT_FAILED"
        assert boss.galleries.GetGallery(gallery_v1.GetGalleryRequest(name=STATION), timeout=20)
    assert len(_search(boss, frames=sequence(crops(2, seed=1))).hits) == 1
    assert "AuditResumed" in [record["event"] for record in audited.records()]
    assert boss.tracklets.GetTracklet(tracklet_v1.GetTrackletRequest(name=f"{STATION}/tracklets/t1"), timeout=20)


def test_failures_and_refusals_are_recorded(audited: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = callers.stubs_of(audited.live.port, callers.add(audited.file, "guest", "reader", galleries=["lobby"]))
    nobody = callers.stubs_of(audited.live.port, "psby_0000000000000000_" + "A" * 43)
    before = audited.count
    assert isinstance(_call(guest, "GalleryService/GetGallery", name="galleries/lobby"), NotFoundError)  # not audited
    _call(guest, "TrackletService/GetTracklet", name="galleries/lobby/tracklets/t1")
    _call(guest, "GalleryService/GetGallery", name="galleries/station")
    _call(guest, "TrackletService/EraseIdentity", parent="galleries/station", identity_id=PERSON)
    for _ in range(50):
        _call(nobody, "SearchService/SearchTracklets", parent="galleries/station")
    found = [
        (record["event"], record.get("caller"), record["code"], record["reason"], record.get("gallery"))
        for record in audited.records(before)
    ]
    assert found == [
        ("GetTracklet", "guest", "NOT_FOUND", "GALLERY_NOT_FOUND", "lobby"),
        ("GetGallery", "guest", "PERMISSION_DENIED", "GALLERY", "station"),
        ("EraseIdentity", "guest", "PERMISSION_DENIED", "ROLE", None),
        ("Refused", None, "REFUSED", "TOKEN_INVALID", None),
    ]
    # The other 49 are a number, said after a while.
    refusals = audited.live.server.guard.gate._refusals  # type: ignore[attr-defined]
    audited.live.on_loop(partial(refusals._period_over, ("127.0.0.1", "TOKEN_INVALID")))
    audited.boss.galleries.ListAuditEntries(gallery_v1.ListAuditEntriesRequest(parent=STATION), timeout=20)
    assert [record.get("repeated") for record in audited.records(before)[4:]] == [49, None]
    guest.close()
    nobody.close()


def test_a_flood_of_unknown_callers_from_everywhere_stays_small(audited: Audited) -> None:
    before = audited.count
    refusals = audited.live.server.guard.gate._refusals  # type: ignore[attr-defined]

    def flood() -> None:
        for number in range(5000):
            refusals.note(f"2001:db8::{number:x}", "SearchTracklets", "TOKEN_INVALID")

    audited.live.on_loop(flood)
    audited.boss.galleries.ListAuditEntries(gallery_v1.ListAuditEntriesRequest(parent=STATION), timeout=20)
    assert audited.count - before == gate.MAX_ADDRESSES + 2  # "others", and the listing
    audited.live.on_loop(refusals.flush)
    audited.boss.galleries.ListAuditEntries(gallery_v1.ListAuditEntriesRequest(parent=STATION), timeout=20)
    others = [record.get("repeated") for record in audited.records(before) if record.get("peer") == "others"]
    assert others == [None, 3999]


def test_the_audit_is_closed_whatever_becomes_of_the_refusals(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = audited.live.server.guard.gate
    refusals, before = guarded._refusals, audited.count  # type: ignore[attr-defined]
    report = refusals._report

    def reporting(key: tuple[str, str], count: int) -> None:
        refusals.note(f"10.0.0.{count}", "SearchTracklets", "TOKEN_INVALID")  # one more comes meanwhile
        report(key, count)

    def flush() -> None:
        for peer in ("ann", "bob", "ann", "bob", "bob"):
            refusals.note(peer, "SearchTracklets", "TOKEN_INVALID")
        refusals.flush()

    with monkeypatch.context() as busy:
        busy.setattr(refusals, "_report", reporting)
        audited.live.on_loop(flush)

    def fails() -> None:
        raise RuntimeError("for a test")

    with monkeypatch.context() as broken:
        broken.setattr(refusals, "flush", fails)
        with pytest.raises(RuntimeError):
            guarded.close()
    found = [(record.get("peer"), record.get("repeated")) for record in audited.records(before)]
    assert found == [
        ("ann", None),
        ("bob", None),
        ("10.0.0.1", None),
        ("ann", 1),
        ("10.0.0.2", None),
        ("bob", 2),
        (None, None),
    ]
    assert audited.records()[-1]["event"] == chain.STOPPED


def test_streams_are_recorded_when_they_begin_and_end(audited: Audited) -> None:
    def items() -> Iterator[tracklet_v1.BulkIngestTrackletsRequest]:
        for number, name in enumerate(("station", "station", "nowhere")):
            request = tracklet_v1.IngestTrackletRequest(
                parent=f"galleries/{name}",
                frames=sequence(crops(2, seed=number)),
                request_id=f"00000000-0000-4000-8000-{number:012}",
            )
            request.tracklet.camera_id = "1"
            yield tracklet_v1.BulkIngestTrackletsRequest(request=request)

    token = callers.add(audited.file, "camera", "ingester", galleries=["station"])
    camera, before = callers.stubs_of(audited.live.port, token), audited.count
    list(camera.tracklets.BulkIngestTracklets(items(), timeout=30))
    started, denied, ended = audited.records(before)
    assert [record["code"] for record in (started, denied, ended)] == ["STARTED", "PERMISSION_DENIED", "OK"]
    assert (denied["gallery"], ended["items"], ended["denied"]) == ("nowhere", {"station": 2}, 1)

    going, release = audited.count, threading.Event()

    def silent() -> Iterator[tracklet_v1.StreamTrackletRequest]:
        header = tracklet_v1.StreamTrackletRequest.Header(parent=STATION)
        header.tracklet.camera_id = "1"
        yield tracklet_v1.StreamTrackletRequest(header=header)
        release.wait(20)

    call = camera.tracklets.StreamTracklet.future(silent(), timeout=20)
    deadline = time.monotonic() + 20
    while audited.count == going:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    call.cancel()
    release.set()
    while audited.count < going + 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started, ended = (record["code"] for record in audited.records(going))
    # gRPC tells a server of a cancelled stream that it is cancelled, or just that it has ended, whichever is first.
    assert (started, ended in ("CANCELLED", "INVALID_ARGUMENT")) == ("STARTED", True)
    camera.close()


def test_a_server_that_is_killed_leaves_a_sound_audit(bundle: Path, tmp_path: Path) -> None:
    token, file, data = (
        callers.add(tmp_path / "callers.json", "boss", "admin"),
        tmp_path / "callers.json",
        tmp_path / "data",
    )
    flags = ["--set", f"access.file={file}"]
    answered = 0
    for attempt in range(2):
        with serving(bundle, data, *flags) as server:
            boss = callers.stubs_of(server.port, token)
            if not attempt:
                boss.galleries.CreateGallery(gallery_v1.CreateGalleryRequest(gallery_id="station"), timeout=20)
                boss.ingest(STATION, sequence(crops(3, seed=1)), tracklet_id="t1")
            stop = threading.Timer(0.5, server.process.kill)
            stop.start()
            try:
                while True:
                    _search(boss, tracklet=f"{STATION}/tracklets/t1")
                    answered += 1
            except grpc.RpcError:
                pass
            stop.join()
            boss.close()
    key = chain.load_key(data / "audit" / "key")
    chain.verify(data / "audit", key)
    searches = [record for record in chain.read(data / "audit", key) if record["event"] == "SearchTracklets"]
    assert len(searches) >= answered > 10


def test_no_record_has_a_name_before_or_after_an_erasure(audited: Audited) -> None:
    boss = audited.boss
    boss.ingest(
        STATION, sequence(crops(3, seed=1)), tracklet_id="qq-sighting", identity_id=PERSON, labels={"name": PERSON}
    )
    request = search_v1.SearchTrackletsRequest(parent=STATION, tracklet=f"{STATION}/tracklets/qq-sighting")
    request.filter.identity_ids.append(PERSON)
    boss.search.SearchTracklets(request, timeout=20)
    boss.tracklets.ListTracklets(tracklet_v1.ListTrackletsRequest(parent=STATION), timeout=20)
    boss.galleries.ListAuditEntries(gallery_v1.ListAuditEntriesRequest(parent=STATION, identity_id=PERSON), timeout=20)
    boss.tracklets.EraseIdentity(
        tracklet_v1.EraseIdentityRequest(parent=STATION, identity_id=PERSON, force=True), timeout=20
    )
    boss.model.EmbedTracklet(model_v1.EmbedTrackletRequest(frames=sequence(crops(2))), timeout=20)
    written = b"".join(path.read_bytes() for path in audited.folder.iterdir())
    for secret in (PERSON, "qq-sighting", "Quackenbush"):
        assert secret.encode() not in written
    everything = [path for path in (audited.folder.parent / "data").rglob("*") if path.is_file()]
    assert everything
    assert [path for path in everything if PERSON.encode() in path.read_bytes()] == []
    about = [record["event"] for record in audited.records() if audited.identity(PERSON) in record.get("about", ())]
    assert about == ["IngestTracklet", "SearchTracklets", "ListTracklets", "ListAuditEntries", "EraseIdentity"]


def test_a_server_may_be_stopped_twice(audited: Audited) -> None:
    async def hurry() -> None:
        await asyncio.gather(audited.live.server.stop(grace=1), audited.live.server.stop(grace=0))

    audited.live.on_loop(hurry)
    assert chain.verify(audited.folder, audited.key).last == audited.records()[-1]
    assert audited.records()[-1]["event"] == chain.STOPPED


def test_a_server_that_cannot_start_leaves_the_audit_free(bundle: Path, tmp_path: Path) -> None:
    callers.add(tmp_path / "callers.json", "boss", "admin")
    access = {"file": tmp_path / "callers.json"}
    with (
        running(bundle, tmp_path / "data", access=access) as live,
        pytest.raises(FailedPreconditionError),
        running(bundle, tmp_path / "other", access=access, address=f"127.0.0.1:{live.port}"),
    ):
        pass
    with running(bundle, tmp_path / "other", access=access):
        pass
    folder = tmp_path / "other" / "audit"
    events = [record["event"] for record in chain.read(folder, chain.load_key(folder / "key"))]
    assert events == ["Segment", *["ServerStarted", "ServerStopped"] * 2]
