"""`passerby tracklet list|show|delete|assign|merge|split|undo|erase`."""

from __future__ import annotations

import itertools
import json
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
    connected,
    counted,
    last_part,
    local_time,
    new_table,
    parse_labels,
    parse_time,
    plain,
    print_fields,
    print_json,
    print_receipt,
    print_table,
    time_span,
    timed,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from passerby.v1.resources_pb2 import Tracklet
    from passerby.v1.tracklet_service_pb2 import IdentityChange
    from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="List, show and delete tracklets; correct and erase identities.",
)

Gallery = Annotated[str, typer.Option("--gallery", "-g", metavar="GALLERY", help="Id of the gallery.")]
Name = Annotated[str, typer.Argument(metavar="TRACKLET", help="Its id, with --gallery, or its full name.")]
OfGallery = Annotated[str, typer.Option("--gallery", "-g", metavar="GALLERY", help="Its gallery, beside an id.")]


@app.command("list")
def list_(
    gallery: Gallery,
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be repeated.")] = None,
    exclude_camera: Annotated[list[str] | None, typer.Option(help="Not this camera; may be repeated.")] = None,
    identity: Annotated[list[str] | None, typer.Option(help="Only this identity; may be repeated.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only with this label.")] = None,
    after: Annotated[
        str | None, typer.Option(metavar="TIME", help="Seen at or after (ISO 8601; local time without a zone).")
    ] = None,
    before: Annotated[str | None, typer.Option(metavar="TIME", help="Seen before; local time without a zone.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0 for all.")] = 100,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """List tracklets in the order in which they were stored."""
    with connected(server, ca_file, timeout) as client:
        tracklets = client.list_tracklets(
            gallery,
            cameras=camera or (),
            exclude_cameras=exclude_camera or (),
            identities=identity or (),
            labels=parse_labels(label or []),
            start_time=parse_time(after),
            end_time=parse_time(before),
        )
        # One more than asked for, to know whether there are more.
        found = list(itertools.islice(tracklets, limit + 1) if limit else tracklets)
    more = bool(limit) and len(found) > limit
    found = found[:limit] if limit else found
    if as_json:
        print_json([plain(tracklet) for tracklet in found])
        return
    print_table(_table(found), _table(found, brief=True), spare=("frames",))
    if more:
        typer.echo(f"there are more than {limit}: --limit 0 lists all", err=True)


@app.command()
def show(
    tracklet: Name,
    thumbnail: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save its thumbnail (JPEG).")] = None,
    descriptor: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also save its descriptor (JSON), for `search --descriptor`.")
    ] = None,
    gallery: OfGallery = "",
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Show one tracklet."""
    with connected(server, ca_file, timeout) as client:
        answer = client.get_tracklet(
            _full_name(tracklet, gallery), thumbnail=thumbnail is not None, descriptor=descriptor is not None
        )
    if thumbnail is not None:
        _save(thumbnail, answer.thumbnail, "thumbnail")
    if descriptor is not None:
        _save(descriptor, json.dumps(plain(answer.tracklet_descriptor)).encode(), "descriptor")
    _print(answer.tracklet, as_json)


@app.command()
def delete(
    tracklet: Name,
    gallery: OfGallery = "",
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Delete one tracklet, and say what was rewritten."""
    with connected(server, ca_file, timeout) as client:
        receipt = client.delete_tracklet(_full_name(tracklet, gallery))
    if as_json:
        print_json({"deleted": _full_name(tracklet, gallery), "receipt": plain(receipt)})
    else:
        print_receipt(receipt)


@app.command()
def assign(
    tracklet: Name,
    identity: Annotated[str, typer.Argument(help="Whom it shows; an empty text takes an assignment back.")],
    gallery: OfGallery = "",
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Say whom a tracklet shows."""
    with connected(server, ca_file, timeout) as client:
        stored = client.assign_identity(_full_name(tracklet, gallery), identity)
    _print(stored, as_json)


@app.command()
def merge(
    identity: Annotated[str, typer.Argument(help="The identity that stays.")],
    others: Annotated[list[str], typer.Argument(metavar="OTHER...", help="Identities that are the same person.")],
    gallery: Gallery,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Say that several identities are one person."""
    with connected(server, ca_file, timeout) as client:
        change = client.merge_identities(gallery, identity, others)
    _print_change(change, gallery, as_json)


@app.command()
def split(
    identity: Annotated[str, typer.Argument(help="The identity that is split.")],
    tracklets: Annotated[
        list[str], typer.Argument(metavar="TRACKLET...", help="Ids or names of those of somebody else.")
    ],
    gallery: Gallery,
    into: Annotated[str, typer.Option(metavar="IDENTITY", help="Whom they show; unknown when left out.")] = "",
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Say that some tracklets of an identity show somebody else."""
    with connected(server, ca_file, timeout) as client:
        change = client.split_identity(gallery, identity, [_full_name(one, gallery) for one in tracklets], into)
    _print_change(change, gallery, as_json)


@app.command()
def undo(
    change: Annotated[int, typer.Argument(help="Number of an assignment, a merge or a split; the audit has them.")],
    gallery: Gallery,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Take a correction of identities back."""
    with connected(server, ca_file, timeout) as client:
        undone = client.undo_identity_change(gallery, change)
    if as_json:
        print_json(plain(undone))
    else:
        typer.echo(f"undone in {counted(undone.tracklet_count, 'tracklet')} of gallery {last_part(gallery)}")


@app.command()
def erase(
    identity: Annotated[str, typer.Argument(help="Whom to erase.")],
    gallery: Annotated[
        str, typer.Option("--gallery", "-g", metavar="GALLERY", help="Id of the gallery; - for all galleries.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Erase; without it only count.")] = False,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Erase every tracklet of an identity, also on disk, and say what was rewritten."""
    with connected(server, ca_file, timeout) as client:
        answer = client.erase_identity(gallery, identity, force=force)
    of_whom = f'"{identity}" in {"any gallery" if gallery == "-" else f"gallery {last_part(gallery)}"}'
    if as_json:
        print_json(plain(answer))
    elif force:
        print_fields({"tracklets": str(answer.tracklet_count)})
        print_receipt(answer.receipt)
    elif answer.tracklet_count:
        counts = counted(answer.tracklet_count, "tracklet")
        typer.echo(f"{counts} of {of_whom} would be erased: --force erases")
    if not answer.tracklet_count:
        from passerby.errors import NotFoundError

        raise NotFoundError(f"there is no identity {of_whom}")


def _full_name(tracklet: str, gallery: str) -> str:
    """`galleries/GALLERY/tracklets/TRACKLET` of a name, or of an id and its gallery. Raises InvalidArgumentError."""
    from passerby.errors import InvalidArgumentError
    from passerby.names import tracklet_name

    if "/" in tracklet:
        return tracklet
    if not gallery:
        raise InvalidArgumentError(
            f"{tracklet}: add --gallery GALLERY, or give the full name, galleries/GALLERY/tracklets/TRACKLET"
        )
    return tracklet_name(last_part(gallery), tracklet)


def _table(tracklets: Sequence[Tracklet], *, brief: bool = False) -> Table:
    """The tracklets; `brief` leaves out until when they were seen."""
    starts, ends = [each.start_time for each in tracklets], [each.end_time for each in tracklets]
    seen = timed("from", starts) if brief else timed("seen", [*starts, *ends])
    columns = ("tracklet", "identity", "camera", seen, "frames")
    table = new_table(*columns, right=("frames",), whole=columns)
    for each in tracklets:
        when = local_time(each.start_time) if brief else time_span(each.start_time, each.end_time)
        table.add_row(last_part(each.name), each.identity_id, each.camera_id, when, str(each.frame_count))
    return table


def _print_change(change: IdentityChange, gallery: str, as_json: bool) -> None:
    if as_json:
        print_json(plain(change))
    else:
        typer.echo(
            f"change {change.change_id}: {counted(change.tracklet_count, 'tracklet')} of gallery {last_part(gallery)}"
        )
        typer.echo(f"undo it with: passerby tracklet undo {change.change_id} --gallery {gallery}", err=True)


def _save(path: Path, data: bytes, what: str) -> None:
    from passerby.errors import NotFoundError

    if not data:
        raise NotFoundError(f"the tracklet has no {what}")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise NotFoundError(f"{path}: the {what} cannot be written: {error.strerror or error}") from error


def _print(tracklet: Tracklet, as_json: bool) -> None:
    if as_json:
        print_json(plain(tracklet))
        return
    print_fields(
        {
            "tracklet": tracklet.name,
            "identity": tracklet.identity_id or "unknown",
            "camera": tracklet.camera_id,
            "seen": time_span(tracklet.start_time, tracklet.end_time, zone=True) or "at an unknown time",
            "frames": str(tracklet.frame_count),
            "stored": local_time(tracklet.create_time, zone=True),
            "labels": ", ".join(f"{key}={value}" for key, value in sorted(tracklet.labels.items())),
        }
    )
