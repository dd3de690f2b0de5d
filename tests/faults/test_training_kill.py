"""Training survives a kill: whatever is on disk is whole, and the resumed run ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from passerby_model import checkpoint

from tests.training_runs import config, log, run, same, settings, write_people

OPTIONS = ["iterations=60", "val_identities=0.34", "val_every=20", "augmentation.colour=0.5", "amp=bf16"]
# After every iteration, so that a kill often meets a half-written file.
SAVED_ALWAYS = [*OPTIONS, "save_minutes=1e-6"]


def start(out: Path, arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "passerby_export.train", "--out", str(out), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_after(process: subprocess.Popen[str], out: Path, iteration: int, delay: float) -> None:
    """kill -9 some time after the log has this iteration."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "log.jsonl").exists() and f'"iteration": {iteration},' in (out / "log.jsonl").read_text():
            break
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, text


@pytest.mark.timeout(600)
def test_kill_and_resume_give_the_same_run(tmp_path: Path) -> None:
    people = write_people(tmp_path / "people")
    whole, _ = run(config(people, *OPTIONS), tmp_path / "whole")
    out = tmp_path / "killed"
    given = [word for option in settings(people, *SAVED_ALWAYS) for word in ("--set", option)]
    kill_after(start(out, ["--data", str(people), *given]), out, 22, delay=0.011)
    done = checkpoint.load(out / "last.pt").metadata["iteration"]
    assert done >= 21
    assert checkpoint.load(out / "best.pt").metadata["iteration"] % 20 == 0
    resumed, recorder = run(config(people, *OPTIONS), out, resume=True)
    assert f"resumed at iteration {done} of 60" in recorder.messages
    assert resumed.iterations == 60
    records = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in log(folder)]
        for folder in (tmp_path / "whole", out)
    ]
    assert records[0] == records[1]
    assert resumed.validation == whole.validation
    for name in ("final.pt", "best.pt"):
        assert same(checkpoint.load(tmp_path / "whole" / name).state, checkpoint.load(out / name).state), name


@pytest.mark.parametrize("written", [0, 1000, 100_000])
def test_a_save_that_is_cut_short_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    people = write_people(tmp_path / "people")
    result, _ = run(config(people, "iterations=1"), tmp_path / "out")
    path, saved = result.checkpoint, checkpoint.load(result.checkpoint)

    def cut_short(content: object, stream: BinaryIO) -> None:
        stream.write(path.read_bytes()[:written])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, saved)
    assert same(checkpoint.load(path).state, saved.state)
