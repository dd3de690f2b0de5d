"""Erasure: by tracklet, by identity, by age. What goes leaves the store, its log, the index and the audit.

In two steps. The transaction that deletes takes the rows (zeros are written over them), their index entries and the
names in the audit, and marks the store as due to be written anew; the write-ahead log is emptied with it. What moved
between pages earlier may have left copies in their slack: `Store.rewrite` ends those, at once for an identity, within
the rewrite delay for single tracklets and for retention, so that many deletions share one rewrite.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from passerby.errors import DataLossError, InvalidArgumentError, UnavailableError
from passerby.names import tracklet_name

from passerby_server.gallery import clock, ledger, rows, sealing
from passerby_server.gallery.home import Home
from passerby_server.gallery.ledger import Outcome
from passerby_server.gallery.rows import GalleryRow
from passerby_server.gallery.types import Erasure, Receipt, RetentionRule

logger = logging.getLogger(__name__)

ALL_GALLERIES = "-"
RETENTION_BATCH = 500
"""Tracklets of one transaction of the retention, so that no other write waits long."""
AUDIT_BATCH = 5000
"""Audit entries of one transaction that expire."""
_AGE = "min(coalesce(end_time, create_time), create_time)"
_Part = tuple[GalleryRow, list[tuple[int, str]]]
"""Tracklets of one gallery: vector id and tracklet id of each."""


@dataclass(frozen=True, slots=True)
class _Erased:
    """What one transaction took: (gallery key, vector id) and the name of each tracklet."""

    ids: tuple[tuple[int, int], ...] = ()
    names: tuple[str, ...] = ()
    count: int = 0
    repeated: bool = False
    left_in: tuple[str, ...] = ()
    """Ids of galleries that still hold the same people."""


class Erasing(Home):
    """The part of the embedded gallery that forgets."""

    def delete_tracklet(self, gallery_id: str, tracklet_id: str, request_id: str = "") -> Receipt | None:
        request = self._request(gallery_id, request_id, "DeleteTracklet", tracklet_id)
        subject = ledger.pseudonym(self._audit_key, "tracklet", gallery_id, tracklet_id)

        def change(connection: sqlite3.Connection) -> _Erased:
            gallery = rows.get_gallery(connection, gallery_id)
            if ledger.find(connection, request) is not None:
                return _Erased(repeated=True)
            vector_id = rows.get_vector_id(connection, gallery, tracklet_id)
            erased = self._forget(connection, _with_twins(connection, gallery, [(vector_id, tracklet_id)]))
            ledger.remember(connection, request, Outcome(deleted_count=1))
            ledger.record(connection, "DeleteTracklet", gallery_id, subject)
            return erased

        erased = self._store.write(change, lambda erased: self._follow(erased.ids), scrub=True)
        files = self._erase_files(erased)
        return None if erased.repeated else self._receipt(erased, subject, files)

    def erase_identity(self, gallery_id: str, identity_id: str, *, force: bool, request_id: str = "") -> Erasure:
        if not identity_id:
            raise InvalidArgumentError.of("identity_id", "is required: it names whom to erase")
        if not force:
            with self._store.read() as connection:
                self._check_undamaged(connection, *_galleries(connection, gallery_id))
                found = {
                    vector_id
                    for gallery in _galleries(connection, gallery_id)
                    for _, shown in _showing(connection, gallery, identity_id)
                    for vector_id, _ in shown
                }
            return Erasure(len(found), None)
        request = self._request(gallery_id, request_id, "EraseIdentity", identity_id)

        def change(connection: sqlite3.Connection) -> _Erased:
            galleries = _galleries(connection, gallery_id)
            if (done := ledger.find(connection, request)) is not None:
                return _Erased(count=done.deleted_count, repeated=True)
            self._check_undamaged(connection, *galleries)
            parts = [self._forget_identity(connection, gallery, identity_id) for gallery in galleries]
            erased = _Erased(
                tuple(one for part in parts for one in part.ids),
                tuple(name for part in parts for name in part.names),
                sum(part.count for part in parts),
                left_in=tuple(dict.fromkeys(one for part in parts for one in part.left_in)),
            )
            ledger.remember(connection, request, Outcome(deleted_count=erased.count))
            return erased

        erased = self._store.write(change, lambda erased: self._follow(erased.ids), scrub=True)
        # Also for a repetition, as below.
        rewritten = {*(path.name for path in self._store.rewrite()), *self._erase_files(erased)}
        subject = ledger.pseudonym(self._audit_key, "identity", "", identity_id)
        return Erasure(erased.count, self._receipt(erased, subject, rewritten))

    def erase_again(self, found: Iterable[tuple[str, str]]) -> None:
        """Erases identities, (gallery id, identity id) each, in one transaction, and writes the files anew."""

        def change(connection: sqlite3.Connection) -> tuple[tuple[int, int], ...]:
            erased = [
                self._forget_identity(connection, rows.get_gallery(connection, gallery_id), identity_id)
                for gallery_id, identity_id in found
            ]
            return tuple(one for part in erased for one in part.ids)

        self._store.write(change, self._follow, scrub=True)
        self._store.rewrite()

    def set_retention(self, gallery_id: str, rules: Sequence[RetentionRule]) -> tuple[RetentionRule, ...]:
        if len({rule.camera_id for rule in rules}) < len(rules):
            raise InvalidArgumentError.of("rules", "name a camera twice")

        def change(connection: sqlite3.Connection) -> None:
            gallery = rows.get_gallery(connection, gallery_id)
            connection.execute("DELETE FROM retention WHERE gallery_key = ?", (gallery.key,))
            values = [(gallery.key, rule.camera_id, rule.keep // rows.MICROSECOND) for rule in rules]
            connection.executemany("INSERT INTO retention (gallery_key, camera_id, keep) VALUES (?, ?, ?)", values)
            said = [f"{rule.camera_id or 'all cameras'}: {rule.keep.total_seconds():g} s" for rule in rules]
            ledger.record(connection, "SetRetention", gallery_id, rules=said)

        self._store.write(change)
        return self.get_retention(gallery_id)

    def get_retention(self, gallery_id: str) -> tuple[RetentionRule, ...]:
        with self._store.read() as connection:
            return tuple(_rules(connection, rows.get_gallery(connection, gallery_id)))

    def apply_retention(self) -> int:
        with self._store.read() as connection:
            news = clock.is_news(connection, "tracklets", _last_stored(connection))
        if news:
            self._store.write(_note_the_clock)
        with self._store.read() as connection:
            galleries = rows.find_galleries(connection)
        count = 0
        for gallery in galleries:
            try:
                with self._store.read() as connection:
                    rules = _rules(connection, gallery)
                for rule in rules:
                    while erased := self._expire(gallery, rule):
                        count += erased
            except DataLossError:  # names, which the error has, never stand in the log
                logger.error("gallery %d is damaged: its retention is not applied, that of others is", gallery.key)  # noqa: TRY400
        return count

    def expire_audit(self, keep: timedelta) -> int:
        oldest = rows.from_microseconds(rows.now()) - keep
        before = rows.to_microseconds(oldest.replace(hour=0, minute=0, second=0, microsecond=0)) or 0
        count, numbers = 0, [0]
        while True:
            with self._store.read() as connection:
                numbers = ledger.find_expirable(connection, before, numbers[-1], AUDIT_BATCH)
            if not numbers:
                return count
            count += self._store.write(partial(ledger.expire_entries, numbers=numbers, before=before))

    def rewrite_if_due(self) -> bool:
        now = rows.now()
        with self._store.read() as connection:
            row = connection.execute("SELECT value FROM upkeep WHERE name = 'rewrite_due'").fetchone()
        # One that is further away than the delay was set by a clock that has gone back since.
        if row is None or now < row[0] <= now + self._rewrite_delay // rows.MICROSECOND:
            return False
        self._store.rewrite()
        return True

    def _expire(self, gallery: GalleryRow, rule: RetentionRule) -> int:
        """Erases up to RETENTION_BATCH tracklets that `rule` no longer keeps; how many."""

        def change(connection: sqlite3.Connection) -> _Erased:
            found = _expired(connection, gallery.key, rule)
            if not found:
                return _Erased()
            # Replaced since, it has another name.
            (now,) = rows.find_galleries(connection, "gallery_key = ?", gallery.key)
            erased = self._forget(connection, _with_twins(connection, now, found), told=ledger.BY_RETENTION)
            ledger.record(
                connection,
                "ApplyRetention",
                now.record.gallery_id,
                tracklets=len(found),
                rule=f"{rule.camera_id or 'all cameras'}: {rule.keep.total_seconds():g} s",
            )
            return erased

        with self._store.read() as connection:
            if not _expired(connection, gallery.key, rule, 1):
                return 0
        erased = self._store.write(change, lambda erased: self._follow(erased.ids), scrub=True)
        with contextlib.suppress(UnavailableError):  # logged, and tried again
            self._erase_files(erased)
        return erased.count

    def _forget_identity(self, connection: sqlite3.Connection, gallery: GalleryRow, identity_id: str) -> _Erased:
        parts = _showing(connection, gallery, identity_id)
        erased = self._forget(connection, parts, identity_id)
        subject = ledger.pseudonym(self._audit_key, "identity", "", identity_id)
        for one, shown in parts:
            # What is left of it in a follower shows somebody else, as the gallery itself says: the name goes alone.
            connection.execute(
                "UPDATE tracklets AS here SET identity_id = said.identity_id FROM tracklets AS said "
                "WHERE here.gallery_key = ? AND here.identity_id = ? "
                "AND said.gallery_key = ? AND said.tracklet_id = here.tracklet_id",
                (one.key, identity_id, gallery.key),
            )
            ledger.forget_identity(connection, self._audit_key, one.record.gallery_id, identity_id)
            connection.execute(
                "DELETE FROM change_items WHERE (before = ? OR after = ?) AND change_id IN "
                "(SELECT change_id FROM changes WHERE gallery_key = ?)",
                (identity_id, identity_id, one.key),
            )
            gallery_id = one.record.gallery_id
            ledger.record(connection, "EraseIdentity", gallery_id, identity=subject, tracklets=len(shown))
        self._mark_due(connection)  # also without a tracklet: it was named in the audit, perhaps
        return erased

    def _forget(
        self, connection: sqlite3.Connection, parts: Sequence[_Part], identity_id: str = "", told: str = ""
    ) -> _Erased:
        """Deletes tracklets with all that hangs on them. `parts` are of one gallery, and of those that follow it.

        `identity_id` says whom they show, where they are all that the galleries hold of somebody; `told` is what the audit
        is to say of each.
        """
        self._mark_due(connection)
        ids: list[tuple[int, int]] = []
        names: list[str] = []
        for one, found in parts:
            gallery_id = one.record.gallery_id
            connection.executemany(
                "DELETE FROM tracklets WHERE vector_id = ?", [(vector_id,) for vector_id, _ in found]
            )
            ledger.forget_tracklets(connection, self._audit_key, gallery_id, [name for _, name in found], told)
            ids += [(one.key, vector_id) for vector_id, _ in found]
            names += [tracklet_name(gallery_id, name) for _, name in found]
        return _Erased(tuple(ids), tuple(names), len(ids), left_in=_left_in(connection, parts[0], identity_id))

    def _mark_due(self, connection: sqlite3.Connection) -> None:
        due = rows.now() + self._rewrite_delay // rows.MICROSECOND
        connection.execute("INSERT OR IGNORE INTO upkeep (name, value) VALUES ('rewrite_due', ?)", (due,))

    def _erase_files(self, erased: _Erased) -> list[str]:
        """Has the indexes' own files rewritten; those and the store's, relative to the data folder.

        A repetition takes what is left anywhere: the first attempt may have failed at this.
        """
        folder, keys = self._store.path.parent, {key for key, _ in erased.ids}
        touched = [
            live for key, live in list(self._live.items()) if key in keys or (erased.repeated and live.holds_erased)
        ]
        paths = [path.relative_to(folder).as_posix() for live in touched for path in live.erased()]
        return [*(path.name for path in self._store.files), *paths]

    def _receipt(self, erased: _Erased, subject: str, rewritten: Iterable[str]) -> Receipt:
        return self._receipt_of(erased.names, subject, rewritten, erased.left_in)

    def _receipt_of(
        self, names: Sequence[str], subject: str, rewritten: Iterable[str], left_in: Sequence[str]
    ) -> Receipt:
        with self._store.read() as connection:
            due = connection.execute("SELECT value FROM upkeep WHERE name = 'rewrite_due'").fetchone()
            backups = [
                sealing.opened(row, f"the record of backup {row[0]}")[1:]
                for row in connection.execute(f"SELECT {sealing.selected('backups')} FROM backups ORDER BY time")  # noqa: S608
            ]
        return Receipt(
            erase_time=datetime.now(UTC),
            tracklet_names=tuple(names),
            rewritten_files=tuple(sorted(rewritten)),
            unreachable_copies=tuple(
                f"backup of {rows.from_microseconds(time):%Y-%m-%d %H:%M:%S} UTC in {location}"
                for time, location in backups
            ),
            left_in=tuple(left_in),
            subject_digest=subject,
            rewrite_due_time=None if due is None else rows.from_microseconds(due[0]),
        )


def _galleries(connection: sqlite3.Connection, gallery_id: str) -> list[GalleryRow]:
    """The gallery, or all that follow none: those that do are reached through them."""
    if gallery_id != ALL_GALLERIES:
        return [rows.get_gallery(connection, gallery_id)]
    return rows.find_galleries(connection, "follows IS NULL")


def _of_identity(connection: sqlite3.Connection, gallery: GalleryRow, identity_id: str) -> list[tuple[int, str]]:
    return connection.execute(
        "SELECT vector_id, tracklet_id FROM tracklets WHERE gallery_key = ? AND identity_id = ?",
        (gallery.key, identity_id),
    ).fetchall()


def _showing(connection: sqlite3.Connection, gallery: GalleryRow, identity_id: str) -> list[_Part]:
    """Tracklets of an identity: those of a gallery with their twins in galleries that follow it, and what those alone hold.

    Whom a tracklet shows that both hold is as the gallery says that is followed: there people correct it.
    """
    parts: list[_Part] = []
    for one, twins in _with_twins(connection, gallery, _of_identity(connection, gallery, identity_id)):
        named = [] if one is gallery else _of_identity(connection, one, identity_id)
        alone = [(key, name) for key, name in named if rows.find_vector_id(connection, gallery, name) is None]
        parts.append((one, [*twins, *alone]))
    return parts


def _left_in(connection: sqlite3.Connection, part: _Part, identity_id: str) -> tuple[str, ...]:
    """Ids of galleries that an erasure from `part` does not reach, and that hold its tracklets, or others of the identity."""
    gallery, found = part
    related = rows.find_galleries(
        connection,
        "gallery_key <> ?1 AND (SELECT follows FROM galleries WHERE gallery_key = ?1) IN (gallery_key, follows)",
        gallery.key,
    )
    return tuple(
        one.record.gallery_id
        for one in related
        if (identity_id and _of_identity(connection, one, identity_id))
        or any(rows.find_vector_id(connection, one, name) is not None for _, name in found)
    )


def _with_twins(connection: sqlite3.Connection, gallery: GalleryRow, found: Sequence[tuple[int, str]]) -> list[_Part]:
    """Those `found`, (vector id, tracklet id) each, in a gallery, and those of the same ids in galleries that follow it."""
    parts: list[_Part] = [(gallery, list(found))]
    for follower in rows.find_galleries(connection, "follows = ?", gallery.key):
        twins = [(rows.find_vector_id(connection, follower, name), name) for _, name in found]
        parts.append((follower, [(vector_id, name) for vector_id, name in twins if vector_id is not None]))
    return parts


def _rules(connection: sqlite3.Connection, gallery: GalleryRow) -> list[RetentionRule]:
    found = connection.execute(
        f"SELECT {sealing.selected('retention')} FROM retention WHERE gallery_key = ? ORDER BY camera_id",  # noqa: S608
        (gallery.key,),
    )
    opened = [sealing.opened(row, f"a retention rule of gallery {gallery.record.gallery_id}") for row in found]
    return [RetentionRule(camera_id, keep * rows.MICROSECOND) for _, camera_id, keep in opened]


def _expired(
    connection: sqlite3.Connection, gallery_key: int, rule: RetentionRule, limit: int = RETENTION_BATCH
) -> list[tuple[int, str]]:
    """Tracklets, (vector id, tracklet id) each, that `rule` no longer keeps."""
    oldest = rows.now() - rule.keep // rows.MICROSECOND
    values: list[str | int]
    if rule.camera_id:
        which, values = "camera_id = ?", [rule.camera_id]
    else:
        which, values = "camera_id NOT IN (SELECT camera_id FROM retention WHERE gallery_key = ?)", [gallery_key]
    too_old = f"{_AGE} < ?"
    if (since := clock.behind_since(connection, "tracklets")) is not None and since < oldest:
        too_old = f"({too_old} OR create_time > {rows.now()})"
    # The rule is read again: it may have been taken back since the sweep began.
    return connection.execute(
        f"SELECT vector_id, tracklet_id FROM tracklets WHERE gallery_key = ? AND {which} AND {too_old} "  # noqa: S608
        "AND EXISTS (SELECT 1 FROM retention WHERE gallery_key = ? AND camera_id = ? AND keep = ?) LIMIT ?",
        (gallery_key, *values, oldest, gallery_key, rule.camera_id, rule.keep // rows.MICROSECOND, limit),
    ).fetchall()


def _last_stored(connection: sqlite3.Connection) -> int | None:
    """When the last tracklet under a retention rule was stored, as the clock was then."""
    (latest,) = connection.execute(
        "SELECT max(create_time) FROM tracklets WHERE gallery_key IN (SELECT gallery_key FROM retention)"
    ).fetchone()
    return None if latest is None else int(latest)


def _note_the_clock(connection: sqlite3.Connection) -> None:
    if clock.note(connection, "tracklets", _last_stored(connection)) is None:
        logger.info("the clock has passed all times at which tracklets were stored")
    else:
        logger.warning("the clock has gone back: tracklets that were stored in its future count as stored now")
