"""`passerby token create|trust|list|rotate|revoke`: who may call a server, on the machine that has its file of callers.

A token is shown once, or written to a file for its owner alone; it is nowhere on a command line, where every user of the
machine could read it.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from passerby.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError

from passerby_server.security import callers
from passerby_server.security.callers import Entry

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Say who may call a server: API tokens and client certificates, their roles and galleries.",
)

_ALLOWED = {
    "name": ("NAME", "1 to 64 letters, digits and . _ @ -, the first a letter or a digit"),
    "galleries": ("--gallery", "the id of a gallery: 1 to 63 small letters, digits and -"),
    "certificate": ("--certificate", "a name of at most 253 characters"),
}
"""Fields of an entry that a caller chooses: where they are given, and what they may be."""

File = Annotated[
    Path,
    typer.Option(
        "--file",
        envvar="PASSERBY_ACCESS__FILE",
        metavar="FILE",
        help="The server's file of callers (its setting access.file).",
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Who calls: letters, digits and . _ @ -.")]
Roles = Annotated[
    list[str],
    typer.Option("--role", metavar="ROLE", help="reader, ingester or admin (docs/security.md); may be repeated."),
]
Galleries = Annotated[
    list[str] | None, typer.Option("--gallery", metavar="GALLERY", help="A gallery it may use; may be repeated.")
]
AllGalleries = Annotated[bool, typer.Option("--all-galleries", help="It may use all, also those yet to be made.")]
Expires = Annotated[str | None, typer.Option(metavar="TIME", help="For how long: 90d, 12h, 45m. Else for ever.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write the token to a new file instead of showing it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON for machines.")]


@app.command()
def create(
    name: Name,
    role: Roles,
    file: File,
    gallery: Galleries = None,
    all_galleries: AllGalleries = False,
    expires: Expires = None,
    out: Out = None,
) -> None:
    """Let somebody in by a new token, and show it: it cannot be shown again."""
    token, token_id, digest = callers.new_token()
    entry = _entry(name, role, gallery, all_galleries, expires, token_id=token_id, token_sha256=digest)

    def add(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        if any(one.name == name and one.token_id for one in entries):
            raise AlreadyExistsError(
                f"{name} has a token: `passerby token rotate {name}` makes a new one, or revoke it"
            )
        return (*entries, entry)

    _hand_out(file, add, token, out)


@app.command()
def trust(
    name: Name,
    role: Roles,
    file: File,
    certificate: Annotated[
        str,
        typer.Option(metavar="NAME", help="A subject alternative name in it; the common name if it has none."),
    ],
    gallery: Galleries = None,
    all_galleries: AllGalleries = False,
    expires: Expires = None,
) -> None:
    """Let somebody in by a client certificate, which an authority of the server's tls.client_ca has signed."""
    entry = _entry(name, role, gallery, all_galleries, expires, certificate=certificate)

    def add(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        if any(one.certificate == certificate for one in entries):
            raise AlreadyExistsError(f"there is a caller with the certificate {certificate}: revoke that first")
        return (*entries, entry)

    callers.change(file, add)
    typer.echo(f"the certificate {certificate} is {name} now")


@app.command("list")
def list_(file: File, as_json: AsJson = False) -> None:
    """List who may call; tokens by their ids, which are no secret."""
    entries = callers.read(file)
    if as_json:
        typer.echo(json.dumps([_shown(entry) for entry in entries], indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("caller", "roles", "galleries", "credential", "created", "expires"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        shown = _shown(entry)
        ends = f"{shown['expire_time'] or 'never'}{' (expired)' if shown['expired'] else ''}"
        galleries = "all" if entry.galleries is None else ", ".join(sorted(entry.galleries))
        table.add_row(
            entry.name, ", ".join(sorted(entry.roles)), galleries, entry.credential, str(shown["create_time"]), ends
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def rotate(
    name: Name,
    file: File,
    overlap: Annotated[str, typer.Option(metavar="TIME", help="How long the old token still works.")] = "24h",
    expires: Expires = None,
    out: Out = None,
) -> None:
    """Give somebody a new token with the same roles and galleries; the old one ends after a while."""
    token, token_id, digest = callers.new_token()

    def turn(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        now = callers.now()
        mine = [one for one in entries if one.name == name and one.token_id and not one.expired(now)]
        if not mine:
            raise NotFoundError(f"{name} has no token that works: `passerby token create`")
        last = now + _duration(overlap, "--overlap")
        new = mine[-1].model_copy(
            update={
                "token_id": token_id,
                "token_sha256": digest,
                "create_time": now,
                "expire_time": _end(now, expires),
            }
        )
        kept = [
            one.model_copy(update={"expire_time": min(one.expire_time or last, last)}) if one in mine else one
            for one in entries
            if not (one.name == name and one.token_id and one.expired(now))
        ]
        return (*kept, new)

    _hand_out(file, turn, token, out)


@app.command()
def revoke(
    what: Annotated[str, typer.Argument(metavar="NAME|ID", help="A caller, or the id of one token.")], file: File
) -> None:
    """Shut somebody out, from the next call on: all that a caller has, or one token by its id."""
    gone: list[Entry] = []

    def remove(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        gone.extend(one for one in entries if what in (one.name, one.token_id, one.certificate))
        if not gone:
            raise NotFoundError(f"{file} has no caller and no token {what!r}: `passerby token list`")
        return tuple(one for one in entries if one not in gone)

    callers.change(file, remove)
    for entry in gone:
        typer.echo(f"revoked {entry.credential} of {entry.name}")


def _entry(
    name: str, roles: list[str], galleries: list[str] | None, every: bool, expires: str | None, **credential: str
) -> Entry:
    from pydantic import ValidationError

    if credential.get("certificate") == "":
        raise typer.BadParameter("'' is no name", param_hint="--certificate")
    if "-" in (galleries or ()):
        raise typer.BadParameter("'-' is no gallery of its own: say --all-galleries", param_hint="--gallery")
    if bool(galleries) == every:
        raise typer.BadParameter("name galleries (--gallery), or say --all-galleries", param_hint="--gallery")
    if unknown := set(roles) - set(get_args(callers.Role)):
        known = ", ".join(get_args(callers.Role))
        raise typer.BadParameter(f"{unknown.pop()!r} is no role; there are {known}", param_hint="--role")
    now = callers.now()
    try:
        return Entry(
            name=name,
            roles=frozenset(cast(list[callers.Role], roles)),
            galleries=None if every else frozenset(galleries or ()),
            create_time=now,
            expire_time=_end(now, expires),
            **credential,
        )
    except ValidationError as error:
        wrong = {str(one["loc"][0]): one["input"] for one in error.errors() if one["loc"]}
        for field, (option, allowed) in _ALLOWED.items():
            if field in wrong:
                raise typer.BadParameter(f"{str(wrong[field])[:80]!r} is not {allowed}", param_hint=option) from None
        raise


def _hand_out(file: Path, change: callers.Change, token: str, out: Path | None) -> None:
    """Writes the token where its owner finds it, then lets it in: a token that nobody has would be in the file for ever."""
    if out is None:
        callers.change(file, change)
        typer.echo(token)
        return
    if out.exists():
        change(callers.read(file) if file.exists() else ())  # what is wrong with the caller is said first
    try:
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
            target.write(f"{token}\n")
    except OSError as error:
        raise FailedPreconditionError(f"cannot make {out}: {error.strerror}; name a new file") from error
    try:
        callers.change(file, change)
    except BaseException:
        out.unlink()
        raise
    typer.echo(f"the token is in {out}")


def _shown(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "roles": sorted(entry.roles),
        "galleries": None if entry.galleries is None else sorted(entry.galleries),
        "credential": entry.credential,
        "create_time": f"{entry.create_time:%Y-%m-%dT%H:%M:%SZ}",
        "expire_time": f"{entry.expire_time:%Y-%m-%dT%H:%M:%SZ}" if entry.expire_time else None,
        "expired": entry.expired(callers.now()),
    }


def _end(now: datetime, expires: str | None) -> datetime | None:
    """When an entry ends that is made now; raises typer.BadParameter for one that would have ended already."""
    if not expires:
        return None
    lasting = _duration(expires, "--expires")
    if not lasting:
        raise typer.BadParameter(f"{expires!r} would make it expired: 1s is the least", param_hint="--expires")
    try:
        return now + lasting
    except OverflowError:
        raise typer.BadParameter(f"{expires!r} is beyond the year 9999", param_hint="--expires") from None


def _duration(text: str, option: str) -> timedelta:
    units = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isascii() or not number.isdigit():
        raise typer.BadParameter(f"{text!r} is not a time such as 90d, 12h, 45m or 30s", param_hint=option)
    try:
        return timedelta(**{units[unit]: int(number)})
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is too long", param_hint=option) from None
