"""The synthetic street, as `passerby street` writes it.

The plain layout, and beside it street.json with a record a tracklet: times of the first and the last frame, and the
person's attributes. A set in halves has the file in each half. A tracklet without a record has neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from passerby.errors import InvalidArgumentError

from passerby_model.datasets import plain
from passerby_model.datasets.files import broken, read_json
from passerby_model.datasets.tracklets import EvaluationSplit, Part, Tracklet

RECORD = "street.json"


@dataclass(frozen=True)
class _Record:
    start_time: datetime
    end_time: datetime
    attributes: Mapping[str, str]


def sign(root: Path) -> str:
    """The record; an empty file is none."""
    return next((found.relative_to(root).as_posix() for found in _record_files(root)), "")


def tracklets(root: Path, part: Part) -> Iterator[Tracklet]:
    """Tracklets of one half, or of all, with what the record knows. Raises: see `reading.read`."""
    yield from _recorded(plain.tracklets(root, part), _records(root))


def splits(root: Path) -> tuple[EvaluationSplit, ...]:
    """One, all against all."""
    records = _records(root)
    (split,) = plain.splits(root)
    train, query = (tuple(_recorded(found, records)) for found in (split.train, split.query))
    return (EvaluationSplit(split.name, train, query, query),)


def _recorded(found: Iterable[Tracklet], records: Mapping[str, _Record]) -> Iterator[Tracklet]:
    for tracklet in found:
        known = records.get(tracklet.key)
        if known is None:
            yield tracklet
        else:
            yield replace(tracklet, start_time=known.start_time, end_time=known.end_time, attributes=known.attributes)


def _record_files(root: Path) -> list[Path]:
    folders = [root, *(root / half for half in plain.HALVES["all"])]
    paths = [folder / RECORD for folder in folders]
    return [path for path in paths if path.is_file() and path.stat().st_size]


def _records(root: Path) -> dict[str, _Record]:
    """By `Tracklet.key`."""
    found: dict[str, _Record] = {}
    for path in _record_files(root):
        try:
            for entry in read_json(path)["tracklets"]:
                key = f"{entry['identity']}/{entry['camera']}/{entry['tracklet']}"
                attributes = {str(name): _text(value) for name, value in entry.get("attributes", {}).items()}
                found[key] = _Record(_time(entry["start_time"]), _time(entry["end_time"]), attributes)
        except (ValueError, KeyError, TypeError, AttributeError, InvalidArgumentError) as error:
            raise broken(
                path,
                f"not as `passerby street` writes it ({type(error).__name__}: {error}); repair it, or move it away to "
                "do without times and attributes",
            ) from error
    return found


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, str | int | float):
        raise TypeError(f"{value!r} is no attribute")
    return str(value)


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.utcoffset() is None:
        raise ValueError(f"{text} has no time zone")
    return time
