"""What a restored store has to know of the one that it replaces: who was erased from that since, and its backups.

Without the first, people would come back by the restore, or by the next one from another backup; without the second,
receipts of later erasures would be silent about copies that are there.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from passerby_server.gallery import ledger, sealing

Erasure = tuple[int, str, str]
"""Time, gallery id and detail of an audit entry of `EraseIdentity`; time and detail tell one from all others."""
_ERASURES = "SELECT time, gallery_id, detail FROM audit WHERE action = 'EraseIdentity' AND detail <> ''"
_KEY = "SELECT value FROM secrets WHERE name = 'audit'"


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a store: the key of its audit's digests, its erasures, and its backups (time, location)."""

    key: bytes
    erasures: tuple[Erasure, ...]
    backups: tuple[tuple[int, str], ...]


def memory_of(path: Path) -> Memory | None:
    """Of the database at `path`; None where there is none, where it is damaged, or of the first version of the schema,
    in which nobody could be erased by name."""
    if not path.is_file():
        return None
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            sealing.prepare(connection)
            secret = connection.execute(_KEY).fetchone()
            if secret is None:
                return None
            backups = connection.execute("SELECT time, location FROM backups ORDER BY backup_id").fetchall()
            erasures = filter(_is_whole, connection.execute(_ERASURES).fetchall())
            return Memory(secret[0], tuple(erasures), tuple(one for one in backups if one[1].isprintable()))
    except sqlite3.Error:
        return None


def _is_whole(erasure: Erasure) -> bool:
    """Whether an entry can be read: one with a flipped bit must not be in the way of the others."""
    _, gallery_id, detail = erasure
    try:
        return gallery_id.isascii() and detail.isascii() and isinstance(json.loads(detail)["identity"], str)
    except (ValueError, KeyError, TypeError):
        return False


def erased_since(memory: Memory, fresh: sqlite3.Connection) -> list[tuple[str, str]]:
    """Gallery and identity of those in `fresh` who were erased later from the store that is remembered.

    An erasure that `fresh` knows of was before its backup: whoever is of that name there was stored after it. What a
    gallery alone holds that follows another was erased if it was erased from the other, whose place it may have taken
    since: then the other is named, and the erasure reaches it from there.
    """
    erased = {(gallery_id, json.loads(detail)["identity"]) for _, gallery_id, detail in _unknown(memory, fresh)}
    named = fresh.execute(
        "SELECT DISTINCT coalesce(followed.gallery_id, ''), own.gallery_id, identity_id FROM tracklets "
        "JOIN galleries AS own USING (gallery_key) LEFT JOIN galleries AS followed "
        "ON followed.gallery_key = own.follows WHERE identity_id <> ''"
    ).fetchall()
    found: dict[tuple[str, str], None] = {}
    for followed, own, name in named:
        digest = ledger.pseudonym(memory.key, "identity", "", name)
        found |= dict.fromkeys([(one, name) for one in (followed, own) if (one, digest) in erased][:1])
    return list(found)


def carry_over(memory: Memory, fresh: sqlite3.Connection) -> None:
    """Puts the erasures and backups that `fresh` does not know into it, if it is an earlier state of the same store:
    the digests of another one would mean nothing to it."""
    if fresh.execute(_KEY).fetchone() != (memory.key,):
        return
    fresh.executemany(
        "INSERT INTO audit (time, action, gallery_id, tracklet_id, detail) VALUES (?, 'EraseIdentity', ?, '', ?)",
        _unknown(memory, fresh),
    )
    known = set(fresh.execute("SELECT time, location FROM backups").fetchall())
    later = [one for one in memory.backups if one not in known]
    fresh.executemany("INSERT INTO backups (time, location) VALUES (?, ?)", later)


def _unknown(memory: Memory, fresh: sqlite3.Connection) -> list[Erasure]:
    known = {(time, detail) for time, _, detail in fresh.execute(_ERASURES)}
    return [one for one in memory.erasures if (one[0], one[2]) not in known]
