"""A manifest: one's own data, wherever it lies, in one CSV or Parquet table.

    identity, camera, tracklet    what a row's frames belong to; one row a frame, or one a tracklet
    frame                         a path, from the manifest's folder or absolute; or a pattern in the file name
                                  (walks/ann/*.jpg); or, in Parquet, a list of paths
    part                          optional: train, query, gallery; or train, test (all against all)
    start_time, end_time          optional: of what the row names, ISO 8601 with a time zone; without an end, the start
    attribute.NAME                optional: what is known of the person

Frames are in the order of the rows, those of a pattern in the order of their names. Empty cells are unknown.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from passerby.errors import NotFoundError

from passerby_model.datasets.files import broken, check_name, image_names, is_speakable, shown
from passerby_model.datasets.table import Cell, read_csv, read_parquet
from passerby_model.datasets.tracklets import EvaluationSplit, Part, Tracklet

SUFFIXES = (".csv", ".parquet")
REQUIRED = ("identity", "camera", "tracklet", "frame")
OPTIONAL = ("part", "start_time", "end_time")
ATTRIBUTE = "attribute."
_PARTS: Mapping[Part, tuple[str, ...]] = {
    "train": ("train",),
    "test": ("test", "query", "gallery"),
    "all": ("", "train", "test", "query", "gallery"),
}


@dataclass
class _Growing:
    """A tracklet while its rows are read."""

    part: str
    frames: dict[Path, None] = field(default_factory=dict)
    times: list[datetime] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)


def sign(root: Path) -> str:
    """None: a manifest is a file, known by its suffix."""
    return ""


def tracklets(root: Path, part: Part) -> Iterator[Tracklet]:
    """Tracklets of a part; "test" is query and gallery. Raises: see `reading.read`."""
    found = _by_part(root)
    wanted = [name for name in _PARTS[part] if name in found]
    if found and not wanted:
        raise NotFoundError(f"{shown(root)}: has no part {part!r}; its column part names {', '.join(found) or 'none'}")
    for name in wanted:
        yield from found[name]


def splits(root: Path) -> tuple[EvaluationSplit, ...]:
    """One: by the column `part`; without one, everything against everything."""
    found = _by_part(root)
    halves = {frozenset({""}), frozenset({"test"}), frozenset({"query", "gallery"})}
    if set(found) - {"train"} not in halves:
        named = ", ".join(repr(name) for name in found)
        raise broken(root, f"the column part names {named}; it takes train and test, or train, query and gallery")
    test = tuple(found.get("test", ()) or found.get("", ()))
    query, gallery = (tuple(found.get(name, test)) for name in ("query", "gallery"))
    return (EvaluationSplit("test", tuple(found.get("train", ())), query, gallery),)


def _by_part(path: Path) -> dict[str, list[Tracklet]]:
    growing: dict[tuple[str, str, str], _Growing] = {}
    listings: dict[Path, list[str]] = {}
    rows = read_csv(path, REQUIRED) if path.suffix.lower() == ".csv" else read_parquet(path, REQUIRED)
    for number, row in enumerate(rows, start=1):
        if number == 1:
            _refuse_unknown_columns(path, row)
        identity, camera, tracklet = (check_name(path, f"the {name}", _text(row, name)) for name in REQUIRED[:3])
        one = growing.setdefault((identity, camera, tracklet), _Growing(_text(row, "part")))
        _add(path, number, row, one, listings)
    found: dict[str, list[Tracklet]] = {}
    for key, one in growing.items():
        start, end = (min(one.times), max(one.times)) if one.times else (None, None)
        found.setdefault(one.part, []).append(Tracklet(*key, tuple(one.frames), one.attributes, start, end))
    return found


def _add(path: Path, number: int, row: Mapping[str, Cell], one: _Growing, listings: dict[Path, list[str]]) -> None:
    part = _text(row, "part")
    if part not in _PARTS["all"]:
        raise broken(path, f"row {number}: part is {part[:80]!r}; it takes train, test, query or gallery")
    if part != one.part:
        raise broken(path, f"row {number}: the tracklet is in part {one.part!r} and in part {part!r}")
    for frame in _frames(path, number, row["frame"], listings):
        if frame in one.frames:
            raise broken(path, f"row {number}: {shown(frame)} is in the tracklet twice")
        one.frames[frame] = None
    one.times.extend(_time(path, number, _text(row, name)) for name in OPTIONAL[1:] if _text(row, name))
    for column in row:
        name, value = column.removeprefix(ATTRIBUTE), _text(row, column) if column.startswith(ATTRIBUTE) else ""
        if value and one.attributes.setdefault(name, value) != value:
            raise broken(path, f"row {number}: {column} is {value[:80]!r}, and was {one.attributes[name][:80]!r}")


def _frames(path: Path, number: int, cell: Cell, listings: dict[Path, list[str]]) -> list[Path]:
    if isinstance(cell, list):
        named = [path.parent / _path(path, number, name) for name in cell]
    else:
        frame = path.parent / _path(path, number, cell)
        if not {"*", "?"} & set(frame.name):
            return [frame]
        names = listings.get(frame.parent)
        if names is None:
            names = listings[frame.parent] = image_names(frame.parent)
        named = [frame.parent / name for name in fnmatch.filter(names, frame.name)]
    if not named:
        raise broken(path, f"row {number}: no image is {str(cell)[:80]!r}")
    return named


def _path(path: Path, number: int, name: str) -> str:
    if not name or not is_speakable(name):
        raise broken(path, f"row {number}: frame is {name[:80]!r}, which is no path")
    return name


def _time(path: Path, number: int, text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise broken(path, f"row {number}: {text[:80]!r} is no time such as 2026-11-21T09:14:03Z") from error
    if time.utcoffset() is None:
        raise broken(path, f"row {number}: {text} has no time zone; write Z or +01:00 after it")
    return time


def _text(row: Mapping[str, Cell], column: str) -> str:
    value = row.get(column, "")
    return value.strip() if isinstance(value, str) else str(value)


def _refuse_unknown_columns(path: Path, row: Mapping[str, Cell]) -> None:
    known = (*REQUIRED, *OPTIONAL)
    for column in row:
        if column not in known and not (column.startswith(ATTRIBUTE) and len(column) > len(ATTRIBUTE)):
            near = difflib.get_close_matches(column, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"what is known of a person goes into {ATTRIBUTE}NAME"
            raise broken(path, f"unknown column {column[:80]!r}; {hint}")
