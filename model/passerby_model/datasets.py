"""Tracklets on disk: what is where, without opening an image (no torch, no decoding).

Two layouts:

    MARS     <root>/bbox_train|bbox_test/PPPP/PPPPCcTttttFfff.jpg    identity, camera, tracklet, frame;
             "00-1" is junk (badly detected), "0000" a distractor (nobody of interest)
    plain    <root>/<identity>/<camera>/<tracklet>/<frame>.jpg, optionally below <root>/train and <root>/test

Source of the MARS naming: Zheng et al., "MARS: A Video Benchmark for Large-Scale Person Re-identification", ECCV
2016. Every listing is sorted, so that results never depend on the file system. A file with two suffixes, such as
`0001.mask.png`, is a sidecar of a frame and not a frame; other files that are no images are passed over.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from passerby.errors import InvalidArgumentError, NotFoundError

Format = Literal["auto", "mars", "plain"]
Part = Literal["all", "train", "test"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
JUNK_IDENTITY = "00-1"
DISTRACTOR_IDENTITY = "0000"
_PARTS: dict[Part, tuple[str, ...]] = {"train": ("train",), "test": ("test",), "all": ("train", "test")}
_MARS_FRAME = re.compile(r"(?P<tracklet>(?P<identity>\d{4}|00-1)C(?P<camera>\d)T\d{4})F(?P<frame>\d{3,})\.\w+")


@dataclass(frozen=True)
class Tracklet:
    """Crops of one person from one camera.

    identity, camera: as the folder or file names have them ("0003", "1"; "ann", "entrance").
    tracklet_id: "0003C1T0001" for MARS, the folder's name for the plain layout (unique within identity and camera).
    frames: paths in order of time, at least one.
    """

    identity: str
    camera: str
    tracklet_id: str
    frames: tuple[Path, ...]

    @property
    def key(self) -> str:
        """Unique within a data set: "identity/camera/tracklet_id"."""
        return f"{self.identity}/{self.camera}/{self.tracklet_id}"


@dataclass(frozen=True)
class TrackletDataset:
    """Tracklets of one folder, sorted by identity, camera and tracklet."""

    root: Path
    format: Literal["mars", "plain"]
    tracklets: tuple[Tracklet, ...]

    def __len__(self) -> int:
        return len(self.tracklets)

    def __iter__(self) -> Iterator[Tracklet]:
        return iter(self.tracklets)

    @property
    def identities(self) -> tuple[str, ...]:
        """Sorted, each once; junk and distractors of MARS included."""
        return tuple(sorted({tracklet.identity for tracklet in self.tracklets}))

    @property
    def cameras(self) -> tuple[str, ...]:
        """Sorted, each once."""
        return tuple(sorted({tracklet.camera for tracklet in self.tracklets}))

    @property
    def frame_count(self) -> int:
        return sum(len(tracklet.frames) for tracklet in self.tracklets)

    def people(self) -> TrackletDataset:
        """Without MARS's junk and distractors, which are nobody to train on or to search for."""
        if self.format != "mars":
            return self
        nobody = (JUNK_IDENTITY, DISTRACTOR_IDENTITY)
        kept = tuple(tracklet for tracklet in self.tracklets if tracklet.identity not in nobody)
        return TrackletDataset(self.root, self.format, kept)


def read(
    path: str | os.PathLike[str],
    format: Format = "auto",
    part: Part = "all",
    identities: Collection[str] | None = None,
) -> TrackletDataset:
    """List the tracklets below `path`.

    Args:
        path: the root of the data set.
        format: "mars", "plain", or "auto" (MARS when there is bbox_train or bbox_test).
        part: which of the two halves; "all" for both, and for a plain layout without halves.
        identities: keep these only (an allow-list); every name must be present.

    Raises:
        NotFoundError: no such folder, or the part asked for is not there.
        InvalidArgumentError: nothing in it, a file or folder where it does not belong, or an unknown identity.
    """
    root = Path(path)
    if not root.is_dir():
        raise NotFoundError(f"{root}: no such folder" if not root.exists() else f"{root}: not a folder")
    if format not in get_args(Format) or part not in _PARTS:
        raise InvalidArgumentError(
            f"format is one of {', '.join(get_args(Format))}, part one of {', '.join(_PARTS)}; got {format!r}, {part!r}"
        )
    mars_folders = [root / f"bbox_{name}" for name in _PARTS[part]]
    is_mars = format == "mars" or (format == "auto" and any((root / f"bbox_{n}").is_dir() for n in _PARTS["all"]))
    found: list[Tracklet] = []
    for folder in _present(root, mars_folders if is_mars else _plain_roots(root, part), part):
        found.extend(_read_mars(folder) if is_mars else _read_plain(folder))
    if not found:
        raise InvalidArgumentError(f"{root}: holds no tracklets", reason="DATASET_EMPTY")
    found.sort(key=lambda tracklet: (tracklet.identity, tracklet.camera, tracklet.tracklet_id))
    _refuse_duplicates(root, found)
    return TrackletDataset(root, "mars" if is_mars else "plain", tuple(_allowed(root, found, identities)))


def read_identities(path: str | os.PathLike[str]) -> frozenset[str]:
    """An allow-list: one identity a line; blank lines and everything after "#" do not count.

    Raises:
        NotFoundError: no such file.
        InvalidArgumentError: it names nobody.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror or error}") from error
    names = frozenset(line.partition("#")[0].strip() for line in lines) - {""}
    if not names:
        raise InvalidArgumentError(f"{path}: names no identity; write one a line")
    return names


def _plain_roots(root: Path, part: Part) -> list[Path]:
    halves = [root / name for name in _PARTS[part]]
    if part == "all" and not any(half.is_dir() for half in halves):
        return [root]
    return halves


def _present(root: Path, folders: list[Path], part: Part) -> list[Path]:
    present = [folder for folder in folders if folder.is_dir()]
    if not present:
        names = " or ".join(folder.name for folder in folders)
        raise NotFoundError(f"{root}: has no part {part!r}: there is no folder {names} in it")
    return present


def _read_mars(folder: Path) -> Iterator[Tracklet]:
    for person in _folders(folder):
        frames: dict[str, list[tuple[int, Path]]] = defaultdict(list)
        for file in _images(person):
            match = _MARS_FRAME.fullmatch(file.name)
            if match is None or match["identity"] != person.name:
                raise _misplaced(file, f"the name is not {person.name}CcTttttFfff.jpg, as MARS has it")
            frames[match["tracklet"]].append((int(match["frame"]), file))
        for name, numbered in frames.items():
            camera = name.removeprefix(person.name)[1]
            yield Tracklet(person.name, camera, name, tuple(file for _, file in sorted(numbered)))


def _read_plain(root: Path) -> Iterator[Tracklet]:
    for identity in _folders(root):
        for camera in _folders(identity, least=1):
            for tracklet in _folders(camera, least=1):
                frames = tuple(_images(tracklet))
                if not frames:
                    raise InvalidArgumentError(f"{tracklet}: a tracklet without images", reason="DATASET_EMPTY")
                yield Tracklet(identity.name, camera.name, tracklet.name, frames)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise NotFoundError(f"{folder}: cannot be read: {error.strerror or error}") from error


def _is_image(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    return suffix.lower() in IMAGE_SUFFIXES and "." not in stem


def _folders(folder: Path, least: int = 0) -> list[Path]:
    """Sub-folders; an image beside them means that the layout is another one."""
    entries = _entries(folder)
    for entry in entries:
        if entry.is_file() and _is_image(entry.name):
            raise _misplaced(Path(entry.path), "an image where only folders belong")
    found = [Path(entry.path) for entry in entries if entry.is_dir()]
    if len(found) < least:
        raise InvalidArgumentError(f"{folder}: an empty folder", reason="DATASET_EMPTY")
    return found


def _images(folder: Path) -> list[Path]:
    """Image files; a folder beside them means that the layout is another one."""
    entries = _entries(folder)
    for entry in entries:
        if entry.is_dir():
            raise _misplaced(Path(entry.path), "a folder where only images belong")
    return [Path(entry.path) for entry in entries if _is_image(entry.name)]


def _misplaced(path: Path, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{path}: {reason}; layouts are bbox_train|bbox_test/PPPP/PPPPCcTttttFfff.jpg (MARS) and "
        "<identity>/<camera>/<tracklet>/<frame>.jpg",
        reason="DATASET_LAYOUT",
    )


def _refuse_duplicates(root: Path, found: list[Tracklet]) -> None:
    for first, second in itertools.pairwise(found):
        if first.key == second.key:
            raise InvalidArgumentError(
                f"{root}: tracklet {first.key} is there twice: {first.frames[0].parent} and {second.frames[0].parent}"
            )


def _allowed(root: Path, found: list[Tracklet], identities: Collection[str] | None) -> list[Tracklet]:
    if identities is None:
        return found
    absent = sorted(set(identities) - {tracklet.identity for tracklet in found})
    if absent:
        raise InvalidArgumentError(
            f"{root}: {len(absent)} of the identities asked for are not in it: {', '.join(absent[:5])}"
        )
    return [tracklet for tracklet in found if tracklet.identity in set(identities)]
