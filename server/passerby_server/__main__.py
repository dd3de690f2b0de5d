"""`python -m passerby_server`: `passerby serve` without the client; errors look as `passerby` prints them."""

import os
import sys
from collections.abc import Sequence

import typer

from passerby_server.cli import serve


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; ends with SystemExit."""
    # gRPC's own lines are neither text nor JSON of the log; it reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from passerby.errors import PasserbyError

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(serve)
    try:
        app(arguments if arguments is None else list(arguments), prog_name="python -m passerby_server")
    except PasserbyError as error:
        message = " ".join(error.message.split())
        typer.echo(f"passerby: {message}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
