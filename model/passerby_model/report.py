"""The report of a training run, finished or not: one HTML page with everything in it, and its pictures as PNGs.

Curves come from the run's log. CMC, distances, ranked lists and attention come from its best checkpoint, on the
validation split of the training identities: a report never looks at test identities.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError

from passerby_model import checkpoint, figures, report_validation, train_config
from passerby_model.checkpoint import Checkpoint
from passerby_model.report_page import Picture, Section, write_page
from passerby_model.run_log import History, read_history
from passerby_model.train_config import TrainConfig
from passerby_model.training import BEST, FINAL, LAST, SESSIONS

FOLDER, PAGE = "report", "index.html"
CURVE_POINTS = 200  # iterations are averaged in so many groups, so that a curve is seen through its noise


@dataclass(frozen=True)
class _Run:
    """What is known of a run. used: the checkpoint's file name."""

    folder: Path
    config: TrainConfig
    history: History
    saved: Checkpoint
    used: str


def write_report(folder: Path, *, tell: Callable[[str], None] = lambda text: None) -> Path:
    """Write `folder/report`, over an older one; gives back the page.

    What cannot be drawn (no validation split, data that has been moved) is said on the page instead.

    Args:
        folder: of the run, as `training.train` leaves it.
        tell: progress, a line at a time.

    Raises:
        FailedPreconditionError: no run in the folder, or one that has not saved a checkpoint yet.
        InvalidArgumentError: configuration, log or checkpoint are damaged.
    """
    run = _read(folder)
    out = folder / FOLDER
    out.mkdir(exist_ok=True)
    tell(f"report of iteration {run.saved.metadata['iteration']} ({run.used})")
    sections = [
        _summary(run),
        _curves(run.history, out),
        *report_validation.sections(run.saved, run.config, out, tell),
        _configuration(run.config),
        _environment(folder),
    ]
    return write_page(out / PAGE, f"Training run {folder.resolve().name}", sections)


def _read(folder: Path) -> _Run:
    config, history = train_config.read_config(folder), read_history(folder)
    used = next((name for name in (BEST, FINAL, LAST) if (folder / name).is_file()), None)
    if used is None or not len(history.steps.get("iteration", ())):
        raise FailedPreconditionError(f"{folder}: the run has saved no checkpoint yet, so there is nothing to report")
    return _Run(folder, config, history, checkpoint.load(folder / used), used)


def _summary(run: _Run) -> Section:
    steps, seconds = run.history.steps, run.history.steps["seconds"].sum()
    ended = (run.folder / FINAL).is_file()
    rows = [
        ("architecture", run.saved.architecture.name),
        ("iterations", f"{int(steps['iteration'][-1]):,}{'' if ended else ' (not finished)'}"),
        ("time in iterations", _clock(seconds)),
        ("clips a second", f"{steps['clips'].sum() / max(seconds, 1e-9):.1f}"),
        ("waiting for clips", f"{100 * steps['wait_seconds'].sum() / max(seconds, 1e-9):.1f} % of the time"),
    ]
    rows += [
        (f"training set: {key.replace('_', ' ')}", f"{value:,}") for key, value in run.saved.metadata["data"].items()
    ]
    rows.append(("checkpoint below", f"{run.used}, iteration {run.saved.metadata['iteration']:,}"))
    return Section("Run", table=rows)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min {rest} s"


def _curves(history: History, out: Path) -> Section:
    steps, judged = history.steps, history.validation
    parts = {"total": "loss", "cross-entropy": "cross_entropy", "triplet": "triplet"}
    parts |= {name: name for name in ("distillation", "mask") if name in steps and steps[name].any()}
    losses = {name: _thinned(steps["iteration"], steps[key]) for name, key in parts.items()}
    speed = steps["clips"] / np.maximum(steps["seconds"], 1e-9)
    drawn: list[tuple[str, Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], str]] = [
        ("loss", losses, "loss"),
        ("accuracy", {"accuracy": _thinned(steps["iteration"], 100 * steps["accuracy"])}, "clips, %"),
        ("learning rate", {"learning rate": _thinned(steps["iteration"], steps["lr"])}, "learning rate"),
        ("speed", {"clips/s": _thinned(steps["iteration"], speed)}, "clips/s"),
    ]
    if judged:
        both = {"mAP": "mean_average_precision", "rank-1": "rank1"}
        points = {name: (judged["iteration"], 100 * judged[key]) for name, key in both.items()}
        drawn.insert(1, ("validation", points, "%"))
    pictures = [
        Picture(
            figures.curves_figure(out / f"{name.replace(' ', '_')}.png", curves, title=name, x="iteration", y=axis),
            f"{name} over iterations",
        )
        for name, curves, axis in drawn
    ]
    group = _group_size(len(steps["iteration"]))
    text = f"Each point is the mean of {group} iterations; the log has every one." if group > 1 else ""
    return Section("Curves", text, pictures=pictures)


def _thinned(
    iterations: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of neighbouring groups of equal size; the last group may be smaller."""
    starts = np.arange(0, len(values), _group_size(len(values)))
    counts = np.diff([*starts, len(values)])
    return np.add.reduceat(iterations, starts) / counts, np.add.reduceat(values, starts) / counts


def _group_size(count: int) -> int:
    return -(-count // CURVE_POINTS)


def _configuration(config: TrainConfig) -> Section:
    return Section(
        "Configuration",
        f"Preset {config.preset}. As a recipe, with every key:",
        code=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
    )


def _environment(folder: Path) -> Section:
    path = folder / SESSIONS
    try:
        sessions = json.loads(path.read_text(encoding="utf-8"))
        rows = [(key, str(value)) for session in sessions for key, value in session.items()]
    except (OSError, ValueError, AttributeError) as error:
        return Section("Environment", f"Not known: {path} cannot be read ({error}).")
    return Section("Environment", "Where the run was started, and resumed if it was.", table=rows)
