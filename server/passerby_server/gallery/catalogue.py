"""The galleries themselves: made, listed, changed, counted, deleted."""

from __future__ import annotations

import dataclasses
import sqlite3
from dataclasses import dataclass

from passerby.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError
from passerby.names import check_gallery_id, gallery_name

from passerby_server.gallery import kinds, ledger, paging, rows, validate
from passerby_server.gallery.erasure import Erasing
from passerby_server.gallery.ledger import Outcome, Request
from passerby_server.gallery.live import LiveIndex
from passerby_server.gallery.maintenance import Maintaining
from passerby_server.gallery.rows import GalleryRow
from passerby_server.gallery.types import (
    NO_OPTIONS,
    Erasure,
    GalleryOptions,
    GalleryRecord,
    GalleryStats,
    ModelSpace,
    Page,
)


@dataclass(frozen=True, slots=True)
class _Deleted:
    """What a deletion took; `key` is None when the request repeats an earlier one."""

    count: int
    key: int | None = None
    followers: tuple[str, ...] = ()


class Cataloguing(Erasing, Maintaining):
    """The part of the embedded gallery that knows which galleries there are."""

    def create_gallery(
        self,
        gallery_id: str,
        display_name: str,
        space: ModelSpace,
        request_id: str = "",
        options: GalleryOptions = NO_OPTIONS,
    ) -> GalleryRecord:
        check_gallery_id(gallery_id)
        validate.check_space(space)
        check_options(options)
        parts = [display_name, space.fingerprint, space.descriptor_dim, space.metric]
        told = dataclasses.astuple(options)
        if options.descriptor_precision == "fp32":  # a retry is one across the update to a server that has the choice
            told = told[:-1]
        parts += told if options != NO_OPTIONS else ()
        request = Request(gallery_id, request_id, "CreateGallery", ledger.digest_of(*parts))

        def change(connection: sqlite3.Connection) -> GalleryRow:
            if ledger.find(connection, request) is not None:
                return rows.get_gallery(connection, gallery_id)
            if rows.find_gallery(connection, gallery_id) is not None:
                raise AlreadyExistsError(f"{gallery_name(gallery_id)} exists already", reason="GALLERY_EXISTS")
            followed = _followed(connection, options.follows)
            connection.execute(
                "INSERT INTO galleries (gallery_id, display_name, fingerprint, descriptor_dim, metric, create_time, "
                "index_kind, false_match_rate, follows, keep_frames, descriptor_precision) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    gallery_id,
                    display_name,
                    space.fingerprint,
                    space.descriptor_dim,
                    space.metric,
                    rows.now(),
                    options.index_kind,
                    options.false_match_rate,
                    followed,
                    options.keep_frames,
                    options.descriptor_precision,
                ),
            )
            ledger.remember(connection, request, Outcome())
            followed_id = {"follows": options.follows} if options.follows else {}
            ledger.record(connection, "CreateGallery", gallery_id, fingerprint=space.fingerprint, **followed_id)
            return rows.get_gallery(connection, gallery_id)

        return self._store.write(change, self._publish_gallery).record

    def get_gallery(self, gallery_id: str) -> GalleryRecord:
        with self._store.read() as connection:
            return rows.get_gallery(connection, gallery_id).record

    def list_galleries(
        self, page_size: int, page_token: str = "", *, only: frozenset[str] | None = None
    ) -> Page[GalleryRecord]:
        limit, bound_to = paging.page_limit(page_size), paging.listing("ListGalleries")
        after = paging.read_token(self._page_key, bound_to, page_token) if page_token else ""
        with self._store.read() as connection:
            everyone = rows.find_galleries(connection, "gallery_id > ?", after)  # few, however large they are
        found = [row.record for row in everyone if only is None or row.record.gallery_id in only]
        items = tuple(found[:limit])
        more = len(found) > limit
        return Page(items, paging.make_token(self._page_key, bound_to, items[-1].gallery_id) if more else "")

    def update_gallery(
        self,
        gallery_id: str,
        *,
        display_name: str | None = None,
        index_kind: str | None = None,
        false_match_rate: float | None = None,
    ) -> GalleryRecord:
        check_options(GalleryOptions(index_kind or "", false_match_rate or None))
        said = {"display_name": display_name, "index_kind": index_kind, "false_match_rate": false_match_rate}
        values: dict[str, str | float | None] = {column: value for column, value in said.items() if value is not None}
        if false_match_rate == 0:
            values["false_match_rate"] = None

        def change(connection: sqlite3.Connection) -> GalleryRow:
            gallery = rows.get_gallery(connection, gallery_id)
            for column, value in values.items():
                connection.execute(
                    f"UPDATE galleries SET {column} = ? WHERE gallery_key = ?",  # noqa: S608 - of the names above
                    (value, gallery.key),
                )
            told = {column: "" if value is None else str(value) for column, value in values.items()}
            ledger.record(connection, "UpdateGallery", gallery_id, **told)
            return rows.get_gallery(connection, gallery_id)

        def publish(gallery: GalleryRow) -> None:
            self._live[gallery.key].want(self._kind_of(gallery))

        return self._store.write(change, publish).record

    def delete_gallery(self, gallery_id: str, *, force: bool, request_id: str = "") -> Erasure:
        request = Request(gallery_id, request_id, "DeleteGallery", ledger.digest_of(force))

        def change(connection: sqlite3.Connection) -> _Deleted:
            done = ledger.find(connection, request)
            if done is not None:
                return _Deleted(done.deleted_count)
            gallery = rows.get_gallery(connection, gallery_id)
            (count,) = connection.execute(
                "SELECT count(*) FROM tracklets WHERE gallery_key = ?", (gallery.key,)
            ).fetchone()
            if count and not force:
                raise FailedPreconditionError(
                    f"{gallery_name(gallery_id)} holds {count} tracklets: delete it with force, or them first",
                    reason="GALLERY_NOT_EMPTY",
                )
            followers = tuple(
                row.record.gallery_id for row in rows.find_galleries(connection, "follows = ?", gallery.key)
            )
            connection.execute("DELETE FROM requests WHERE gallery_id = ?", (gallery_id,))
            connection.execute("DELETE FROM galleries WHERE gallery_key = ?", (gallery.key,))
            ledger.forget_gallery(connection, self._audit_key, gallery_id)
            self._mark_due(connection)
            ledger.remember(connection, request, Outcome(deleted_count=count))
            ledger.record(connection, "DeleteGallery", gallery_id, tracklets=count)
            return _Deleted(count, gallery.key, followers)

        retired: list[LiveIndex] = []

        def publish(deleted: _Deleted) -> None:
            if deleted.key is not None and (live := self._live.pop(deleted.key, None)):
                live.retire()
                retired.append(live)

        deleted = self._store.write(change, publish, scrub=True)
        files = {path.name for path in self._store.files}
        if deleted.count:  # also for a repetition: the first attempt may have failed at this
            files |= {path.name for path in self._store.rewrite()}
        files |= {path.name for live in retired for path in live.erased()}
        return Erasure(deleted.count, self._receipt_of((), "", files, deleted.followers))

    def stats(self, gallery_id: str) -> GalleryStats:
        with self._store.read() as connection:
            gallery = rows.get_gallery(connection, gallery_id)
            tracklets, identities, cameras, frames = connection.execute(
                "SELECT count(*), count(DISTINCT nullif(identity_id, '')), count(DISTINCT camera_id), "
                "coalesce(sum(frame_count), 0) FROM tracklets WHERE gallery_key = ?",
                (gallery.key,),
            ).fetchone()
            live = self._live.get(gallery.key)
            if live is None:  # deleted since
                return GalleryStats(tracklets, identities, cameras, frames, 0)
            indexed = 0 if live.stale else len(live.index)
        recall = live.audit.recall
        return GalleryStats(
            tracklets,
            identities,
            cameras,
            frames,
            live.index.size_bytes(),
            index_kind=str(live.kind),
            index_lag=max(0, tracklets - indexed),
            audited_queries=recall.queries,
            recall=recall.value,
        )

    def _publish_gallery(self, gallery: GalleryRow) -> None:
        self._start(gallery)


def check_options(options: GalleryOptions) -> None:
    """Raises InvalidArgumentError for an unknown kind of index or precision, or a rate that is none."""
    if options.descriptor_precision not in ("fp32", "fp16"):
        known = f"must be fp32 or fp16, not {options.descriptor_precision!r}"
        raise InvalidArgumentError.of("descriptor_precision", known)
    if options.index_kind:
        kinds.parse(options.index_kind)
    rate = options.false_match_rate
    if rate is not None and not 0 < rate < 1:
        raise InvalidArgumentError.of("false_match_rate", f"must be between 0 and 1, not {rate}")


def _followed(connection: sqlite3.Connection, gallery_id: str) -> int | None:
    """Key of the gallery that a new one follows. Raises NotFoundError, InvalidArgumentError."""
    if not gallery_id:
        return None
    followed = rows.get_gallery(connection, gallery_id)
    if followed.record.options.follows:
        raise InvalidArgumentError.of("follows", f"{gallery_id} follows {followed.record.options.follows} itself")
    return followed.key
