"""A bit that the disk flipped, anywhere in the store: it is reported, or makes no difference; it never changes an answer."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from passerby.errors import DataLossError, FailedPreconditionError, PasserbyError
from passerby_server.gallery import sealing
from passerby_server.gallery.backup import back_up, check, restore
from passerby_server.gallery.embedded import EmbeddedGalleries, open_galleries
from passerby_server.gallery.store import DATABASE_NAME
from passerby_server.gallery.types import (
    GalleryOptions,
    ModelSpace,
    NewTracklet,
    RetentionRule,
    SearchQuery,
    TrackletFilter,
)

from tests.faults.leaves import values_of
from tests.server.gallery.filling import put

SPACE = ModelSpace("sha256:one", 16, "squared_euclidean")
START = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
EVERYTHING = TrackletFilter()


def _fill(galleries, count=40):
    galleries.create_gallery("g", "Station", SPACE, options=GalleryOptions(keep_frames=True, false_match_rate=0.01))
    galleries.create_gallery("other", "", SPACE, options=GalleryOptions(index_kind="int8", follows="g"))
    rng = np.random.default_rng(0)
    for number in range(count):
        start = START + timedelta(seconds=number)
        said = {"camera_id": f"camera-{number % 4}", "start_time": start, "end_time": start + timedelta(seconds=9)}
        said |= {"identity_id": f"person-{number % 8}", "labels": {"coat": f"red {number}"}, "frame_count": 24}
        for name in ("g", "other"):
            put(galleries, f"tracklet-{number}", rng.normal(size=16), gallery_id=name, thumbnail=rng.bytes(50),
                request_id=f"request-{number}", **said)  # fmt: skip
    frames = [bytes([number]) * 30 for number in range(3)]
    galleries.ingest("g", NewTracklet("framed", "camera-9"), np.ones(16, np.float32), "sha256:one", b"", frames=frames)
    galleries.merge_identities("g", "person-1", ["person-2"])
    galleries.set_retention("g", [RetentionRule("camera-1", timedelta(days=36500))])
    galleries.delete_tracklet("g", "tracklet-3")  # the file is due to be written anew


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The folder of a store with something in every table, its content, and a sound backup of it."""
    folder = tmp_path_factory.mktemp("store") / "data"
    galleries = open_galleries(folder)
    _fill(galleries)
    back_up(folder, folder.with_name("backup"))
    galleries.close()
    path = folder / DATABASE_NAME
    assert not check(folder)
    return folder, path.read_bytes()


def _damaged(folder: Path, content: bytes, place: int, bit: int) -> Path:
    path = folder / DATABASE_NAME
    for left in folder.iterdir():
        left.unlink()
    flipped = bytearray(content)
    flipped[place] ^= 1 << bit
    path.write_bytes(flipped)
    return path


def _tables(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        statement = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        return [name for (name,) in connection.execute(statement)]


def _content(path: Path) -> list[tuple[str, list[tuple[object, ...]]]]:
    """All rows; not SQLite's own count of the numbers that it has given out."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        return [
            (name, sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr))  # noqa: S608
            for name in _tables(path)
        ]


def test_a_flipped_bit_in_any_column_of_any_table_is_reported(store, tmp_path):
    """Two rows of each table, two bits of each value: `check` finds each."""
    folder, content = store
    rng = random.Random(0)
    tried: dict[tuple[str, str], int] = {}
    path = tmp_path / DATABASE_NAME
    for table in _tables(folder / DATABASE_NAME):
        for column, values in values_of(folder / DATABASE_NAME, table).items():
            for first, length in rng.sample(values, min(2, len(values))):
                for _ in range(2):
                    place, bit = first + rng.randrange(length), rng.randrange(8)
                    _damaged(tmp_path, content, place, bit)
                    assert check(tmp_path), f"{table}.{column}: bit {bit} of byte {place}"
                    tried[table, column] = tried.get((table, column), 0) + 1
    assert {table for table, _ in tried} == set(_tables(folder / DATABASE_NAME))
    assert {column for table, column in tried if table == "tracklets"} == {*sealing.COLUMNS["tracklets"], "seal"} - {
        "vector_id"
    }
    assert path.exists()


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_anywhere_in_the_file_is_reported_or_makes_no_difference(store, tmp_path, seed):
    folder, content = store
    rng = random.Random(seed)
    before, reported = _content(folder / DATABASE_NAME), 0
    for _ in range(75):
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        path = _damaged(tmp_path, content, place, bit)
        try:
            found = bool(check(tmp_path))
        except PasserbyError:
            found = True
        if found:
            reported += 1
        else:
            assert _content(path) == before, f"bit {bit} of byte {place} changed a row, and nobody noticed"
    assert reported > 10


@pytest.mark.parametrize(
    "column", ["tracklet_id", "camera_id", "start_time", "identity_id", "frame_count", "create_time"]
)
@pytest.mark.parametrize("bit", [0, 7], ids=["low", "high"])  # the highest bit makes text that is not UTF-8
def test_a_server_with_a_damaged_tracklet_names_it_and_goes_on(store, tmp_path, column, bit):
    """Whatever would need the damaged tracklet fails, and names it; nothing leaves it out."""
    folder, content = store
    first, length = values_of(folder / DATABASE_NAME, "tracklets")[column][20]
    place = first + length - 1 if column != "tracklet_id" else first
    path = _damaged(tmp_path, content, place, bit)
    damage = check(tmp_path)
    assert len(damage.tracklets) == 1
    gallery_id, name = damage.tracklets[0].split("/")[1::2]
    galleries = open_galleries(tmp_path)
    with contextlib.closing(sqlite3.connect(folder / DATABASE_NAME)) as sound:
        statement = "SELECT tracklet_id, descriptor FROM tracklets JOIN descriptors USING (vector_id) JOIN galleries USING (gallery_key)"
        vectors = {
            key: np.frombuffer(blob, "<f4")
            for key, blob in sound.execute(f"{statement} WHERE gallery_id = ?", (gallery_id,))
        }
    if column != "tracklet_id":
        assert name in vectors
        with pytest.raises(DataLossError, match=f"galleries/{gallery_id}/tracklets/{name} is damaged") as caught:
            galleries.get_tracklet(gallery_id, name)
        assert caught.value.reason == "TRACKLET_DAMAGED"

    def search(vector, top_k=1, **options):
        return galleries.search(gallery_id, SearchQuery(vector, "sha256:one", top_k, **options))

    failed, answered = [], 0
    for key, vector in vectors.items():
        try:
            assert search(vector)[0].tracklet.tracklet_id == key
            answered += 1
        except DataLossError:
            failed.append(key)
    assert (len(failed), answered) == (1, len(vectors) - 1)
    target = vectors[failed[0]]
    # No filter rules it out, since what it says of itself cannot be trusted.
    for where in (TrackletFilter(camera_ids=frozenset({"nowhere"})), TrackletFilter(labels={"coat": "none"})):
        with pytest.raises(DataLossError):
            search(target, filter=where)
    with pytest.raises(DataLossError):
        search(target, group_by_identity=True)
    with pytest.raises(DataLossError):
        galleries.list_tracklets(gallery_id, EVERYTHING, 1000)
    with pytest.raises(DataLossError):
        galleries.erase_identity(gallery_id, "person-5", force=True)
    another = "other" if gallery_id == "g" else "g"
    assert len(galleries.list_tracklets(another, EVERYTHING, 1000).items) >= 39
    put(galleries, "new", np.zeros(16), gallery_id=gallery_id)
    galleries.close()
    assert path.exists()


def test_a_damaged_tracklet_stays_damaged_when_it_is_changed(store, tmp_path):
    folder, content = store
    places = values_of(folder / DATABASE_NAME, "tracklets")
    first, length = places["camera_id"][5]
    path = _damaged(tmp_path, content, first + length - 1, 0)
    (name,) = check(tmp_path).tracklets
    galleries = EmbeddedGalleries(tmp_path)
    galleries._store.write(lambda connection: connection.execute("UPDATE tracklets SET identity_id = 'ann'").rowcount)
    galleries.close()
    assert check(tmp_path).tracklets == (name,)
    assert path.exists()


def test_a_damaged_tracklet_is_mended_by_a_backup_or_by_storing_it_again(store, tmp_path):
    folder, content = store
    first, length = values_of(folder / DATABASE_NAME, "tracklets")["camera_id"][5]
    _damaged(tmp_path, content, first + length - 1, 0)
    (name,) = check(tmp_path).tracklets
    gallery_id, tracklet_id = name.split("/")[1::2]
    galleries = open_galleries(tmp_path)
    galleries.delete_tracklet(gallery_id, tracklet_id)
    put(galleries, tracklet_id, np.ones(16), gallery_id=gallery_id)
    assert tracklet_id in [item.tracklet_id for item in galleries.list_tracklets(gallery_id, EVERYTHING, 1000).items]
    galleries.close()
    assert not check(tmp_path)
    _damaged(tmp_path, content, first + length - 1, 0)
    restore(folder.with_name("backup"), tmp_path, force=True)
    assert not check(tmp_path)


@pytest.mark.parametrize("table", ["galleries", "secrets"])
def test_a_damaged_gallery_or_secret_refuses_the_start_and_is_named(store, tmp_path, table):
    folder, content = store
    column = {"galleries": "display_name", "secrets": "value"}[table]
    first, _ = values_of(folder / DATABASE_NAME, table)[column][0]
    _damaged(tmp_path, content, first, 1)
    with pytest.raises(DataLossError, match=r"(gallery g|the secret) .* is damaged") as caught:
        open_galleries(tmp_path)
    assert caught.value.reason == "ROW_DAMAGED"


@pytest.mark.parametrize(("table", "column"), [("audit", "detail"), ("requests", "digest"), ("retention", "keep")])
def test_a_damaged_row_of_a_gallery_fails_what_reads_it(store, tmp_path, table, column):
    folder, content = store
    first, length = values_of(folder / DATABASE_NAME, table)[column][0]
    _damaged(tmp_path, content, first + length - 1, 1)
    assert [one.split()[0] for one in check(tmp_path).rows] == [table]
    galleries = open_galleries(tmp_path)
    failures = []
    for gallery_id in ("g", "other"):
        for number in range(40):
            try:
                galleries.find_request(gallery_id, f"request-{number}", b"another")
            except PasserbyError as error:
                failures += [error] if isinstance(error, DataLossError) else []
        audit = partial(galleries.list_audit, gallery_id, "", "", 1000)
        for read in (audit, partial(galleries.get_retention, gallery_id)):
            try:
                read()
            except DataLossError as error:
                failures.append(error)
    assert len(failures) == 1
    assert failures[0].reason == "ROW_DAMAGED"
    galleries.close()


def test_an_index_of_the_database_that_does_not_fit_is_made_anew(store, tmp_path, caplog):
    folder, content = store
    places = values_of(folder / DATABASE_NAME, "tracklets")["camera_id"]
    rows = {place for place, _ in places}
    place = next(at for at in range(len(content) - 8) if content[at : at + 8] == b"camera-1" and at not in rows)
    _damaged(tmp_path, content, place + 7, 1)
    assert check(tmp_path)
    galleries = open_galleries(tmp_path)
    assert "made anew" in caplog.text
    found = [
        len(galleries.list_tracklets("g", TrackletFilter(camera_ids=frozenset({f"camera-{number}"})), 1000).items)
        for number in range(4)
    ]
    galleries.close()
    assert found == [10, 10, 10, 9]
    assert not check(tmp_path)


def test_a_store_of_an_unknown_version_is_refused(store, tmp_path):
    _, content = store
    _damaged(tmp_path, content, 63, 6)  # the lowest byte of the schema's version
    with pytest.raises(FailedPreconditionError):
        open_galleries(tmp_path)
