"""Request ids and audit: the record of a write, kept in the write's own transaction.

A request id names one write of one gallery. Repeating it answers as the first time did; with another request it is
refused. It is remembered for REQUEST_LIFETIME_DAYS at least, and for as long does not bring back a tracklet that has
been deleted since. Deleting a gallery forgets the request ids of its writes, so that nothing of it stays: should a
gallery of the same name be made, a retry from before counts as new there.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import dataclass
from datetime import datetime, timedelta

from passerby.errors import FailedPreconditionError, InvalidArgumentError

from passerby_server.gallery.rows import MICROSECOND, from_microseconds, now

REQUEST_LIFETIME_DAYS = 7
"""Far longer than any client retries; a bulk run that is resumed later has its journal."""
FORGOTTEN_PER_WRITE = 2
"""Expired request ids that a write with an id takes along: more than it adds, so that they never gather."""


@dataclass(frozen=True, slots=True)
class Request:
    """A caller's write: `digest` tells whether a repeated `request_id` repeats the same request."""

    gallery_id: str
    request_id: str
    method: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request did: the tracklet that it concerned, if that is still there, or how many it deleted."""

    vector_id: int | None = None
    deleted_count: int = 0


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change: `action` is the method's name; `tracklet_id` is empty when the gallery itself is meant."""

    time: datetime
    action: str
    gallery_id: str
    tracklet_id: str
    detail: str


def digest_of(*parts: object) -> bytes:
    """A digest of plain values (str, int, float, None, lists and dicts of them)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()


def find(connection: sqlite3.Connection, request: Request) -> Outcome | None:
    """What this request did earlier; None when it is new or has no id.

    Raises:
        InvalidArgumentError: the id was used for another request (REQUEST_ID_REUSED).
    """
    if not request.request_id:
        return None
    row = connection.execute(
        "SELECT method, digest, vector_id, deleted_count FROM requests WHERE gallery_id = ? AND request_id = ?",
        (request.gallery_id, request.request_id),
    ).fetchone()
    if row is None:
        return None
    method, digest, vector_id, deleted_count = row
    if method != request.method or digest != request.digest:
        raise InvalidArgumentError.of(
            "request_id", "was used for another request: use a new one", reason="REQUEST_ID_REUSED"
        )
    return Outcome(vector_id, deleted_count)


def still_there(outcome: Outcome) -> int:
    """Vector id of the tracklet that a repeated request stored or changed.

    Raises FailedPreconditionError (TRACKLET_DELETED) when it was deleted: a late retry must not bring it back.
    """
    if outcome.vector_id is None:
        raise FailedPreconditionError(
            "the tracklet of this request has been deleted since: to store it again, use a new request id",
            reason="TRACKLET_DELETED",
        )
    return outcome.vector_id


def remember(connection: sqlite3.Connection, request: Request, outcome: Outcome) -> None:
    """Keeps what a request with an id did, and forgets some of those that have expired."""
    if request.request_id:
        _expire_some(connection)
        connection.execute(
            "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                request.gallery_id,
                request.request_id,
                request.method,
                request.digest,
                outcome.vector_id,
                outcome.deleted_count,
                now(),
            ),
        )


def expire(connection: sqlite3.Connection) -> int:
    """Forgets all request ids older than REQUEST_LIFETIME_DAYS; how many."""
    return connection.execute("DELETE FROM requests WHERE time < ?", (_oldest(),)).rowcount


def _expire_some(connection: sqlite3.Connection) -> None:
    connection.execute(
        "DELETE FROM requests WHERE (gallery_id, request_id) IN "
        "(SELECT gallery_id, request_id FROM requests WHERE time < ? ORDER BY time LIMIT ?)",
        (_oldest(), FORGOTTEN_PER_WRITE),
    )


def _oldest() -> int:
    return now() - timedelta(days=REQUEST_LIFETIME_DAYS) // MICROSECOND


def record(
    connection: sqlite3.Connection, action: str, gallery_id: str, tracklet_id: str = "", **detail: str | int
) -> None:
    """Adds an audit entry; part of the transaction of the change itself."""
    connection.execute(
        "INSERT INTO audit (time, action, gallery_id, tracklet_id, detail) VALUES (?, ?, ?, ?, ?)",
        (now(), action, gallery_id, tracklet_id, json.dumps(detail) if detail else ""),
    )


def forget_details(connection: sqlite3.Connection, gallery_id: str, tracklet_id: str | None = None) -> None:
    """Empties the details of a tracklet's (None: a whole gallery's) audit entries, which may name a person."""
    if tracklet_id is None:
        connection.execute("UPDATE audit SET detail = '' WHERE gallery_id = ? AND detail <> ''", (gallery_id,))
    else:
        connection.execute(
            "UPDATE audit SET detail = '' WHERE gallery_id = ? AND tracklet_id = ? AND detail <> ''",
            (gallery_id, tracklet_id),
        )


def entries(connection: sqlite3.Connection, gallery_id: str) -> tuple[AuditEntry, ...]:
    """All audit entries of a gallery name, oldest first."""
    rows = connection.execute(
        "SELECT time, action, gallery_id, tracklet_id, detail FROM audit WHERE gallery_id = ? ORDER BY audit_id",
        (gallery_id,),
    )
    return tuple(AuditEntry(from_microseconds(time), *rest) for time, *rest in rows)
