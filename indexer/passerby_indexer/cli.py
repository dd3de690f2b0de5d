"""`passerby index`: a data set, or a video with its tracks -> a gallery, with progress, resumable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from passerby_client.commands.common import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT,
    CaFile,
    Server,
    Timeout,
    connected,
    counted,
    last_part,
    parse_time,
    print_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from passerby_client import Client
    from passerby_model.datasets import Tracklet

    from passerby_indexer.bulk import IndexReport
    from passerby_indexer.video import TrackedVideo

# The server may be restarted under a long run: so many attempts wait for about a minute.
ATTEMPTS = 18
# So many problems are shown; --json has them all.
SHOWN_PROBLEMS = 20
INTERRUPTED = 130


class DataFormat(StrEnum):
    """Formats of a data set, see passerby_model.datasets."""

    AUTO = "auto"
    MARS = "mars"
    DUKE = "duke"
    ILIDS = "ilids"
    PRID = "prid"
    RTF = "rtf"
    STREET = "street"
    MANIFEST = "manifest"
    PLAIN = "plain"


def index(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A data set: a folder or a manifest (.csv, .parquet). With --tracks: a video."
        ),
    ],
    gallery: Annotated[str, typer.Option("--gallery", "-g", metavar="GALLERY", help="Id of the gallery to fill.")],
    create: Annotated[bool, typer.Option("--create", help="Create the gallery if there is none.")] = False,
    format: Annotated[
        DataFormat, typer.Option("--format", help="plain: IDENTITY/CAMERA/TRACKLET/FRAME.jpg; auto goes by its signs.")
    ] = DataFormat.AUTO,
    no_identities: Annotated[
        bool, typer.Option("--no-identities", help="Store everyone as unknown, whatever the folders are called.")
    ] = False,
    tracks: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="PATH is a video, or a folder of its frames; FILE has its tracks (MOT format)."
        ),
    ] = None,
    camera: Annotated[str, typer.Option(metavar="CAMERA", help="With --tracks: which camera made the video.")] = "",
    start: Annotated[
        str | None, typer.Option(metavar="TIME", help="With --tracks: when the video begins (ISO 8601).")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(metavar="RATE", help="With --tracks: frames a second, where not the video's own.")
    ] = None,
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
    """Store the tracklets of a data set, or of a video with its tracks, in a gallery.

    Repeating a run is harmless: nothing is stored twice. Frames that cannot be read are left out and reported. The
    exit status is 1 when a tracklet could not be stored.
    """
    from passerby_client import RetryPolicy

    from passerby_indexer import bulk

    if tracks is None:
        _refuse({"--camera": camera, "--start": start, "--fps": fps}, "only say more of a video: add --tracks FILE")
        dataset: tuple[Tracklet, ...] | TrackedVideo
        dataset, total = _data_set(path, format, limit)
    else:
        _refuse(
            {"--format": format is not DataFormat.AUTO, "--no-identities": no_identities}, "do not go with --tracks"
        )
        dataset, total = _video(path, tracks, camera, start, fps, limit)
    latest: list[IndexReport] = []
    retry = RetryPolicy(attempts=ATTEMPTS)
    made = f"with --create or `passerby gallery create {last_part(gallery)}`"
    with connected(server, ca_file, timeout, retry=retry, create=made) as client:
        if create:
            _create(client, gallery)
        before = _held(client, gallery)
        try:
            with show_progress(total) as show:

                def on_progress(report: IndexReport) -> None:
                    latest[:] = [report]
                    show(report)

                report = bulk.index(
                    client,
                    gallery,
                    dataset,
                    journal=journal,
                    identities=not no_identities,
                    camera_prefix=camera_prefix,
                    limit=limit,
                    on_progress=on_progress,
                )
        except KeyboardInterrupt:
            typer.echo(_interrupted(latest, total, journal), err=True)
            raise typer.Exit(INTERRUPTED) from None
        after = _held(client, gallery)
    if as_json:
        print_json(report_fields(report))
    else:
        print_report(report, there=None if before is None or after is None else report.stored - (after - before))
    if report.failed:
        raise typer.Exit(1)


def _data_set(path: Path, format: DataFormat, limit: int | None) -> tuple[tuple[Tracklet, ...], int]:
    from passerby_indexer.scan import scan

    found = scan(path, format.value, limit=limit)
    return found, len(found)


def _video(
    path: Path, tracks: Path, camera: str, start: str | None, fps: float | None, limit: int | None
) -> tuple[TrackedVideo, int]:
    from passerby_indexer.video import TrackedVideo

    if not camera:
        raise typer.BadParameter("say which camera made the video", param_hint="'--camera'")
    video = TrackedVideo(path, tracks, camera=camera, start=parse_time(start), rate=fps)
    return video, len(video.tracks[:limit])


def _refuse(given: dict[str, object], why: str) -> None:
    names = [f"'{name}'" for name, value in given.items() if value]
    if names:
        raise typer.BadParameter(why, param_hint=" / ".join(names))


def _create(client: Client, gallery: str) -> None:
    from contextlib import suppress

    from passerby.errors import AlreadyExistsError

    with suppress(AlreadyExistsError):
        client.create_gallery(gallery)


def _held(client: Client, gallery: str) -> int | None:
    """Tracklets in the gallery; None where that is not to be had (who may store may not always look): the report alone
    loses a number by that."""
    from passerby.errors import PasserbyError

    try:
        return client.gallery_stats(gallery).tracklet_count
    except PasserbyError:
        return None


@contextmanager
def show_progress(total: int) -> Iterator[Callable[[IndexReport], None]]:
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
    parts += [f"{counted(len(report.unreadable), 'frame')} left out"] * bool(report.unreadable)
    return ", ".join(parts)


def _interrupted(latest: list[IndexReport], total: int, journal: Path | None) -> str:
    done = latest[0].done if latest else 0
    again = "run the same command again to go on: nothing is stored twice"
    hint = "" if journal else "; with --journal FILE it would not even be sent twice"
    return f"\ninterrupted after {done} of {total} tracklets; {again}{hint}"


def report_fields(report: IndexReport) -> dict[str, Any]:
    """The report for machines."""
    return {
        "gallery": report.gallery,
        "stored": report.stored,
        "frames": report.frames,
        "already_stored": report.already,
        "seconds": round(report.seconds, 3),
        "failed": [{"source": failure.source, "error": failure.error} for failure in report.failed],
        "unreadable": [{"path": str(frame.path), "error": frame.error} for frame in report.unreadable],
    }


def print_report(report: IndexReport, *, there: int | None = None) -> None:
    """Writes the report for people; `there`: how many of the stored tracklets the gallery had before, where known."""
    new = report.stored - max(there or 0, 0)
    rate = f" in {report.seconds:.1f} s, {new / report.seconds:.1f} tracklets/s" if report.seconds else ""
    whole = f"{counted(report.stored, 'tracklet')} ({counted(report.frames, 'frame')})"
    if new == report.stored:
        typer.echo(f"{whole} stored in {report.gallery}{rate}")
    elif new <= 0:
        typer.echo(f"nothing new: {whole} {'was' if report.stored == 1 else 'were'} in {report.gallery} already")
    else:
        typer.echo(f"{whole} are in {report.gallery}: {new:,} stored{rate}; {there:,} were there already")
    if report.already:
        typer.echo(f"{report.already} left out: the journal has them")
    list_problems("frame", "left out, not readable", [f"{u.path}: {u.error}" for u in report.unreadable])
    list_problems("tracklet", "not stored", [f"{f.source}: {f.error}" for f in report.failed])


def list_problems(noun: str, what: str, lines: list[str]) -> None:
    """Problems go to standard error, the first of them in full."""
    if not lines:
        return
    typer.echo(f"{counted(len(lines), noun)} {what}:", err=True)
    for line in lines[:SHOWN_PROBLEMS]:
        typer.echo(f"  {line}", err=True)
    if len(lines) > SHOWN_PROBLEMS:
        typer.echo(f"  and {len(lines) - SHOWN_PROBLEMS} more; --json lists all", err=True)
