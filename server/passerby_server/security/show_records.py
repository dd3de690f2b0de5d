"""Which records of the audit are wanted, and how one is shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from passerby import names

from passerby_server.security import chain
from passerby_server.security.chain import Key, Record

REFUSALS = frozenset({"REFUSED", "UNAUTHENTICATED", "PERMISSION_DENIED"})
_SHOWN_APART = frozenset({"seq", "time", "event", "caller", "credential", "peer", "gallery", "code", "request_id"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """Empty fields do not restrict; set ones all apply. Times as the records have them."""

    caller: str = ""
    gallery: str = ""
    method: str = ""
    identity: str = ""
    tracklet: str = ""
    """Its name, `galleries/GALLERY/tracklets/TRACKLET`."""
    refused: bool = False
    after: str = ""
    before: str = ""


def select(folder: Path, key: Key, wanted: Wanted) -> Iterator[Record]:
    """The wanted records, oldest first. Raises DataLossError (AUDIT_TAMPERED), InvalidArgumentError (tracklet)."""
    about = set()
    if wanted.identity:
        about.add(key.pseudonym("identity", "", wanted.identity))
    if wanted.tracklet:
        about.add(key.pseudonym("tracklet", *names.parse_tracklet_name(wanted.tracklet, field="tracklet")))
    for record in chain.read(folder, key):
        if _fits(record, wanted) and about.issubset(record.get("about", ())):
            yield record


def row(record: Record) -> tuple[str, ...]:
    """Time, caller, address, what, gallery, outcome, detail."""
    detail = "  ".join(f"{name}={_text(value)}" for name, value in record.items() if name not in _SHOWN_APART)
    fields = (record.get(name, "") for name in ("caller", "peer", "event", "gallery", "code"))
    return (record["time"][:23].replace("T", " "), *fields, detail)


def _fits(record: Record, wanted: Wanted) -> bool:
    galleries = {record.get("gallery", ""), *record.get("items", ())}
    return (
        (not wanted.caller or record.get("caller") == wanted.caller)
        and (not wanted.gallery or bool(galleries & {wanted.gallery, "-"}))
        and (not wanted.method or wanted.method in (record["event"], record.get("method")))
        and (not wanted.refused or record.get("code") in REFUSALS)
        and (not wanted.after or record["time"] >= wanted.after)
        and (not wanted.before or record["time"] < wanted.before)
    )


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{name}:{number}" for name, number in value.items())
    return str(value)
