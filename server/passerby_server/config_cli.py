"""`passerby config`: what the server's settings are, where they come from, whether a file is right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from passerby_server.settings import Given

PIPED_WIDTH = 200
"""A table that is piped has no terminal to measure."""
LEAST_DESCRIPTION = 40
"""Characters; where fewer are left, the table has no column of what settings mean."""
GAP = 2
"""Characters between columns."""

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Show and check the server's settings."
)


class Format(StrEnum):
    """How settings are printed."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"
    MARKDOWN = "markdown"


@app.callback()
def config() -> None:
    """Show and check the server's settings."""


@app.command()
def show(
    file: Annotated[
        Path | None, typer.Option("--config", help="YAML file with settings. [default: $PASSERBY_CONFIG]")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, for example limits.max_frames=500; repeatable.")
    ] = None,
    format_: Annotated[
        Format,
        typer.Option("--format", help="A table, a YAML file that --config takes, JSON, or the reference in Markdown."),
    ] = Format.TABLE,
) -> None:
    """Show every setting as `passerby serve` would take it here: value, source, default, unit, meaning."""
    from passerby_server.cli import assignments
    from passerby_server.config import CONFIG_VARIABLE
    from passerby_server.settings import as_json, as_markdown, as_yaml, given

    if format_ is Format.MARKDOWN:
        typer.echo(as_markdown(), nl=False)
        return
    if file is None and os.environ.get(CONFIG_VARIABLE):
        file = Path(os.environ[CONFIG_VARIABLE])
    found = given(assignments(set_ or ()), environment=os.environ, file=file)
    if format_ is Format.JSON:
        typer.echo(as_json(found))
    elif format_ is Format.YAML:
        typer.echo(as_yaml(found), nl=False)
    else:
        _print_table(found)


@app.command()
def check(file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file with settings.")]) -> None:
    """Exit with 0 when every setting in FILE is one that the server knows, with a value that it takes, and the files that
    they name can be read; else with 1 and the names of those that are wrong."""
    from passerby.errors import InvalidArgumentError

    from passerby_server import settings

    try:
        count = settings.check(file)
    except InvalidArgumentError as error:
        named = error.message if str(file) in error.message else f"{file}: {error.message}"
        raise InvalidArgumentError(named, reason=error.reason) from error
    typer.echo(f"{file}: {count} settings, all valid")


def _print_table(found: Sequence[Given]) -> None:
    import sys
    from itertools import accumulate

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    headings = ("setting", "value", "source", "default", "unit", "what")
    rows = [
        (one.setting.key, _text(one.value), one.source, _text(one.setting.default), one.setting.unit) for one in found
    ]
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    console = Console(file=sys.stdout, width=width)
    # Keys and values stay whole, to be read, searched and copied: what does not fit beside them is left out.
    taken = [0, *accumulate(max(map(len, column)) + GAP for column in zip(headings[:-1], *rows, strict=True))]
    shown = 6 if console.width - taken[5] >= LEAST_DESCRIPTION else 5 if console.width >= taken[5] - GAP else 3
    if shown == 3 and console.width < taken[3]:
        console = Console(file=sys.stdout, width=taken[3])  # the terminal wraps these lines itself
    table = Table(box=None, pad_edge=False)
    for heading in headings[:shown]:
        table.add_column(heading, overflow="fold", no_wrap=heading != "what")
    for one, row in zip(found, rows, strict=True):
        cells = (*row, one.setting.description)[:shown]
        table.add_row(*map(Text, cells), style="bold" if one.source != "default" else "")
    console.print(table)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "-" if value is None else "empty" if value == "" else str(value)
