"""`passerby bundle tune`. Heavy packages are imported inside the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Cache, cache_folder, one_of

if TYPE_CHECKING:
    from passerby_model.backends.tuning import Tuning


def tune_command(
    path: Annotated[Path, typer.Argument(help="Folder of the bundle.", show_default=False)],
    backend: Annotated[str, typer.Option(help="As the server is told.")] = "auto",
    precision: Annotated[str, typer.Option(help="As the server is told.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads, as the server is told; 0 for all cores.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.0, help="About how long to measure.")] = 60.0,
    cache: Cache = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Measure which threads, streams and batch size are fastest here, for the server to take; nothing else may run."""
    from typing import get_args

    from passerby_model.backends import BackendKind, PrecisionKind
    from passerby_model.backends.tuning import save_tuning

    from .bundle import clear_errors
    from .tune import tune

    kind = one_of("--backend", backend, get_args(BackendKind))
    chosen = one_of("--precision", precision, get_args(PrecisionKind))
    folder = cache_folder(cache)
    tuning = tune(path, backend=kind, precision=chosen, threads=threads, seconds=seconds)
    with clear_errors(folder):
        written = save_tuning(folder, tuning)
    if as_json:
        typer.echo(json.dumps({"file": str(written), **tuning.model_dump(mode="json")}, indent=2))
        return
    _print(tuning)
    typer.echo(_outcome(tuning, written))


def _print(tuning: Tuning) -> None:
    for row in sorted(tuning.measured, key=lambda row: -row.snippets_per_second):
        note = " (default)" * (row.setting == tuning.default) + " <- taken" * (row.setting == tuning.chosen)
        typer.echo(
            f"{row.setting.streams} streams, {row.setting.threads} threads, batch {row.setting.max_batch}: "
            f"{row.snippets_per_second:.2f} snippets/s, alone {1e3 * row.lone_seconds:.0f} ms{note}"
        )


def _outcome(tuning: Tuning, written: Path) -> str:
    """One sentence: what the server will run, and where that is kept."""
    if tuning.chosen == tuning.default:
        return f"the default stays, since nothing is faster by more than noise; {written} says so to the server"
    return (
        f"{tuning.gain:.2f} times the default (noise {tuning.noise:.2f}, measured in turn with it): written to {written}, "
        "from where the server takes it at its next start"
    )
