"""Where the values of a row lie in an SQLite file, after its file format (sqlite.org/fileformat2.html), to damage them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

_WIDTHS = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 8, 8: 0, 9: 0}
"""Bytes of a value by its serial type; from 12 on blobs and texts."""


def values_of(path: Path, table: str) -> dict[str, list[tuple[int, int]]]:
    """First byte in the file, and length, of each value of `table`, by column; only what lies on leaf pages, beside its
    neighbours: of long values the beginning. The file has no log beside it."""
    connection = sqlite3.connect(path)
    (root, size) = connection.execute(
        "SELECT rootpage, page_size FROM sqlite_schema, pragma_page_size WHERE name = ?", (table,)
    ).fetchone()
    (text,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    info = connection.execute(f"PRAGMA table_info({table})").fetchall()
    connection.close()
    rowid = "WITHOUT ROWID" not in text
    names = [row[1] for row in info]
    if not rowid:  # the key comes first
        keys = [row[1] for row in sorted(info, key=lambda row: row[5]) if row[5]]
        names = [*keys, *(name for name in names if name not in keys)]
    content = path.read_bytes()
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    for start, cell in _cells(content, root, size):
        place = cell
        length, place = _varint(content, place)
        if rowid:
            _, place = _varint(content, place)
        header = place
        width, place = _varint(content, place)
        value = header + width
        for name in names:
            if place >= header + width:
                break  # a column that was added later
            kind, place = _varint(content, place)
            taken = _WIDTHS[kind] if kind < 12 else (kind - 12) // 2
            if taken and value + taken <= min(start + size, header + length):
                found[name].append((value, taken))
            elif taken:  # the rest is on overflow pages; the first bytes are here
                found[name].append((value, min(taken, 16)))
            value += taken
    return found


def _cells(content: bytes, page: int, size: int) -> Iterator[tuple[int, int]]:
    """Start of the page, and place, of all leaf cells below `page` (and of inner cells of tables without row ids)."""
    start = (page - 1) * size
    kind = content[start]
    count = int.from_bytes(content[start + 3 : start + 5], "big")
    inner = kind in (2, 5)
    pointers = start + (12 if inner else 8)
    for number in range(count):
        place = start + int.from_bytes(content[pointers + 2 * number : pointers + 2 * number + 2], "big")
        if inner:
            yield from _cells(content, int.from_bytes(content[place : place + 4], "big"), size)
        if kind == 2:
            yield start, place + 4
        if not inner:
            yield start, place
    if inner:
        yield from _cells(content, int.from_bytes(content[start + 8 : start + 12], "big"), size)


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = 0
    for step in range(9):
        byte = content[place + step]
        if step == 8:
            return (value << 8) | byte, place + 9
        value = (value << 7) | (byte & 127)
        if byte < 128:
            return value, place + step + 1
    raise AssertionError
