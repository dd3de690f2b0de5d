"""People's corrections: whom a tracklet shows. Each is numbered, audited, and can be taken back."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from passerby.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from passerby.names import tracklet_name

from passerby_server.gallery import ledger, rows, sealing
from passerby_server.gallery.home import Home, record_of
from passerby_server.gallery.ledger import Outcome
from passerby_server.gallery.rows import GalleryRow
from passerby_server.gallery.types import IdentityChange, TrackletRecord


class Correcting(Home):
    """The part of the embedded gallery that people correct. The index knows no identities."""

    def assign_identity(
        self, gallery_id: str, tracklet_id: str, identity_id: str, request_id: str = ""
    ) -> tuple[TrackletRecord, int]:
        request = self._request(gallery_id, request_id, "AssignIdentity", tracklet_id, identity_id)

        def change(connection: sqlite3.Connection) -> tuple[TrackletRecord, int]:
            gallery = rows.get_gallery(connection, gallery_id)
            done = ledger.find(connection, request)
            if done is not None:
                return record_of(connection, gallery, ledger.still_there(done)), 0
            vector_id = rows.get_vector_id(connection, gallery, tracklet_id)
            before = record_of(connection, gallery, vector_id).identity_id
            number = _set(connection, gallery, {vector_id: before}, identity_id)
            ledger.remember(connection, request, Outcome(vector_id))
            told = {"before": before, "after": identity_id}
            ledger.record(connection, "AssignIdentity", gallery_id, tracklet_id, **told, change=number)
            return record_of(connection, gallery, vector_id), number

        return self._store.write(change)

    def merge_identities(
        self, gallery_id: str, identity_id: str, merged: Sequence[str], request_id: str = ""
    ) -> IdentityChange:
        if not identity_id or not merged or not all(merged) or identity_id in merged:
            raise InvalidArgumentError.of("merged_identity_ids", "must name identities other than the one that stays")
        request = self._request(gallery_id, request_id, "MergeIdentities", identity_id, sorted(merged))

        def change(connection: sqlite3.Connection) -> IdentityChange:
            gallery = rows.get_gallery(connection, gallery_id)
            if (done := ledger.find(connection, request)) is not None:
                return IdentityChange(0, done.deleted_count)
            self._check_undamaged(connection, gallery)
            before: dict[int, str] = {}
            for name in dict.fromkeys(merged):
                members = _members(connection, gallery, name)
                if not members:
                    raise NotFoundError(f"no tracklet of {gallery_id} shows {name!r}", reason="IDENTITY_NOT_FOUND")
                before |= dict.fromkeys(members, name)
            number = _set(connection, gallery, before, identity_id)
            ledger.remember(connection, request, Outcome(deleted_count=len(before)))
            told: dict[str, Any] = {"merged": list(merged), "tracklets": len(before), "change": number}
            ledger.record(connection, "MergeIdentities", gallery_id, "", identity=identity_id, **told)
            return IdentityChange(number, len(before))

        return self._store.write(change)

    def split_identity(
        self, gallery_id: str, identity_id: str, tracklet_ids: Sequence[str], new_identity_id: str, request_id: str = ""
    ) -> IdentityChange:
        if not identity_id or not tracklet_ids or identity_id == new_identity_id:
            raise InvalidArgumentError.of("tracklets", "must name some, and new_identity_id another identity")
        request = self._request(
            gallery_id, request_id, "SplitIdentity", identity_id, sorted(tracklet_ids), new_identity_id
        )

        def change(connection: sqlite3.Connection) -> IdentityChange:
            gallery = rows.get_gallery(connection, gallery_id)
            if (done := ledger.find(connection, request)) is not None:
                return IdentityChange(0, done.deleted_count)
            chosen = [rows.get_vector_id(connection, gallery, name) for name in tracklet_ids]
            _check_shown(connection, gallery, dict.fromkeys(chosen, identity_id))
            number = _set(connection, gallery, dict.fromkeys(chosen, identity_id), new_identity_id)
            ledger.remember(connection, request, Outcome(deleted_count=len(chosen)))
            told: dict[str, Any] = {"into": new_identity_id, "tracklets": len(chosen), "change": number}
            ledger.record(connection, "SplitIdentity", gallery_id, "", identity=identity_id, **told)
            return IdentityChange(number, len(chosen))

        return self._store.write(change)

    def undo_identity_change(self, gallery_id: str, change_id: int, request_id: str = "") -> IdentityChange:
        """Raises NotFoundError (CHANGE_NOT_FOUND), FailedPreconditionError (CHANGE_UNDONE, IDENTITY_MOVED)."""
        request = self._request(gallery_id, request_id, "UndoIdentityChange", change_id)

        def change(connection: sqlite3.Connection) -> IdentityChange:
            gallery = rows.get_gallery(connection, gallery_id)
            if (done := ledger.find(connection, request)) is not None:
                return IdentityChange(change_id, done.deleted_count)
            items = _items(connection, gallery, change_id)
            _check_shown(connection, gallery, {vector_id: after for vector_id, _, after in items})
            connection.executemany(
                "UPDATE tracklets SET identity_id = ? WHERE vector_id = ?",
                [(before, vector_id) for vector_id, before, _ in items],
            )
            connection.execute("UPDATE changes SET undone = 1 WHERE change_id = ?", (change_id,))
            ledger.remember(connection, request, Outcome(deleted_count=len(items)))
            ledger.record(connection, "UndoIdentityChange", gallery_id, change=change_id, tracklets=len(items))
            return IdentityChange(change_id, len(items))

        return self._store.write(change)


def _set(connection: sqlite3.Connection, gallery: GalleryRow, before: dict[int, str], after: str) -> int:
    """Gives the tracklets in `before` (vector id -> identity) the identity `after`; the number of the change."""
    number = connection.execute("INSERT INTO changes (gallery_key, undone) VALUES (?, 0)", (gallery.key,)).lastrowid
    items = [(number, vector_id, identity, after) for vector_id, identity in before.items()]
    connection.executemany("INSERT INTO change_items (change_id, vector_id, before, after) VALUES (?, ?, ?, ?)", items)
    connection.executemany(
        "UPDATE tracklets SET identity_id = ? WHERE vector_id = ?", [(after, vector_id) for vector_id in before]
    )
    return int(number or 0)


def _members(connection: sqlite3.Connection, gallery: GalleryRow, identity_id: str) -> list[int]:
    found = connection.execute(
        "SELECT vector_id FROM tracklets WHERE gallery_key = ? AND identity_id = ? ORDER BY vector_id",
        (gallery.key, identity_id),
    )
    return [vector_id for (vector_id,) in found]


def _items(connection: sqlite3.Connection, gallery: GalleryRow, change_id: int) -> list[tuple[int, str, str]]:
    """What a change did to the tracklets that are still there: (vector id, identity before, identity after)."""
    row = connection.execute(
        f"SELECT {sealing.selected('changes')} FROM changes WHERE change_id = ? AND gallery_key = ?",  # noqa: S608
        (change_id, gallery.key),
    ).fetchone()
    if row is None:
        raise NotFoundError(f"{gallery.record.gallery_id} has no change {change_id}", reason="CHANGE_NOT_FOUND")
    what = f"change {change_id} of gallery {gallery.record.gallery_id}"
    if sealing.opened(row, what)[2]:
        raise FailedPreconditionError(f"change {change_id} has been undone already", reason="CHANGE_UNDONE")
    items = connection.execute(
        f"SELECT {sealing.selected('change_items')} FROM change_items WHERE change_id = ?",  # noqa: S608
        (change_id,),
    )
    return [(vector_id, before, after) for _, vector_id, before, after in (sealing.opened(row, what) for row in items)]


def _check_shown(connection: sqlite3.Connection, gallery: GalleryRow, expected: dict[int, str]) -> None:
    """Raises FailedPreconditionError (IDENTITY_MOVED) unless each vector id shows the identity expected of it."""
    records = rows.get_records(connection, gallery, expected)
    moved = [record for vector_id, record in records.items() if record.identity_id != expected[vector_id]]
    if moved:
        name = tracklet_name(gallery.record.gallery_id, moved[0].tracklet_id)
        raise FailedPreconditionError(
            f"{len(moved)} of the tracklets, {name} among them, no longer show whom the request says: look at them, and "
            "assign those anew that are wrong",
            reason="IDENTITY_MOVED",
        )
