"""The official tables of MARS: which frames make a tracklet, and which tracklets are the queries.

    info/train_name.txt, test_name.txt      image names, one a line (LF or CRLF), in the order of the tracklets
    info/tracks_train_info.mat              track_train_info, integers (tracklets, 4): first and last line (1-based,
         tracks_test_info.mat               track_test_info   inclusive), person (-1 junk, 0 distractor), camera
    info/query_IDX.mat                      query_IDX, integers (1, queries): rows of track_test_info, 1-based
    info/mars_attributes.csv                optional: person-id, camera, tracklet, then a column an attribute

Sources: liangzheng06/MARS-evaluation, info/ (8,298 training tracklets of 625 people; 12,180 for testing, 1,980 of them
queries); yuange250/MARS-Attribute. A name list may be compressed (test_name.txt.xz), and all of it may lie in the root
itself instead of info/. Paths of frames are where the images belong, whether they are there or not.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from passerby.errors import NotFoundError

from passerby_model.datasets.files import MAX_TABLE_BYTES, broken, read_bytes, shown
from passerby_model.datasets.matlab import read_matrix
from passerby_model.datasets.table import read_csv
from passerby_model.datasets.tracklets import DISTRACTOR_IDENTITY, JUNK_IDENTITY, EvaluationSplit, Tracklet, people

Half = Literal["train", "test"]

FRAME = re.compile(r"(?P<tracklet>(?P<identity>\d{4}|00-1)C(?P<camera>\d)T\d{4})F(?P<frame>\d{3,})\.\w+", re.ASCII)
ATTRIBUTES = "mars_attributes.csv"
_ATTRIBUTE_KEYS = ("person-id", "camera", "tracklet")
_TRACKS = {half: f"tracks_{half}_info.mat" for half in ("train", "test")}


def folder_of(root: Path) -> Path | None:
    """Where the tables are: `root`/info or `root`; None when there are none."""
    for folder in (root / "info", root):
        if any((folder / name).is_file() for name in _TRACKS.values()):
            return folder
    return None


def read_half(root: Path, tables: Path, half: str) -> tuple[Tracklet, ...]:
    """Tracklets of one half, in the table's order.

    Raises:
        NotFoundError: a table or name list is missing.
        InvalidArgumentError: a table is broken, leaves its name list, contradicts the names, or repeats a tracklet.
    """
    path = tables / _TRACKS[half]
    rows = read_matrix(path, f"track_{half}_info", columns=4)
    names = _names(tables, half)
    attributes = _attributes(tables)
    first, last = rows[:, 0], rows[:, 1]
    wrong = np.flatnonzero((first < 1) | (last < first) | (last > len(names)))
    if wrong.size:
        row = int(wrong[0])
        raise broken(
            path, f"row {row + 1} is lines {first[row]} to {last[row]}, and the name list has {len(names)} lines"
        )
    found: list[Tracklet] = []
    seen: dict[str, int] = {}
    for row, (start, end, person, camera) in enumerate(rows.tolist(), start=1):
        tracklet = _tracklet(path, row, root / f"bbox_{half}", names[start - 1 : end], person, camera, attributes)
        if tracklet.tracklet_id in seen:
            raise broken(path, f"rows {seen[tracklet.tracklet_id]} and {row} are both {tracklet.tracklet_id}")
        seen[tracklet.tracklet_id] = row
        found.append(tracklet)
    return tuple(found)


def read_split(root: Path, tables: Path) -> EvaluationSplit:
    """Protocol A: the official queries, and all other test tracklets as gallery, both in the table's order.

    Raises: as `read_half`; and InvalidArgumentError when a query's row is not there, there twice, or nobody's.
    """
    train = read_half(root, tables, "train") if (tables / _TRACKS["train"]).is_file() else ()
    test = read_half(root, tables, "test")
    path = tables / "query_IDX.mat"
    chosen = read_matrix(path, "query_IDX").ravel().tolist()
    for row in chosen:
        if not 1 <= row <= len(test):
            raise broken(path, f"row {row} of {len(test)} rows of {_TRACKS['test']}")
        if test[row - 1].identity in (JUNK_IDENTITY, DISTRACTOR_IDENTITY):
            raise broken(path, f"row {row} is {test[row - 1].tracklet_id}, which is nobody to ask for")
    if len(set(chosen)) < len(chosen):
        raise broken(path, "a row is a query twice")
    queries = set(chosen)
    return EvaluationSplit(
        name="test",
        train=people(train),
        query=tuple(test[row - 1] for row in chosen),
        gallery=tuple(tracklet for row, tracklet in enumerate(test, start=1) if row not in queries),
    )


def _tracklet(
    path: Path,
    row: int,
    folder: Path,
    names: list[str],
    person: int,
    camera: int,
    attributes: Mapping[str, Mapping[str, str]],
) -> Tracklet:
    matches = [FRAME.fullmatch(name) for name in names]
    head = matches[0]
    if head is None or any(match is None or match["tracklet"] != head["tracklet"] for match in matches):
        raise broken(path, f"row {row} is not the frames of one tracklet: {names[0][:80]!r} to {names[-1][:80]!r}")
    identity = head["identity"]
    named = -1 if identity == JUNK_IDENTITY else int(identity)
    if (named, int(head["camera"])) != (person, camera):
        raise broken(path, f"row {row} is person {person}, camera {camera}; its frames are {head['tracklet']}")
    numbered = sorted((int(match["frame"]), match.string) for match in matches if match is not None)
    if len({number for number, _ in numbered}) < len(numbered):
        raise broken(path, f"row {row}, {head['tracklet']}, has a frame twice")
    place = folder / identity
    name = head["tracklet"]
    frames = tuple(place / file for _, file in numbered)
    return Tracklet(identity, head["camera"], name, frames, attributes.get(name, {}))


def _names(tables: Path, half: str) -> list[str]:
    plain = tables / f"{half}_name.txt"
    packed = plain.with_name(plain.name + ".xz")
    if plain.is_file():
        path, data = plain, read_bytes(plain)
    elif packed.is_file():
        path, data = packed, _unpacked(packed)
    else:
        raise NotFoundError(f"{shown(plain)}: no such file; the tables count its lines, so it belongs beside them")
    try:
        return data.decode("ascii").split()
    except UnicodeDecodeError as error:
        raise broken(path, f"not a list of names: {error}") from error


def _unpacked(path: Path) -> bytes:
    decompressor = lzma.LZMADecompressor(memlimit=MAX_TABLE_BYTES)
    try:
        data = decompressor.decompress(read_bytes(path), max_length=MAX_TABLE_BYTES)
    except (lzma.LZMAError, EOFError) as error:
        raise broken(path, f"no xz file: {error}") from error
    if not decompressor.eof:
        raise broken(path, f"cut short, or larger than {MAX_TABLE_BYTES} bytes unpacked")
    return data


def _attributes(tables: Path) -> dict[str, dict[str, str]]:
    """By tracklet id; empty without the table."""
    path = tables / ATTRIBUTES
    if not path.is_file():
        return {}
    found = {}
    for number, row in enumerate(read_csv(path, _ATTRIBUTE_KEYS), start=2):
        try:
            person, camera, track = (int(str(row.pop(column))) for column in _ATTRIBUTE_KEYS)
        except ValueError as error:
            raise broken(path, f"line {number}: person-id, camera and tracklet are numbers: {error}") from error
        name = f"{person:04d}C{camera}T{track:04d}"
        if name in found:
            raise broken(path, f"line {number}: {name} is there twice")
        found[name] = {column: str(value) for column, value in row.items()}
    return found
