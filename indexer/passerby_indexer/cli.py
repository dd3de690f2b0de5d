"""`passerby index`: a folder of tracklets -> a gallery, with progress, resumable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from passerby_client.commands.common import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT,
    CaFile,
    Server,
    Timeout,
    connect,
    print_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from passerby_client import Client

    from passerby_indexer.bulk import IndexReport

# The server may be restarted under a long run: so many attempts wait for about a minute.
ATTEMPTS = 18
# So many problems are shown; --json has them all.
SHOWN_PROBLEMS = 20
INTERRUPTED = 130


class Layout(StrEnum):
    """Layouts of a folder, see passerby_model.datasets."""

    AUTO = "auto"
    MARS = "mars"
    PLAIN = "plain"


def index(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Tracklets in the MARS or the plain layout.")],
    gallery: Annotated[str, typer.Option("--gallery", "-g", metavar="GALLERY", help="Id of the gallery to fill.")],
    create: Annotated[bool, typer.Option("--create", help="Create the gallery if there is none.")] = False,
    layout: Annotated[
        Layout,
        typer.Option("--format", help="plain: IDENTITY/CAMERA/TRACKLET/FRAME.jpg; mars: bbox_train, bbox_test."),
    ] = Layout.AUTO,
    no_identities: Annotated[
        bool, typer.Option("--no-identities", help="Store everyone as unknown, whatever the folders are called.")
    ] = False,
    camera_prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="Put before each camera id, for example a site's name.")
    ] = "",
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N tracklets.")] = None,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep what is stored in FILE; a later run does not send it again."),
    ] = None,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: Annotated[bool, typer.Option("--json", help="Write the summary as JSON for machines.")] = False,
) -> None:
    """Store a folder of tracklets in a gallery.

    Repeating a run is harmless: nothing is stored twice. Frames that cannot be read are left out and reported. The
    exit status is 1 when a tracklet could not be stored.
    """
    from passerby_client import RetryPolicy

    from passerby_indexer import bulk
    from passerby_indexer.scan import scan

    found = scan(folder, layout.value, limit=limit)
    latest: list[IndexReport] = []
    with connect(server, ca_file, timeout, retry=RetryPolicy(attempts=ATTEMPTS)) as client:
        if create:
            _create(client, gallery)
        try:
            with _progress(len(found.tracklets)) as show:

                def on_progress(report: IndexReport) -> None:
                    latest[:] = [report]
                    show(report)

                report = bulk.index(
                    client,
                    gallery,
                    found.tracklets,
                    journal=journal,
                    identities=not no_identities,
                    camera_prefix=camera_prefix,
                    times=found.times,
                    on_progress=on_progress,
                )
        except KeyboardInterrupt:
            typer.echo(_interrupted(latest, len(found.tracklets), journal), err=True)
            raise typer.Exit(INTERRUPTED) from None
    _print(report, as_json)
    if report.failed:
        raise typer.Exit(1)


def _create(client: Client, gallery: str) -> None:
    from contextlib import suppress

    from passerby.errors import AlreadyExistsError

    with suppress(AlreadyExistsError):
        client.create_gallery(gallery)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[IndexReport], None]]:
    """A bar on standard error with rate, time left and failures; nothing when that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("indexing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[problems]}", style="red"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("indexing", total=total, rate="", problems="")

        def show(report: IndexReport) -> None:
            rate = f"{report.stored / report.seconds:.1f}/s" if report.seconds and report.stored else ""
            bar.update(task, completed=report.done, rate=rate, problems=_problems(report))

        yield show


def _problems(report: IndexReport) -> str:
    parts = [f"{len(report.failed)} failed"] * bool(report.failed)
    parts += [f"{_count(len(report.unreadable), 'frame')} left out"] * bool(report.unreadable)
    return ", ".join(parts)


def _interrupted(latest: list[IndexReport], total: int, journal: Path | None) -> str:
    done = latest[0].done if latest else 0
    again = "run the same command again to go on: nothing is stored twice"
    hint = "" if journal else "; with --journal FILE it would not even be sent twice"
    return f"\ninterrupted after {done} of {total} tracklets; {again}{hint}"


def _print(report: IndexReport, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "gallery": report.gallery,
                "stored": report.stored,
                "frames": report.frames,
                "already_stored": report.already,
                "seconds": round(report.seconds, 3),
                "failed": [{"source": failure.source, "error": failure.error} for failure in report.failed],
                "unreadable": [{"path": str(frame.path), "error": frame.error} for frame in report.unreadable],
            }
        )
        return
    rate = f" in {report.seconds:.1f} s, {report.stored / report.seconds:.1f} tracklets/s" if report.seconds else ""
    stored = f"{_count(report.stored, 'tracklet')} ({_count(report.frames, 'frame')})"
    typer.echo(f"{stored} stored in {report.gallery}{rate}")
    if report.already:
        typer.echo(f"{report.already} left out: the journal has them")
    _list("frame", "left out, not readable", [f"{u.path}: {u.error}" for u in report.unreadable])
    _list("tracklet", "not stored", [f"{f.source}: {f.error}" for f in report.failed])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _list(noun: str, what: str, lines: list[str]) -> None:
    """Problems go to standard error, the first of them in full."""
    if not lines:
        return
    typer.echo(f"{_count(len(lines), noun)} {what}:", err=True)
    for line in lines[:SHOWN_PROBLEMS]:
        typer.echo(f"  {line}", err=True)
    if len(lines) > SHOWN_PROBLEMS:
        typer.echo(f"  and {len(lines) - SHOWN_PROBLEMS} more; --json lists all", err=True)
