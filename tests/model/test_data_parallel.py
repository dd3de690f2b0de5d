"""Two processes on a CPU train one network: equal weights, batches of their own, one record, and an end without waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from passerby_model import checkpoint

from tests.training_runs import config, log, run, settings, write_people

# One process of the two. Clips are free of chance, so that a single process can repeat what the two did.
WORKER = """
import json, os, sys
from pathlib import Path
import torch
from passerby_model import train_config, training

class Printer:
    def message(self, text): sys.stdout.write(text + "\\n")  # in one piece: two processes share this pipe
    def step(self, step, total): self.message(f"step {step.iteration} {step.clips}")

out, *settings = sys.argv[1:]
seen, plan, finish = [], training._Run._load, training._Run._finish

def load(run, batch):
    seen.append(batch.members.tolist())
    return plan(run, batch)

def finished(run):
    rank = run.accelerator.process_index
    torch.save(dict(run.learner.plain.named_parameters()), f"{out}.{rank}.pt")
    Path(f"{out}.{rank}.json").write_text(json.dumps({"seen": seen, "log": run.log is not None}))
    return finish(run)

training._Run._load, training._Run._finish = load, finished
asked = 0
def stop():
    global asked
    asked += 1
    return asked > 3 and torch.distributed.get_rank() == 1  # the second process alone wants to end
result = training.train(train_config.load(None, settings), Path(out), reporter=Printer(), stop=stop)
end = [result.iterations, result.finished, result.main_process]
Path(f"{out}.{os.environ['RANK']}.end.json").write_text(json.dumps(end))
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    people = write_people(tmp_path_factory.mktemp("people"), count=10, frames=2)
    same_clips = ["snippet_length=2", "augmentation.crop=0", "augmentation.flip=0", "tensorboard=true"]
    validated = ["identities_per_batch=2", "val_identities=0.2", "val_every=1", "iterations=50"]
    return settings(people, "architecture=test_resnet+cosam5+tp", "lr=1e-2", *same_clips, *validated)


@pytest.fixture(scope="module")
def output(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("two")
    (folder / "worker.py").write_text(WORKER)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(folder / "worker.py"), str(folder / "out"), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


def of_both(out: Path) -> list[Any]:
    return [json.loads(out.with_name(f"out.{rank}.json").read_text()) for rank in (0, 1)]


def test_a_wish_of_one_process_ends_both_with_one_checkpoint(output: tuple[Path, str]) -> None:
    out, _ = output
    ends = [json.loads(out.with_name(f"out.{rank}.end.json").read_text()) for rank in (0, 1)]
    assert ends == [[3, False, True], [3, False, False]]
    assert checkpoint.load(out / "last.pt").metadata["iteration"] == 3
    assert not (out / "final.pt").exists()


def test_only_the_main_process_tells_and_writes(output: tuple[Path, str]) -> None:
    out, text = output
    assert [line for line in text.splitlines() if line.startswith("step")] == [f"step {i} 8" for i in (1, 2, 3)]
    assert text.count("held out for validation") == 1
    assert [row["log"] for row in of_both(out)] == [True, False]
    rows = log(out)
    assert [row["iteration"] for row in rows if "loss" in row] == [1, 2, 3]
    assert [row["iteration"] for row in rows if "validation" in row] == [2]
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert json.loads((out / "sessions.json").read_text())[0]["device"] == "cpu (2 processes)"


def test_weights_are_equal_and_batches_disjoint(output: tuple[Path, str]) -> None:
    out, _ = output
    first, second = (torch.load(out.with_name(f"out.{rank}.pt")) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for one, other in zip(*(row["seen"] for row in of_both(out)), strict=False):
        assert not set(one) & set(other)


def test_two_processes_equal_one_that_accumulates(output: tuple[Path, str], options: list[str], tmp_path: Path) -> None:
    """The gradient of two batches, averaged over processes or one after the other, is the same up to rounding."""
    out, _ = output
    answers = iter([False] * 3 + [True])
    people = Path(options[0].partition("=")[2])
    run(config(people, *options, "accumulate=2"), tmp_path, stop=lambda: next(answers))
    alone, together = log(tmp_path), log(out)
    for key in ("loss", "cross_entropy", "triplet", "accuracy"):
        values = [[row[key] for row in rows if "loss" in row] for rows in (alone, together)]
        assert values[0] == pytest.approx(values[1], rel=2e-3, abs=1e-4)
    state = checkpoint.load(tmp_path / "last.pt").state
    parameters = torch.load(out.with_name("out.0.pt"))
    moved = [(state[name] - value.detach()).abs().max().item() for name, value in parameters.items()]
    assert max(moved) < 0.1 * 1e-2  # a tenth of one step's length


def test_one_process_goes_on_where_two_stopped(output: tuple[Path, str], options: list[str]) -> None:
    out, _ = output
    people = Path(options[0].partition("=")[2])
    result, recorder = run(config(people, *options, "iterations=4"), out, resume=True)
    assert result.finished
    assert "differs from the run so far: iterations, number of processes" in recorder.messages
