"""The embedded gallery's home: one transaction for a change and its record, locks, damage, schema, erasure, audit."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
from passerby.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from passerby_server.gallery import ledger, rows, schema
from passerby_server.gallery.embedded import open_galleries
from passerby_server.gallery.store import DATABASE_NAME, LOCK_NAME, Store
from passerby_server.gallery.types import Rerank, TrackletFilter

from tests.server.gallery.filling import SPACE, ask, ids, put, reason


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def opened(folder):
    galleries = open_galleries(folder)
    galleries.create_gallery("g", "", SPACE)
    yield galleries
    galleries.close()


def _count(folder, table):
    connection = sqlite3.connect(folder / DATABASE_NAME)
    (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
    connection.close()
    return count


# The effect and its record


@pytest.mark.parametrize("broken", ["remember", "record"])
def test_write_and_its_record_share_one_transaction(opened, folder, monkeypatch, broken):
    put(opened, "before", [1, 0, 0, 0])
    counts = {table: _count(folder, table) for table in ("tracklets", "descriptors", "requests", "audit")}

    def fail(*_, **__):
        raise RuntimeError("the record could not be written")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, broken, fail)
        for attempt in (
            lambda: put(opened, "t", [2, 0, 0, 0], thumbnail=b"jpeg", request_id="r1"),
            lambda: opened.delete_tracklet("g", "before", "r2"),
            lambda: opened.assign_identity("g", "before", "p", "r3"),
            lambda: opened.delete_gallery("g", force=True, request_id="r4"),
        ):
            with pytest.raises(RuntimeError):
                attempt()
    assert {table: _count(folder, table) for table in counts} == counts
    assert ids(opened.search("g", ask([0, 0, 0, 0]))) == ["before"]
    assert opened.get_tracklet("g", "before").identity_id == ""
    put(opened, "t", [2, 0, 0, 0], request_id="r1")


def test_refused_write_undoes_nothing_of_the_others_in_its_group(opened):
    """Twelve threads wait for the writer at once, so that their writes become one transaction; every third is refused."""
    outcomes = {}

    def ingest(number):
        try:
            put(opened, f"t{number}", [number, 0, 0, 0] if number % 3 else [0, 0, 0], request_id=f"r{number}")
            outcomes[number] = "stored"
        except InvalidArgumentError:
            outcomes[number] = "refused"

    threads = [threading.Thread(target=ingest, args=(number,)) for number in range(12)]
    with opened._store.paused():
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {number: "stored" if number % 3 else "refused" for number in range(12)}
    assert set(ids(opened.search("g", ask([0, 0, 0, 0], 20)))) == {f"t{n}" for n in range(12) if n % 3}


def test_full_disk_is_said_and_nothing_is_half_stored(opened, folder):
    put(opened, "before", [1, 0, 0, 0])
    writer = opened._store._writer
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(ResourceExhaustedError, match="full") as caught:
        put(opened, "big", [2, 0, 0, 0], thumbnail=bytes(100_000))
    assert reason(caught) == "STORAGE_FULL"
    writer.execute("PRAGMA max_page_count = 1000000")
    put(opened, "after", [3, 0, 0, 0])
    assert ids(opened.search("g", ask([0, 0, 0, 0]))) == ["before", "after"]
    assert _count(folder, "descriptors") == 2


def _audit(galleries, tracklet_id="", identity_id=""):
    return galleries.list_audit("g", tracklet_id, identity_id, 1000).items


def test_every_change_is_audited(opened):
    put(opened, "t", [1, 0, 0, 0])
    opened.assign_identity("g", "t", "somebody")
    details = json.loads(_audit(opened)[-1].detail)
    assert details == {"before": "", "after": "somebody", "change": 1}
    opened.delete_tracklet("g", "t")
    opened.delete_gallery("g", force=False)
    actions = ["CreateGallery", "IngestTracklet", "AssignIdentity", "DeleteTracklet", "DeleteGallery"]
    entries = _audit(opened)
    assert [entry.action for entry in entries] == actions
    digest = entries[1].tracklet_id
    assert [entry.tracklet_id for entry in entries] == ["", digest, digest, digest, ""]
    assert digest.startswith("hmac:")  # deleting forgets its name, and its name still finds what was done
    assert [entry.action for entry in _audit(opened, tracklet_id="t")] == actions[1:4]
    assert _audit(opened, tracklet_id="u") == ()
    assert "somebody" not in "".join(entry.detail for entry in entries)  # deleting forgets whom it showed


def test_old_request_ids_expire_at_open(opened, folder, monkeypatch):
    put(opened, "old", [1, 0, 0, 0], request_id="old")
    week = (ledger.REQUEST_LIFETIME_DAYS * 86400 + 60) * 10**6
    later = rows.now() + week
    monkeypatch.setattr(ledger, "now", lambda: later)
    put(opened, "new", [1, 0, 0, 0], request_id="new")
    opened.close()
    again = open_galleries(folder)
    assert again.find_request("g", "old", b"anything") is None
    with pytest.raises(InvalidArgumentError):
        again.find_request("g", "new", b"anything")
    again.close()


def test_old_request_ids_expire_while_writes_go_on(opened, folder, monkeypatch):
    for number in range(5):
        put(opened, f"old-{number}", [number, 0, 0, 0], request_id=f"old-{number}")
    later = rows.now() + (ledger.REQUEST_LIFETIME_DAYS * 86400 + 60) * 10**6
    monkeypatch.setattr(ledger, "now", lambda: later)
    put(opened, "without-id", [5, 0, 0, 0])
    left = [_count(folder, "requests")]
    for number in range(4):
        put(opened, f"new-{number}", [number, 1, 0, 0], request_id=f"new-{number}")
        left.append(_count(folder, "requests"))
    assert left == [5, 4, 3, 3, 4]  # each takes two old ones along, the third the last one
    assert opened.stats("g").tracklet_count == 10
    with pytest.raises(InvalidArgumentError):
        opened.find_request("g", "new-0", b"anything")


# The index follows the store


def test_index_that_fails_after_the_commit_is_rebuilt(opened, monkeypatch, caplog):
    put(opened, "a", [1, 0, 0, 0])
    (live,) = opened._live.values()

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(live.index, "add", fail)
    assert put(opened, "b", [2, 0, 0, 0]).tracklet_id == "b"
    put(opened, "c", [3, 0, 0, 0])
    opened.delete_tracklet("g", "a")
    assert "rebuilt" in caplog.text
    assert ids(opened.search("g", ask([0, 0, 0, 0], rerank=Rerank()))) == ["b", "c"]
    assert not live.stale


# Erasure


def test_deleted_bytes_are_in_no_file(opened, folder):
    """200 tracklets in random order: enough that pages of tables and indexes are split and merged on the way."""
    rng = np.random.default_rng(7)
    secrets = {}
    for number in rng.permutation(200).tolist():
        vector, thumbnail, person = rng.normal(size=4).astype(np.float32), rng.bytes(1500), f"<person-{number:03}>"
        put(opened, f"t{number}", vector, thumbnail=thumbnail, identity_id=person, labels={"name": person})
        secrets[number] = (vector.tobytes(), thumbnail[:64], thumbnail[-64:], person.encode())
    opened.assign_identity("g", "t3", "<renamed>")
    everywhere = b"".join(path.read_bytes() for path in folder.iterdir())
    assert all(secret in everywhere for number in secrets for secret in secrets[number])
    assert b"<renamed>" in everywhere
    erased = [3, *range(0, 200, 2)]
    for number in erased:
        opened.delete_tracklet("g", f"t{number}")
    everywhere = b"".join(path.read_bytes() for path in folder.iterdir())
    assert [number for number in erased for secret in secrets[number] if secret in everywhere] == []
    assert b"<renamed>" not in everywhere
    assert secrets[1][1] in everywhere  # the scan does see what is there


def _holding(folder, content):
    return [path.name for path in folder.iterdir() if content in path.read_bytes()]


def test_delete_is_not_held_up_by_a_long_read_and_is_scrubbed_after_it(opened, folder):
    thumbnail = np.random.default_rng(1).bytes(500)
    put(opened, "t", [1, 0, 0, 0], thumbnail=thumbnail)
    with opened._store.read():
        assert opened.delete_tracklet("g", "t").rewritten_files == ()
    put(opened, "u", [1, 0, 0, 0])  # the next write does what the read prevented
    assert _holding(folder, thumbnail) == []


# Locks, damage, schema

HOLD = "import sys; from pathlib import Path; from passerby_server.gallery.embedded import open_galleries; \
g = open_galleries(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"


def _holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_second_process_on_a_folder_is_refused(folder):
    process = _holder(folder)
    try:
        with pytest.raises(FailedPreconditionError, match=f"process {process.pid}") as caught:
            open_galleries(folder)
        assert reason(caught) == "DATA_FOLDER_IN_USE"
    finally:
        process.kill()
        process.communicate()
    assert (folder / LOCK_NAME).exists()
    open_galleries(folder).close()  # what a killed process left behind does not block


def test_second_opening_in_one_process_is_refused(opened, folder):
    with pytest.raises(FailedPreconditionError, match=f"process {os.getpid()}"):
        open_galleries(folder)
    assert opened.get_gallery("g").gallery_id == "g"


def test_folder_is_free_again_after_a_failed_opening(folder):
    folder.mkdir()
    (folder / DATABASE_NAME).write_bytes(b"no database" * 1000)
    for _ in range(2):
        with pytest.raises(DataLossError, match="damaged") as caught:
            open_galleries(folder)
        assert reason(caught) == "STORE_DAMAGED"
    (folder / DATABASE_NAME).unlink()
    open_galleries(folder).close()


def _filled(folder):
    galleries = open_galleries(folder)
    galleries.create_gallery("g", "", SPACE)
    for number in range(300):
        put(galleries, f"t{number}", [number, 0, 0, 0], thumbnail=bytes(500))
    galleries.close()
    return folder / DATABASE_NAME


def test_damaged_pages_are_reported_at_open(folder):
    database = _filled(folder)
    content = bytearray(database.read_bytes())
    content[4096 * 8 : 4096 * 12] = os.urandom(4096 * 4)
    database.write_bytes(content)
    with pytest.raises(DataLossError, match="damaged"):
        open_galleries(folder)


def test_cut_off_database_is_reported_at_open(folder):
    database = _filled(folder)
    os.truncate(database, database.stat().st_size // 2 // 4096 * 4096)
    with pytest.raises(DataLossError, match="damaged"):
        open_galleries(folder)


def test_flipped_bit_in_a_descriptor_is_found(folder):
    database = _filled(folder)
    content = database.read_bytes()
    needle = np.array([123, 0, 0, 0], np.float32).tobytes()
    assert content.count(needle) == 1
    flipped = np.array([123.00001, 0, 0, 0], np.float32).tobytes()
    database.write_bytes(content.replace(needle, flipped))
    galleries = open_galleries(folder)
    for _ in range(2):
        with pytest.raises(DataLossError, match="galleries/g/tracklets/t123 ") as caught:
            galleries.search("g", ask([0, 0, 0, 0]))
        assert reason(caught) == "DESCRIPTOR_DAMAGED"
    with pytest.raises(DataLossError, match="galleries/g/tracklets/t123 "):
        galleries.get_descriptor("g", "t123")
    np.testing.assert_array_equal(galleries.get_descriptor("g", "t124"), [124, 0, 0, 0])
    galleries.create_gallery("h", "", SPACE)
    put(galleries, "u", [1, 0, 0, 0], gallery_id="h")
    put(galleries, "u", [123, 0, 0, 0])
    assert ids(galleries.search("h", ask([0, 0, 0, 0]))) == ["u"]
    galleries.delete_tracklet("g", "t123")
    assert ids(galleries.search("g", ask([123, 0, 0, 0], 2))) == ["u", "t122"]
    galleries.close()


@pytest.mark.parametrize("stray", ["-wal", "-shm", "-journal", ".restoring"])
def test_stray_file_beside_the_database_does_not_block(folder, stray):
    _filled(folder)
    (folder / f"{DATABASE_NAME}{stray}").write_bytes(b"\x00garbage" * 999)
    galleries = open_galleries(folder)
    assert galleries.stats("g").tracklet_count == 300
    galleries.close()


def test_what_a_killed_restore_left_is_gone_after_a_start(folder):
    database = _filled(folder)
    scratch = folder / f"{DATABASE_NAME}.restoring"
    scratch.mkdir()
    (scratch / DATABASE_NAME).write_bytes(database.read_bytes())
    galleries = open_galleries(folder)
    assert not scratch.exists()
    assert galleries.stats("g").tracklet_count == 300
    galleries.close()


def test_torn_log_gives_what_was_whole_in_it(folder, tmp_path, caplog):
    """Power that fails in the middle of a write tears the log's last pages: SQLite keeps to the last whole commit.

    A flipped bit takes what was acknowledged with it, which is said.
    """
    database = _filled(folder)
    galleries = open_galleries(folder)
    for number in range(20):
        put(galleries, f"u{number}", [number, 0, 0, 0])
    kept, log = database.read_bytes(), database.with_name(f"{DATABASE_NAME}-wal").read_bytes()
    galleries.close()
    counts: list[int] = []
    for part, flipped in ((0.0, False), (0.3, False), (0.7, False), (0.999, False), (1.0, True)):
        torn = tmp_path / f"torn-{len(counts)}"
        torn.mkdir(mode=0o700)
        (torn / DATABASE_NAME).write_bytes(kept)
        content = bytearray(log[: int(len(log) * part)])
        if flipped:
            content[len(content) // 2] ^= 1
        (torn / f"{DATABASE_NAME}-wal").write_bytes(content)
        assert "are lost" not in caplog.text
        again = open_galleries(torn)
        names = [item.tracklet_id for item in again.list_tracklets("g", TrackletFilter(), 1000).items]
        assert names == [f"t{n}" for n in range(300)] + [f"u{n}" for n in range(len(names) - 300)]
        counts.append(len(names))
        again.close()
    assert counts[0] == 300 < counts[1] < counts[2] < counts[3] == 319
    assert 300 < counts[4] < 320
    said = re.search(r"gallery.db-wal is damaged: (\d+) acknowledged commits at least are lost", caplog.text)
    assert said
    assert int(said[1]) == 320 - counts[4] - 1  # one may have been under way


def test_somebody_elses_database_is_left_alone(folder):
    folder.mkdir()
    other = sqlite3.connect(folder / DATABASE_NAME)
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(FailedPreconditionError) as caught:
        open_galleries(folder)
    assert reason(caught) == "NOT_A_STORE"


def test_newer_schema_is_refused(folder):
    database = _filled(folder)
    connection = sqlite3.connect(database)
    connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(FailedPreconditionError, match="newer passerby") as caught:
        open_galleries(folder)
    assert reason(caught) == "SCHEMA_TOO_NEW"


def test_older_schema_is_migrated_and_keeps_everything(folder, monkeypatch):
    _filled(folder)
    added = ("ALTER TABLE galleries ADD COLUMN note TEXT NOT NULL DEFAULT ''",)
    monkeypatch.setattr(Store, "_prepare", _prepare_with((*schema.MIGRATIONS, added)))
    store = Store(folder)
    with store.read() as connection:
        assert connection.execute("SELECT gallery_id, note FROM galleries").fetchall() == [("g", "")]
        assert connection.execute("SELECT count(*) FROM tracklets").fetchone() == (300,)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS) + 1,)
    store.close()


def test_failing_migration_leaves_the_old_schema(folder, monkeypatch):
    _filled(folder)
    broken = ("DELETE FROM tracklets", "INSERT INTO no_such_table VALUES (1)")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_prepare", _prepare_with((*schema.MIGRATIONS, broken)))
        with pytest.raises(Exception, match="no_such_table"):
            Store(folder)
    galleries = open_galleries(folder)
    assert galleries.stats("g").tracklet_count == 300
    galleries.close()


def _prepare_with(migrations):
    original = Store._prepare

    def prepare(store):
        original(store)
        schema.migrate(store._writer, migrations)

    return prepare


def test_folder_that_others_can_enter_is_warned_of_and_left_as_it_is(folder, caplog):
    open_galleries(folder).close()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not caplog.records
    folder.chmod(0o755)
    open_galleries(folder).close()
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    folder.chmod(0o777)
    open_galleries(folder).close()
    listed, replaced = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{folder} (mode 755)" in listed
    assert "delete" not in listed
    assert "delete files" in replaced
    assert f"chmod 700 {folder}" in replaced


def test_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(FailedPreconditionError, match="data folder"):
        open_galleries(tmp_path / "data")


def test_data_folder_is_readable_by_its_owner_alone(opened, folder):
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "of-an-earlier-version"])
def test_files_are_readable_by_their_owner_alone_in_an_open_folder_too(folder, earlier):
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    if earlier:
        open_galleries(folder).close()
        (folder / DATABASE_NAME).chmod(0o644)
    galleries = open_galleries(folder)
    galleries.create_gallery("g", "", SPACE)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    galleries.close()
    assert set(modes) == {LOCK_NAME, DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm"}
    assert set(modes.values()) == {0o600}


def test_closing_waits_for_the_searches_under_way(opened, folder):
    put(opened, "t", [1, 0, 0, 0])
    closing = threading.Thread(target=opened.close)
    with opened._store.read() as connection:
        closing.start()
        closing.join(0.3)
        assert closing.is_alive()
        with pytest.raises(FailedPreconditionError, match="in use"):
            open_galleries(folder)
        assert connection.execute("SELECT count(*) FROM tracklets").fetchone() == (1,)
    closing.join(10)
    assert not closing.is_alive()
    with pytest.raises(UnavailableError, match="going down"):
        opened.search("g", ask([1, 0, 0, 0]))
    assert not (folder / f"{DATABASE_NAME}-wal").exists()


def test_filters_take_more_values_than_sqlite_binds(opened):
    put(opened, "t", [1, 0, 0, 0], camera_id="c39999")
    where = TrackletFilter(camera_ids=frozenset(f"c{n}" for n in range(40_000)))
    assert ids(opened.search("g", ask([1, 0, 0, 0], filter=where))) == ["t"]
