"""What is erased is in no file of a real server's data folder: every byte of every file is looked at, before and after."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_server.gallery.store import Store

from tests.encoders import make_bundle
from tests.server.pictures import crops, sequence
from tests.server.process import Process, serving

PERSON = "Wilhelmina Quackenbush"
TRACKLETS = 12


def _bytes_of(server: Process, name: str) -> dict[str, bytes]:
    """The stored forms of a tracklet: its descriptor as float32 and float16, its thumbnail, its own name."""
    request = tracklet_v1.GetTrackletRequest(name=name, include_descriptor=True, include_thumbnail=True)
    answer = server.tracklets.GetTracklet(request, timeout=20)
    values = np.array(answer.tracklet_descriptor.values, np.float32)
    assert len(answer.thumbnail) > 700
    unit = values / np.linalg.norm(values)
    return {
        "fp32": values.astype("<f4").tobytes(),
        "fp16": values.astype("<f2").tobytes(),
        "unit fp32": unit.astype("<f4").tobytes(),
        "unit fp16": unit.astype("<f2").tobytes(),
        "thumbnail": answer.thumbnail[-200:-100],  # its header is that of every JPEG
        "thumbnail's end": answer.thumbnail[-100:],
        "tracklet's name": name.rpartition("/")[2].encode(),
    }


def _holding(data: Path, secret: bytes) -> list[str]:
    """Files that hold `secret`; one that goes away meanwhile holds nothing."""
    found = []
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        with contextlib.suppress(FileNotFoundError):
            if secret in path.read_bytes():
                found.append(path.name)
    return found


def _fill(server: Process, gallery: str) -> tuple[list[str], list[str]]:
    """Names of the tracklets of PERSON and of others, in turn; some were known by PERSON's name for a while."""
    hers, others = [], []
    for number in range(TRACKLETS):
        frames = sequence(crops(3, seed=number))
        tracklet_id = f"qq-sighting-{number:02}"
        if number % 2:
            others.append(server.ingest(gallery, frames, tracklet_id=f"other-{number}", identity_id="ann").name)
            continue
        hers.append(server.ingest(gallery, frames, tracklet_id=tracklet_id, labels={"name": PERSON}).name)
        server.tracklets.AssignIdentity(
            tracklet_v1.AssignIdentityRequest(name=hers[-1], identity_id=PERSON, request_id=_uuid(number)), timeout=20
        )
    for identity in (PERSON, "ann"):
        server.tracklets.AssignIdentity(
            tracklet_v1.AssignIdentityRequest(name=others[0], identity_id=identity), timeout=20
        )
    return hers, others


def _uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def test_nothing_of_an_erased_identity_is_in_any_file(tmp_path: Path) -> None:
    bundle, data = make_bundle(tmp_path / "bundle"), tmp_path / "data"
    with serving(bundle, data) as server:
        gallery = server.new_gallery()
        hers, others = _fill(server, gallery)
        secrets = {f"{name} {form}": value for name in hers for form, value in _bytes_of(server, name).items()}
        secrets["identity"] = PERSON.encode()
        stored = {key for key in secrets if "fp16" not in key and "unit" not in key}
        assert {key for key in stored if not _holding(data, secrets[key])} == set()
        kept = {f"{name} {form}": value for name in others for form, value in _bytes_of(server, name).items()}
        before = {key for key, value in kept.items() if _holding(data, value)}

        request = tracklet_v1.EraseIdentityRequest(
            parent="galleries/-", identity_id=PERSON, force=True, request_id=_uuid(999)
        )
        answer = server.tracklets.EraseIdentity(request, timeout=20)
        assert answer.tracklet_count == len(hers)
        assert sorted(answer.receipt.tracklets) == sorted(hers)
        assert {key: files for key, value in secrets.items() if (files := _holding(data, value))} == {}
        assert {key for key, value in kept.items() if _holding(data, value)} == before
        audit = gallery_v1.ListAuditEntriesRequest(parent=gallery, identity_id=PERSON)
        entries = server.galleries.ListAuditEntries(audit, timeout=20).entries
        assert [entry.action for entry in entries] == ["AssignIdentity", "AssignIdentity", "EraseIdentity"]
        assert all(answer.receipt.subject_digest in entry.detail for entry in entries)
        assert server.stop() == 0
    assert {key: files for key, value in secrets.items() if (files := _holding(data, value))} == {}
    with serving(bundle, data) as server:
        listed = server.tracklets.ListTracklets(tracklet_v1.ListTrackletsRequest(parent=gallery), timeout=20).tracklets
        assert [tracklet.name for tracklet in listed] == others
        again = server.tracklets.EraseIdentity(request, timeout=20)
        assert (again.tracklet_count, list(again.receipt.tracklets)) == (len(hers), [])
        assert {key: files for key, value in secrets.items() if (files := _holding(data, value))} == {}


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_of_a_deleted_or_expired_tracklet_is_in_any_file(tmp_path: Path) -> None:
    bundle, data = make_bundle(tmp_path / "bundle"), tmp_path / "data"
    with serving(bundle, data, "--set", "upkeep.sweep_seconds=0.2", "--set", "upkeep.rewrite_seconds=0") as server:
        gallery = server.new_gallery()
        hers, _ = _fill(server, gallery)
        secrets = list(_bytes_of(server, hers[0]).values())
        answer = server.tracklets.DeleteTracklet(tracklet_v1.DeleteTrackletRequest(name=hers[0]), timeout=20)
        assert list(answer.receipt.tracklets) == [hers[0]]
        assert [value for value in secrets if _holding(data, value)] == []  # at once: zeros, and an empty log

        late = server.ingest(gallery, sequence(crops(3, seed=99)), camera="gate", tracklet_id="qq-late").name
        rules = [gallery_v1.RetentionRule(camera_id="1")]
        rules[0].keep.FromSeconds(1)
        secrets = [value for name in hers[1:] for value in _bytes_of(server, name).values()]
        assert any(_holding(data, value) for value in secrets)
        server.galleries.SetRetention(gallery_v1.SetRetentionRequest(name=gallery, rules=rules), timeout=20)
        request = tracklet_v1.ListTrackletsRequest(parent=gallery)
        _wait(lambda: [t.name for t in server.tracklets.ListTracklets(request, timeout=20).tracklets] == [late])
        _wait(lambda: not any(_holding(data, value) for value in [*secrets, PERSON.encode()]))
        audit = gallery_v1.ListAuditEntriesRequest(parent=gallery)
        actions = [entry.action for entry in server.galleries.ListAuditEntries(audit, timeout=20).entries]
        assert actions.count("ApplyRetention") >= 1
        assert server.stop() == 0


def test_what_a_moved_row_left_behind_goes_with_the_rewrite(tmp_path: Path) -> None:
    """Why the file is written anew: SQLite 3.40 leaves two of these names in the slack of pages, secure_delete or not."""
    store = Store(tmp_path / "data")
    dice = np.random.default_rng(2)
    names = [f"<{dice.bytes(12).hex()}>" for _ in range(2000)]

    def fill(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE people (name TEXT PRIMARY KEY) WITHOUT ROWID")
        connection.executemany("INSERT INTO people VALUES (?)", [(name,) for name in names])

    def erase(connection: sqlite3.Connection) -> None:
        connection.executemany("DELETE FROM people WHERE name = ?", [(name,) for name in names[::2]])

    store.write(fill)
    store.write(erase, scrub=True)
    rewritten = store.rewrite()
    everything = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
    assert [name for name in names[::2] if name.encode() in everything] == []
    assert all(name.encode() in everything for name in names[1::2])
    assert [path.name for path in rewritten] == ["gallery.db", "gallery.db-wal"]
    store.close()
