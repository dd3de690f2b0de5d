"""What the client's commands share: how to reach the server, and how results are shown."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from grpc import ChannelCredentials
    from passerby.v1.tracklet_service_pb2 import ErasureReceipt
    from rich.table import Table

    from passerby_client import Client, RetryPolicy

# A table that is piped has no terminal to measure: wide enough that nothing is cut.
PIPED_WIDTH = 200
# Columns of text, which may be folded, are given at least so much.
FOLDED_WIDTH = 16

Server = Annotated[
    str, typer.Option("--server", envvar="PASSERBY_SERVER", metavar="HOST:PORT", help="The server to talk to.")
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        envvar="PASSERBY_CA_FILE",
        metavar="PEM",
        help="Connect with TLS and trust the certificates in this file.",
    ),
]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Longest wait for one answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON for machines.")]
DEFAULT_SERVER = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 60.0


TOKEN, TOKEN_FILE = "PASSERBY_TOKEN", "PASSERBY_TOKEN_FILE"
CLIENT_CERTIFICATE, CLIENT_KEY = "PASSERBY_CLIENT_CERTIFICATE", "PASSERBY_CLIENT_KEY"


def connect(
    server: str, ca_file: Path | None = None, timeout: float = DEFAULT_TIMEOUT, *, retry: RetryPolicy | None = None
) -> Client:
    """A client for `server`, with what the environment says of this caller: a token, a client certificate.

    Raises NotFoundError when a file cannot be read, InvalidArgumentError when the variables contradict each other,
    typer.BadParameter when `server` has no port.
    """
    from passerby_client import Client

    if not re.search(r":\d+$", server) and not re.match(r"(unix|unix-abstract|vsock|dns|ipv4|ipv6|xds):", server):
        raise typer.BadParameter(
            f"{server!r}: HOST:PORT is needed, for example localhost:50051", param_hint="'--server'"
        )
    if "://" in server and not server.startswith(("unix://", "dns://", "xds://")):
        raise typer.BadParameter(
            f"{server!r}: HOST:PORT is needed, without {server.partition('//')[0]}//", param_hint="'--server'"
        )
    return Client(server, timeout=timeout, credentials=_credentials(ca_file), token=_token(os.environ), retry=retry)


@contextmanager
def connected(
    server: str,
    ca_file: Path | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    *,
    frames: Sequence[Path] = (),
    create: str = "",
    retry: RetryPolicy | None = None,
) -> Iterator[Client]:
    """As `connect`; what a call raises is said in the words of the command line.

    `frames` are the files that a request's frames come from, `create` says how a gallery that is missing is made.
    """
    from passerby.errors import PasserbyError

    from passerby_client.commands._wording import in_flags, no_gallery

    with connect(server, ca_file, timeout, retry=retry) as client:
        try:
            yield client
        except PasserbyError as error:
            absent = error.reason == "GALLERY_NOT_FOUND"
            said = no_gallery(client, error.message, create) if absent else in_flags(error.message, frames)
            if said == error.message:
                raise
            raise type(error)(said, reason=error.reason, metadata=error.metadata) from None


def _credentials(ca_file: Path | None) -> ChannelCredentials | None:
    certificate, key = os.environ.get(CLIENT_CERTIFICATE), os.environ.get(CLIENT_KEY)
    if bool(certificate) != bool(key):
        from passerby.errors import InvalidArgumentError

        raise InvalidArgumentError(f"{CLIENT_CERTIFICATE} and {CLIENT_KEY} belong together: set both or none")
    if ca_file is None and not certificate:
        return None
    import grpc

    _check_files(ca_file, certificate, key)
    return grpc.ssl_channel_credentials(
        _content(ca_file) if ca_file else None,
        _content(Path(key)) if key else None,
        _content(Path(certificate)) if certificate else None,
    )


def _check_files(ca_file: Path | None, certificate: str | None, key: str | None) -> None:
    """Raises InvalidArgumentError for files that TLS cannot use: gRPC would not say so before it connects, and not which."""
    import ssl

    from passerby.errors import InvalidArgumentError

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is not None:
        _content(ca_file)
        try:
            context.load_verify_locations(ca_file)
        except ssl.SSLError as error:
            raise InvalidArgumentError(f"{ca_file} holds no PEM certificate (--ca-file, PASSERBY_CA_FILE)") from error
    if certificate and key:
        for path in (certificate, key):
            _content(Path(path))
        try:
            context.load_cert_chain(certificate, key, password="")  # else OpenSSL asks the terminal
        except ssl.SSLError as error:
            raise InvalidArgumentError(
                f"{certificate} and {key} are not a certificate and its unencrypted key, both in PEM "
                f"({CLIENT_CERTIFICATE}, {CLIENT_KEY})"
            ) from error


def _token(environment: Mapping[str, str]) -> str | None:
    """A token comes by the environment or a file alone: every user of a machine can read its command lines."""
    token, file = environment.get(TOKEN), environment.get(TOKEN_FILE)
    if token and file:
        from passerby.errors import InvalidArgumentError

        raise InvalidArgumentError(f"{TOKEN} and {TOKEN_FILE} are both set: keep one")
    return _content(Path(file)).decode("ascii", "replace").strip() if file else token or None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        from passerby.errors import NotFoundError

        raise NotFoundError(f"{path}: cannot be read: {error.strerror or error}") from error


def plain(message: Message) -> Any:
    """`message` as JSON values: field names as in the API, times as RFC 3339, counts as numbers."""
    from google.protobuf.json_format import MessageToDict

    values = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    _unquote_integers(message, values)
    return values


def _unquote_integers(message: Message, values: dict[str, Any]) -> None:
    """Protocol buffers write 64-bit numbers as strings, for JavaScript's sake; counts are far below 2**53."""
    for field in message.DESCRIPTOR.fields:
        if field.cpp_type == field.CPPTYPE_INT64 and isinstance(values.get(field.name), str):
            values[field.name] = int(values[field.name])


def print_json(value: Any) -> None:
    """Writes `value` alone to standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(*tables: Table, spare: tuple[str, ...] = ()) -> None:
    """Writes the first of `tables` that fits to standard output.

    Where none does, the last one without as many of its columns `spare` as are too many; ids and times are never
    broken. What is piped has room for everything, unless COLUMNS says otherwise.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else PIPED_WIDTH
    console = Console(width=width)
    room = console.width if width is None else sys.maxsize
    table = next((table for table in tables if _needed(table) <= room), tables[-1])
    for heading in spare:
        if _needed(table) > room:
            table = _without(table, heading)
    console.width = max(console.width, _needed(table))
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _needed(table: Table) -> int:
    """Characters in a line of `table` where columns that may be folded take no more than FOLDED_WIDTH."""
    from rich.cells import cell_len

    total = 3 * len(table.columns) - 1  # between the columns, and at both edges
    for column in table.columns:
        widest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
        total += widest if column.no_wrap else min(widest, FOLDED_WIDTH)
    return total


def _without(table: Table, heading: str) -> Table:
    kept = [column for column in table.columns if column.header != heading]
    right = tuple(str(column.header) for column in kept if column.justify == "right")
    whole = tuple(str(column.header) for column in kept if column.no_wrap)
    made = new_table(*(str(column.header) for column in kept), right=right, whole=whole)
    made.title, made.caption = table.title, table.caption
    for row in zip(*(column.cells for column in kept), strict=True):
        made.add_row(*row)
    return made


def new_table(
    *columns: str, right: tuple[str, ...] = (), whole: tuple[str, ...] = (), title: str | None = None
) -> Table:
    """A plain table; the columns in `right` are numbers, those in `whole` are never broken into lines."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole)
    return table


def print_fields(rows: dict[str, str]) -> None:
    """Writes names and values, one a line; names without a value are left out."""
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        if value:
            typer.echo(f"{name:<{width}}  {value}")


def local_time(time: Timestamp, *, zone: bool = False) -> str:
    """`2026-11-21 09:14:03` as clocks here showed it, on request with ` UTC+09:00`; empty when unset (1970)."""
    local = _local(time)
    if local is None:
        return ""
    return f"{local:%Y-%m-%d %H:%M:%S}" + (f" {_offset(local)}" if zone else "")


def time_span(start: Timestamp, end: Timestamp, *, zone: bool = False) -> str:
    """When somebody was seen: `2026-11-21 09:14:03 - 09:14:07`; the end's date only where it is another."""
    first, last = local_time(start), local_time(end)
    span = first if not last or first == last else f"{first} - {last.removeprefix(first[:11])}"
    return f"{span} {zone_of([start, end])}" if zone and span else span


def zone_of(times: Iterable[Timestamp]) -> str:
    """The zone of this machine at those times, or now where there is none: `UTC+09:00`.

    Both where summer time is only in a part of them: `UTC+01:00 / UTC+02:00`.
    """
    found = {_offset(local) for time in times if (local := _local(time)) is not None}
    return " / ".join(sorted(found)) or _offset(datetime.now().astimezone())


def timed(heading: str, times: Iterable[Timestamp]) -> str:
    """The heading of a column of times, with their zone: `seen (UTC+09:00)`."""
    return f"{heading} ({zone_of(times)})"


def _local(time: Timestamp) -> datetime | None:
    """In this machine's zone; None when unset (the API counts 1970 as unset)."""
    return time.ToDatetime(tzinfo=UTC).astimezone() if time.seconds or time.nanos else None


def _offset(time: datetime) -> str:
    return f"UTC{time.isoformat(timespec='minutes')[16:22]}"


def parse_time(text: str | None) -> datetime | None:
    """ISO 8601; without a zone this machine's. Raises typer.BadParameter for anything else."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time such as 2026-11-21T09:14, with +01:00 or Z for a zone"
        ) from None
    return time if time.utcoffset() is not None else time.astimezone()


def parse_duration(text: str) -> timedelta:
    """`30d`, `12h`, `45m` or `90s`. Raises typer.BadParameter for anything else."""
    units = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isascii() or not number.isdigit():
        raise typer.BadParameter(f"{text!r} is not a time such as 30d, 12h, 45m or 90s")
    return timedelta(**{units[unit]: int(number)})


def show_duration(time: timedelta) -> str:
    """As `parse_duration` reads it, in the largest unit that is exact: `30d`, `36h`, `90s`."""
    seconds = round(time.total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % length == 0 and seconds:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def parse_travel(windows: list[str]) -> dict[str, tuple[timedelta, timedelta]]:
    """`CAMERA=MIN..MAX` of each window, times as of `parse_duration`. Raises typer.BadParameter for anything else."""
    found: dict[str, tuple[timedelta, timedelta]] = {}
    for window in windows:
        camera, _, span = window.rpartition("=")
        least, separator, most = span.partition("..")
        if not camera or not separator:
            raise typer.BadParameter(f"{window!r} is not CAMERA=MIN..MAX, for example c2=30s..5m")
        if camera in found:
            raise typer.BadParameter(f"{camera!r} has two travel windows")
        found[camera] = (parse_duration(least), parse_duration(most))
    return found


def parse_span(text: str | None) -> tuple[datetime, datetime] | None:
    """`START..END`, or one time for both, as of `parse_time`. Raises typer.BadParameter for anything else."""
    if text is None:
        return None
    first, _, last = text.partition("..")
    start, end = parse_time(first), parse_time(last or first)
    if start is None or end is None:  # neither is None, of a text
        return None
    if end < start:
        raise typer.BadParameter(f"{text!r} ends before it starts", param_hint="'--query-time'")
    return start, end


def print_receipt(receipt: ErasureReceipt) -> None:
    """Writes what an erasure did, for people."""
    due = local_time(receipt.rewrite_due_time, zone=True)
    print_fields(
        {
            "erased": local_time(receipt.erase_time, zone=True),
            "audited as": receipt.subject_digest,
            "rewritten": ", ".join(receipt.rewritten_files),
            "still due": f"the slack of the database, by {due}" if due else "",
            "beyond reach": ", ".join(map(_in_local_time, receipt.unreachable_copies))
            or "no backup that this server knows of",
        }
    )


def _in_local_time(said: str) -> str:
    """The server's words with the UTC times in them as clocks here show them."""

    def local(found: re.Match[str]) -> str:
        time = datetime.fromisoformat(found[1]).replace(tzinfo=UTC).astimezone()
        return f"{time:%Y-%m-%d %H:%M:%S} {_offset(time)}"

    return re.sub(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC\b(?![+-])", local, said)


def parse_labels(pairs: list[str]) -> dict[str, str]:
    """`KEY=VALUE` of each pair. Raises typer.BadParameter for anything else."""
    labels = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE")
        labels[key] = value
    return labels


def counted(number: int, noun: str) -> str:
    """`1 tracklet`, `1,200 tracklets`, `2 galleries`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def last_part(name: str) -> str:
    """`t1` of `galleries/g/tracklets/t1`."""
    return name.rpartition("/")[2]
