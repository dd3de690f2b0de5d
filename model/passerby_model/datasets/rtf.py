"""The RTF format.

    <root>/images/{person}_{camera digit}{track}_{offset}.png
    <root>/partitions.pkl     dictionary: trainval_im_names (or train_im_names), test_im_names: image names;
                              test_marks: for each test image 0 query, 1 gallery, 2 multi-query

Source: TencentYoutuResearch/PersonReID-TSF, stf/dataset. All images with one {person}_{camera}{track} are a tracklet, in
the order of their offsets. Multi-query images are in the part "test", and in no split.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from passerby.errors import NotFoundError

from passerby_model.datasets import rtf_pickle
from passerby_model.datasets.files import broken, shown
from passerby_model.datasets.tracklets import EvaluationSplit, Part, Tracklet

PARTITIONS = "partitions.pkl"
QUERY, GALLERY, MULTI_QUERY = 0, 1, 2
_TRAIN_KEYS = ("trainval_im_names", "train_im_names")
_NAME = re.compile(r"(?P<person>-?\d+)_(?P<camera>\d)(?P<track>\d*)_(?P<offset>\d+)\.\w+", re.ASCII)


def sign(root: Path) -> str:
    """The table of partitions."""
    return PARTITIONS if (root / PARTITIONS).is_file() else ""


def tracklets(root: Path, part: Part) -> Iterator[Tracklet]:
    """Tracklets of a part. Raises: see `reading.read`."""
    partitions = _read(root)
    if part in ("train", "all"):
        yield from _train(root, partitions)
    if part in ("test", "all"):
        for group in _test(root, partitions).values():
            yield from group


def splits(root: Path) -> tuple[EvaluationSplit, ...]:
    """One, by the marks."""
    partitions = _read(root)
    marked = _test(root, partitions)
    train = _train(root, partitions) if any(key in partitions for key in _TRAIN_KEYS) else ()
    return (EvaluationSplit("test", train, marked[QUERY], marked[GALLERY]),)


def _read(root: Path) -> Mapping[str, Any]:
    path = root / PARTITIONS
    if not path.is_file():
        raise NotFoundError(f"{shown(path)}: no such file")
    partitions = rtf_pickle.load(path)
    if not isinstance(partitions, dict):
        raise broken(path, f"holds a {type(partitions).__name__}, not a dictionary of image names")
    return partitions


def _train(root: Path, partitions: Mapping[str, Any]) -> tuple[Tracklet, ...]:
    key = next((key for key in _TRAIN_KEYS if key in partitions), None)
    if key is None:
        raise NotFoundError(f"{shown(root / PARTITIONS)}: has no part 'train': neither {' nor '.join(_TRAIN_KEYS)}")
    return tuple(_grouped(root, key, _names(root, key, partitions)).values())


def _test(root: Path, partitions: Mapping[str, Any]) -> dict[int, tuple[Tracklet, ...]]:
    """Test tracklets by their mark."""
    path = root / PARTITIONS
    names = _names(root, "test_im_names", partitions)
    marks = partitions.get("test_marks")
    if (
        not isinstance(marks, list)
        or len(marks) != len(names)
        or not all(isinstance(mark, int) and mark in (QUERY, GALLERY, MULTI_QUERY) for mark in marks)
    ):
        raise broken(path, f"test_marks is not {len(names)} numbers 0, 1 or 2, one for each of test_im_names")
    mark_of = dict(zip(names, marks, strict=True))
    found: dict[int, tuple[Tracklet, ...]] = {QUERY: (), GALLERY: (), MULTI_QUERY: ()}
    for tracklet in _grouped(root, "test_im_names", names).values():
        of_frames = {mark_of[frame.name] for frame in tracklet.frames}
        if len(of_frames) > 1:
            raise broken(path, f"frames of {tracklet.tracklet_id} have the marks {sorted(of_frames)}; one is needed")
        found[of_frames.pop()] += (tracklet,)
    return found


def _names(root: Path, key: str, partitions: Mapping[str, Any]) -> list[str]:
    path = root / PARTITIONS
    listed = partitions.get(key)
    if listed is None:
        raise NotFoundError(f"{shown(path)}: has no {key}")
    if not isinstance(listed, list) or not all(isinstance(name, str | bytes) for name in listed):
        raise broken(path, f"{key} is not a list of image names")
    names = [name.decode("latin1") if isinstance(name, bytes) else name for name in listed]
    if len(set(names)) < len(names):
        raise broken(path, f"{key} names an image twice")
    return names


def _grouped(root: Path, key: str, names: list[str]) -> dict[str, Tracklet]:
    """Tracklets of these images by id, sorted."""
    frames: dict[tuple[str, str, str], list[tuple[int, str]]] = defaultdict(list)
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise broken(root / PARTITIONS, f"{key}: {name[:80]!r} is not person_cameratrack_offset.png")
        frames[match["person"], match["camera"], match["track"]].append((int(match["offset"]), name))
    images = root / "images"
    return {
        f"{person}_{camera}{track}": Tracklet(
            person, camera, f"{person}_{camera}{track}", tuple(images / name for _, name in sorted(numbered))
        )
        for (person, camera, track), numbered in sorted(frames.items())
    }
