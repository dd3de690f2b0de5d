"""MARS, and every set that is laid out like it.

    <root>/bbox_train|bbox_test/PPPP/PPPPCcTttttFfff.jpg    identity, camera, tracklet, frame;
           "00-1" is junk (badly detected), "0000" a distractor (nobody of interest)
    <root>/info/                                            the official tables, see mars_tables.py

Source of the naming: Zheng et al., "MARS: A Video Benchmark for Large-Scale Person Re-identification", ECCV 2016.

Tracklets come from the image folders; where there are none, from the tables, so that metadata alone can be looked at.
The evaluation split comes from the tables, which say what a query is; without them, everybody in bbox_test is asked
for, and all of bbox_test is looked through.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from passerby_model.datasets import mars_tables
from passerby_model.datasets.files import folders, images, misplaced
from passerby_model.datasets.mars_tables import FRAME
from passerby_model.datasets.plain import HALVES, present
from passerby_model.datasets.tracklets import EvaluationSplit, Part, Tracklet, people


def sign(root: Path) -> str:
    """One of the folders of images, or the tables."""
    if halves := image_folders(root):
        return halves[0].name
    return "tracks_*_info.mat" if mars_tables.folder_of(root) is not None else ""


def image_folders(root: Path) -> list[Path]:
    """Those of bbox_train and bbox_test that are there; none where there is metadata alone."""
    return [folder for half in HALVES["all"] if (folder := root / f"bbox_{half}").is_dir()]


def tracklets(root: Path, part: Part) -> Iterator[Tracklet]:
    """Tracklets of one half, or of both. Raises: see `reading.read`."""
    wanted = [root / f"bbox_{half}" for half in HALVES[part]]
    tables = mars_tables.folder_of(root)
    if tables is not None and not image_folders(root):
        for half in HALVES[part]:
            yield from mars_tables.read_half(root, tables, half)
        return
    for folder in present(root, wanted, part):
        yield from _below(folder)


def splits(root: Path) -> tuple[EvaluationSplit, ...]:
    """One: the official queries where the tables are there, else all of bbox_test against all of it."""
    tables = mars_tables.folder_of(root)
    if tables is not None:
        return (mars_tables.read_split(root, tables),)
    test = tuple(tracklets(root, "test"))
    train = tuple(tracklets(root, "train")) if (root / "bbox_train").is_dir() else ()
    return (EvaluationSplit("test", people(train), people(test), test),)


def _below(folder: Path) -> Iterator[Tracklet]:
    for person in folders(folder):
        frames: dict[str, list[tuple[int, Path]]] = defaultdict(list)
        for file in images(person):
            match = FRAME.fullmatch(file.name)
            if match is None or match["identity"] != person.name:
                raise misplaced(file, f"the name is not {person.name}CcTttttFfff.jpg, as MARS has it")
            frames[match["tracklet"]].append((int(match["frame"]), file))
        for name, numbered in frames.items():
            camera = name.removeprefix(person.name)[1]
            yield Tracklet(person.name, camera, name, tuple(file for _, file in sorted(numbered)))
