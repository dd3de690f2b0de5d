"""The record of a training run: `log.jsonl` in its folder, one line an iteration or validation, and TensorBoard's files.

The lines are what counts; they are cut back to the checkpoint when a run is resumed, so that each iteration is there
once, and they are all that a report reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError, InvalidArgumentError

from passerby_model.progress import Step

LOG, TENSORBOARD = "log.jsonl", "tensorboard"


class RunLog:
    """Writes the record of a run; a context manager."""

    def __init__(self, folder: Path, *, iteration: int, tensorboard: bool) -> None:
        """Open the record in `folder` and forget what it holds after `iteration` (0 for a new run).

        Raises:
            FailedPreconditionError: TensorBoard is asked for and not installed.
        """
        self._board = _board(folder / TENSORBOARD, iteration) if tensorboard else None
        path = folder / LOG
        kept = [row for row in _rows(path) if row["iteration"] <= iteration] if iteration and path.exists() else []
        partial = path.with_name(f".{LOG}.partial")
        partial.write_text("".join(f"{json.dumps(row)}\n" for row in kept), encoding="utf-8")
        partial.replace(path)
        self._lines = path.open("a", encoding="utf-8", buffering=1)  # a killed process leaves whole lines

    def step(self, step: Step) -> None:
        """Record an iteration."""
        self._write(asdict(step))
        self._draw(
            step.iteration,
            {
                "loss/total": step.loss,
                "loss/cross_entropy": step.cross_entropy,
                "loss/triplet": step.triplet,
                "loss/distillation": step.distillation,
                "loss/mask": step.mask,
                "training/accuracy": step.accuracy,
                "training/lr": step.lr,
                "speed/clips_per_second": step.clips / max(step.seconds, 1e-9),
                "speed/wait_share": step.wait_seconds / max(step.seconds, 1e-9),
            },
        )

    def validation(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Record a validation: its figures by name."""
        self._write({"iteration": iteration, "validation": dict(figures)})
        self._draw(iteration, {f"validation/{name}": value for name, value in figures.items()})

    def close(self) -> None:
        """End the record; harmless when repeated."""
        self._lines.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        self._lines.write(f"{json.dumps(row)}\n")

    def _draw(self, iteration: int, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, iteration)


@dataclass(frozen=True)
class History:
    """A run's record, read back.

    steps: field of `Step` -> float64 (S,), one value an iteration. validation: "iteration" and the figures of each
    validation -> float64 (V,); empty without one.
    """

    steps: Mapping[str, NDArray[np.float64]]
    validation: Mapping[str, NDArray[np.float64]]


def read_history(folder: Path) -> History:
    """The record of the run in `folder`, finished or not.

    Raises:
        FailedPreconditionError: there is none.
        InvalidArgumentError: a line before the last is damaged; the message names it.
    """
    path = folder / LOG
    if not path.is_file():
        raise FailedPreconditionError(f"{path}: no training run in this folder")
    rows = _rows(path)
    judged = [{"iteration": row["iteration"], **row["validation"]} for row in rows if "validation" in row]
    return History(_columns([row for row in rows if "validation" not in row]), _columns(judged))


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that a kill cut short is passed over."""
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line end is not whole
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise InvalidArgumentError(f"{path}, line {number}: not JSON; remove the line") from error
    return rows


def _columns(rows: list[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    keys = rows[0] if rows else {}
    return {key: np.array([row.get(key, np.nan) for row in rows], np.float64) for key in keys}


def _board(folder: Path, iteration: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise FailedPreconditionError(
            f"TensorBoard's files need {error.name}: pip install 'passerby[train]', or set tensorboard to false",
            reason="EXTRA_MISSING",
        ) from error
    # What was drawn after the checkpoint is hidden: those iterations come again.
    return SummaryWriter(os.fspath(folder), purge_step=iteration + 1 if iteration else None)
