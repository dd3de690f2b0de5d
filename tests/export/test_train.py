"""The command `train` as a user runs it: its own process, interrupted and resumed."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from passerby_client.cli import app
from passerby_export import train
from passerby_model import checkpoint
from passerby_model.presets import PRESETS
from PIL import Image
from typer.testing import CliRunner

RECIPE = """
data: [{path: people}]
architecture: test_resnet+none+tp
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
    rest, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "checkpoint will be saved" in errors
    assert f"go on with --out {out} --resume" in rest
    done = checkpoint.load(out / "last.pt").metadata["iteration"]
    assert done >= 1

    resumed = in_process("--out", out, "--resume", "--iterations", done + 1)
    assert resumed.exit_code == 0, resumed.output
    assert f"resumed at iteration {done} of {done + 1}" in resumed.output
    assert f"{out / 'final.pt'}: {done + 1} iterations" in resumed.output
    assert checkpoint.load(out / "final.pt").metadata["iteration"] == done + 1
    assert "No identities were held out" in (out / "report" / "index.html").read_text()
    assert (out / "tensorboard").is_dir()


def in_process(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_presets_are_shown_as_they_could_be_written_into_a_recipe():
    shown = in_process("--list-presets")
    assert shown.exit_code == 0
    heads = [line for line in shown.output.splitlines() if not line.startswith(" ")]
    assert [head.partition(":")[0] for head in heads] == list(PRESETS)
    _, _, last = shown.output.partition(heads[-1])
    assert yaml.safe_load(last) == PRESETS["bag-of-tricks"].values


def test_a_preset_a_stop_and_a_report_of_the_part(recipe, tmp_path, monkeypatch):
    """Stopped by another thread's Ctrl-C after the first iterations, as a user would."""
    out, told = tmp_path / "out", []

    class Interrupting(train._PlainReporter):
        def step(self, step, total):
            super().step(step, total)
            told.append(step)
            if step.iteration == 2:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train, "_PlainReporter", Interrupting)
    stopped = in_process(recipe, "--out", out, "--preset", "bag-of-tricks", "--threads", 1, "--set", "lr=1e-2")
    assert stopped.exit_code == 0, stopped.output
    assert f"stopped after 2 iterations; go on with --out {out} --resume" in stopped.output
    assert [step.lr for step in told] == pytest.approx([1e-4, 1.09e-3])
    assert "neck.weight" in checkpoint.load(out / "last.pt").state
    assert not (out / "report").exists()
    written = in_process("--report", "--out", out)
    assert written.exit_code == 0, written.output
    assert written.stdout.strip() == str(out / "report" / "index.html")
    assert "2 (not finished)" in (out / "report" / "index.html").read_text()


def test_no_report_where_none_is_wanted(recipe, tmp_path):
    quiet = ["--iterations", 1, "--threads", 1, "--set", "report=false", "--set", "tensorboard=false"]
    done = in_process(recipe, "--out", tmp_path / "out", *quiet)
    assert done.exit_code == 0, done.output
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert kept == {"config.json", "final.pt", "last.pt", "log.jsonl", "sessions.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "out"], "give a recipe (YAML) or --data FOLDER"),
        (["recipe.yaml", "--out", "out", "--set", "epoch=3"], "did you mean 'epochs'"),
        (["recipe.yaml", "--out", "out", "--data", "absent"], "absent: no such folder"),
        (["absent.yaml", "--out", "out"], "absent.yaml: cannot be read"),
        (["recipe.yaml", "--out", "out", "--preset", "cosma"], "preset: Input should be 'cosam', 'cosam-paper' or"),
        (["--report", "recipe.yaml"], "--report trains nothing: it goes with --out alone"),
        (["--report", "--out", "out"], "no training run in this folder"),
        (["--resume", "--out", "out"], "no training run in this folder"),
    ],
    ids=["no-data", "unknown-key", "no-folder", "no-recipe", "no-preset", "report-and-recipe", "no-report", "no-run"],
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
