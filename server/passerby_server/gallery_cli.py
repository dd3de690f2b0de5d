"""`passerby gallery backup|restore|check`: on the server's machine, with the data folder itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of the galleries (`passerby serve --data`).")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON for machines.")]


def backup(
    data: Data,
    target: Annotated[Path, typer.Argument(metavar="BACKUP", help="Folder to make; outside the data folder.")],
    as_json: AsJson = False,
) -> None:
    """Back up a data folder, also while a server uses it. Later erasures name the backup in their receipts."""
    from passerby_server.gallery.backup import back_up

    made = back_up(data, target)
    if as_json:
        said = {"time": made.time.isoformat(), "size_bytes": made.size_bytes, "sha256": made.sha256}
        typer.echo(json.dumps(said | {"galleries": made.galleries}, indent=2))
        return
    typer.echo(f"{_counts(made.galleries)}, {made.size_bytes / 2**20:,.1f} MiB in {target}")


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="Folder that `passerby gallery backup` made.")],
    data: Data,
    force: Annotated[bool, typer.Option("--force", help="Replace the galleries that are in DATA.")] = False,
) -> None:
    """Verify a backup and put it into a data folder that no server uses."""
    from passerby_server.gallery.backup import read_backup, restore

    again = restore(source, data, force=force)
    galleries = read_backup(source).galleries
    typer.echo(f"{_counts(galleries)} restored to {data}")
    if again:
        typer.echo(f"{_counted(again, 'identity', 'identities')} that had been erased since the backup: erased again")


def check(data: Data, as_json: AsJson = False) -> None:
    """Read all of a data folder and compare every checksum, also while a server uses it."""
    from passerby.errors import DataLossError

    from passerby_server.gallery.backup import check

    damage = check(data)
    if as_json:
        typer.echo(json.dumps({"ok": not damage} | dataclasses.asdict(damage), indent=2))
    else:
        for what, names in (
            ("tracklet", damage.tracklets),
            ("row", damage.rows),
            ("descriptor", damage.descriptors),
            ("thumbnail", damage.thumbnails),
            ("frame", damage.frames),
        ):
            for name in names:
                typer.echo(f"damaged {what}: {name}")
        for finding in damage.database:
            typer.echo(f"damaged database: {finding}")
    if damage:
        raise DataLossError(
            f"{data} is damaged: restore a backup, or delete damaged tracklets and store them again",
            reason="STORE_DAMAGED",
        )
    if not as_json:
        typer.echo("sound")


def _counts(tracklets: Mapping[str, int]) -> str:
    """`1 gallery, 20 tracklets` of the numbers of tracklets by gallery."""
    galleries = _counted(len(tracklets), "gallery", "galleries")
    return f"{galleries}, {_counted(sum(tracklets.values()), 'tracklet', 'tracklets')}"


def _counted(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"
