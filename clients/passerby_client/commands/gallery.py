"""`passerby gallery create|list|show|delete|stats`."""

from __future__ import annotations

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
    local_time,
    new_table,
    plain,
    print_fields,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from passerby.v1.resources_pb2 import Gallery

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Create, list, show and delete galleries."
)

Name = Annotated[str, typer.Argument(metavar="GALLERY", help="Id of the gallery: a-z, 0-9 and -.")]


@app.command()
def create(
    gallery: Name,
    display_name: Annotated[str, typer.Option(help="Text for people.")] = "",
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Create a gallery, bound to the model that the server runs."""
    with connect(server, ca_file, timeout) as client:
        created = client.create_gallery(gallery, display_name=display_name)
    _print(created, as_json)


@app.command("list")
def list_(
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """List the galleries by name."""
    with connect(server, ca_file, timeout) as client:
        galleries = list(client.list_galleries())
    if as_json:
        print_json([plain(gallery) for gallery in galleries])
        return
    table = new_table("gallery", "name", "created", "model")
    for gallery in galleries:
        created = local_time(gallery.create_time)
        table.add_row(last_part(gallery.name), gallery.display_name, created, gallery.model_fingerprint[:12])
    print_table(table)


@app.command()
def show(
    gallery: Name,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Show one gallery."""
    with connect(server, ca_file, timeout) as client:
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
    """Delete a gallery; one that holds tracklets only with --force."""
    with connect(server, ca_file, timeout) as client:
        count = client.delete_gallery(gallery, force=force)
    if as_json:
        print_json({"deleted_tracklet_count": count})
    else:
        typer.echo(f"deleted, with {count} tracklets")


@app.command()
def stats(
    gallery: Name,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Count what a gallery holds."""
    with connect(server, ca_file, timeout) as client:
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
            "index": f"{counts.index_size_bytes / 2**20:,.1f} MiB",
        }
    )


def _print(gallery: Gallery, as_json: bool) -> None:
    if as_json:
        print_json(plain(gallery))
        return
    from passerby.v1.resources_pb2 import Metric

    print_fields(
        {
            "gallery": last_part(gallery.name),
            "name": gallery.display_name,
            "created": local_time(gallery.create_time),
            "model": gallery.model_fingerprint,
            "metric": Metric.Name(gallery.metric).removeprefix("METRIC_").lower().replace("_", " "),
            "descriptor": f"{gallery.descriptor_dim} values",
        }
    )
