"""Searching with a growing track: read, and to store the track in the end also ingest; asked again for each answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from passerby.errors import PermissionDeniedError, UnauthenticatedError
from passerby.v1 import search_service_pb2 as v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_server.ingest import Ingester
from passerby_server.security import chain

from tests.server.live import LiveServer, refused, running
from tests.server.pictures import crops, raw, sequence
from tests.server.security import callers

Request = v1.StreamSearchTrackletsRequest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "callers.json"


@pytest.fixture
def tokens(file: Path) -> dict[str, str]:
    return {
        "admin": callers.add(file, "admin", "admin"),
        "desk": callers.add(file, "desk", "reader"),
        "gate": callers.add(file, "gate", "reader", "ingester"),
        "box": callers.add(file, "box", "ingester"),
        "other": callers.add(file, "other", "reader", galleries=["another"]),
    }


@pytest.fixture
def server(bundle: Path, tmp_path: Path, file: Path, tokens: dict[str, str]) -> Iterator[LiveServer]:
    with running(bundle, tmp_path / "data", access={"file": file}) as live:
        yield live


def messages(gallery: str, *, ingest: bool) -> list[Request]:
    header = Request.Header(search=v1.SearchTrackletsRequest(parent=gallery))
    if ingest:
        header.ingest.tracklet.camera_id = "1"
    return [Request(header=header), *(Request(frame=raw(crop)) for crop in crops(8))]


def test_who_may_search_and_who_may_store(server: LiveServer, tokens: dict[str, str], tmp_path: Path) -> None:
    admin = callers.stubs_of(server.port, tokens["admin"])
    gallery = admin.new_gallery()
    admin.ingest(gallery, sequence(crops(3)), identity_id="ann")

    def ask(name: str, *, ingest: bool) -> v1.StreamSearchTrackletsResponse:
        stubs = callers.stubs_of(server.port, tokens[name])
        try:
            *_, last = stubs.search.StreamSearchTracklets(iter(messages(gallery, ingest=ingest)), timeout=20)
        finally:
            stubs.close()
        return last

    assert ask("desk", ingest=False).search.hits
    assert ask("gate", ingest=True).HasField("tracklet")
    for name, ingest, reason in (
        ("desk", True, "ROLE"),
        ("box", True, "ROLE"),
        ("box", False, "ROLE"),
        ("other", False, "GALLERY"),
    ):
        error = refused(partial(ask, name, ingest=ingest))
        assert (type(error), error.reason) == (PermissionDeniedError, reason), name
    admin.close()
    folder = tmp_path / "data/audit"
    key = chain.load_key(folder / "key")
    [found] = [
        record
        for record in chain.read(folder, key)
        if record.get("caller") == "desk" and record["event"] == "StreamSearchTracklets" and record["code"] == "OK"
    ]
    assert key.pseudonym("identity", "", "ann") in found["about"]


def test_a_caller_that_is_shut_out_gets_no_further_answer(
    server: LiveServer, tokens: dict[str, str], file: Path
) -> None:
    admin = callers.stubs_of(server.port, tokens["admin"])
    desk = callers.stubs_of(server.port, tokens["desk"])
    removed = threading.Event()

    def frames() -> Iterator[Request]:
        yield from messages(admin.new_gallery(), ingest=False)[:5]
        removed.wait(20)
        yield from (Request(frame=raw(crop)) for crop in crops(4))

    call = desk.search.StreamSearchTracklets(frames(), timeout=60)
    assert next(call).frame_count == 4
    callers.remove(file, "desk")
    removed.set()
    assert isinstance(refused(lambda: next(call)), UnauthenticatedError)
    admin.close()
    desk.close()


def test_who_was_shut_out_while_its_frames_came_stores_nothing(
    server: LiveServer, tokens: dict[str, str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, begin = threading.Event(), Ingester.begin

    async def saying(*arguments: Any) -> Any:
        growing = await begin(*arguments)
        begun.set()
        return growing

    monkeypatch.setattr(Ingester, "begin", saying)
    admin, box, gate = (callers.stubs_of(server.port, tokens[name]) for name in ("admin", "box", "gate"))
    gallery, change = admin.new_gallery(), threading.Event()

    def frames() -> Iterator[tracklet_v1.StreamTrackletRequest]:
        header = tracklet_v1.StreamTrackletRequest.Header(parent=gallery)
        header.tracklet.camera_id = "1"
        yield tracklet_v1.StreamTrackletRequest(header=header)
        yield from (tracklet_v1.StreamTrackletRequest(frame=raw(crop)) for crop in crops(4))
        change.wait(20)

    call = box.tracklets.StreamTracklet.future(frames(), timeout=60)
    assert begun.wait(20)
    callers.remove(file, "box")
    change.set()
    assert isinstance(refused(call.result), UnauthenticatedError)

    change.clear()

    def track() -> Iterator[Request]:
        yield from messages(gallery, ingest=True)[:5]
        change.wait(20)

    answers = gate.search.StreamSearchTracklets(track(), timeout=60)
    next(answers)
    callers.set_roles(file, "gate", "reader")
    change.set()
    error = refused(lambda: list(answers))
    assert (type(error), error.reason) == (PermissionDeniedError, "ROLE")
    listed = admin.tracklets.ListTracklets(tracklet_v1.ListTrackletsRequest(parent=gallery), timeout=20)
    assert not listed.tracklets
    for stubs in (admin, box, gate):
        stubs.close()
