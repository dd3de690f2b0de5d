"""PRID 2011, the standard selection of 178 people.

    <root>/prid_2011/multi_shot/cam_a|cam_b/person_0001/*.png
    <root>/splits_prid2011.json       list of ten {"train": [person_0001, ...], "test": [...]}, 89 people each

Source: Hirzer et al., "Person Re-identification by Descriptive and Discriminative Classification", SCIA 2011; the
selection (both cameras, long enough) is Wang et al.'s, ECCV 2014, and the file names it. It is needed even without
evaluation: beyond person_0200 one number stands for another person in each camera. Camera a asks, b is looked through.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from passerby.errors import NotFoundError

from passerby_model.datasets import pairs
from passerby_model.datasets.files import broken, check_name, read_json, shown
from passerby_model.datasets.tracklets import EvaluationSplit, Part, Tracklet

CAMERAS = ("cam_a", "cam_b")
SPLITS = "splits_prid2011.json"
Halves = dict[str, frozenset[str]]


def sign(root: Path) -> str:
    """The folder of the multi-shot half of the set."""
    folder = _multi_shot(root)
    return folder.relative_to(root).as_posix() if folder is not None else ""


def tracklets(root: Path, part: Part) -> Iterator[Tracklet]:
    """Both cameras' tracklets of everybody whom a split names. Raises: see `reading.read`."""
    pairs.refuse_halves(root, "PRID 2011", part)
    yield from _selected(root, _read_splits(root / SPLITS))


def splits(root: Path) -> tuple[EvaluationSplit, ...]:
    """As the file has them."""
    halves = _read_splits(root / SPLITS)
    found = tuple(_selected(root, halves))
    return tuple(
        pairs.split(number, found, half["train"], half["test"], CAMERAS[0]) for number, half in enumerate(halves, 1)
    )


def _selected(root: Path, halves: list[Halves]) -> Iterator[Tracklet]:
    folder = _multi_shot(root)
    if folder is None:
        raise NotFoundError(f"{shown(root)}: no folder prid_2011/multi_shot/cam_a in it")
    for person in sorted(frozenset[str]().union(*(half["train"] | half["test"] for half in halves))):
        for camera in CAMERAS:
            yield pairs.tracklet(folder / camera / person)


def _read_splits(path: Path) -> list[Halves]:
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise broken(path, 'not a list of {"train": [...], "test": [...]}')
    return [_read_halves(path, number, entry) for number, entry in enumerate(content, start=1)]


def _read_halves(path: Path, number: int, entry: object) -> Halves:
    halves: Halves = {}
    for name in ("train", "test"):
        people = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(people, list) or not people or not all(isinstance(person, str) for person in people):
            raise broken(path, f"split {number} has no list of people {name!r}")
        halves[name] = frozenset(check_name(path, "a person", person) for person in people)
        if len(halves[name]) < len(people):
            raise broken(path, f"split {number} names somebody twice in {name!r}")
    both = sorted(halves["train"] & halves["test"])
    if both:
        raise broken(path, f"split {number} trains and tests on {both[0]}")
    return halves


def _multi_shot(root: Path) -> Path | None:
    for folder in (root / "prid_2011" / "multi_shot", root / "multi_shot"):
        if (folder / CAMERAS[0]).is_dir():
            return folder
    return None
