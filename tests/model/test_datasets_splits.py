"""Evaluation splits: the official ones of MARS from its metadata, those of the real sets, and all against all."""

from __future__ import annotations

import csv
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from passerby.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from passerby_model.datasets import DISTRACTOR_IDENTITY, JUNK_IDENTITY, EvaluationSplit, Tracklet, read, read_splits
from passerby_model.datasets.matlab import read_matrix
from scipy.io import loadmat, savemat

from tests.model import drawn


def identities(tracklets: tuple[Tracklet, ...]) -> set[str]:
    return {tracklet.identity for tracklet in tracklets}


@pytest.fixture(scope="module")
def official(shared: Path) -> EvaluationSplit:
    (split,) = read_splits(shared / "data/meta/mars")
    return split


def test_official_mars_has_its_published_counts(official: EvaluationSplit) -> None:
    assert (len(official.train), len(identities(official.train))) == (8298, 625)
    assert (len(official.query), len(identities(official.query))) == (1980, 626)
    junk = [one for one in official.gallery if one.identity == JUNK_IDENTITY]
    distractors = [one for one in official.gallery if one.identity == DISTRACTOR_IDENTITY]
    assert len(official.gallery) - len(junk) == 9330
    assert (len(junk), len(distractors)) == (870, 3248)
    assert len(official.queries_without_match()) == 140
    assert not official.all_against_all
    assert not {one.key for one in official.query} & {one.key for one in official.gallery}
    assert not identities(official.train) & identities(official.query)


def test_official_mars_is_the_tables_row_by_row(official: EvaluationSplit, shared: Path) -> None:
    """Order, cameras and lengths, against the tables themselves; every frame once."""
    tables = shared / "data/meta/mars"
    rows = loadmat(tables / "tracks_test_info.mat")["track_test_info"].astype(int)
    chosen = loadmat(tables / "query_IDX.mat")["query_IDX"].ravel().astype(int) - 1
    for tracklets, wanted in ((official.query, rows[chosen]), (official.gallery, np.delete(rows, chosen, axis=0))):
        people = [-1 if one.identity == JUNK_IDENTITY else int(one.identity) for one in tracklets]
        lengths = [len(one.frames) for one in tracklets]
        assert np.array_equal(people, wanted[:, 2])
        assert [int(one.camera) for one in tracklets] == wanted[:, 3].tolist()
        assert np.array_equal(lengths, wanted[:, 1] - wanted[:, 0] + 1)
    names = sorted(one.tracklet_id for one in (*official.query, *official.gallery))
    assert [one.tracklet_id for one in official.query] == [names[row] for row in chosen]
    first = official.query[0].frames[0]
    assert first == tables / "bbox_test/0002/0002C1T0012F001.jpg"
    frames = [frame.name for split in (official.query, official.gallery) for one in split for frame in one.frames]
    assert len(frames) == len(set(frames)) == 681089


def test_official_mars_brings_its_attributes(official: EvaluationSplit, shared: Path) -> None:
    with (shared / "data/meta/mars/mars_attributes.csv").open() as file:
        rows = list(csv.DictReader(file))
    known = [one for one in (*official.train, *official.query, *official.gallery) if one.attributes]
    assert len(known) == len(rows) == 16360
    by_id = {one.tracklet_id: one for one in known}
    row = rows[500]
    found = by_id[f"{int(row['person-id']):04d}C{row['camera']}T{int(row['tracklet']):04d}"]
    assert found.attributes["backpack"] == row["backpack"]
    assert found.attributes["Tops.c"] == row["Tops.c"]


def test_mars_mini_loads_unchanged(shared: Path) -> None:
    root = shared / "data/real_tracklets/mars_mini"
    (split,) = read_splits(root)
    assert (len(split.train), len(split.query), len(split.gallery)) == (32, 32, 32)
    assert len(split.queries_without_match()) == 9
    queries = {
        Path(name).name for entry in json.loads((root / "gtPepper/query.json").read_text()) for name in names_in(entry)
    }
    assert {frame.name for one in split.query for frame in one.frames} == queries
    listed = {one.key: one for one in (*split.train, *split.query, *split.gallery)}
    assert {key: one.frames for key, one in listed.items()} == {one.key: one.frames for one in read(root)}


def names_in(value: object) -> list[str]:
    """Every image name somewhere in a JSON value."""
    if isinstance(value, str):
        return [value] if value.endswith(".jpg") else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for part in parts for name in names_in(part)]


def test_ward_asks_with_camera_1(shared: Path) -> None:
    root = shared / "data/real_tracklets/ward"
    (split,) = read_splits(root)
    assert (split.train, len(split.query), len(split.gallery)) == ((), 70, 140)
    assert {one.camera for one in split.query} == {"1"}
    assert {one.camera for one in split.gallery} == {"2", "3"}
    assert split.queries_without_match() == ()
    assert {one.key for one in (*split.query, *split.gallery)} == {one.key for one in read(root)}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_mars_by_its_tables(tmp_path: Path, newline: str) -> None:
    drawn.mars(tmp_path, newline=newline)
    (split,) = read_splits(tmp_path)
    assert [one.tracklet_id for one in split.train] == list(drawn.MARS_TRAIN)
    assert [one.tracklet_id for one in split.query] == ["0002C1T0001", "0004C1T0001"]
    assert [one.tracklet_id for one in split.gallery] == [
        *("00-1C1T0001", "0000C2T0001", "0002C2T0001", "0004C3T0001", "0006C1T0001")
    ]
    assert all(frame.is_file() for one in (*split.query, *split.gallery, *split.train) for frame in one.frames)


def test_mars_without_tables_is_all_against_all_and_asks_for_people_alone(tmp_path: Path) -> None:
    drawn.mars(tmp_path)
    (tmp_path / "info").rename(tmp_path / "away")
    (split,) = read_splits(tmp_path)
    assert [one.tracklet_id for one in split.query] == list(drawn.MARS_TEST[2:])
    assert [one.tracklet_id for one in split.gallery] == list(drawn.MARS_TEST)
    assert split.all_against_all
    assert [one.tracklet_id for one in split.queries_without_match()] == ["0006C1T0001"]


def test_mars_metadata_alone_is_read_from_root_or_info(tmp_path: Path) -> None:
    drawn.mars_table(tmp_path, "test", [("0002C1T0001", 3), ("0002C2T0001", 1)])
    savemat(tmp_path / "info/query_IDX.mat", {"query_IDX": [[2]]})
    found = read(tmp_path, part="test")
    assert (found.format, found.frame_count) == ("mars", 4)
    (split,) = read_splits(tmp_path / "info")
    assert split.query[0].tracklet_id == "0002C2T0001"
    with pytest.raises(NotFoundError, match=r"tracks_train_info\.mat"):
        read(tmp_path, part="train")


def test_images_win_over_tables_in_read(tmp_path: Path) -> None:
    drawn.mars(tmp_path)
    drawn.mars_table(tmp_path, "test", [("0002C1T0001", 9)])
    assert {len(one.frames) for one in read(tmp_path)} == {2}


def test_plain_halves_and_plain_without(tmp_path: Path) -> None:
    drawn.plain(tmp_path / "halves", "train/ann/1/t", "test/bob/1/t", "test/bob/2/t")
    (split,) = read_splits(tmp_path / "halves")
    assert split.name == "test"
    assert ([one.key for one in split.train], [one.key for one in split.query]) == (
        ["ann/1/t"],
        ["bob/1/t", "bob/2/t"],
    )
    assert split.query == split.gallery
    drawn.plain(tmp_path / "whole", "ann/1/t", "bob/1/t")
    (split,) = read_splits(tmp_path / "whole")
    assert (split.train, len(split.query), split.all_against_all) == ((), 2, True)
    assert len(split.queries_without_match()) == 2
    drawn.plain(tmp_path / "training", "train/ann/1/t")
    with pytest.raises(NotFoundError, match="has no part 'test'"):
        read_splits(tmp_path / "training")


def test_a_split_needs_queries_and_a_gallery(tmp_path: Path) -> None:
    drawn.mars(tmp_path)
    savemat(tmp_path / "info/query_IDX.mat", {"query_IDX": np.zeros((0, 0))})
    with pytest.raises(InvalidArgumentError, match="test has an empty query"):
        read_splits(tmp_path)


def test_tables_need_neither_scipy_nor_pyarrow(tmp_path: Path) -> None:
    drawn.mars(tmp_path)
    program = (
        "import sys\n"
        "for name in ('scipy', 'pyarrow', 'torch', 'pydantic', 'yaml'): sys.modules[name] = None\n"
        "from passerby_model.datasets import read_splits\n"
        "print(len(read_splits(sys.argv[1])[0].query))"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.stdout == "2\n", done.stderr


@pytest.mark.parametrize("order", ["<", ">"])
def test_tables_of_either_byte_order(tmp_path: Path, order: str) -> None:
    """Written by hand after the format's description: int16 numbers of a double matrix, a small element as name."""
    numbers = np.array([[1, 2, 3, 4], [5, 6, 7, -1]])
    raw = numbers.astype(f"{order}i2").tobytes(order="F")
    parts = [
        struct.pack(f"{order}IIII", 6, 8, 6, 0),
        struct.pack(f"{order}IIii", 5, 8, 2, 4),
        struct.pack(f"{order}I", 1 << 16 | 1) + b"t\0\0\0",
        struct.pack(f"{order}II", 3, len(raw)) + raw,
    ]
    content = b"".join(parts)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100) + (b"IM" if order == "<" else b"MI")
    (tmp_path / "t.mat").write_bytes(head + struct.pack(f"{order}II", 14, len(content)) + content)
    assert np.array_equal(read_matrix(tmp_path / "t.mat", "t"), numbers)


def test_tables_are_read_as_scipy_reads_them(shared: Path, tmp_path: Path) -> None:
    files = sorted(shared.glob("data/**/info/*.mat")) + sorted(shared.glob("data/meta/ma*/*.mat"))
    for number, dtype in enumerate(("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")):
        for packed in (False, True):
            files.append(tmp_path / f"{dtype}-{packed}.mat")
            values = np.arange(4 * number).reshape(-1, 4).astype(dtype)
            savemat(files[-1], {"other": "text", "much_longer_name": values, "z": 1}, do_compression=packed)
    compared = 0
    for path in files:
        for key, value in loadmat(path).items():
            if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
                assert np.array_equal(read_matrix(path, key), value), (path, key)
                compared += 1
    assert compared > 50


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn.touch(tmp_path, "set.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FailedPreconditionError, match=r"set\.parquet: .* pip install 'passerby\[train\]'"):
        read(tmp_path / "set.parquet")
