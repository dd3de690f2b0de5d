"""Small drawn data sets, one function a layout: noise for images, the real formats' names and tables."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

MARS_TEST = ("00-1C1T0001", "0000C2T0001", "0002C1T0001", "0002C2T0001", "0004C1T0001", "0004C3T0001", "0006C1T0001")
MARS_TRAIN = ("0001C1T0001", "0001C2T0001", "0003C1T0001", "0003C2T0001")


def image(path: Path, height: int = 16, width: int = 8) -> Path:
    """Noise that follows from the path's last four parts, so that no two frames of a set are the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(zlib.crc32("/".join(path.parts[-4:]).encode()))
    Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def touch(root: Path, *names: str) -> None:
    """Empty files."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def mars(root: Path, frames: int = 2, newline: str = "\r\n") -> Path:
    """Images and tables; queries are rows 3 and 5 of the test table."""
    for half, names in (("train", MARS_TRAIN), ("test", MARS_TEST)):
        for name in names:
            for frame in range(1, frames + 1):
                image(root / f"bbox_{half}" / name[:4] / f"{name}F{frame:03d}.jpg")
        mars_table(root, half, [(name, frames) for name in names], newline)
    savemat(root / "info/query_IDX.mat", {"query_IDX": np.array([[3, 5]], dtype=np.uint16)})
    return root


def mars_table(root: Path, half: str, tracklets: Sequence[tuple[str, int]], newline: str = "\r\n") -> None:
    """Name list and table of (tracklet, number of frames)."""
    (root / "info").mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    rows = []
    for name, frames in tracklets:
        person = -1 if name.startswith("00-1") else int(name[:4])
        rows.append((len(names) + 1, len(names) + frames, person, int(name[5])))
        names += [f"{name}F{frame:03d}.jpg" for frame in range(1, frames + 1)]
    (root / f"info/{half}_name.txt").write_bytes("".join(name + newline for name in names).encode())
    write_table(root, half, rows)


def write_table(root: Path, half: str, rows: Sequence[Sequence[float]]) -> None:
    values = np.array(rows).reshape(-1, 4)
    savemat(root / f"info/tracks_{half}_info.mat", {f"track_{half}_info": values}, do_compression=True)


def duke(root: Path, separator: str = "") -> Path:
    """Two people to train on, two to ask for, and a distractor; frames begin at F0007."""

    def track(half: str, person: str, number: str, camera: int) -> None:
        for frame in (7, 8, 9, 10):
            parts = (person, f"C{camera}", f"F{frame:04d}", f"X{30000 + frame}")
            image(root / half / person / number / f"{separator.join(parts)}.jpg")

    for person in ("0001", "0003"):
        track("train", person, "0001", 1)
        track("train", person, "0002", 2)
    for person in ("0002", "0004"):
        track("query", person, "0001", 1)
        track("gallery", person, "0001", 2)
        track("gallery", person, "0002", 5)
    track("gallery", "7105", "0001", 8)
    return root


def ilids(root: Path, people: int = 6, table: object = None) -> Path:
    """Person numbers have gaps, as the real ones; splits are a rotation of everybody."""
    for camera in (1, 2):
        for number in range(people):
            folder = root / f"i-LIDS-VID/sequences/cam{camera}/person{3 * number + 1:03d}"
            for frame in (317, 318):
                image(folder / f"cam{camera}_person{3 * number + 1:03d}_{frame:05d}.png")
    splits = [np.roll(np.arange(people) + 1, shift) for shift in range(10)] if table is None else table
    folder = root / "train-test people splits"
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / "train_test_splits_ilidsvid.mat", {"ls_set": np.array(splits)})
    return root


def prid(root: Path, splits: Sequence[Mapping[str, Sequence[str]]], others: Iterable[str] = ()) -> Path:
    """Empty frames for everybody of the splits in both cameras, and folders of others ("cam_b/person_0300")."""
    people = sorted({person for split in splits for half in split.values() for person in half})
    folders = [f"{camera}/{person}" for camera in ("cam_a", "cam_b") for person in people]
    for folder in [*folders, *others]:
        touch(root / "prid_2011/multi_shot" / folder, "0002.png", "0001.png")
    (root / "splits_prid2011.json").write_text(json.dumps(splits))
    return root


def rtf(root: Path, protocol: int = 2, train_key: str = "trainval_im_names", arrays: bool = False) -> Path:
    """Two people to train on; a query, two gallery tracklets and a multi-query one."""
    train = [
        f"{person:04d}_{camera}0001_{offset:04d}.png" for person in (1, 3) for camera in (1, 2) for offset in (9, 10)
    ]
    marked = {"0002_10001": 0, "0002_20007": 1, "0004_30001": 1, "0002_30002": 2}
    test = [f"{name}_{offset}.png" for name in marked for offset in (9, 10)]
    marks = [mark for mark in marked.values() for _ in range(2)]
    for name in (*train, *test):
        image(root / "images" / name)
    partitions = {
        train_key: np.array(train) if arrays else train,
        "trainval_ids2labels": {1: 0, 3: 1},
        "test_im_names": np.array(test) if arrays else test,
        "test_marks": np.array(marks) if arrays else marks,
    }
    (root / "partitions.pkl").write_bytes(pickle.dumps(partitions, protocol=protocol))
    return root


def plain(root: Path, *tracklets: str, frames: int = 2) -> Path:
    """Each of `tracklets` is "identity/camera/tracklet", below a half or not."""
    for tracklet in tracklets:
        for frame in range(1, frames + 1):
            image(root / tracklet / f"{frame:04d}.jpg")
    return root
