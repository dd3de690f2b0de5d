"""docs/data.md is run: its commands, its Python and its manifest, on drawn data of the layouts that it describes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from passerby_model.datasets import KnownFormat, read

from tests.e2e.test_readme import blocks, run
from tests.model import drawn

PAGE = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data-page")
    drawn.ilids(folder / "iLIDS-VID")
    for name in ("walks/17", "walks/18", "yard/ann-1", "yard/ann-2", "yard/bob-1"):
        drawn.image(folder / f"{name}.jpg")
    (manifest,) = blocks("csv", PAGE)
    (folder / "people.csv").write_text(manifest)
    return folder


def test_commands_and_python(workplace: Path) -> None:
    street, split, manifest = blocks("sh", PAGE)
    printed = run(street, workplace)
    assert "12 queries of 4 identities against themselves, 0 without a match" in printed
    assert "0 errors, 0 warnings" in printed
    (program,) = blocks("python", PAGE)
    done = subprocess.run([sys.executable, "-c", program], cwd=workplace, capture_output=True, text=True, timeout=60)
    assert done.stdout == "12 12 True\n", done.stderr
    run(split, workplace)
    assert len((workplace / "split3.txt").read_text().split()) == 3
    report = json.loads(run(manifest, workplace))
    assert report["ok"]
    assert [part["name"] for part in report["parts"]] == ["query", "gallery"]
    assert report["attributes"] == ["hat"]


def test_layouts_are_those_that_are_read(tmp_path: Path) -> None:
    """The page's example of each layout, as files: what it says is found in it."""
    examples = {
        "MARS/bbox_test/0002/0002C1T0012F001.jpg": "0002/1/0002C1T0012",
        "DukeMTMC-VideoReID/query/0001/0003/0001C6F0099X30823.jpg": "0001/6/query-0003",
        "own/ann/entrance/t1/0001.jpg": "ann/entrance/t1",
    }
    described = PAGE.replace("train|query|gallery", "query").replace("bbox_train|bbox_test", "bbox_test")
    for name, key in examples.items():
        assert name in described
        drawn.touch(tmp_path, name)
        drawn.touch(tmp_path, "DukeMTMC-VideoReID/gallery/.keep")
        assert [one.key for one in read(tmp_path / name.partition("/")[0])] == [key]


def test_every_format_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(get_args(KnownFormat))
