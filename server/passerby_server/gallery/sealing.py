"""A seal in every row: a checksum of its values, so that a bit that the disk flipped is not taken for what was stored.

SQLite checks how its pages hang together, not the values in them. Triggers of each writing connection (TEMP: no part of
the file) keep the seals, whatever the statement that writes:

    new row       seal = crc(values)
    changed row   seal = seal - crc(old values) + crc(new values): one that was damaged stays so
    labels        count in their tracklet's seal: one that is lost, or went to another tracklet, is noticed there

Whoever reads a row compares. Descriptors, thumbnails and frames have checksums of their own, see `rows`.
"""

from __future__ import annotations

import functools
import logging
import re
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from passerby.errors import DataLossError

logger = logging.getLogger(__name__)

_KEYS = {
    "galleries": ("gallery_key",),
    "tracklets": ("vector_id",),
    "retention": ("gallery_key", "camera_id"),
    "changes": ("change_id",),
    "change_items": ("change_id", "vector_id"),
    "requests": ("gallery_id", "request_id"),
    "audit": ("audit_id",),
    "secrets": ("name",),
    "upkeep": ("name",),
    "backups": ("backup_id",),
}
COLUMNS = {
    "galleries": (
        "gallery_key", "gallery_id", "display_name", "fingerprint", "descriptor_dim", "metric", "create_time",
        "index_kind", "false_match_rate", "follows", "keep_frames", "descriptor_precision",
    ),
    "tracklets": (
        "vector_id", "gallery_key", "tracklet_id", "camera_id", "start_time", "end_time", "identity_id",
        "frame_count", "create_time",
    ),
    "retention": ("gallery_key", "camera_id", "keep"),
    "changes": ("change_id", "gallery_key", "undone"),
    "change_items": ("change_id", "vector_id", "before", "after"),
    "requests": ("gallery_id", "request_id", "method", "digest", "vector_id", "deleted_count", "time"),
    "audit": ("audit_id", "time", "action", "gallery_id", "tracklet_id", "detail"),
    "secrets": ("name", "value"),
    "upkeep": ("name", "value"),
    "backups": ("backup_id", "time", "location"),
}  # fmt: skip
"""What is sealed of each table, in this order. To add a column: a migration that adds it, and seals the rows anew."""
LABEL_COLUMNS = ("vector_id", "key", "value")
_OF_INDEX = re.compile(r"(row \d+ missing from index|wrong # of entries in index|non-unique entry in index) \w+")
_OF_ROW = re.compile(rf"(CHECK constraint failed|NULL value|non-\w+ value) in ({'|'.join(COLUMNS)}|labels)(\.\w+)?")
RAISED = "user-defined function raised exception"
"""What SQLite says when a damaged text, which is not UTF-8 any more, keeps a seal from being changed."""


def seal(*values: str | float | bytes | None) -> int:
    """CRC-32 of a row's values."""
    if bytes in map(type, values):
        values = tuple(value.hex() if isinstance(value, bytes) else value for value in values)
    return zlib.crc32("\0".join(map(str, values)).encode("utf-8", "surrogateescape"))


def prepare(connection: sqlite3.Connection) -> None:
    """Has damaged text read as it is: seals tell that it is damaged, SQLite's error would not say where."""
    connection.text_factory = functools.partial(str, encoding="utf-8", errors="surrogateescape")
    connection.create_function("seal", -1, seal, deterministic=True)


def keep_sealed(connection: sqlite3.Connection) -> None:
    """Has a prepared connection, to a store of the newest schema, seal what it writes."""
    for table, columns in COLUMNS.items():
        here = " AND ".join(f"{key} = NEW.{key}" for key in _KEYS[table])
        new, old = _of("NEW", columns), _of("OLD", columns)
        update = f"UPDATE {table} SET seal"  # noqa: S608 - of the names above, as all here
        connection.execute(
            f"CREATE TEMP TRIGGER seal_new_{table} AFTER INSERT ON main.{table} BEGIN {update} = {new} WHERE {here}; END"
        )
        connection.execute(
            f"CREATE TEMP TRIGGER seal_changed_{table} AFTER UPDATE OF {', '.join(columns)} ON main.{table} "
            f"BEGIN {update} = OLD.seal - {old} + {new} WHERE {here}; END"
        )
    for event, row, sign in (("INSERT", "NEW", "+"), ("DELETE", "OLD", "-")):
        connection.execute(
            f"CREATE TEMP TRIGGER seal_label_{event} AFTER {event} ON main.labels BEGIN UPDATE tracklets "  # noqa: S608
            f"SET seal = seal {sign} {_of(row, LABEL_COLUMNS)} WHERE vector_id = {row}.vector_id; END"
        )


def selected(table: str) -> str:
    """The columns to select of a sealed table: its values in order, then the seal."""
    return ", ".join((*COLUMNS[table], "seal"))


def opened(row: Sequence[Any], what: str) -> Sequence[Any]:
    """The values of a row as `selected`. Raises DataLossError (ROW_DAMAGED), which names `what`, for a damaged one."""
    if not is_sound(row):
        raise damage(what)
    return row[:-1]


def is_sound(row: Sequence[Any]) -> bool:
    """Whether a row as `selected` is as it was stored; not for tracklets, whose labels count too."""
    return bool(row[-1] == seal(*row[:-1]))


def damage(what: str, reason: str = "ROW_DAMAGED") -> DataLossError:
    """The error that names a damaged row."""
    name = what.encode("utf-8", "backslashreplace").decode()
    return DataLossError(f"{name} is damaged in the store: restore the data folder from a backup", reason=reason)


def verify(connection: sqlite3.Connection, path: Path) -> None:
    """Raises DataLossError unless SQLite finds the whole file sound, apart from values in rows: their seals tell of them.

    Indexes that do not fit their rows are made anew.
    """
    findings = _findings(connection)
    if findings and all(map(_OF_INDEX.fullmatch, findings)):
        logger.error("indexes of the database do not fit its rows, and are made anew: %s", "; ".join(findings[:3]))
        connection.execute("REINDEX")
        findings = _findings(connection)
    if findings:
        raise DataLossError(
            f"the gallery database {path} is damaged ({'; '.join(findings[:3])}): restore the data folder from a backup",
            reason="STORE_DAMAGED",
        )


def damaged_tracklets(connection: sqlite3.Connection) -> list[tuple[int, int]]:
    """Gallery key and vector id of the tracklets that are not as they were stored, or have no descriptor; about 5 us each."""
    labels = connection.execute(f"SELECT {', '.join(LABEL_COLUMNS)} FROM labels ORDER BY vector_id")  # noqa: S608
    label = labels.fetchone()
    found: list[tuple[int, int]] = []
    for *values, expected in connection.execute(f"SELECT {selected('tracklets')} FROM tracklets ORDER BY vector_id"):  # noqa: S608
        total = seal(*values)
        while label is not None and label[0] <= values[0]:
            if label[0] == values[0]:
                total += seal(*label)
            label = labels.fetchone()
        if total != expected:
            found.append((values[1], values[0]))
    bare = "SELECT gallery_key, vector_id FROM tracklets WHERE vector_id NOT IN (SELECT vector_id FROM descriptors)"
    return sorted({*found, *connection.execute(bare)})


def damaged_rows(connection: sqlite3.Connection) -> Iterator[str]:
    """Table and key of every other sealed row that is not as it was stored."""
    for table in COLUMNS:
        if table == "tracklets":
            continue
        for row in connection.execute(f"SELECT {selected(table)} FROM {table}"):  # noqa: S608
            if not is_sound(row):
                key = [str(row[COLUMNS[table].index(name)]) for name in _KEYS[table]]
                yield f"{table} {'/'.join(key)}".encode("utf-8", "backslashreplace").decode()


def _of(row: str, columns: Sequence[str]) -> str:
    return f"seal({', '.join(f'{row}.{column}' for column in columns)})"


def _findings(connection: sqlite3.Connection) -> list[str]:
    found = [row[0] for row in connection.execute("PRAGMA integrity_check(100)")]
    return [finding for finding in found if finding != "ok" and not _OF_ROW.fullmatch(finding)]
