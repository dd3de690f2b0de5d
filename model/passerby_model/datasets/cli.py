"""The command `passerby data`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from passerby_model.datasets.checking import CheckReport, PartSummary

# So many problems of a kind are shown; --json has them all.
SHOWN_PROBLEMS = 10
# A table that is piped has no terminal to measure: wide enough that nothing is cut.
PIPED_WIDTH = 200


class Layout(StrEnum):
    """`datasets.Format`, for the command line."""

    AUTO = "auto"
    MARS = "mars"
    DUKE = "duke"
    ILIDS = "ilids"
    PRID = "prid"
    RTF = "rtf"
    PLAIN = "plain"
    MANIFEST = "manifest"
    STREET = "street"


app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Look after data sets.")


@app.callback()
def data() -> None:
    """Look after data sets."""


@app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Root of the data set, or a manifest file.")],
    layout: Annotated[
        Layout, typer.Option("--format", help="The format of the data set; auto goes by its folders and files.")
    ] = Layout.AUTO,
    decode: Annotated[
        bool, typer.Option("--decode", help="Open every frame: finds broken ones and odd sizes.")
    ] = False,
    threads: Annotated[int, typer.Option(metavar="N", min=1, max=256, help="Threads that read frames.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Write the report as JSON for machines.")] = False,
) -> None:
    """Count what is in a data set and find what is wrong with it.

    The exit status is 1 when the set is unfit for use: it cannot be read, or frames are missing or broken. Warnings
    do not count.
    """
    from passerby.errors import PasserbyError

    from passerby_model.datasets.checking import check as run
    from passerby_model.datasets.files import shown

    try:
        with _progress() as progress:
            report = run(path, layout.value, decode=decode, threads=threads, progress=progress)
    except PasserbyError as error:
        if as_json:
            _print_json({"path": shown(path), "ok": False, "refused": error.message, "reason": error.reason})
            raise typer.Exit(1) from error
        raise
    if as_json:
        _print_json({"ok": report.ok, **asdict(report)})
    else:
        _print_report(report)
    if not report.ok:
        raise typer.Exit(1)


class Half(StrEnum):
    """Whose identities."""

    TRAIN = "train"
    TEST = "test"


@app.command()
def identities(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Root of the data set, or a manifest file.")],
    part: Annotated[Half, typer.Option(help="Those to train on, or those that are asked for.")] = Half.TRAIN,
    split: Annotated[int, typer.Option(metavar="N", min=1, help="Which split, of iLIDS-VID and PRID 2011.")] = 1,
    layout: Annotated[
        Layout, typer.Option("--format", help="The format of the data set; auto goes by its folders and files.")
    ] = Layout.AUTO,
) -> None:
    """List the identities of one half of a data set, one a line.

    Such a list tells `passerby train` (identities: FILE) and `passerby evaluate` (--identities FILE) whom to look at.
    """
    from passerby.errors import NotFoundError

    from passerby_model.datasets.files import shown
    from passerby_model.datasets.splits import read_splits

    splits = read_splits(path, layout.value)
    if split > len(splits):
        raise NotFoundError(f"{shown(path)}: has {len(splits)} splits, no split {split}")
    chosen = splits[split - 1]
    names = sorted({tracklet.identity for tracklet in (chosen.train if part == Half.TRAIN else chosen.query)})
    if not names:
        raise NotFoundError(f"{shown(path)}: nobody is in the half {part.value!r} of {chosen.name}")
    typer.echo("\n".join(names))


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("frames", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_report(report: CheckReport) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)
    console.print(f"{report.path}: {report.format}", markup=False)
    console.print(_table(report.parts))
    for line in _lines(report):
        console.print(line, markup=False, soft_wrap=True)


def _table(parts: tuple[PartSummary, ...]) -> object:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("part")
    nobody = [name for name in ("junk", "distractors") if any(getattr(part, name) for part in parts)]
    for name in ("identities", "cameras", "tracklets", *nobody, "frames", "shortest", "median", "longest"):
        table.add_column(name, justify="right")
    for part in parts:
        counts = [part.identities, len(part.cameras), part.tracklets, *(getattr(part, name) for name in nobody)]
        lengths = [part.frames, part.shortest, part.median, part.longest]
        table.add_row(part.name, *(f"{value:,.10g}" for value in (*counts, *lengths)))
    return table


def _lines(report: CheckReport) -> Iterator[str]:
    for split in report.splits:
        against = "against themselves" if split.all_against_all else f"in a gallery of {split.gallery:,}"
        yield (
            f"{split.name}: {split.queries:,} queries of {split.identities:,} identities {against}, "
            f"{split.without_match:,} without a match from another camera"
        )
    if report.attributes:
        yield f"attributes: {', '.join(report.attributes)}"
    if report.sizes is not None:
        smallest, middle, largest = (
            f"{rows} x {columns}"
            for rows, columns in (report.sizes.smallest, report.sizes.median, report.sizes.largest)
        )
        span = f"all {middle}" if smallest == largest else f"{smallest} to {largest}, median {middle},"
        yield f"frames are {span} pixels (rows x columns)"
    yield {
        "not there": "no images here: the metadata alone was checked",
        "looked at": "every frame's file is looked at; --decode opens each",
        "opened": "every frame was opened",
    }[report.files]
    yield from _problem_lines(report)


def _problem_lines(report: CheckReport) -> Iterator[str]:
    shown: dict[str, int] = {}
    for problem in report.problems:
        shown[problem.kind] = shown.get(problem.kind, 0) + 1
        if shown[problem.kind] <= SHOWN_PROBLEMS:
            yield f"{problem.severity}: {problem.path}: {problem.reason}"
    for kind, count in shown.items():
        if count > SHOWN_PROBLEMS:
            yield f"... and {count - SHOWN_PROBLEMS:,} more of the kind {kind!r}; --json has them all"
    errors = sum(problem.severity == "error" for problem in report.problems)
    yield f"{errors:,} errors, {len(report.problems) - errors:,} warnings"
