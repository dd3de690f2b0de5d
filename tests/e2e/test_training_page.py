"""docs/training.md is run: its recipe and commands at the size of a test; its tables name every preset and key."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands import launch
from passerby_client.cli import app
from passerby_model import train_config
from passerby_model.presets import PRESETS
from passerby_model.train_config import Augmentation, TrainConfig
from torch.distributed import run as distributed
from typer.main import get_command
from typer.testing import CliRunner

from tests.e2e.test_readme import BINARIES, blocks

PAGE = (Path(__file__).resolve().parents[2] / "docs/training.md").read_text()
SMALL = {
    "architecture": "test_resnet+cosam45+tp",
    "snippet_length": 2,
    "height": 64,
    "width": 32,
    "iterations": 2,
    "identities_per_batch": 4,
    "tracklets_per_identity": 2,
    "threads": 1,
}


def commands(program: str) -> list[list[str]]:
    lines = [line for block in blocks("sh", PAGE) for line in block.splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words[0] == program]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("training-page")
    (recipe,) = blocks("yaml", PAGE)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(yaml.safe_load(recipe) | SMALL))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_the_recipe_is_one(tmp_path: Path) -> None:
    (recipe,) = blocks("yaml", PAGE)
    (tmp_path / "recipe.yaml").write_text(recipe)
    read = train_config.load(tmp_path / "recipe.yaml")
    assert read == train_config.load(None, [f"data.0.path={tmp_path / 'people'}", "val_identities=0.1"])


def test_commands(workplace: Path) -> None:
    for words in commands("passerby"):
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, (words, done.output, done.exception)
    left = {path.name for path in (workplace / "runs/first").iterdir()}
    section = PAGE.partition("## What a run leaves")[2].partition("\n## ")[0]
    cells = "\n".join(re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE))
    assert left == {name.partition("/")[0] for name in re.findall(r"`([\w.]+\.\w+|\w+/[\w.]*)`", cells)}
    assert json.loads((workplace / "runs/tricks/config.json").read_text())["augmentation"]["erase"] == 0.3


def test_the_launchers_take_what_is_written() -> None:
    """Not run here, for they take long to start; two processes under torchrun are in tests/model/test_data_parallel.py."""
    ((_, command, *words),) = commands("accelerate")
    ((_, *others),) = commands("torchrun")
    assert command == "launch"
    for parsed in (launch.launch_command_parser().parse_args(words), distributed.parse_args(others)):
        assert parsed.module
        assert parsed.training_script == "passerby_export.train"
        given = parsed.training_script_args
        group: Any = get_command(app)
        with group.commands["train"].make_context("train", list(given)) as context:
            assert context.params["recipe"] == Path("recipe.yaml")
    assert commands("tensorboard") == [["tensorboard", "--logdir", "runs/first/tensorboard"]]
    assert all(shutil.which(name, path=str(BINARIES)) for name in ("accelerate", "torchrun", "tensorboard"))


def test_every_preset_and_every_key_is_in_the_tables() -> None:
    rows = dict(re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", PAGE, re.MULTILINE))
    for name in PRESETS:
        assert f"`{name}`" in rows
    shown: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| ([^|]+) \| ([^|]+) \|", PAGE.partition("## Keys")[2], re.MULTILINE):
        keys = [name.strip("` ") for name in names.split(",")]
        values = [value.strip("` ") for value in defaults.split(",")]
        shown |= dict(zip(keys, values if len(values) == len(keys) else values * len(keys), strict=True))
    expected = {key: field.default for key, field in TrainConfig.model_fields.items() if key != "augmentation"}
    expected |= {f"augmentation.{key}": field.default for key, field in Augmentation.model_fields.items()}
    assert set(shown) - {"key", "---"} == set(expected)
    for key, default in expected.items():
        assert _same(shown[key], default), key


def _same(text: str, default: Any) -> bool:
    if text == "none":
        return default in (None, (), "none") or not isinstance(default, str | int | float | tuple)
    return bool(yaml.safe_load(text) == default or str(default) == text or float(text) == default)
