"""What is to be indexed: tracklets on disk (layouts: `passerby_model.datasets`) and, where known, their times.

A synthetic street writes `street.json` beside its folders; the times of its tracklets are taken from there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from passerby.errors import InvalidArgumentError
from passerby_model.datasets import DISTRACTOR_IDENTITY, JUNK_IDENTITY, Format, Tracklet, read

STREET_RECORD = "street.json"
Span = tuple[datetime, datetime]
"""Times of the first and the last frame, with a time zone."""


@dataclass(frozen=True, slots=True)
class Scan:
    """Tracklets, sorted, and the times of those of which they are known, by `Tracklet.key`."""

    tracklets: tuple[Tracklet, ...]
    times: Mapping[str, Span]


def scan(folder: Path, layout: Format = "auto", *, limit: int | None = None) -> Scan:
    """Lists the tracklets below `folder`, at most `limit` of them, without opening an image.

    Raises:
        NotFoundError: no such folder.
        InvalidArgumentError: nothing in it, another layout, or a street.json that cannot be read.
    """
    found = read(folder, format=layout).tracklets
    return Scan(tuple(itertools.islice(found, limit)), street_times(folder))


def street_times(folder: Path) -> dict[str, Span]:
    """Times by `Tracklet.key` from `folder`/street.json; empty without such a file.

    Raises InvalidArgumentError when there is one that is not what `passerby street` writes.
    """
    path = folder / STREET_RECORD
    if not path.is_file():
        return {}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["tracklets"]
        return {
            f"{record['identity']}/{record['camera']}/{record['tracklet']}": (
                _time(record["start_time"]),
                _time(record["end_time"]),
            )
            for record in records
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError(
            f"{path}: not as `passerby street` writes it ({error!r}); repair it, or move it away to index without times"
        ) from error


def known_identity(tracklet: Tracklet) -> str:
    """Whom the tracklet shows; empty for MARS's junk and distractors, who are nobody in particular."""
    is_mars = tracklet.tracklet_id.startswith(f"{tracklet.identity}C")
    return "" if is_mars and tracklet.identity in (JUNK_IDENTITY, DISTRACTOR_IDENTITY) else tracklet.identity


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.utcoffset() is None:
        raise ValueError(f"{text} has no time zone")
    return time
