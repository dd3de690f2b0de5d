"""`passerby gallery reindex`: a gallery filled anew with the model that is served now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from passerby_client.commands.common import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT,
    AsJson,
    CaFile,
    Server,
    Timeout,
    connect,
    last_part,
    plain,
    print_json,
)

from passerby_indexer.cli import (
    ATTEMPTS,
    INTERRUPTED,
    DataFormat,
    list_problems,
    print_report,
    report_fields,
    show_progress,
)

if TYPE_CHECKING:
    from passerby_indexer.reindex import Reindexed


def reindex(
    gallery: Annotated[str, typer.Argument(metavar="GALLERY", help="Id of the gallery to fill anew.")],
    sources: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="PATH", help="Data set that it was filled from; may be repeated."),
    ] = None,
    kept_frames: Annotated[
        bool, typer.Option("--kept-frames", help="From the frames that the server kept, for what is in no data set.")
    ] = False,
    format: Annotated[DataFormat, typer.Option("--format", help="As given to `passerby index`.")] = DataFormat.AUTO,
    camera_prefix: Annotated[str, typer.Option(metavar="TEXT", help="As given to `passerby index`.")] = "",
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep what is stored in FILE; a later run does not send it again."),
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Switch though tracklets are not in PATH: they stay in the old gallery."),
    ] = False,
    fill_only: Annotated[bool, typer.Option("--fill-only", help="Do not switch; repeat it without this to.")] = False,
    keep_as: Annotated[
        str, typer.Option(metavar="ID", help="Id of the old gallery after the switch; GALLERY-before unless given.")
    ] = "",
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Fill a gallery anew with the model that is served now, and switch to it in one step.

    The old gallery answers meanwhile, and is kept after. Repeating a run goes on where it was stopped. The exit status
    is 1 when it has not come to the switch.
    """
    from passerby_client import RetryPolicy

    from passerby_indexer import reindex as stage
    from passerby_indexer.scan import scan

    if not sources and not kept_frames:
        raise typer.BadParameter("say from which data set, or --kept-frames", param_hint="'--from'")
    found = [tracklet for path in sources or () for tracklet in scan(path, format.value)]
    with connect(server, ca_file, timeout, retry=RetryPolicy(attempts=ATTEMPTS)) as client:
        try:
            with show_progress(len(found)) as show:
                done = stage.reindex(
                    client,
                    gallery,
                    found,
                    kept_frames=kept_frames,
                    camera_prefix=camera_prefix,
                    journal=journal,
                    allow_missing=allow_missing,
                    fill_only=fill_only,
                    keep_as=keep_as,
                    on_progress=show,
                )
        except KeyboardInterrupt:
            typer.echo(f"\ninterrupted; {gallery} is as before, run the same command again to go on", err=True)
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        replaced = plain(done.replaced) if done.replaced else None
        fields = report_fields(done.report) | {"gone": done.gone, "missing": done.missing, "replaced": replaced}
        print_json(fields)
    else:
        _print(done, gallery, fill_only)
    if done.replaced is None and not fill_only:
        raise typer.Exit(1)


def _print(done: Reindexed, gallery: str, fill_only: bool) -> None:
    print_report(done.report)
    if done.gone:
        typer.echo(f"{done.gone:,} tracklets found there left out: {gallery} does not hold them (any more)")
    list_problems("tracklet", f"of {gallery} not in the new gallery", list(done.missing))
    if done.replaced is not None:
        new, old = done.replaced.gallery, last_part(done.replaced.retired.name)
        typer.echo(f"{gallery} is of model {new.model_fingerprint[:12]} now; the old one is {old}")
        typer.echo(f"once it is no longer needed: passerby gallery delete {old} --force", err=True)
    elif not fill_only:
        typer.echo(
            f"{gallery} is as before: index the missing ones, or let them stay in the old gallery with --allow-missing",
            err=True,
        )
