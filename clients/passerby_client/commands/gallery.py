"""`passerby gallery create|list|show|update|replace|delete|stats|retention|audit`; `reindex` is the indexer's, and
`backup|restore|check` work on the server's machine."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from passerby_client._lazy import Entry, LazyGroup
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
    parse_duration,
    parse_labels,
    plain,
    print_fields,
    print_json,
    print_receipt,
    print_table,
    show_duration,
    timed,
)

if TYPE_CHECKING:
    from passerby.v1.resources_pb2 import Gallery

    from passerby_client import Client


class _Gallery(LazyGroup):
    table: Mapping[str, Entry] = {
        "reindex": Entry("passerby_indexer.reindex_cli:reindex", "Fill a gallery anew with the model served now."),
        "backup": Entry("passerby_server.gallery_cli:backup", "Back up a data folder, beside its server.", "server"),
        "restore": Entry("passerby_server.gallery_cli:restore", "Verify a backup and restore it.", "server"),
        "check": Entry("passerby_server.gallery_cli:check", "Compare every checksum of a data folder.", "server"),
    }


app = typer.Typer(
    cls=_Gallery,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Create, list, show and delete galleries; retention, audit, backups.",
)

_KINDS = "auto, exact, fp16, int8 or a FAISS factory string"
Name = Annotated[str, typer.Argument(metavar="GALLERY", help="Id of the gallery: a-z, 0-9 and -.")]


@app.command()
def create(
    gallery: Name,
    display_name: Annotated[str, typer.Option(help="Text for people.")] = "",
    index: Annotated[str, typer.Option(metavar="KIND", help=f"Kind of index: {_KINDS}.")] = "",
    false_match_rate: Annotated[
        float, typer.Option(metavar="RATE", help="Of decisions where a search names none, for example 0.001.")
    ] = 0.0,
    keep_frames: Annotated[
        bool, typer.Option("--keep-frames", help="Keep up to 32 frames of each tracklet, for a later reindex.")
    ] = False,
    descriptor_precision: Annotated[
        str, typer.Option(metavar="FORMAT", help="Of the stored descriptors: fp32, or fp16 for half the room.")
    ] = "fp32",
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Create a gallery, bound to the model that the server runs."""
    with connected(server, ca_file, timeout) as client:
        created = client.create_gallery(
            gallery,
            display_name=display_name,
            index_kind=index,
            false_match_rate=false_match_rate,
            keep_frames=keep_frames,
            descriptor_precision=descriptor_precision,
        )
    _print(created, as_json)


@app.command()
def update(
    gallery: Name,
    display_name: Annotated[str | None, typer.Option(help="Text for people.")] = None,
    index: Annotated[
        str | None, typer.Option(metavar="KIND", help=f"Kind of index: {_KINDS}; empty for the server's setting.")
    ] = None,
    false_match_rate: Annotated[
        float | None, typer.Option(metavar="RATE", help="Of decisions where a search names none; 0 for the server's.")
    ] = None,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Change what a gallery is called, its kind of index, or its false-match rate."""
    with connected(server, ca_file, timeout) as client:
        changed = client.update_gallery(
            gallery, display_name=display_name, index_kind=index, false_match_rate=false_match_rate
        )
    _print(changed, as_json)


@app.command()
def replace(
    gallery: Name,
    replacement: Annotated[str, typer.Argument(metavar="REPLACEMENT", help="Id of the gallery that takes its place.")],
    keep_as: Annotated[str, typer.Option(metavar="GALLERY", help="Id of the old gallery from then on.")],
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Tracklets that the replacement lacks stay in the old one alone.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Put a gallery that follows another in its place; also to take a reindex back."""
    with connected(server, ca_file, timeout) as client:
        done = client.replace_gallery(gallery, replacement, keep_as=keep_as, allow_missing=allow_missing)
    if as_json:
        print_json(plain(done))
        return
    typer.echo(f"{last_part(done.gallery.name)} is of model {done.gallery.model_fingerprint[:12]} now")
    left = f", {counted(done.missing_tracklet_count, 'tracklet')} in it alone" if done.missing_tracklet_count else ""
    typer.echo(f"the old one is {last_part(done.retired.name)}{left}")


@app.command("list")
def list_(
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """List the galleries by name."""
    with connected(server, ca_file, timeout) as client:
        galleries = list(client.list_galleries())
    if as_json:
        print_json([plain(gallery) for gallery in galleries])
        return
    created = timed("created", [gallery.create_time for gallery in galleries])
    table = new_table(
        "gallery", "name", created, "model", "descriptors", whole=("gallery", created, "model", "descriptors")
    )
    for gallery in galleries:
        made = local_time(gallery.create_time)
        model = gallery.model_fingerprint[:12]
        table.add_row(last_part(gallery.name), gallery.display_name, made, model, _precision(gallery))
    print_table(table, spare=("descriptors", "model", "name"))


@app.command()
def show(
    gallery: Name,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Show one gallery."""
    with connected(server, ca_file, timeout) as client:
        found = client.get_gallery(gallery)
    _print(found, as_json)


@app.command()
def delete(
    gallery: Name,
    force: Annotated[bool, typer.Option("--force", help="Also delete the tracklets in it.")] = False,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Delete a gallery, and say what was rewritten; one that holds tracklets only with --force."""
    with connected(server, ca_file, timeout) as client:
        answer = client.delete_gallery(gallery, force=force)
    if as_json:
        print_json(plain(answer))
    else:
        typer.echo(f"deleted gallery {last_part(gallery)}, with {counted(answer.deleted_tracklet_count, 'tracklet')}")
        print_receipt(answer.receipt)


@app.command()
def stats(
    gallery: Name,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Count what a gallery holds."""
    with connected(server, ca_file, timeout) as client:
        counts = client.gallery_stats(gallery)
    if as_json:
        print_json(plain(counts))
        return
    print_fields(
        {
            "tracklets": f"{counts.tracklet_count:,}",
            "identities": f"{counts.identity_count:,}",
            "cameras": f"{counts.camera_count:,}",
            "frames": f"{counts.frame_count:,}",
            "index": f"{counts.index_kind}, {counts.index_size_bytes / 2**20:,.1f} MiB{_lag(counts.index_lag)}",
            "recall": f"{counts.recall:.4f} of {counts.audited_query_count:,} audited searches"
            if counts.HasField("recall")
            else "",
        }
    )


@app.command()
def retention(
    gallery: Name,
    keep: Annotated[str | None, typer.Option(metavar="TIME", help="How long: 30d, 12h, 45m or 90s.")] = None,
    camera: Annotated[
        list[str] | None, typer.Option(metavar="CAMERA=TIME", help="How long for this camera; may be repeated.")
    ] = None,
    forever: Annotated[bool, typer.Option("--forever", help="Keep everything.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also if tracklets are older by now, which erases them soon.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Say how long a gallery keeps tracklets (in place of what was said before), or show it. Older ones are erased."""
    rules = {name: parse_duration(text) for name, text in parse_labels(camera or []).items()}
    if keep is not None:
        rules[""] = parse_duration(keep)
    if forever and rules:
        raise typer.BadParameter("goes with neither --keep nor --camera", param_hint="--forever")
    from passerby.errors import FailedPreconditionError

    with connected(server, ca_file, timeout) as client:
        if rules and not force and (older := _older(client, gallery, rules)):
            raise FailedPreconditionError(
                f"no rule was set: {counted(older, 'tracklet')} of gallery {last_part(gallery)} "
                f"{'is' if older == 1 else 'are'} older by now and would be erased: --force sets it and erases"
            )
        stored = client.set_retention(gallery, rules) if rules or forever else client.get_retention(gallery)
    if as_json:
        print_json({name: time.total_seconds() for name, time in stored.items()})
        return
    for name, time in stored.items():
        typer.echo(f"{f'camera {name}' if name else 'all other cameras'}: {show_duration(time)}")
    if "" not in stored:
        typer.echo("all other cameras: for ever")


@app.command()
def audit(
    gallery: Name,
    identity: Annotated[str, typer.Option(help="Only what is about this identity, also after its erasure.")] = "",
    tracklet: Annotated[str, typer.Option(help="Only what is about this tracklet (its id).")] = "",
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """List the recorded changes of a gallery, also of a deleted one."""
    with connected(server, ca_file, timeout) as client:
        entries = list(client.audit(gallery, identity=identity, tracklet_id=tracklet))
    if as_json:
        print_json([plain(entry) for entry in entries])
        return
    time = timed("time", [entry.time for entry in entries])
    table = new_table(time, "action", "tracklet", "detail", whole=(time, "tracklet"))
    for entry in entries:
        table.add_row(local_time(entry.time), entry.action, entry.tracklet_id, entry.detail)
    print_table(table)


def _older(client: Client, gallery: str, rules: Mapping[str, timedelta]) -> int:
    """Tracklets that `rules` keep no longer: counted from their end, or from when they were stored if that is earlier."""
    now, count = datetime.now(UTC), 0
    for tracklet in client.list_tracklets(gallery):
        since = tracklet.create_time.ToDatetime(tzinfo=UTC)
        if tracklet.HasField("end_time"):
            since = min(since, tracklet.end_time.ToDatetime(tzinfo=UTC))
        keep = rules.get(tracklet.camera_id, rules.get(""))
        count += keep is not None and since < now - keep
    return count


def _lag(rows: int) -> str:
    return f", lacks {counted(rows, 'tracklet')}" if rows else ""


def _precision(gallery: Gallery) -> str:
    from passerby.v1.resources_pb2 import DESCRIPTOR_PRECISION_FP16

    return "fp16" if gallery.descriptor_precision == DESCRIPTOR_PRECISION_FP16 else "fp32"


def _print(gallery: Gallery, as_json: bool) -> None:
    if as_json:
        print_json(plain(gallery))
        return
    from passerby.v1.resources_pb2 import Metric

    print_fields(
        {
            "gallery": last_part(gallery.name),
            "name": gallery.display_name,
            "created": local_time(gallery.create_time, zone=True),
            "model": gallery.model_fingerprint,
            "metric": Metric.Name(gallery.metric).removeprefix("METRIC_").lower().replace("_", " "),
            "descriptor": f"{gallery.descriptor_dim} values, {_precision(gallery)}",
            "index": gallery.index_kind,
            "false-match rate": f"{gallery.false_match_rate:g}" if gallery.false_match_rate else "",
            "frames": "kept" if gallery.keep_frames else "",
            "follows": last_part(gallery.follows) if gallery.follows else "",
        }
    )
