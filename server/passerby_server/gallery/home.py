"""What the parts of the embedded gallery share: the store, the index of each gallery, and the store's secrets."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
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
            if live := self._live.get(gallery_key):
                live.remove(*vector_ids)


def record_of(connection: sqlite3.Connection, gallery: rows.GalleryRow, vector_id: int) -> TrackletRecord:
    """The stored tracklet with this vector id."""
    return rows.get_records(connection, gallery, [vector_id])[vector_id]
