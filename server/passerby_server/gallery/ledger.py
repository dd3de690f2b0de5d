"""Request ids and audit: the record of a write, kept in the write's own transaction.

A request id names one write of one gallery. Repeating it answers as the first time did; with another request it is
refused. It is remembered for REQUEST_LIFETIME_DAYS at least, and for as long does not bring back a tracklet that has
been deleted since. Deleting a gallery forgets the request ids of its writes, so that nothing of it stays: should a
gallery of the same name be made, a retry from before counts as new there.

The audit outlives what it tells of. Once a tracklet or an identity is erased, a keyed digest (HMAC-SHA-256 under a
secret of the store) stands for its name: whoever knows the name can find what was done to it (`entries`), nobody can
read the name out of the audit. What retention erased is the mass of it, and was nobody's decision: entries about that
expire (`expire_entries`), and one that stays says how many did. All others are kept for good: a restore and a reindex
ask them who was erased.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from passerby.errors import FailedPreconditionError, InvalidArgumentError

from passerby_server.gallery import clock, sealing
from passerby_server.gallery.rows import MICROSECOND, from_microseconds, now
from passerby_server.gallery.types import AuditEntry

REQUEST_LIFETIME_DAYS = 7
"""Far longer than any client retries; a bulk run that is resumed later has its journal."""
FORGOTTEN_PER_WRITE = 2
"""Expired request ids that a write with an id takes along: more than it adds, so that they never gather."""

BY_RETENTION = json.dumps({"erased_by": "ApplyRetention"})
"""Detail of all entries about a tracklet that retention erased."""
_EXPIRED = "ExpireAudit"
# Whoever follows a gallery asks its audit what must not come back.
_EXPIRABLE = (
    "time < :before AND detail = :detail AND gallery_id NOT IN (SELECT followed.gallery_id FROM galleries AS own "
    "JOIN galleries AS followed ON followed.gallery_key = own.follows)"
)


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


def digest_of(*parts: object, key: bytes | None = None) -> bytes:
    """A digest of plain values (str, int, float, None, lists and dicts of them).

    With a `key`, nobody without it can confirm a guess: for requests that hold little more than a name.
    """
    text = json.dumps(parts, sort_keys=True).encode()
    return hashlib.sha256(text).digest() if key is None else hmac.digest(key, text, "sha256")


def pseudonym(key: bytes, kind: str, gallery_id: str, name: str) -> str:
    """What stands for an erased name: `hmac:` and 32 hex digits.

    `kind` is `tracklet`, or `identity`: that of all galleries, with an empty `gallery_id`.
    """
    return f"hmac:{digest_of(kind, gallery_id, name, key=key)[:16].hex()}"


def find(connection: sqlite3.Connection, request: Request) -> Outcome | None:
    """What this request did earlier; None when it is new or has no id.

    Raises:
        InvalidArgumentError: the id was used for another request (REQUEST_ID_REUSED).
    """
    if not request.request_id:
        return None
    row = connection.execute(
        f"SELECT {sealing.selected('requests')} FROM requests WHERE gallery_id = ? AND request_id = ?",  # noqa: S608
        (request.gallery_id, request.request_id),
    ).fetchone()
    if row is None:
        return None
    what = f"what request {request.request_id} to gallery {request.gallery_id} did"
    _, _, method, digest, vector_id, deleted_count, _ = sealing.opened(row, what)
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
            "INSERT INTO requests (gallery_id, request_id, method, digest, vector_id, deleted_count, time) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
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
    """Forgets all request ids older than REQUEST_LIFETIME_DAYS; how many.

    Those of a future, from which the clock has gone back since, would be kept for as long: they count as of the start
    at which that was found.
    """
    (latest,) = connection.execute("SELECT max(time) FROM requests").fetchone()
    since = clock.note(connection, "requests", latest)
    count = connection.execute("DELETE FROM requests WHERE time < ?", (_oldest(),)).rowcount
    if since is not None and since < _oldest():
        count += connection.execute("DELETE FROM requests WHERE time > ?", (now(),)).rowcount
    return count


def _expire_some(connection: sqlite3.Connection) -> None:
    connection.execute(
        "DELETE FROM requests WHERE (gallery_id, request_id) IN "
        "(SELECT gallery_id, request_id FROM requests WHERE time < ? ORDER BY time LIMIT ?)",
        (_oldest(), FORGOTTEN_PER_WRITE),
    )


def _oldest() -> int:
    return now() - timedelta(days=REQUEST_LIFETIME_DAYS) // MICROSECOND


def record(
    connection: sqlite3.Connection,
    action: str,
    gallery_id: str,
    tracklet_id: str = "",
    **detail: str | int | list[str],
) -> None:
    """Adds an audit entry; part of the transaction of the change itself."""
    connection.execute(
        "INSERT INTO audit (time, action, gallery_id, tracklet_id, detail) VALUES (?, ?, ?, ?, ?)",
        (now(), action, gallery_id, tracklet_id, json.dumps(detail) if detail else ""),
    )


def forget_tracklets(
    connection: sqlite3.Connection, key: bytes, gallery_id: str, tracklet_ids: Iterable[str], detail: str = ""
) -> None:
    """Takes the names of erased tracklets, and what the details say of them, out of the audit; `detail` stands there
    instead."""
    connection.executemany(
        "UPDATE audit SET tracklet_id = ?, detail = ? WHERE gallery_id = ? AND tracklet_id = ?",
        [(pseudonym(key, "tracklet", gallery_id, name), detail, gallery_id, name) for name in tracklet_ids],
    )


def forget_identity(connection: sqlite3.Connection, key: bytes, gallery_id: str, identity_id: str) -> None:
    """Puts the keyed digest of an erased identity in its name's place wherever a detail holds it."""
    hidden = pseudonym(key, "identity", "", identity_id)
    mentions = connection.execute(
        f"SELECT {sealing.selected('audit')} FROM audit WHERE gallery_id = ? AND instr(detail, ?)",  # noqa: S608
        (gallery_id, json.dumps(identity_id)),
    ).fetchall()
    for row in mentions:
        audit_id, *_, detail = sealing.opened(row, f"audit entry {row[0]} of gallery {gallery_id}")
        told = {name: _without(value, identity_id, hidden) for name, value in json.loads(detail).items()}
        connection.execute("UPDATE audit SET detail = ? WHERE audit_id = ?", (json.dumps(told), audit_id))


def forget_gallery(connection: sqlite3.Connection, key: bytes, gallery_id: str) -> None:
    """Takes the names of all its tracklets, and all details that may hold a name, out of a deleted gallery's audit.

    Who was erased stands there as a digest and stays: a restored backup has the gallery again.
    """
    names = connection.execute(
        "SELECT DISTINCT tracklet_id FROM audit WHERE gallery_id = ? AND tracklet_id <> '' "
        "AND tracklet_id NOT LIKE 'hmac:%'",
        (gallery_id,),
    ).fetchall()
    forget_tracklets(connection, key, gallery_id, [name for (name,) in names])
    connection.execute(
        "UPDATE audit SET detail = '' WHERE gallery_id = ? AND detail NOT IN ('', ?) AND action NOT IN ('EraseIdentity', ?)",
        (gallery_id, BY_RETENTION, _EXPIRED),
    )


def find_expirable(connection: sqlite3.Connection, before: int, after: int, limit: int) -> list[int]:
    """Numbers, beyond `after`, of up to `limit` entries from before a time that may expire: those about tracklets that
    retention erased, and not of a gallery that is followed."""
    found = connection.execute(
        f"SELECT audit_id FROM audit WHERE audit_id > :after AND {_EXPIRABLE} ORDER BY audit_id LIMIT :limit",  # noqa: S608
        {"before": before, "detail": BY_RETENTION, "after": after, "limit": limit},
    )
    return [number for (number,) in found]


def expire_entries(connection: sqlite3.Connection, numbers: Iterable[int], before: int) -> int:
    """Deletes those of the entries that may expire still, and counts them in an entry of their gallery; how many."""
    which = f"audit_id IN (SELECT value FROM json_each(:numbers)) AND {_EXPIRABLE}"  # noqa: S608
    values = {"numbers": json.dumps(list(numbers)), "before": before, "detail": BY_RETENTION}
    statement = f"SELECT gallery_id, count(*) FROM audit WHERE {which} GROUP BY gallery_id"  # noqa: S608
    counts = connection.execute(statement, values).fetchall()
    connection.execute(f"DELETE FROM audit WHERE {which}", values)  # noqa: S608
    for gallery_id, count in counts:
        _count_expired(connection, gallery_id, count, before)
    return sum(count for _, count in counts)


def _count_expired(connection: sqlite3.Connection, gallery_id: str, count: int, before: int) -> None:
    """Each gallery name has one such entry, as old as the first time."""
    row = connection.execute(
        f"SELECT {sealing.selected('audit')} FROM audit WHERE gallery_id = ? AND tracklet_id = '' AND action = ?",  # noqa: S608
        (gallery_id, _EXPIRED),
    ).fetchone()
    day = f"{from_microseconds(before):%Y-%m-%d}"
    if row is None:
        record(connection, _EXPIRED, gallery_id, entries=count, before=day)
        return
    number, *_, detail = sealing.opened(row, f"audit entry {row[0]} of gallery {gallery_id}")
    told = json.dumps({"entries": json.loads(detail)["entries"] + count, "before": day})
    connection.execute("UPDATE audit SET detail = ? WHERE audit_id = ?", (told, number))


def entries(
    connection: sqlite3.Connection,
    key: bytes,
    gallery_id: str,
    *,
    tracklet_id: str = "",
    identity_id: str = "",
    after: int = 0,
    limit: int = -1,
) -> list[tuple[int, AuditEntry]]:
    """Audit entries of a gallery name with their numbers, oldest first: `limit` of those beyond number `after`.

    Those about a tracklet or an identity are found by its name before and after its erasure.
    """
    conditions, values = ["gallery_id = ?", "audit_id > ?"], [gallery_id, after]
    if tracklet_id:
        conditions.append("tracklet_id IN (?, ?)")
        values += [tracklet_id, pseudonym(key, "tracklet", gallery_id, tracklet_id)]
    if identity_id:
        conditions.append("(instr(detail, ?) OR instr(detail, ?))")
        values += [json.dumps(identity_id), pseudonym(key, "identity", "", identity_id)]
    rows = connection.execute(
        f"SELECT {sealing.selected('audit')} FROM audit "  # noqa: S608
        f"WHERE {' AND '.join(conditions)} ORDER BY audit_id LIMIT ?",
        (*values, limit),
    )
    opened = [sealing.opened(row, f"audit entry {row[0]} of gallery {gallery_id}") for row in rows]
    return [(audit_id, AuditEntry(from_microseconds(time), *rest)) for audit_id, time, *rest in opened]


def _without(value: Any, name: str, instead: str) -> Any:
    if isinstance(value, list):
        return [_without(one, name, instead) for one in value]
    return instead if value == name else value
