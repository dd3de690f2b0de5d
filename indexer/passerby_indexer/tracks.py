"""A tracker's output: where each person is in each frame of a video.

Source: the format of the MOT challenge (Leal-Taixe et al., arXiv 1504.01942, section 3.3; Milan et al., arXiv 1603.00831,
tables 4 and 5). One line a box: frame (from 1), track, left, top, width, height in pixels, confidence, and further columns.
A confidence of 0 marks a box that does not count. Lines of nine columns are annotations with a class in the eighth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from passerby.errors import InvalidArgumentError, NotFoundError

COLUMNS = 6
ANNOTATED_COLUMNS = 9
# Of the classes of annotations: pedestrian, person on vehicle, static person.
PEOPLE = frozenset({1, 2, 7})
MAX_FRAMES = 1000
"""Frames of one tracklet; longer tracks are cut, so that memory is bounded. 40 s at 25 frames a second."""


@dataclass(frozen=True, slots=True)
class Box:
    """Where a person is in frame `frame` (from 1); pixels, from the picture's left top corner."""

    frame: int
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Track:
    """A track, or a piece of one: its boxes in order of time, at most `MAX_FRAMES` of them.

    name: the tracker's number; of further pieces `7p2`, `7p3`.
    """

    name: str
    boxes: tuple[Box, ...]


def read_tracks(path: Path) -> tuple[Track, ...]:
    """The tracks of a file, in the order in which they end.

    Raises:
        NotFoundError: the file cannot be read.
        InvalidArgumentError: a line that is no box (named), a track twice in one frame, or no boxes at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path}: no text file of tracks: {error}") from error
    tracks: dict[int, dict[int, Box]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = _box(path, number, line)
        if found is None:
            continue
        track, box = found
        if tracks.setdefault(track, {}).setdefault(box.frame, box) is not box:
            raise InvalidArgumentError(f"{path}: line {number}: track {track} is in frame {box.frame} twice")
    if not tracks:
        raise InvalidArgumentError(f"{path}: holds no boxes; one a line: frame,track,left,top,width,height,confidence")
    pieces = [piece for track in sorted(tracks) for piece in _pieces(track, tracks[track])]
    return tuple(sorted(pieces, key=lambda piece: piece.boxes[-1].frame))


def _box(path: Path, number: int, line: str) -> tuple[int, Box] | None:
    """Track and box of a line; None for one that does not count."""
    fields = line.replace(",", " ").split()
    try:
        values = [float(field) for field in fields]
    except ValueError:
        values = []
    if len(values) < COLUMNS or not all(map(math.isfinite, values[:COLUMNS])):
        raise InvalidArgumentError(
            f"{path}: line {number}: {line[:80]!r} is no box; one a line: frame,track,left,top,width,height,confidence"
        )
    frame, track = values[:2]
    if frame < 1 or not frame.is_integer() or not track.is_integer():
        raise InvalidArgumentError(
            f"{path}: line {number}: frame {fields[0][:20]} and track {fields[1][:20]} must be whole numbers, frames from 1"
        )
    if len(values) > COLUMNS and values[COLUMNS] == 0:
        return None
    if len(values) == ANNOTATED_COLUMNS and values[7] not in PEOPLE:
        return None
    return int(track), Box(int(frame), *values[2:COLUMNS])


def _pieces(track: int, boxes: dict[int, Box]) -> list[Track]:
    ordered = [boxes[frame] for frame in sorted(boxes)]
    cut = [tuple(ordered[start : start + MAX_FRAMES]) for start in range(0, len(ordered), MAX_FRAMES)]
    return [Track(str(track) if number == 1 else f"{track}p{number}", piece) for number, piece in enumerate(cut, 1)]
