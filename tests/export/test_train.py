"""The command `train` as a user runs it: its own process, interrupted and resumed."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from passerby_export import train
from passerby_model import checkpoint
from PIL import Image

RECIPE = """
data: [{path: people}]
architecture: resnet18+none+tp
snippet_length: 1
height: 64
width: 32
identities_per_batch: 3
tracklets_per_identity: 2
"""


@pytest.fixture
def recipe(tmp_path):
    generator = np.random.default_rng(0)
    for person in range(4):
        for camera in ("c1", "c2"):
            folder = tmp_path / "people" / f"p{person}" / camera / "t1"
            folder.mkdir(parents=True)
            colour = generator.integers(0, 256, 3).astype(np.uint8)
            Image.fromarray(np.full((64, 32, 3), colour, np.uint8)).save(folder / "1.png")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def command(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "passerby_export.train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_interrupt_saves_and_resume_goes_on(recipe, tmp_path):
    out = tmp_path / "out"
    process = command(recipe, "--out", out, "--iterations", 100_000, "--threads", 1)
    for line in process.stdout:
        if line.startswith("1/100000 "):
            break
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "checkpoint will be saved" in errors
    assert f"go on with --out {out} --resume" in rest
    done = checkpoint.load(out / "last.pt").metadata["iteration"]
    assert done >= 1

    process = command("--out", out, "--resume", "--iterations", done + 1)
    text, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert f"resumed at iteration {done} of {done + 1}" in text
    assert f"{out / 'final.pt'}: {done + 1} iterations" in text
    assert checkpoint.load(out / "final.pt").metadata["iteration"] == done + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "out"], "give a recipe (YAML) or --data FOLDER"),
        (["recipe.yaml", "--out", "out", "--set", "epoch=3"], "did you mean 'epochs'"),
        (["recipe.yaml", "--out", "out", "--data", "absent"], "absent: no such folder"),
        (["absent.yaml", "--out", "out"], "absent.yaml: cannot be read"),
    ],
    ids=["no-data", "unknown-key", "no-folder", "no-recipe"],
)
def test_errors_are_one_line(recipe, tmp_path, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as ended:
        train.main()
    errors = capsys.readouterr().err
    assert ended.value.code == 1
    assert message in errors
    assert errors.startswith("error: ")
    assert len(errors.strip().splitlines()) == 1
