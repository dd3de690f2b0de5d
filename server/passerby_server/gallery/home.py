"""What the parts of the embedded gallery share: the store, the index of each gallery, and the store's secrets."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

from passerby_server.gallery import ledger, rows
from passerby_server.gallery.ledger import Request
from passerby_server.gallery.live import LiveIndex
from passerby_server.gallery.store import Store
from passerby_server.gallery.types import TrackletRecord

REWRITE_DELAY = timedelta(minutes=10)
"""How long slack space may hold pieces of deleted rows before the database is written anew, unless told otherwise."""


class Home:
    """Set up by `EmbeddedGalleries`."""

    _store: Store
    _live: dict[int, LiveIndex]
    """By gallery key."""
    _page_key: bytes
    _audit_key: bytes
    _damaged: dict[int, frozenset[int]]
    """Vector ids of the tracklets that were found damaged at the start, by gallery key."""
    _rewrite_delay: timedelta

    def _request(self, gallery_id: str, request_id: str, method: str, *parts: object) -> Request:
        """A write that holds little more than names: its digest has a key."""
        return Request(gallery_id, request_id, method, ledger.digest_of(*parts, key=self._audit_key))

    def _follow(self, removed: Iterable[tuple[int, int]]) -> None:
        """Takes deleted tracklets, (gallery key, vector id) each, out of the indexes."""
        of_gallery: dict[int, list[int]] = {}
        for gallery_key, vector_id in removed:
            of_gallery.setdefault(gallery_key, []).append(vector_id)
        for gallery_key, vector_ids in of_gallery.items():
            if damaged := self._damaged.get(gallery_key):
                self._damaged[gallery_key] = damaged.difference(vector_ids)
            if live := self._live.get(gallery_key):
                live.remove(*vector_ids)

    def _with_damaged(self, gallery: rows.GalleryRow) -> rows.GalleryRow:
        return replace(gallery, damaged=self._damaged.get(gallery.key, frozenset()))

    def _check_undamaged(self, connection: sqlite3.Connection, *galleries: rows.GalleryRow) -> None:
        """Raises DataLossError (TRACKLET_DAMAGED) where a change goes by what rows say, and one is known to be damaged."""
        for gallery in galleries:
            if damaged := self._damaged.get(gallery.key):
                raise rows.damaged_tracklet(connection, min(damaged))


def record_of(connection: sqlite3.Connection, gallery: rows.GalleryRow, vector_id: int) -> TrackletRecord:
    """The stored tracklet with this vector id."""
    return rows.get_records(connection, gallery, [vector_id])[vector_id]
