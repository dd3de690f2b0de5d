"""`passerby model info` and `reload`."""

from __future__ import annotations

from typing import Annotated

import typer

from passerby_client.commands.common import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT,
    AsJson,
    CaFile,
    Server,
    Timeout,
    connect,
    plain,
    print_fields,
    print_json,
)

DEFAULT_RELOAD_TIMEOUT = 600.0
"""Seconds: a large model is compiled first."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Show which model the server runs, and load it anew.",
)


@app.callback()
def model() -> None:
    """Show which model the server runs, and load it anew."""


@app.command()
def info(
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Describe the model that the server runs."""
    with connect(server, ca_file, timeout) as client:
        found = client.model_info()
    if as_json:
        print_json(plain(found))
        return
    from passerby.v1.model_service_pb2 import Backend
    from passerby.v1.resources_pb2 import Metric

    blocks = ", ".join(str(block) for block in found.mask_blocks)
    print_fields(
        {
            "bundle": found.bundle_name,
            "architecture": found.architecture,
            "fingerprint": found.model_fingerprint,
            "backend": f"{Backend.Name(found.backend).removeprefix('BACKEND_').lower()}, {found.precision}",
            "snippet": f"{found.snippet_length} frames of {found.input_height} x {found.input_width} (rows x columns)",
            "descriptor": f"{found.descriptor_dim} values",
            "metric": Metric.Name(found.metric).removeprefix("METRIC_").lower().replace("_", " "),
            "masks": f"after CNN block {blocks}" if blocks else "none",
            "calibrated": "yes" if found.calibrated else "no",
        }
    )


@app.command()
def reload(
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_RELOAD_TIMEOUT,
    expect: Annotated[
        str, typer.Option("--expect", metavar="FINGERPRINT", help="Refuse any bundle but this one; 12 digits do.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Make the server load its bundle folder anew, without refusing a call; if that fails, the model before goes on."""
    with connect(server, ca_file, timeout) as client:
        answer = client.reload_bundle(expect, timeout=timeout)
    if as_json:
        print_json(plain(answer))
        return
    found = answer.model_info
    print_fields(
        {
            "bundle": found.bundle_name,
            "fingerprint": found.model_fingerprint,
            "before": answer.previous_fingerprint,
            "precision": found.precision,
        }
    )
    if found.model_fingerprint != answer.previous_fingerprint:
        typer.echo("galleries of the model before refuse frames now: index them again, or bring it back", err=True)
