"""One gallery takes the place of another: for a new model, without a moment in which the name answers from neither.

A gallery that follows another (`GalleryOptions.follows`) is filled while the other goes on. Whatever is erased from
the other is erased from it, too, and refused should it come again. Replacing is one transaction:

    followed  station        -- identities, labels, times, corrections, retention, options --> the follower
    names     station        -> station-before      station-next -> station
    follows                     station-before now follows station: what is erased there goes from both

Tracklets are the same where their ids are. Putting the old one back is replacing again.
"""

from __future__ import annotations

import sqlite3

from passerby.errors import AlreadyExistsError, FailedPreconditionError
from passerby.names import check_gallery_id, gallery_name

from passerby_server.gallery import ledger, rows
from passerby_server.gallery.erasure import Erasing
from passerby_server.gallery.ledger import Outcome
from passerby_server.gallery.maintenance import Maintaining
from passerby_server.gallery.rows import GalleryRow
from passerby_server.gallery.types import Replacement

_TWINS = (
    "tracklets AS old JOIN tracklets AS new USING (tracklet_id) WHERE old.gallery_key = :old AND new.gallery_key = :new"
)
_LEFT_BEHIND = (
    "SELECT tracklet_id FROM tracklets WHERE gallery_key = :old "
    "EXCEPT SELECT tracklet_id FROM tracklets WHERE gallery_key = :new"
)
_CARRY = (
    "UPDATE tracklets AS new SET identity_id = old.identity_id, camera_id = old.camera_id, start_time = old.start_time, "
    "end_time = old.end_time, frame_count = old.frame_count, create_time = old.create_time FROM tracklets AS old "
    "WHERE old.gallery_key = :old AND new.gallery_key = :new AND old.tracklet_id = new.tracklet_id",
    f"DELETE FROM labels WHERE vector_id IN (SELECT new.vector_id FROM {_TWINS})",  # noqa: S608
    "INSERT INTO labels SELECT new.vector_id, key, value FROM labels JOIN tracklets AS old USING (vector_id) "
    "JOIN tracklets AS new USING (tracklet_id) WHERE old.gallery_key = :old AND new.gallery_key = :new",
    "INSERT OR IGNORE INTO thumbnails (vector_id, thumbnail, checksum) SELECT new.vector_id, thumbnail, "
    "CASE checksum WHEN seal(old.vector_id, thumbnail) THEN seal(new.vector_id, thumbnail) ELSE -1 END "
    "FROM thumbnails JOIN tracklets AS old USING (vector_id) JOIN tracklets AS new USING (tracklet_id) "
    "WHERE old.gallery_key = :old AND new.gallery_key = :new",
    "INSERT INTO frames SELECT new.vector_id, number, checksum, frame FROM frames JOIN tracklets AS old USING (vector_id) "
    "JOIN tracklets AS new USING (tracklet_id) WHERE old.gallery_key = :old AND new.gallery_key = :new "
    "AND new.vector_id NOT IN (SELECT vector_id FROM frames)",
    # Corrections stay undoable, in the new gallery.
    "DELETE FROM changes WHERE gallery_key = :new",
    "DELETE FROM change_items WHERE change_id IN (SELECT change_id FROM changes WHERE gallery_key = :old) "  # noqa: S608
    f"AND vector_id NOT IN (SELECT old.vector_id FROM {_TWINS})",
    "UPDATE change_items SET vector_id = twin.new_id FROM "  # noqa: S608
    f"(SELECT old.vector_id AS old_id, new.vector_id AS new_id FROM {_TWINS}) AS twin WHERE vector_id = twin.old_id",
    "UPDATE changes SET gallery_key = :new WHERE gallery_key = :old",
    "DELETE FROM retention WHERE gallery_key = :new",
    "INSERT INTO retention (gallery_key, camera_id, keep) SELECT :new, camera_id, keep FROM retention WHERE gallery_key = :old",
    # The time of its making too: with its name it tells a client's journal which gallery its lines are of.
    "UPDATE galleries SET (display_name, index_kind, false_match_rate, keep_frames, create_time, follows) = "
    "(SELECT display_name, index_kind, false_match_rate, keep_frames, create_time, NULL FROM galleries "
    "WHERE gallery_key = :old) WHERE gallery_key = :new",
    "UPDATE galleries SET follows = :new WHERE gallery_key = :old OR follows = :old",
    # A retry of a write from before finds its tracklet in the new gallery; of one that stayed behind it counts as new.
    f"DELETE FROM requests WHERE gallery_id = :name AND vector_id IN "  # noqa: S608
    f"(SELECT vector_id FROM tracklets WHERE gallery_key = :old AND tracklet_id IN ({_LEFT_BEHIND}))",
    "UPDATE requests SET vector_id = (SELECT twin.vector_id FROM tracklets AS was JOIN tracklets AS twin "
    "USING (tracklet_id) WHERE was.vector_id = requests.vector_id AND twin.gallery_key = :new) "
    "WHERE gallery_id = :name AND vector_id IS NOT NULL",
    # Those of the new gallery name it by what it was called: no retry will be the same request under its new name.
    "DELETE FROM requests WHERE gallery_id = :replacement",
    # The audit names tracklets by gallery and id: entries go where an erasure of their tracklet will look for them.
    # The new gallery's first: what the old one is called then may be what the new one was called.
    "UPDATE audit SET gallery_id = :name WHERE gallery_id = :replacement",
    f"UPDATE audit SET gallery_id = :retired WHERE gallery_id = :name AND tracklet_id IN ({_LEFT_BEHIND})",  # noqa: S608
    # In two steps, since a name is there once.
    "UPDATE galleries SET gallery_id = '' WHERE gallery_key = :new",
    "UPDATE galleries SET gallery_id = :retired WHERE gallery_key = :old",
    "UPDATE galleries SET gallery_id = :name WHERE gallery_key = :new",
)


class Replacing(Erasing, Maintaining):
    """The part of the embedded gallery that lets one gallery take another's place."""

    def replace_gallery(
        self, gallery_id: str, replacement_id: str, retired_id: str, *, allow_missing: bool, request_id: str = ""
    ) -> Replacement:
        """Puts `replacement_id`, which follows `gallery_id`, in its place; the old one is called `retired_id` then.

        Raises:
            NotFoundError: one of the galleries. AlreadyExistsError (GALLERY_EXISTS): `retired_id` is another one's.
            FailedPreconditionError: the replacement does not follow (NOT_A_FOLLOWER), or lacks tracklets of the old
                one and `allow_missing` is not set (TRACKLETS_MISSING).
        """
        check_gallery_id(retired_id)
        request = self._request(gallery_id, request_id, "ReplaceGallery", replacement_id, retired_id, allow_missing)
        replaced: list[GalleryRow] = []

        def change(connection: sqlite3.Connection) -> Replacement:
            old = rows.get_gallery(connection, gallery_id)
            if (done := ledger.find(connection, request)) is not None:
                retired = rows.get_gallery(connection, retired_id)
                return Replacement(old.record, retired.record, done.deleted_count)
            new = rows.get_gallery(connection, replacement_id)
            if retired_id != replacement_id and rows.find_gallery(connection, retired_id):
                raise AlreadyExistsError(
                    f"{gallery_name(retired_id)} exists already: delete it, or give the old gallery another name",
                    reason="GALLERY_EXISTS",
                )
            self._check_undamaged(connection, old, new)
            missing = _check(connection, old, new, allow_missing)
            said = {"name": gallery_id, "replacement": replacement_id, "retired": retired_id}
            for statement in _CARRY:
                connection.execute(statement, {"old": old.key, "new": new.key, **said})
            ledger.remember(connection, request, Outcome(deleted_count=missing))
            told = {"retired": retired_id, "fingerprint": new.record.space.fingerprint}
            ledger.record(connection, "ReplaceGallery", gallery_id, **told, missing=missing)
            replaced.append(rows.get_gallery(connection, gallery_id))
            return Replacement(replaced[-1].record, rows.get_gallery(connection, retired_id).record, missing)

        def publish(_: Replacement) -> None:
            for gallery in replaced:  # its kind of index is the old one's now
                self._live[gallery.key].want(self._kind_of(gallery))

        return self._store.write(change, publish)

    def _check_not_erased(self, connection: sqlite3.Connection, gallery: GalleryRow, tracklet_id: str) -> None:
        """Raises FailedPreconditionError (TRACKLET_DELETED) for what was erased from the gallery that is followed."""
        followed = gallery.record.options.follows
        if not followed:
            return
        erased = ledger.pseudonym(self._audit_key, "tracklet", followed, tracklet_id)
        there = "SELECT 1 FROM tracklets JOIN galleries USING (gallery_key) WHERE gallery_id = ? AND tracklet_id = ?"
        told = "SELECT 1 FROM audit WHERE gallery_id = ? AND tracklet_id = ?"
        if (
            connection.execute(told, (followed, erased)).fetchone()
            and not connection.execute(there, (followed, tracklet_id)).fetchone()
        ):
            raise FailedPreconditionError(
                f"the tracklet was erased from {gallery_name(followed)}, which this gallery follows: it does not come back",
                reason="TRACKLET_DELETED",
            )


def _check(connection: sqlite3.Connection, old: GalleryRow, new: GalleryRow, allow_missing: bool) -> int:
    """How many tracklets of the old gallery the new one lacks."""
    name, other = old.record.gallery_id, new.record.gallery_id
    if new.record.options.follows != name:
        raise FailedPreconditionError(
            f"{gallery_name(other)} does not follow {gallery_name(name)}: only a gallery that was made to take its place can",
            reason="NOT_A_FOLLOWER",
        )
    (missing,) = connection.execute(
        "SELECT count(*) FROM (SELECT tracklet_id FROM tracklets WHERE gallery_key = ? "
        "EXCEPT SELECT tracklet_id FROM tracklets WHERE gallery_key = ?)",
        (old.key, new.key),
    ).fetchone()
    if missing and not allow_missing:
        raise FailedPreconditionError(
            f"{gallery_name(other)} lacks {missing} tracklets of {gallery_name(name)}: store them too, or allow that they "
            "stay in the old gallery alone",
            reason="TRACKLETS_MISSING",
        )
    return int(missing)
