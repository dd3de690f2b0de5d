"""`passerby audit verify|show`: on the server's machine, also while it runs, or on a copy of the records with the key."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from passerby.errors import NotFoundError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Verify and show the records of who searched, changed, erased and was refused.",
)

Folder = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="Of the records: `audit` in the data folder, or the setting audit.folder."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key", envvar="PASSERBY_AUDIT__KEY", metavar="FILE", help="The key. Default: `key` in the folder."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON for machines.")]


@app.command()
def verify(
    folder: Folder,
    key: KeyFile = None,
    noted: Annotated[
        str | None,
        typer.Option("--noted", metavar="NUMBER:SEAL", help="A head that was noted earlier: it must still be there."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every seal, and that no record is missing. Note the printed head elsewhere, for the next time."""
    from passerby_server.security import chain

    found = chain.verify(folder, chain.load_key(key or folder / "key"), chain.Head.parse(noted) if noted else None)
    first, last = found.first or {}, found.last or {}
    if as_json:
        said = {"records": found.records, "first_time": first.get("time"), "last_time": last.get("time")}
        said |= {"head": str(found.head), "unfinished_bytes": found.unfinished_bytes}
        typer.echo(json.dumps(said | {"stopped_in_order": last.get("event") == chain.STOPPED}, indent=2))
        return
    typer.echo(f"sound: {found.records:,} records, {first.get('time')} to {last.get('time')}")
    if last.get("event") != chain.STOPPED:
        typer.echo("the last record is not the server's end: it runs, or it was killed, or records were cut off")
    typer.echo(f"head {found.head}")


@app.command()
def show(
    folder: Folder,
    key: KeyFile = None,
    caller: Annotated[str, typer.Option(help="Only calls of this caller.")] = "",
    gallery: Annotated[str, typer.Option(help="Only what concerns this gallery (its id).")] = "",
    method: Annotated[str, typer.Option(help="Only this, for example SearchTracklets or EraseIdentity.")] = "",
    identity: Annotated[str, typer.Option(help="Only what is about this identity, also after its erasure.")] = "",
    tracklet: Annotated[
        str, typer.Option(metavar="NAME", help="Only what is about galleries/GALLERY/tracklets/TRACKLET.")
    ] = "",
    refused: Annotated[
        bool, typer.Option("--refused", help="Only what was refused: unknown callers and denials.")
    ] = False,
    after: Annotated[str | None, typer.Option(metavar="TIME", help="Only from this time on: 2026-11-21T09:14.")] = None,
    before: Annotated[str | None, typer.Option(metavar="TIME", help="Only before this time.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the records, oldest first, each once its seal has been checked. Names are digests: ask for a name to find it."""
    from passerby_server.security import chain, show_records

    if not chain.segments(folder):
        raise NotFoundError(f"there are no audit records in {folder}")
    wanted = show_records.Wanted(
        caller=caller,
        gallery=gallery,
        method=_method(method),
        identity=identity,
        tracklet=tracklet,
        refused=refused,
        after=_utc(after),
        before=_utc(before),
    )
    found = show_records.select(folder, chain.load_key(key or folder / "key"), wanted)
    if as_json:
        for record in found:
            typer.echo(json.dumps(record, ensure_ascii=False))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("time (UTC)", "caller", "from", "what", "gallery", "outcome", "detail"):
        table.add_column(column, overflow="fold")
    for record in found:
        table.add_row(*show_records.row(record))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _method(name: str) -> str:
    """As given, if a record can have it; raises typer.BadParameter otherwise."""
    from passerby_server.security import chain, policy

    known = {method.rpartition("/")[2] for method in policy.RULES}
    if name and name not in known | chain.EVENTS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(sorted(known))}", param_hint="--method")
    return name


def _utc(text: str | None) -> str:
    """As the records have it; without a zone, this machine's is meant."""
    if text is None:
        return ""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time such as 2026-11-21T09:14, with +01:00 or Z for a zone"
        ) from None
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
