"""Between rows of the store and the gallery's value types. Everything here runs inside a caller's transaction.

What is read is compared with its seal or checksum: DataLossError names what is damaged.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray
from passerby.errors import DataLossError, NotFoundError
from passerby.names import gallery_name, tracklet_name

from passerby_server.gallery import sealing
from passerby_server.gallery.sealing import seal
from passerby_server.gallery.types import (
    GalleryOptions,
    GalleryRecord,
    ModelSpace,
    Precision,
    TrackletFilter,
    TrackletRecord,
    TravelWindow,
)

logger = logging.getLogger(__name__)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MAX_VARIABLES = 500
"""Values bound to one statement at most; SQLite's own limit is 32,766."""
MAX_CHAIN = 100
"""Conditions in a row at most: SQLite takes a row of them for as deep, and refuses what is deeper than 1,000."""
_COLUMNS = sealing.selected("tracklets")
_FORMATS: dict[str, str] = {"fp32": "<f4", "fp16": "<f2"}
"""NumPy's names of the formats in which descriptors are stored."""
_GALLERIES = (
    f"SELECT {sealing.selected('galleries')}, "  # noqa: S608
    "(SELECT gallery_id FROM galleries AS other WHERE other.gallery_key = galleries.follows) FROM galleries"
)


@dataclass(frozen=True, slots=True)
class GalleryRow:
    """A gallery as stored: `key` is what tells it from an earlier gallery of the same name."""

    key: int
    record: GalleryRecord
    damaged: frozenset[int] = field(default=frozenset())
    """Vector ids of tracklets that are known to be damaged: no condition on their columns rules them out."""


def to_microseconds(time: datetime | None) -> int | None:
    """Microseconds since 1970 of an aware time."""
    return None if time is None else (time - EPOCH) // MICROSECOND


def from_microseconds(microseconds: int) -> datetime:
    """The UTC time that many microseconds after 1970."""
    return EPOCH + microseconds * MICROSECOND


def now() -> int:
    """Microseconds since 1970."""
    return (datetime.now(UTC) - EPOCH) // MICROSECOND


def find_gallery(connection: sqlite3.Connection, gallery_id: str) -> GalleryRow | None:
    found = find_galleries(connection, "gallery_id = ?", gallery_id)
    return found[0] if found else None


def find_galleries(connection: sqlite3.Connection, where: str = "TRUE", *values: str | int) -> list[GalleryRow]:
    """The galleries that an SQL condition picks, by name."""
    statement = f"{_GALLERIES} WHERE {where} ORDER BY gallery_id"
    return [_gallery(row) for row in connection.execute(statement, values)]


def get_gallery(connection: sqlite3.Connection, gallery_id: str) -> GalleryRow:
    """Raises NotFoundError (GALLERY_NOT_FOUND)."""
    found = find_gallery(connection, gallery_id)
    if found is None:
        raise NotFoundError(f"there is no {gallery_name(gallery_id)}: create it first", reason="GALLERY_NOT_FOUND")
    return found


def _gallery(row: Sequence[Any]) -> GalleryRow:
    *sealed, followed = row
    values = sealing.opened(sealed, f"gallery {sealed[1]} (number {sealed[0]})")
    key, gallery_id, display_name, fingerprint, dimension, metric, create_time, index_kind, rate, _, keep, precision = (
        values
    )
    options = GalleryOptions(index_kind, rate, followed or "", bool(keep), precision)
    space = ModelSpace(fingerprint, dimension, metric)
    return GalleryRow(key, GalleryRecord(gallery_id, display_name, space, from_microseconds(create_time), options))


def find_vector_id(connection: sqlite3.Connection, gallery: GalleryRow, tracklet_id: str) -> int | None:
    row = connection.execute(
        "SELECT vector_id FROM tracklets WHERE gallery_key = ? AND tracklet_id = ?", (gallery.key, tracklet_id)
    ).fetchone()
    return None if row is None else int(row[0])


def get_vector_id(connection: sqlite3.Connection, gallery: GalleryRow, tracklet_id: str) -> int:
    """Raises NotFoundError (TRACKLET_NOT_FOUND)."""
    vector_id = find_vector_id(connection, gallery, tracklet_id)
    if vector_id is None:
        raise NotFoundError(
            f"there is no {tracklet_name(gallery.record.gallery_id, tracklet_id)}", reason="TRACKLET_NOT_FOUND"
        )
    return vector_id


def get_records(
    connection: sqlite3.Connection, gallery: GalleryRow, vector_ids: Iterable[int]
) -> dict[int, TrackletRecord]:
    """The tracklets of `gallery` among `vector_ids`; those that are not there are left out."""
    records: dict[int, TrackletRecord] = {}
    for chunk in _chunks([int(vector_id) for vector_id in vector_ids]):
        marks = _marks(chunk)
        rows = connection.execute(
            # The plus keeps SQLite from walking through all of the gallery in one of its indexes.
            f"SELECT {_COLUMNS} FROM tracklets WHERE +gallery_key = ? AND vector_id IN ({marks})",  # noqa: S608
            (gallery.key, *chunk),
        ).fetchall()
        records |= {row[0]: _tracklet(gallery, row, labels) for row, labels in _with_labels(connection, rows)}
    return records


def list_records(
    connection: sqlite3.Connection, gallery: GalleryRow, where: TrackletFilter, after: int, limit: int
) -> list[tuple[int, TrackletRecord]]:
    """Up to `limit` tracklets that pass the filter and were stored after vector id `after`, in storing order."""
    condition, values = _condition(gallery, where)
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM tracklets WHERE {condition} AND vector_id > ? ORDER BY vector_id LIMIT ?",  # noqa: S608
        (*values, after, limit),
    ).fetchall()
    return [(row[0], _tracklet(gallery, row, labels)) for row, labels in _with_labels(connection, rows)]


def allowed_ids(connection: sqlite3.Connection, gallery: GalleryRow, where: TrackletFilter) -> NDArray[np.int64]:
    """Vector ids of the tracklets that pass the filter; int64 (n,), ascending."""
    condition, values = _condition(gallery, where)
    # One long text instead of n rows: several times faster, and other threads run meanwhile.
    statement = f"SELECT coalesce(group_concat(vector_id), '') FROM tracklets WHERE {condition}"  # noqa: S608
    (text,) = connection.execute(statement, values).fetchone()
    return np.sort(np.fromstring(text, np.int64, sep=",")) if text else np.zeros(0, np.int64)


def _condition(gallery: GalleryRow, where: TrackletFilter) -> tuple[str, list[Any]]:
    """The filter, which lets damaged tracklets through: reading them fails, leaving them out might be wrong."""
    condition, values = filter_sql(gallery.key, where)
    if not gallery.damaged:
        return condition, values
    anyway = "vector_id IN (SELECT value FROM json_each(?))"
    return f"(({condition}) OR {anyway})", [*values, json.dumps(sorted(gallery.damaged))]


def filter_sql(gallery_key: int, where: TrackletFilter) -> tuple[str, list[Any]]:
    """The filter as a condition on `tracklets`, and the values to bind."""
    # With labels, SQLite is to begin with the few tracklets that have them, not with all of the gallery.
    conditions: list[str] = ["+gallery_key = ?" if where.labels else "gallery_key = ?"]
    values: list[Any] = [gallery_key]
    for column, negation, wanted in (
        ("camera_id", "", where.camera_ids),
        ("camera_id", "NOT ", where.exclude_camera_ids),
        ("identity_id", "", where.identity_ids),
    ):
        if wanted and len(wanted) <= MAX_VARIABLES:
            conditions.append(f"{column} {negation}IN ({_marks(wanted)})")
            values.extend(sorted(wanted))
        elif wanted:
            conditions.append(f"{column} {negation}IN (SELECT value FROM json_each(?))")  # noqa: S608
            values.append(json.dumps(sorted(wanted)))
    if where.start_time is not None:
        conditions.append("end_time >= ?")
        values.append(to_microseconds(where.start_time))
    if where.end_time is not None:
        conditions.append("start_time < ?")
        values.append(to_microseconds(where.end_time))
    if where.travel:
        condition, times = _travel_sql(where.travel)
        conditions.append(condition)
        values.extend(times)
    for key, value in where.labels.items():
        conditions.append("vector_id IN (SELECT vector_id FROM labels WHERE key = ? AND value = ?)")
        values.extend((key, value))
    return _joined(" AND ", conditions), values


def last_vector_id(connection: sqlite3.Connection) -> int:
    """The newest vector id of all galleries; 0 before the first."""
    (last,) = connection.execute("SELECT coalesce(max(vector_id), 0) FROM tracklets").fetchone()
    return int(last)


def _travel_sql(windows: Sequence[TravelWindow]) -> tuple[str, list[Any]]:
    """Tracklets of other cameras, or seen long enough after or before the query; overlapping where 0 is enough."""
    parts = [f"camera_id NOT IN ({_marks(windows)})"]
    values: list[Any] = [window.camera_id for window in windows]
    for window in windows:
        start, end = to_microseconds(window.start_time) or 0, to_microseconds(window.end_time) or 0
        least, most = window.shortest // MICROSECOND, window.longest // MICROSECOND
        overlaps = " OR (start_time <= ? AND end_time >= ?)" if least <= 0 else ""
        parts.append(f"(camera_id = ? AND (start_time BETWEEN ? AND ? OR end_time BETWEEN ? AND ?{overlaps}))")
        values += [window.camera_id, end + least, end + most, start - most, start - least]
        values += [end, start] if overlaps else []
    return f"({_joined(' OR ', parts)})", values


def _joined(word: str, conditions: list[str]) -> str:
    """The conditions with ` AND ` or ` OR ` between them."""
    while len(conditions) > MAX_CHAIN:
        parts = [conditions[start : start + MAX_CHAIN] for start in range(0, len(conditions), MAX_CHAIN)]
        conditions = [f"({word.join(part)})" for part in parts]
    return word.join(conditions)


def get_identities(connection: sqlite3.Connection, gallery: GalleryRow, vector_ids: Iterable[int]) -> dict[int, str]:
    """Identity of each tracklet that is there; empty when unknown. Raises DataLossError for one known to be damaged."""
    identities: dict[int, str] = {}
    if damaged := gallery.damaged.intersection(vector_ids):
        raise damaged_tracklet(connection, min(damaged))
    for chunk in _chunks([int(vector_id) for vector_id in vector_ids]):
        statement = f"SELECT vector_id, identity_id FROM tracklets WHERE vector_id IN ({_marks(chunk)})"  # noqa: S608
        identities.update(connection.execute(statement, chunk))
    return identities


def put_thumbnail(connection: sqlite3.Connection, vector_id: int, thumbnail: bytes) -> None:
    connection.execute(
        "INSERT INTO thumbnails (vector_id, thumbnail, checksum) VALUES (?, ?, ?)",
        (vector_id, thumbnail, seal(vector_id, thumbnail)),
    )


def get_thumbnail(connection: sqlite3.Connection, vector_id: int) -> bytes:
    """Empty when it has none. Raises DataLossError (THUMBNAIL_DAMAGED) when its checksum does not fit."""
    row = connection.execute("SELECT thumbnail, checksum FROM thumbnails WHERE vector_id = ?", (vector_id,)).fetchone()
    if row is None:
        return b""
    if seal(vector_id, row[0]) != row[1]:
        raise sealing.damage(f"the thumbnail of {name_of(connection, vector_id)}", "THUMBNAIL_DAMAGED")
    return bytes(row[0])


def get_thumbnails(connection: sqlite3.Connection, vector_ids: Iterable[int]) -> dict[int, bytes]:
    """Thumbnails of those tracklets that have a sound one: a damaged picture must not spoil a search."""
    thumbnails: dict[int, bytes] = {}
    for chunk in _chunks([int(vector_id) for vector_id in vector_ids]):
        statement = f"SELECT vector_id, thumbnail, checksum FROM thumbnails WHERE vector_id IN ({_marks(chunk)})"  # noqa: S608
        for vector_id, thumbnail, checksum in connection.execute(statement, chunk):
            if seal(vector_id, thumbnail) == checksum:
                thumbnails[vector_id] = thumbnail
            else:
                logger.error("the stored thumbnail number %d is damaged and left out", vector_id)
    return thumbnails


def put_frames(connection: sqlite3.Connection, vector_id: int, frames: Sequence[bytes]) -> None:
    values = [(vector_id, number, zlib.crc32(frame), frame) for number, frame in enumerate(frames)]
    connection.executemany("INSERT INTO frames VALUES (?, ?, ?, ?)", values)


def get_frames(connection: sqlite3.Connection, vector_id: int) -> tuple[bytes, ...]:
    """The kept frames in order. Raises DataLossError (FRAME_DAMAGED) when a checksum does not fit."""
    statement = "SELECT checksum, frame FROM frames WHERE vector_id = ? ORDER BY number"
    found = connection.execute(statement, (vector_id,)).fetchall()
    if any(zlib.crc32(frame) != checksum for checksum, frame in found):
        raise sealing.damage(f"a kept frame of {name_of(connection, vector_id)}", "FRAME_DAMAGED")
    return tuple(frame for _, frame in found)


def put_descriptor(
    connection: sqlite3.Connection, vector_id: int, descriptor: NDArray[np.float32], precision: Precision = "fp32"
) -> None:
    """Stores a descriptor as `validate.as_stored` gave it."""
    blob = descriptor.astype(_FORMATS[precision]).tobytes()
    connection.execute("INSERT INTO descriptors VALUES (?, ?, ?)", (vector_id, zlib.crc32(blob), blob))


def get_descriptor(connection: sqlite3.Connection, vector_id: int) -> NDArray[np.float32]:
    """float32 (D,). Raises DataLossError when its checksum does not fit."""
    row = connection.execute(
        "SELECT checksum, descriptor FROM descriptors WHERE vector_id = ?", (vector_id,)
    ).fetchone()
    descriptor: NDArray[np.float32] = decode_descriptors(connection, [(vector_id, *(row or (None, None)))])[0]
    return descriptor


def decode_descriptors(
    connection: sqlite3.Connection, found: Sequence[tuple[int, int | None, bytes | None]]
) -> NDArray[np.float32]:
    """float32 (n, D) of rows (vector id, checksum, stored bytes) of one gallery; at least one.

    Raises DataLossError (DESCRIPTOR_DAMAGED) when one is missing, or its checksum or length does not fit.
    """
    row = connection.execute(
        "SELECT descriptor_dim, descriptor_precision FROM tracklets JOIN galleries USING (gallery_key) WHERE vector_id = ?",
        (found[0][0],),
    ).fetchone()
    kind = np.dtype(_FORMATS.get(row[1] if row else "", "<f4"))
    width = kind.itemsize * row[0] if row else 0
    blobs: list[bytes] = []
    for vector_id, checksum, blob in found:
        if blob is None or zlib.crc32(blob) != checksum or len(blob) != width:
            raise sealing.damage(f"the descriptor of {name_of(connection, vector_id)}", "DESCRIPTOR_DAMAGED")
        blobs.append(blob)
    stored = np.frombuffer(b"".join(blobs), kind)
    return stored.astype(np.float32, copy=False).reshape(len(found), -1)


def name_of(connection: sqlite3.Connection, vector_id: int) -> str:
    """The name of a damaged tracklet, by the index of names, which has another copy than its row."""
    row = connection.execute(
        "SELECT gallery_id, tracklet_id FROM tracklets INDEXED BY sqlite_autoindex_tracklets_1 "
        "JOIN galleries USING (gallery_key) WHERE +vector_id = ?",
        (vector_id,),
    ).fetchone()
    name = f"galleries/{row[0]}/tracklets/{row[1]}" if row else f"tracklet number {vector_id}"
    return name.encode("utf-8", "backslashreplace").decode()


def damaged_tracklet(connection: sqlite3.Connection, vector_id: int) -> DataLossError:
    """The error that names a tracklet that is not as it was stored."""
    return sealing.damage(name_of(connection, vector_id), "TRACKLET_DAMAGED")


def get_secrets(connection: sqlite3.Connection) -> dict[str, bytes]:
    """The store's secrets by name. Raises DataLossError (ROW_DAMAGED)."""
    found = connection.execute(f"SELECT {sealing.selected('secrets')} FROM secrets")  # noqa: S608
    return {row[0]: sealing.opened(row, f"the secret {row[0]}")[1] for row in found}


def _tracklet(gallery: GalleryRow, row: Sequence[Any], labels: Mapping[str, str]) -> TrackletRecord:
    _, _, tracklet_id, camera_id, start, end, identity_id, frame_count, create_time, _ = row
    return TrackletRecord(
        gallery_id=gallery.record.gallery_id,
        tracklet_id=tracklet_id,
        camera_id=camera_id,
        start_time=None if start is None else from_microseconds(start),
        end_time=None if end is None else from_microseconds(end),
        identity_id=identity_id,
        labels=labels,
        frame_count=frame_count,
        create_time=from_microseconds(create_time),
    )


def _with_labels(
    connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]
) -> Iterator[tuple[Sequence[Any], Mapping[str, str]]]:
    labels: dict[int, dict[str, str]] = {row[0]: {} for row in rows}
    for chunk in _chunks(list(labels)):
        statement = f"SELECT vector_id, key, value FROM labels WHERE vector_id IN ({_marks(chunk)}) ORDER BY key"  # noqa: S608
        for vector_id, key, value in connection.execute(statement, chunk):
            labels[vector_id][key] = value
    for row in rows:
        of_labels = sum(seal(row[0], key, value) for key, value in labels[row[0]].items())
        if row[-1] != seal(*row[:-1]) + of_labels:
            raise damaged_tracklet(connection, row[0])
        yield row, labels[row[0]]


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), MAX_VARIABLES):
        yield ids[start : start + MAX_VARIABLES]


def _marks(values: Sized) -> str:
    return ",".join("?" * len(values))
