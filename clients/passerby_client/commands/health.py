"""`passerby health`: for containers, units and probes."""

from __future__ import annotations

import typer

from passerby_client.commands.common import DEFAULT_SERVER, CaFile, Server, Timeout, connect

PROBE_TIMEOUT = 5.0


def health(server: Server = DEFAULT_SERVER, ca_file: CaFile = None, timeout: Timeout = PROBE_TIMEOUT) -> None:
    """Exit with 0 when the server serves, with 1 when it does not (gRPC health checking protocol)."""
    with connect(server, ca_file, timeout) as client:
        status = client.health()
    typer.echo(status)
    if status != "SERVING":
        raise typer.Exit(1)
