"""The stage `train`: a configuration and a folder in, checkpoints, a log and a report out. `passerby train`.

python -m passerby_export.train recipe.yaml --out runs/first
accelerate launch --num_processes 2 -m passerby_export.train recipe.yaml --out runs/first
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from passerby_model.train_config import TrainConfig
    from passerby_model.training import Reporter, Step, TrainResult

PLAIN_LINE_SECONDS = 20.0
# Weight of the past in the moving averages that are shown; the log has every value.
SMOOTHING = 0.9


def train(config: TrainConfig, out: Path, *, resume: bool = False) -> TrainResult:
    """Train with progress on the terminal, then write the report; Ctrl-C or SIGTERM end with a saved checkpoint.

    Args:
        config: what to compute.
        out: folder for checkpoints, log and report.
        resume: go on with the run in `out`.

    Raises:
        PasserbyError: see `passerby_model.training.train`.
    """
    from passerby_model import training

    with _progress() as reporter:
        with _stop_requests() as stop:
            result = training.train(config, out, reporter=reporter, resume=resume, stop=stop)
        if config.report and result.finished and result.main_process:
            from passerby_model.report import write_report

            write_report(out, tell=reporter.message)
        return result


def train_command(
    recipe: Annotated[
        Path | None, typer.Argument(help="YAML file. Default with --resume: the run's own.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and log.", show_default=False)] = Path("runs/train"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    preset: Annotated[
        str | None, typer.Option(help="Named recipe below the file's keys; --list-presets shows them.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder of tracklets, instead of the recipe's; may be repeated.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Checkpoint to start from; tensors that fit are taken.")] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="ImageNet weights of the backbone: a file, or 'hub' to download them.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Length of the run, instead of epochs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, batches and augmentation.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other key: --set lr=1e-4 --set augmentation.erase=0.5")
    ] = None,
    list_presets: Annotated[bool, typer.Option("--list-presets", help="Show the named recipes, and end.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Only write the report of the run in --out, finished or not.")
    ] = False,
) -> None:
    """Train an encoder on tracklets."""
    from passerby.errors import InvalidArgumentError
    from passerby_model import train_config

    overrides = _overrides(
        data,
        settings,
        preset=preset,
        init=init,
        pretrained=pretrained,
        iterations=iterations,
        seed=seed,
        threads=threads,
    )
    if list_presets:
        _show_presets()
        return
    if report:
        if recipe is not None or resume or overrides:
            raise InvalidArgumentError("--report trains nothing: it goes with --out alone")
        _report_alone(out)
        return
    if recipe is None and not data and not resume:
        raise InvalidArgumentError("nothing to train on: give a recipe (YAML) or --data FOLDER")
    base = train_config.read_config(out).model_dump(mode="json") if recipe is None and resume else None
    config = train_config.load(recipe, overrides, base)  # before torch is imported: errors come at once
    result = train(config, out, resume=resume)
    if not result.main_process:
        return
    if not result.finished:
        typer.echo(f"stopped after {result.iterations} iterations; go on with --out {out} --resume")
        return
    outcome = f", validation {result.validation}" if result.validation else ""
    typer.echo(f"{result.checkpoint}: {result.iterations} iterations{outcome}")


def _overrides(data: list[Path] | None, settings: list[str] | None, **flags: object) -> list[str]:
    """What was given on the command line as key=value; --set wins over the flags."""
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    if data:
        given.insert(0, f"data={[{'path': str(path)} for path in data]!r}")
    return given + (settings or [])


def _show_presets() -> None:
    import yaml
    from passerby_model.presets import PRESETS

    for name, preset in PRESETS.items():
        typer.echo(f"{name}: {preset.summary}")
        if preset.values:
            typer.echo("  " + yaml.safe_dump(dict(preset.values), sort_keys=False).strip().replace("\n", "\n  "))


def _report_alone(out: Path) -> None:
    from passerby_model.report import write_report

    typer.echo(write_report(out, tell=lambda text: typer.echo(text, err=True)))


class _PlainReporter:
    """A line every so often, for logs and pipes."""

    def __init__(self) -> None:
        self._average = _Average()
        self._due = 0.0

    def message(self, text: str) -> None:
        print(text, flush=True)

    def step(self, step: Step, total: int) -> None:
        text = self._average.add(step)
        now = time.monotonic()
        if now >= self._due or step.iteration == total:
            self._due = now + PLAIN_LINE_SECONDS
            print(f"{step.iteration}/{total} {text}, {self._average.remaining(step, total)} left", flush=True)


class _Average:
    """Moving averages of what is shown."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def add(self, step: Step) -> str:
        values = {
            "loss": step.loss,
            "triplet": step.triplet,
            "distillation": step.distillation,
            "accuracy": 100 * step.accuracy,
            "seconds": step.seconds,
            "wait": step.wait_seconds,
        }
        old = self._values or values
        self._values = {key: SMOOTHING * old[key] + (1 - SMOOTHING) * value for key, value in values.items()}
        now = self._values
        imitation = f"distillation {now['distillation']:.3f} " if now["distillation"] else ""
        waiting = 100 * now["wait"] / max(now["seconds"], 1e-9)
        return (
            f"epoch {step.epoch + 1} loss {now['loss']:.3f} triplet {now['triplet']:.3f} "
            f"{imitation}accuracy {now['accuracy']:.0f} % {step.clips / max(now['seconds'], 1e-9):.1f} clips/s "
            f"(waiting {waiting:.0f} %) lr {step.lr:.1e}"
        )

    def remaining(self, step: Step, total: int) -> str:
        minutes, seconds = divmod(round((total - step.iteration) * self._values["seconds"]), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


@contextmanager
def _progress() -> Iterator[Reporter]:
    """A live bar on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        yield _PlainReporter()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns) as bar:
        task = bar.add_task("reading data", total=None)
        average = _Average()

        class Live:
            def message(self, text: str) -> None:
                bar.console.print(text, highlight=False)

            def step(self, step: Step, total: int) -> None:
                text = average.add(step)
                left = average.remaining(step, total)
                bar.update(task, completed=step.iteration, total=total, description=f"{text}, {left} left")

        yield Live()


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask for an end between two iterations; a second Ctrl-C ends at once, without saving."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        print("\nstopping after this iteration; the checkpoint will be saved", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """`python -m passerby_export.train`."""
    from passerby.errors import PasserbyError

    try:
        typer.run(train_command)
    except PasserbyError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
