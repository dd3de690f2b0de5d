"""iLIDS-VID.

    <root>/i-LIDS-VID/sequences/cam1|cam2/<person>/*.png
    <root>/train-test people splits/train_test_splits_ilidsvid.mat
           ls_set, integers (10 splits, 300 people): numbers of the sorted person folders, 1-based; the first half of
           a row is tested on, the second trained on

Source: Wang et al., "Person Re-Identification by Video Ranking", ECCV 2014. Camera 1 asks, camera 2 is looked through.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from passerby.errors import NotFoundError

from passerby_model.datasets import pairs
from passerby_model.datasets.files import broken, folders, shown
from passerby_model.datasets.matlab import read_matrix
from passerby_model.datasets.tracklets import EvaluationSplit, Part, Tracklet

CAMERAS = ("cam1", "cam2")
SPLITS = Path("train-test people splits", "train_test_splits_ilidsvid.mat")


def sign(root: Path) -> str:
    """The folder of sequences."""
    folder = _sequences(root)
    return folder.relative_to(root).as_posix() if folder is not None else ""


def tracklets(root: Path, part: Part) -> Iterator[Tracklet]:
    """All tracklets; there are no fixed halves. Raises: see `reading.read`."""
    pairs.refuse_halves(root, "iLIDS-VID", part)
    sequences = _sequences(root)
    if sequences is None:
        raise NotFoundError(f"{shown(root)}: no folder i-LIDS-VID/sequences/cam1 in it")
    people = [[person.name for person in folders(sequences / camera, least=1)] for camera in CAMERAS]
    alone = sorted(set(people[0]) ^ set(people[1]))
    if alone:
        raise broken(sequences, f"{len(alone)} people are in one of the two cameras only, the first {alone[0]}")
    for camera in CAMERAS:
        for person in people[0]:
            yield pairs.tracklet(sequences / camera / person)


def splits(root: Path) -> tuple[EvaluationSplit, ...]:
    """The official ones, as many as the table has rows."""
    found = tuple(tracklets(root, "all"))
    names = sorted({one.identity for one in found})
    table = read_matrix(root / SPLITS, "ls_set")
    if not table.size or not np.array_equal(
        np.sort(table, axis=1), np.tile(np.arange(len(names)) + 1, (len(table), 1))
    ):
        raise broken(root / SPLITS, f"ls_set {table.shape} does not name each of the {len(names)} people once a row")
    half = table.shape[1] // 2
    return tuple(
        pairs.split(
            number,
            found,
            train={names[index - 1] for index in row[half:]},
            test={names[index - 1] for index in row[:half]},
            query_camera=CAMERAS[0],
        )
        for number, row in enumerate(table.tolist(), start=1)
    )


def _sequences(root: Path) -> Path | None:
    for folder in (root / "i-LIDS-VID" / "sequences", root / "sequences"):
        if (folder / CAMERAS[0]).is_dir():
            return folder
    return None
