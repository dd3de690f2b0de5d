"""Backups of a store that is written to meanwhile; what is wrong with one is said, and never restored."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import subprocess
import sys
import threading
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
from passerby_server.gallery import rows, schema
from passerby_server.gallery.backup import MANIFEST_NAME, back_up, check, read_backup, restore
from passerby_server.gallery.embedded import open_galleries
from passerby_server.gallery.store import DATABASE_NAME, LOCK_NAME
from passerby_server.gallery.types import GalleryOptions, RetentionRule, TrackletFilter

from tests.server.gallery.filling import SPACE, ask, ids, put, reason

_OPEN = [DATABASE_NAME, f"{DATABASE_NAME}-shm", f"{DATABASE_NAME}-wal", LOCK_NAME]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def opened(folder):
    galleries = open_galleries(folder)
    galleries.create_gallery("g", "", SPACE)
    for number in range(20):
        put(galleries, f"t{number}", [number, 0, 0, 0], thumbnail=b"jpeg", identity_id=f"p{number % 2}")
    yield galleries
    galleries.close()


def _records(galleries):
    return galleries.list_tracklets("g", TrackletFilter(), 1000).items


def _listed(galleries):
    return [item.tracklet_id for item in _records(galleries)]


def test_a_backup_of_a_busy_store_is_one_moment_of_it(opened, folder, tmp_path):
    stop = threading.Event()
    stored: list[int] = []

    def ingest():
        while not stop.is_set():
            number = 100 + len(stored)
            put(opened, f"t{number}", [number, 0, 0, 0])
            stored.append(number)

    writer = threading.Thread(target=ingest)
    writer.start()
    while len(stored) < 5:
        pass
    first = len(stored)
    backup = back_up(folder, tmp_path / "backup")
    last = len(stored)
    stop.set()
    writer.join()
    assert read_backup(tmp_path / "backup") == backup
    assert 20 + first <= backup.galleries["g"] <= 20 + last + 1
    assert sorted(path.name for path in (tmp_path / "backup").iterdir()) == [MANIFEST_NAME, DATABASE_NAME]
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    assert (tmp_path / "backup" / DATABASE_NAME).stat().st_mode & 0o077 == 0

    assert restore(tmp_path / "backup", tmp_path / "restored") == 0
    again = open_galleries(tmp_path / "restored")
    assert _listed(again) == _listed(opened)[: backup.galleries["g"]]
    assert ids(again.search("g", ask([7, 0, 0, 0], 1))) == ["t7"]
    assert again.get_thumbnail("g", "t7") == b"jpeg"
    again.close()
    assert put(opened, "after", [1, 1, 0, 0]).tracklet_id == "after"


def test_restoring_refuses_what_would_lose_something(opened, folder, tmp_path):
    back_up(folder, tmp_path / "backup")
    with pytest.raises(AlreadyExistsError) as caught:
        back_up(folder, tmp_path / "backup")
    assert reason(caught) == "BACKUP_EXISTS"
    with pytest.raises(InvalidArgumentError):
        back_up(folder, folder / "backup")
    with pytest.raises(NotFoundError):
        back_up(tmp_path / "absent", tmp_path / "other")
    with pytest.raises(AlreadyExistsError) as caught:
        restore(tmp_path / "backup", folder)
    assert reason(caught) == "DATA_FOLDER_IN_THE_WAY"
    with pytest.raises(FailedPreconditionError, match="in use"):
        restore(tmp_path / "backup", folder, force=True)
    assert len(_listed(opened)) == 20
    with pytest.raises(NotFoundError):
        restore(tmp_path / "absent", tmp_path / "restored")


def _flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["bit", "cut", "absent", "manifest", "newer", "schema"])
def test_a_damaged_backup_is_refused_and_leaves_what_is_there(opened, folder, tmp_path, damage):
    backup = tmp_path / "backup"
    back_up(folder, backup)
    opened.close()
    database, manifest = backup / DATABASE_NAME, backup / MANIFEST_NAME
    if damage == "bit":
        _flip(database, database.stat().st_size // 2)
    elif damage == "cut":
        database.write_bytes(database.read_bytes()[:-4096])
    elif damage == "absent":
        database.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:50])
    else:
        said = json.loads(manifest.read_text())
        if damage == "newer":
            said["format"] += 1
        else:
            connection = sqlite3.connect(database)
            connection.execute("PRAGMA user_version = 99")
            connection.close()
            content = database.read_bytes()
            said |= {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest.write_text(json.dumps(said))
    with pytest.raises((DataLossError, FailedPreconditionError, InvalidArgumentError)):
        restore(backup, folder, force=True)
    assert not list(folder.glob("*.restoring"))
    again = open_galleries(folder)
    assert len(_listed(again)) == 20
    again.close()


def test_who_was_erased_since_the_backup_does_not_come_back(opened, folder, tmp_path):
    opened.set_retention("g", [RetentionRule("c9", timedelta(days=1))])
    back_up(folder, tmp_path / "backup")
    erasure = opened.erase_identity("g", "p1", force=True)
    assert [str(tmp_path / "backup") in one for one in erasure.receipt.unreachable_copies] == [True]
    opened.delete_tracklet("g", "t0")
    opened.close()
    assert restore(tmp_path / "backup", folder, force=True) == 1
    again = open_galleries(folder)
    assert _listed(again) == [f"t{number}" for number in range(0, 20, 2)]  # t0 was deleted, its person was not erased
    assert again.get_retention("g") == (RetentionRule("c9", timedelta(days=1)),)
    again.close()


def test_who_was_erased_after_a_switch_does_not_come_back_from_before_it(opened, folder, tmp_path):
    """The backup has somebody in the gallery that is to take the place, and nowhere else."""
    opened.create_gallery("next", "", SPACE, options=GalleryOptions(follows="g"))
    for name, identity in (("new", "ann"), ("other", "bob")):
        put(opened, name, [9, 9, 9, 9], gallery_id="next", identity_id=identity)
    back_up(folder, tmp_path / "backup")
    opened.replace_gallery("g", "next", "before", allow_missing=True)
    opened.erase_identity("g", "ann", force=True)
    opened.close()
    assert restore(tmp_path / "backup", folder, force=True) == 1
    again = open_galleries(folder)
    assert [item.tracklet_id for item in again.list_tracklets("next", TrackletFilter(), 9).items] == ["other"]
    assert len(_listed(again)) == 20
    again.close()


def _restored(backup, folder):
    """The galleries of a backup that was put in place of those in the folder."""
    restore(backup, folder, force=True)
    return open_galleries(folder)


def test_who_was_erased_does_not_come_back_by_way_of_two_restores(opened, folder, tmp_path):
    """Monday's backup knows neither of her nor of Tuesday's, which holds her."""
    back_up(folder, tmp_path / "monday")
    put(opened, "hers", [9, 9, 9, 9], identity_id="ann")
    back_up(folder, tmp_path / "tuesday")
    opened.erase_identity("g", "ann", force=True)
    opened.close()
    again = _restored(tmp_path / "monday", folder)
    receipt = again.erase_identity("g", "p1", force=True).receipt
    assert [one.rpartition("/")[2] for one in receipt.unreachable_copies] == ["monday", "tuesday"]
    again.close()
    again = _restored(tmp_path / "tuesday", folder)
    assert {record.identity_id for record in _records(again)} == {"p0"}
    again.close()


def test_who_was_erased_before_the_gallery_was_deleted_does_not_come_back(opened, folder, tmp_path):
    back_up(folder, tmp_path / "backup")
    opened.erase_identity("g", "p1", force=True)
    opened.delete_gallery("g", force=True)
    opened.close()
    again = _restored(tmp_path / "backup", folder)
    assert {record.identity_id for record in _records(again)} == {"p0"}
    again.close()


def test_who_came_back_by_that_name_before_the_backup_stays(opened, folder, tmp_path):
    opened.erase_identity("g", "p1", force=True)
    put(opened, "new", [9, 9, 9, 9], identity_id="p1")
    back_up(folder, tmp_path / "backup")
    opened.close()
    again = _restored(tmp_path / "backup", folder)
    assert "new" in _listed(again)
    again.close()


def test_another_stores_restore_takes_no_memory_of_the_replaced_one(opened, folder, tmp_path):
    """It is still no way back for who was erased from what it replaces."""
    other = open_galleries(tmp_path / "other")
    other.create_gallery("g", "", SPACE)
    put(other, "a", [1, 0, 0, 0], identity_id="p1")
    put(other, "b", [1, 0, 0, 0], identity_id="p0")
    back_up(tmp_path / "other", tmp_path / "theirs")
    other.close()
    back_up(folder, tmp_path / "ours")
    opened.erase_identity("g", "p1", force=True)
    opened.close()
    again = _restored(tmp_path / "theirs", folder)
    assert _listed(again) == ["b"]
    receipt = again.erase_identity("g", "p0", force=True).receipt
    assert [one.rpartition("/")[2] for one in receipt.unreachable_copies] == ["theirs"]
    again.close()


# Runs a restore, which says where it is and waits there for the end.
STOPPED = """
import sys, time
from pathlib import Path
from passerby_server.gallery import backup, erasure

def stop(*_):
    print("here", flush=True)
    time.sleep(60)

place = sys.argv[3]
if place == "copied":
    erasure.Erasing.erase_again = stop
elif place == "erased":
    backup.drop_snapshots = stop
else:
    put_in_place = backup.put_in_place
    backup.put_in_place = lambda written, path: (put_in_place(written, path), stop())
backup.restore(Path(sys.argv[1]), Path(sys.argv[2]), force=True)
"""


@pytest.mark.parametrize(("place", "kept"), [("copied", 9), ("erased", 9), ("in place", 10)])
def test_a_killed_restore_never_brings_back_who_was_erased(opened, folder, tmp_path, place, kept):
    """Neither at once, nor when it is repeated. Before the fresh store is in place the old one is there, without t0."""
    back_up(folder, tmp_path / "backup")
    opened.erase_identity("g", "p1", force=True)
    opened.delete_tracklet("g", "t0")
    opened.close()
    arguments = [sys.executable, "-c", STOPPED, str(tmp_path / "backup"), str(folder), place]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.kill()
    assert restore(tmp_path / "backup", tmp_path / "other") == 0  # the backup itself knows nobody as erased
    again = open_galleries(folder)
    assert {item.identity_id for item in _records(again)} == {"p0"}
    assert len(_listed(again)) == kept
    assert sorted(path.name for path in folder.iterdir()) == _OPEN
    again.close()
    assert restore(tmp_path / "backup", folder, force=True) == 1
    again = open_galleries(folder)
    assert _listed(again) == [f"t{number}" for number in range(0, 20, 2)]
    again.close()


def test_what_a_killed_backup_left_goes_with_the_next_one_at_its_place(opened, folder, tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from passerby_server.gallery import backup\n"
        "backup.put_in_place = lambda *_: (print('here', flush=True), time.sleep(60))\n"
        "backup.back_up(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", script, str(folder), str(tmp_path / "backup")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.kill()
    assert (tmp_path / ".backup.partial").is_dir()
    assert not (tmp_path / "backup").exists()
    copies = opened.delete_tracklet("g", "t0").unreachable_copies
    assert len(copies) == 1  # what the killed one left holds people, too
    back_up(folder, tmp_path / "backup")
    assert not (tmp_path / ".backup.partial").exists()
    copies = opened.delete_tracklet("g", "t1").unreachable_copies
    assert [str(tmp_path / "backup") in copy for copy in copies] == [True]


def test_a_damaged_store_is_replaced(opened, folder, tmp_path):
    back_up(folder, tmp_path / "backup")
    opened.close()
    (folder / DATABASE_NAME).write_bytes(b"no database" * 1000)
    (folder / "index-1.snapshot").write_bytes(b"of the store that is replaced")
    restore(tmp_path / "backup", folder, force=True)
    assert sorted(path.name for path in folder.iterdir()) == [DATABASE_NAME, LOCK_NAME]
    again = open_galleries(folder)
    assert len(_listed(again)) == 20
    again.close()


# Older schemas


def _older(database, version):
    """A store as a passerby with that schema version wrote it: t0 to t3 in gallery g, of p0 and p1 in turn."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        schema.migrate(connection, schema.MIGRATIONS[: min(version, 4)])
        connection.execute(
            "INSERT INTO galleries (gallery_id, display_name, fingerprint, descriptor_dim, metric, create_time) "
            "VALUES ('g', '', ?, 4, 'squared_euclidean', 1)",
            (SPACE.fingerprint,),
        )
        for number in range(4):
            connection.execute(
                "INSERT INTO tracklets (gallery_key, tracklet_id, camera_id, identity_id, frame_count, create_time) "
                "VALUES (1, ?, 'c1', ?, 1, 1)",
                (f"t{number}", f"p{number % 2}"),
            )
            rows.put_descriptor(connection, number + 1, np.full(4, number, np.float32))
        schema.migrate(connection, schema.MIGRATIONS[:version])  # which seals them, from version 5 on


def _older_backup(folder, version):
    folder.mkdir()
    _older(folder / DATABASE_NAME, version)
    content = (folder / DATABASE_NAME).read_bytes()
    said = {"format": 1, "time": 1, "schema_version": version, "galleries": {"g": 4}}
    said |= {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST_NAME).write_text(json.dumps(said))
    return content


@pytest.mark.parametrize("version", range(1, len(schema.MIGRATIONS)))
@pytest.mark.parametrize("erased", [False, True])
def test_a_backup_of_an_older_schema_is_restored_and_stays_as_it_is(opened, folder, tmp_path, version, erased):
    content = _older_backup(tmp_path / "backup", version)
    if erased:
        opened.erase_identity("g", "p1", force=True)
    opened.close()
    assert restore(tmp_path / "backup", folder, force=True) == erased
    assert sorted(path.name for path in folder.iterdir()) == [DATABASE_NAME, LOCK_NAME]
    assert not check(folder)
    assert sorted(path.name for path in (tmp_path / "backup").iterdir()) == [MANIFEST_NAME, DATABASE_NAME]
    assert (tmp_path / "backup" / DATABASE_NAME).read_bytes() == content
    again = open_galleries(folder)
    assert _listed(again) == (["t0", "t2"] if erased else ["t0", "t1", "t2", "t3"])
    assert ids(again.search("g", ask([2, 2, 2, 2], 1))) == ["t2"]
    again.close()


@pytest.mark.parametrize("version", range(1, len(schema.MIGRATIONS)))
def test_a_data_folder_of_an_older_schema_is_named_so_and_can_be_replaced(opened, folder, tmp_path, version):
    back_up(folder, tmp_path / "backup")
    older = tmp_path / "older"
    older.mkdir()
    _older(older / DATABASE_NAME, version)
    with pytest.raises(FailedPreconditionError, match=f"version {version}.*start the server on it once") as caught:
        check(older)
    assert reason(caught) == "SCHEMA_OTHER"
    assert restore(tmp_path / "backup", older, force=True) == 0
    assert not check(older)


def test_a_restore_that_failed_is_not_in_the_way_of_the_next(opened, folder, tmp_path):
    back_up(folder, tmp_path / "backup")
    sound = (tmp_path / "backup" / DATABASE_NAME).read_bytes()
    _flip(tmp_path / "backup" / DATABASE_NAME, len(sound) // 2)
    with pytest.raises(DataLossError):
        restore(tmp_path / "backup", tmp_path / "new")
    (tmp_path / "backup" / DATABASE_NAME).write_bytes(sound)
    assert restore(tmp_path / "backup", tmp_path / "new") == 0
    assert not check(tmp_path / "new")


def test_check_names_what_is_damaged(opened, folder):
    assert not check(folder)
    opened.close()
    database = folder / DATABASE_NAME
    content = database.read_bytes()
    needle = np.array([13, 0, 0, 0], np.float32).tobytes()
    assert content.count(needle) == 1
    database.write_bytes(content.replace(needle, np.array([13.5, 0, 0, 0], np.float32).tobytes()))
    connection = sqlite3.connect(database)
    connection.execute("UPDATE thumbnails SET thumbnail = ? WHERE vector_id = 3", (b"jpeh",))
    connection.commit()
    connection.close()
    damage = check(folder)
    assert (damage.database, damage.descriptors) == ((), ("galleries/g/tracklets/t13",))
    assert damage.thumbnails == ("galleries/g/tracklets/t2",)


def test_a_flipped_bit_in_a_thumbnail_spoils_that_thumbnail_alone(opened, folder, caplog):
    put(opened, "shown", [50, 0, 0, 0], thumbnail=b"<a thumbnail of its own>")
    opened.close()
    database = folder / DATABASE_NAME
    content = database.read_bytes()
    assert content.count(b"<a thumbnail of its own>") == 1
    database.write_bytes(content.replace(b"<a thumbnail of its own>", b"<a thumbnail of its owm>"))
    again = open_galleries(folder)
    with pytest.raises(DataLossError) as caught:
        again.get_thumbnail("g", "shown")
    assert reason(caught) == "THUMBNAIL_DAMAGED"
    hits = again.search("g", ask([50, 0, 0, 0], 2, include_thumbnails=True))
    assert [(hit.tracklet.tracklet_id, hit.thumbnail) for hit in hits] == [("shown", b""), ("t19", b"jpeg")]
    assert "damaged" in caplog.text
    again.close()


def test_commands(opened, folder, tmp_path, run):
    done = run("gallery", "backup", folder, tmp_path / "backup")
    assert done.code == 0
    assert "1 gallery, 20 tracklets" in done.out
    assert run("gallery", "check", folder).out == "sound\n"
    done = run("gallery", "restore", tmp_path / "backup", tmp_path / "new")
    assert "1 gallery, 20 tracklets restored" in done.out
    assert json.loads(run("gallery", "check", tmp_path / "new", "--json").out)["ok"]
    done = run("gallery", "restore", tmp_path / "backup", tmp_path / "new")
    assert done.code == 1
    assert "--force" in done.err
