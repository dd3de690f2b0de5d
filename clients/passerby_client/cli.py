"""The one command, `passerby`. Each room brings its own sub-commands; none is imported before it is called.

Standard output carries results alone, so that it can be piped; progress and errors go to standard error.
Exit status: 0 done, 1 failed (one line says why), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from passerby_client._lazy import Entry, LazyGroup

COMMANDS: Mapping[str, Entry] = {
    "serve": Entry("passerby_server.cli:serve", "Start the server on a model bundle.", "server"),
    "index": Entry("passerby_indexer.cli:index", "Store the tracklets of a data set or a video."),
    "search": Entry("passerby_client.commands.search:search", "Find where and when a person was seen."),
    "gallery": Entry("passerby_client.commands.gallery:app", "Create and delete galleries; retention, audit, backups."),
    "tracklet": Entry(
        "passerby_client.commands.tracklet:app", "List and delete tracklets; correct and erase identities."
    ),
    "model": Entry("passerby_client.commands.model:app", "Show which model the server runs."),
    "token": Entry("passerby_server.security.token_cli:app", "Say who may call a server: tokens and roles.", "server"),
    "audit": Entry(
        "passerby_server.security.audit_cli:app", "Verify and show who searched, changed and erased.", "server"
    ),
    "config": Entry("passerby_server.config_cli:app", "Show and check the server's settings.", "server"),
    "top": Entry("passerby_server.telemetry.top_cli:top", "Watch a server: rates, times, queue, galleries.", "server"),
    "health": Entry("passerby_client.commands.health:health", "Say whether the server serves; for probes."),
    "bundle": Entry("passerby_export.cli:bundle", "Wrap, show and verify model bundles.", "export"),
    "train": Entry("passerby_export.train:train_command", "Train an encoder.", "train"),
    "evaluate": Entry(
        "passerby_export.evaluate_cli:evaluate_command", "Measure mAP, CMC and thresholds of a model.", "export"
    ),
    "export": Entry("passerby_export.cli:export", "Export a trained encoder as a bundle.", "export"),
    "data": Entry("passerby_model.datasets.cli:app", "Check a data set; list the identities of a split."),
    "attention": Entry(
        "passerby_model.attention_cli:attention", "Check a model's attention masks against a street.", "server"
    ),
    "street": Entry("passerby_model.street.cli:street", "Write a synthetic street: drawn people, cameras.", "street"),
}


class _Passerby(LazyGroup):
    table = COMMANDS


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"passerby {version('passerby')}")
        raise typer.Exit


app = typer.Typer(cls=_Passerby, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def passerby(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Has this person been seen, where and when? Video person re-identification for a network of cameras."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; ends with SystemExit."""
    # gRPC's own lines about connections are not for users; it reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app(arguments if arguments is None else list(arguments), prog_name="passerby")
    except Exception as error:
        from passerby.errors import PasserbyError  # brings gRPC, which --help can do without

        if not isinstance(error, PasserbyError):
            raise
        message = " ".join(str(error).split())
        typer.echo(f"passerby: {message}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
