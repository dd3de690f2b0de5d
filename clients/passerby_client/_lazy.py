"""A command group whose commands are imported only when they run: `passerby --help` must not wait for torch.

Built on typer's public classes alone, which stand on click or on typer's own copy of it, depending on the version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command lives.

    home: `module:attribute` of a typed function, or of a typer.Typer with commands of its own.
    help: one line for `passerby --help`.
    extra: what to install for it; empty when the base install is enough.
    """

    home: str
    help: str
    extra: str = ""


class LazyCommand(TyperCommand):
    """Stands in the help for a command that has not been imported, and becomes it when it is called."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, help=entry.help)
        self._entry = entry

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self._load().make_context(info_name, args, parent, **extra)

    def _load(self) -> Any:
        module, _, attribute = self._entry.home.partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, typer.Typer):
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command(self.name)(command)
            command = app
        loaded = get_command(command)
        loaded.name = self.name
        return loaded


class LazyGroup(TyperGroup):
    """Shows a LazyCommand for each entry of `table`, and says which extra to install when a package is missing."""

    table: Mapping[str, Entry] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in self.table.items():
            self.add_command(LazyCommand(name, entry))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand
            entry = self.table.get(name)
            # One of our own modules missing is a fault of the installation that no extra repairs.
            if entry is None or not entry.extra or (error.name or "").startswith("passerby"):
                raise
            from passerby.errors import FailedPreconditionError

            raise FailedPreconditionError(
                f"`{ctx.command_path} {name}` needs the {entry.extra} extra: pip install 'passerby[{entry.extra}]' "
                f"(no package {error.name!r})",
                reason="EXTRA_MISSING",
            ) from error
