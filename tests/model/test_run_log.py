"""The record of a run: cut back on resume, robust against a kill, read by TensorBoard and by reports."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from passerby.errors import FailedPreconditionError, InvalidArgumentError
from passerby_model.run_log import LOG, TENSORBOARD, RunLog, read_history

from tests.model.test_progress import step


def test_steps_and_validations_come_back(tmp_path: Path) -> None:
    with RunLog(tmp_path, iteration=0, tensorboard=False) as log:
        log.step(step(1, 0.25))
        log.validation(1, {"rank1": 0.5, "mean_average_precision": 0.4, "queries": 8})
        log.step(step(2, 0.5))
    history = read_history(tmp_path)
    np.testing.assert_array_equal(history.steps["iteration"], [1, 2])
    np.testing.assert_array_equal(history.steps["wait_seconds"], [0.25, 0.5])
    assert {key: values.tolist() for key, values in history.validation.items()} == {
        "iteration": [1],
        "rank1": [0.5],
        "mean_average_precision": [0.4],
        "queries": [8],
    }
    assert not (tmp_path / TENSORBOARD).exists()


def test_a_line_that_a_kill_cut_short_is_passed_over_and_removed_on_resume(tmp_path: Path) -> None:
    with RunLog(tmp_path, iteration=0, tensorboard=False) as log:
        for number in (1, 2, 3):
            log.step(step(number, 0.0))
    with (tmp_path / LOG).open("a") as stream:
        stream.write('{"iteration": 4, "lo')
    assert len(read_history(tmp_path).steps["iteration"]) == 3
    with RunLog(tmp_path, iteration=2, tensorboard=False) as log:
        log.step(step(3, 0.125))
    rows = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [(row["iteration"], row["wait_seconds"]) for row in rows] == [(1, 0), (2, 0), (3, 0.125)]


def test_lines_are_on_their_way_to_disk_at_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, iteration=0, tensorboard=False) as log:
        log.step(step(1, 0.0))
        assert (tmp_path / LOG).read_text().count("\n") == 1


def test_a_new_run_forgets_an_old_record(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("not JSON\n")
    RunLog(tmp_path, iteration=0, tensorboard=False).close()
    assert (tmp_path / LOG).read_text() == ""


def test_damage_and_absence_are_named(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="no training run"):
        read_history(tmp_path)
    (tmp_path / LOG).write_text('{"iteration": 1}\nbroken\n')
    with pytest.raises(InvalidArgumentError, match=r"log\.jsonl, line 2"):
        read_history(tmp_path)


def test_tensorboard_reads_the_curves_and_nothing_twice_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, iteration=0, tensorboard=True) as log:
        for number in (1, 2, 3):
            log.step(step(number, 0.5))
    with RunLog(tmp_path, iteration=2, tensorboard=True) as log:
        log.step(step(3, 0.25))
        log.validation(3, {"rank1": 0.75})
    found = EventAccumulator(str(tmp_path / TENSORBOARD))
    found.Reload()
    assert set(found.Tags()["scalars"]) >= {"loss/total", "loss/triplet", "training/lr", "validation/rank1"}
    waits = [(event.step, event.value) for event in found.Scalars("speed/wait_share")]
    assert waits == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_without_tensorboard_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(FailedPreconditionError, match="or set tensorboard to false"):
        RunLog(tmp_path, iteration=0, tensorboard=True)
