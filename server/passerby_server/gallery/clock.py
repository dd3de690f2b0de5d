"""A clock that goes back: how old is what was stored in its future?

Nobody can tell which was wrong, the clock before or the clock now: a machine without a battery begins in 1970, until it
has asked the network. So stored times stay as they are. The store notes when it first finds some ahead of the clock;
what is ahead counts as of then, for as long as it is ahead.
"""

from __future__ import annotations

import sqlite3

from passerby_server.gallery import rows


def behind_since(connection: sqlite3.Connection, kind: str) -> int | None:
    """When the clock was first found behind stored times of a `kind`, in microseconds since 1970; None while it is not."""
    found = connection.execute("SELECT value FROM upkeep WHERE name = ?", (_name(kind),)).fetchone()
    return None if found is None else int(found[0])


def is_news(connection: sqlite3.Connection, kind: str, latest: int | None) -> bool:
    """Whether `note` would change anything: for readers, so that it is called only then."""
    noted, now = behind_since(connection, kind), rows.now()
    return (latest or 0) > now if noted is None else noted > now or (latest or 0) <= now


def note(connection: sqlite3.Connection, kind: str, latest: int | None) -> int | None:
    """Notes whether the clock is behind `latest`, the newest stored time of a `kind`; since when it is known to be."""
    if is_news(connection, kind, latest):
        connection.execute("DELETE FROM upkeep WHERE name = ?", (_name(kind),))
        if (latest or 0) > (now := rows.now()):
            connection.execute("INSERT INTO upkeep (name, value) VALUES (?, ?)", (_name(kind), now))
    return behind_since(connection, kind)


def _name(kind: str) -> str:
    return f"clock_behind_{kind}"
