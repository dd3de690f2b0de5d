"""Who is trained on and who validates: never the test people of a data set, unless they are asked for by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_model import train_config
from passerby_model.training_data import TrainingData, gather
from PIL import Image


def write(root: Path, people: str, cameras: tuple[str, ...] = ("c1", "c2")) -> Path:
    for name in people.split():
        for camera in cameras:
            folder = root / name / camera / "t1"
            folder.mkdir(parents=True)
            Image.new("RGB", (4, 8)).save(folder / "1.png")
    return root


def data(*settings: str) -> TrainingData:
    return gather(train_config.load(None, settings))


def people(found: TrainingData) -> tuple[set[str], set[str]]:
    """Identities (without the number of their source) trained on, and held out."""
    return tuple({t.identity.partition("/")[2] for t in part} for part in (found.tracklets, found.validation))  # type: ignore[return-value]


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    write(tmp_path / "set" / "train", "a b c d e f")
    write(tmp_path / "set" / "test", "x y z")
    return tmp_path / "set"


def test_validation_people_are_training_people_and_the_test_half_stays_out(halves: Path) -> None:
    found = data(f"data.0.path={halves}", "val_identities=0.5")
    trained, held = people(found)
    assert trained | held == set("abcdef")
    assert len(held) == 3
    assert not trained & held
    assert str(found).endswith("3 identities held out for validation")


@pytest.mark.parametrize(("part", "expected"), [("all", "abcdefxyz"), ("test", "xyz"), ("train", "abcdef")])
def test_a_part_by_name(halves: Path, part: str, expected: str) -> None:
    found = data(f"data.0.path={halves}", f"data.0.part={part}")
    assert people(found)[0] == set(expected)
    assert ("figures on a test half of it will mean nothing" in str(found)) == (part != "train")


def test_a_set_without_halves_is_trained_on_whole(tmp_path: Path) -> None:
    assert people(data(f"data.0.path={write(tmp_path, 'a b')}"))[0] == {"a", "b"}


def test_a_test_half_alone_is_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "test", "x y")
    with pytest.raises(NotFoundError, match="train"):
        data(f"data.0.path={tmp_path}")


def test_a_set_of_ten_halvings_wants_to_know_which(tmp_path: Path) -> None:
    for camera in ("cam1", "cam2"):
        for number in range(1, 5):
            folder = tmp_path / "i-LIDS-VID" / "sequences" / camera / f"person{number:03d}"
            folder.mkdir(parents=True)
            Image.new("RGB", (4, 8)).save(folder / f"{camera}_person{number:03d}_00001.png")
    with pytest.raises(InvalidArgumentError, match="set split to train on the others of one, or part to all"):
        data(f"data.0.path={tmp_path}", "data.0.format=ilids")
    assert len(people(data(f"data.0.path={tmp_path}", "data.0.format=ilids", "data.0.part=all"))[0]) == 4


def test_a_split_gives_its_training_people(halves: Path, tmp_path: Path) -> None:
    assert people(data(f"data.0.path={halves}", "data.0.split=1"))[0] == set("abcdef")
    with pytest.raises(InvalidArgumentError, match="has no split 2 with people to train on, only a single split"):
        data(f"data.0.path={halves}", "data.0.split=2")
    with pytest.raises(InvalidArgumentError, match="part and split both choose people"):
        data(f"data.0.path={halves}", "data.0.split=1", "data.0.part=train")
    listed = tmp_path / "ids.txt"
    listed.write_text("a\nb\nx\n")
    with pytest.raises(InvalidArgumentError, match="not among its people to train on: x"):
        data(f"data.0.path={halves}", "data.0.split=1", f"data.0.identities={listed}")


def test_people_of_two_sources_never_meet(tmp_path: Path) -> None:
    first, second = write(tmp_path / "one", "a b c d"), write(tmp_path / "two", "a b c d")
    found = data(f"data.0.path={first}", f"data.1.path={second}", "val_identities=0.5")
    names = {t.identity for t in (*found.tracklets, *found.validation)}
    assert names == {f"{source}/{name}" for source in (0, 1) for name in "abcd"}
    assert len(found.names) == 4
