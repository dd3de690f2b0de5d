"""`passerby top`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

DEFAULT_METRICS = "127.0.0.1:9464"
PIPED_WIDTH = 120


def top(
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics", metavar="HOST:PORT", help="metrics.address of the server, or the URL of its metrics."
        ),
    ] = DEFAULT_METRICS,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, metavar="SECONDS", help="Between two readings; rates are over it.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
) -> None:
    """Watch a server in the terminal: calls, times, queue, stages, galleries. Control-C ends it."""
    import sys

    from passerby.errors import UnavailableError
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.text import Text

    from passerby_server.telemetry.reading import Between, read, url_of
    from passerby_server.telemetry.top import frame

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    before = read(metrics)
    if once:
        time.sleep(interval)
        console.print(frame(Between(before, read(metrics)), metrics))
        return
    shown: RenderableType = Text(f"reading {url_of(metrics)}")
    with Live(shown, console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                time.sleep(interval)
                now = read(metrics)
                before, shown = now, frame(Between(before, now), metrics)
                live.update(shown, refresh=True)
            except UnavailableError as error:  # it may come back
                live.update(Group(Text(error.message, style="bold red"), Text(), shown), refresh=True)
            except KeyboardInterrupt:
                return
