"""Folders, names and small files of a set that somebody else has packed: sorted, bounded, and named when wrong."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from passerby.errors import InvalidArgumentError, NotFoundError

from passerby_model.datasets.tracklets import Tracklet

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
MAX_TABLE_BYTES = 256 * 2**20
"""Of a name list, table, JSON or pickle, unpacked; the longest of MARS has 14 MB."""
_UNSPEAKABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def folders(folder: Path, least: int = 0) -> list[Path]:
    """Sub-folders, sorted; hidden ones are passed over.

    Raises:
        NotFoundError: the folder cannot be read.
        InvalidArgumentError: an image beside them, so that the layout is another one; fewer than `least`; a name
            that cannot be printed; a link that leads to itself.
    """
    entries = _entries(folder)
    for entry in entries:
        if is_image(entry.name) and _leads_to(entry, os.DirEntry.is_file):
            raise misplaced(Path(entry.path), "an image where only folders belong")
    found = [Path(entry.path) for entry in entries if _leads_to(entry, os.DirEntry.is_dir)]
    if len(found) < least:
        raise InvalidArgumentError(f"{shown(folder)}: an empty folder", reason="DATASET_EMPTY")
    return found


def images(folder: Path) -> list[Path]:
    """Image files, sorted; sidecars, hidden and other files are passed over.

    Raises: as `folders`; here a folder beside the images is what does not belong.
    """
    entries = _entries(folder)
    for entry in entries:
        if _leads_to(entry, os.DirEntry.is_dir):
            raise misplaced(Path(entry.path), "a folder where only images belong")
    return [Path(entry.path) for entry in entries if is_image(entry.name)]


def image_names(folder: Path) -> list[str]:
    """Names of the image files of a folder, sorted, whatever else is in it. Raises NotFoundError."""
    return [entry.name for entry in _entries(folder) if is_image(entry.name)]


def is_image(name: str) -> bool:
    """By its suffix. A file with two suffixes, such as `0001.mask.png`, is a sidecar of a frame and not a frame."""
    stem, suffix = os.path.splitext(name)
    return suffix.lower() in IMAGE_SUFFIXES and "." not in stem


def whole_tracklet(folder: Path) -> tuple[Path, ...]:
    """The frames of a folder that is one tracklet. Raises InvalidArgumentError when there are none."""
    frames = tuple(images(folder))
    if not frames:
        raise InvalidArgumentError(f"{shown(folder)}: a tracklet without images", reason="DATASET_EMPTY")
    return frames


def read_bytes(path: Path, limit: int = MAX_TABLE_BYTES) -> bytes:
    """A table's bytes. Raises NotFoundError when it cannot be read, InvalidArgumentError above `limit` bytes, and for
    folders, pipes and devices."""
    if path.exists() and not path.is_file():
        raise broken(path, "not a file")  # a pipe would be waited for
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise NotFoundError(f"{shown(path)}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > limit:
        raise broken(path, f"larger than {limit} bytes, which no table of a data set is")
    return data


def read_json(path: Path) -> Any:
    """Raises NotFoundError when it cannot be read, InvalidArgumentError when it is no JSON."""
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise broken(path, f"no JSON: {error}") from error


def check_name(path: Path, what: str, name: str) -> str:
    """`name` unchanged. Raises InvalidArgumentError unless it can stand in a key, a log and a file name."""
    if not name or len(name) > 255 or "/" in name or name in (".", "..") or not is_speakable(name):
        raise broken(path, f"{name[:80]!r} is no name for {what}: 1 to 255 printable characters without '/'")
    return name


def is_speakable(name: str) -> bool:
    """Neither control characters nor bytes that are no UTF-8, which would break logs and tables."""
    return (name.isascii() and name.isprintable()) or not any(unicodedata.category(c) in _UNSPEAKABLE for c in name)


def shown(path: Path | str) -> str:
    """A path for a message, on one line whatever it holds."""
    text = str(path)
    return text if is_speakable(text) else text.encode("unicode_escape", "backslashreplace").decode("ascii")


def broken(path: Path, reason: str) -> InvalidArgumentError:
    """A file of the set is wrong."""
    return InvalidArgumentError(f"{shown(path)}: {reason}", reason="DATASET_BROKEN")


def misplaced(path: Path, reason: str) -> InvalidArgumentError:
    """The folders are another layout's."""
    return InvalidArgumentError(
        f"{shown(path)}: {reason}; layouts are bbox_train|bbox_test/PPPP/PPPPCcTttttFfff.jpg (MARS), "
        "<identity>/<camera>/<tracklet>/<frame>.jpg (plain) and those of docs/data.md",
        reason="DATASET_LAYOUT",
    )


def refuse_duplicates(root: Path, found: Iterable[Tracklet]) -> None:
    """Raises InvalidArgumentError when two tracklets have one key."""
    places: dict[str, list[Path]] = defaultdict(list)
    for tracklet in found:
        places[tracklet.key].append(tracklet.frames[0].parent)
    for key, folders_of_key in places.items():
        if len(folders_of_key) > 1:
            first, second = map(shown, folders_of_key[:2])
            raise InvalidArgumentError(f"{shown(root)}: tracklet {key} is there twice: {first} and {second}")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise NotFoundError(f"{shown(folder)}: cannot be read: {error.strerror or error}") from error
    for entry in found:
        if not is_speakable(entry.name):
            raise broken(Path(entry.path), "a name with control characters, or one that is no UTF-8; rename it")
    return found


def _leads_to(entry: os.DirEntry[str], kind: Any) -> bool:
    try:
        return bool(kind(entry))
    except OSError as error:
        raise broken(Path(entry.path), f"cannot be followed: {error.strerror or error}") from error
