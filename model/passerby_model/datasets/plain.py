"""The plain layout, for one's own data.

    <root>/<identity>/<camera>/<tracklet>/<frame>.jpg, optionally below <root>/train and <root>/test

Frames are in the order of their names. With halves, training takes `train` and evaluation all of `test` against all of
`test`; without, evaluation takes everything against everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from passerby.errors import NotFoundError

from passerby_model.datasets.files import folders, shown, whole_tracklet
from passerby_model.datasets.tracklets import EvaluationSplit, Part, Tracklet

HALVES: dict[Part, tuple[str, ...]] = {"train": ("train",), "test": ("test",), "all": ("train", "test")}


def sign(root: Path) -> str:
    """None: what has no other format's sign is plain."""
    return ""


def tracklets(root: Path, part: Part) -> Iterator[Tracklet]:
    """Tracklets of one half, or of all. Raises: see `reading.read`."""
    for half in present(root, roots(root, part), part):
        yield from _below(half)


def splits(root: Path) -> tuple[EvaluationSplit, ...]:
    """One, all against all."""
    if not any((root / half).is_dir() for half in HALVES["all"]):
        everything = tuple(tracklets(root, "all"))
        return (EvaluationSplit("test", (), everything, everything),)
    test = tuple(tracklets(root, "test"))
    train = tuple(tracklets(root, "train")) if (root / "train").is_dir() else ()
    return (EvaluationSplit("test", train, test, test),)


def roots(root: Path, part: Part) -> list[Path]:
    """Folders that hold identities: the halves asked for, or the root of a set without halves."""
    halves = [root / name for name in HALVES[part]]
    if part == "all" and not any(half.is_dir() for half in halves):
        return [root]
    return halves


def present(root: Path, wanted: list[Path], part: Part) -> list[Path]:
    """Those of the folders `wanted` that are there. Raises NotFoundError when none is."""
    found = [folder for folder in wanted if folder.is_dir()]
    if not found:
        names = " or ".join(folder.name for folder in wanted)
        raise NotFoundError(f"{shown(root)}: has no part {part!r}: there is no folder {names} in it")
    return found


def _below(root: Path) -> Iterator[Tracklet]:
    for identity in folders(root):
        for camera in folders(identity, least=1):
            for tracklet in folders(camera, least=1):
                yield Tracklet(identity.name, camera.name, tracklet.name, whole_tracklet(tracklet))
