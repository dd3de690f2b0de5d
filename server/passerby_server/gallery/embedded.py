"""The embedded gallery: SQLite as the truth, FAISS beside it. One folder, one process.

Every write is one transaction in the store (the change, its request id, its audit entry), then a change of the
index; the method returns after both. At open the index comes from its snapshot or is built from the store.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from passerby.errors import AlreadyExistsError, DataLossError, InternalError
from passerby.names import tracklet_name

from passerby_server.gallery import kinds, ledger, paging, rows, sealing, search, validate
from passerby_server.gallery.catalogue import Cataloguing
from passerby_server.gallery.corrections import Correcting
from passerby_server.gallery.home import REWRITE_DELAY, record_of
from passerby_server.gallery.index import search_pool
from passerby_server.gallery.ledger import Outcome, Request
from passerby_server.gallery.live import LiveIndex
from passerby_server.gallery.replacing import Replacing
from passerby_server.gallery.rows import GalleryRow
from passerby_server.gallery.store import Store, keep_temporary_files
from passerby_server.gallery.types import (
    AuditEntry,
    Galleries,
    Hit,
    NewTracklet,
    Page,
    SearchQuery,
    TrackletFilter,
    TrackletRecord,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

OPTIMISTIC_SEARCHES = 3
"""Searches that run beside writes; if a write came between each time, the next one holds the writes back."""


def open_galleries(
    folder: Path,
    *,
    threads: int = 0,
    rewrite_delay: timedelta = REWRITE_DELAY,
    index: str = kinds.AUTO,
    stop: threading.Event | None = None,
) -> Galleries:
    """Opens the galleries in `folder`, or an empty set of them; the index is built from the store before it returns.

    Args:
        folder: the data folder, made when absent (readable by its owner alone).
        threads: threads that search one query together; 0 means as many as there are processors.
        rewrite_delay: how long the slack of the database may hold pieces of what was deleted.
        index: kind of index, see `kinds`.
        stop: is set by a caller that no longer wants them, which ends even the opening early.

    Raises:
        FailedPreconditionError: another server uses the folder (DATA_FOLDER_IN_USE), a newer passerby wrote it
            (SCHEMA_TOO_NEW), somebody else did (NOT_A_STORE), or it cannot be written (STORE_NOT_WRITABLE).
        DataLossError: the database is damaged beyond single tracklets, or what a gallery or a secret is.
        InvalidArgumentError: no such kind of index (INDEX_KIND).
        UnavailableError: `stop` was set (SHUTTING_DOWN).
    """
    keep_temporary_files(folder)
    return EmbeddedGalleries(folder, threads=threads, rewrite_delay=rewrite_delay, index=index, stop=stop)


@dataclass(frozen=True, slots=True)
class _Ingested:
    """What an ingest did; `vector` is None when it repeated an earlier one."""

    record: TrackletRecord
    gallery_key: int
    vector_id: int
    vector: NDArray[np.float32] | None


class EmbeddedGalleries(Cataloguing, Replacing, Correcting):
    """`Galleries` in one folder; see `open_galleries`."""

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 0,
        rewrite_delay: timedelta = REWRITE_DELAY,
        index: str = kinds.AUTO,
        maintained: bool = True,
        stop: threading.Event | None = None,
    ) -> None:
        self._stop = stop or threading.Event()
        self._rewrite_delay = rewrite_delay
        self._index_kind = kinds.parse(index)
        with ExitStack() as undo:
            self._store = Store(folder)
            undo.callback(self._store.close)
            self._pool = search_pool(threads)
            undo.callback(self._pool.shutdown)
            self._store.write(ledger.expire)
            self._prepare_snapshots()
            self._live: dict[int, LiveIndex] = {}
            with self._store.read() as connection:
                secrets = rows.get_secrets(connection)
                self._damaged = find_damage(connection)
                self._page_key, self._audit_key = secrets["page_token"], secrets["audit"]
                for row in rows.find_galleries(connection):
                    self._start(row).load(connection, self._stop)
            self._start_maintenance(in_background=maintained)
            undo.pop_all()

    # Audit

    def list_audit(
        self, gallery_id: str, tracklet_id: str, identity_id: str, page_size: int, page_token: str = ""
    ) -> Page[AuditEntry]:
        """The changes of a gallery name, oldest first; they outlive the gallery."""
        limit, bound_to = paging.page_limit(page_size), paging.audit(gallery_id, tracklet_id, identity_id)
        after = int(paging.read_token(self._page_key, bound_to, page_token)) if page_token else 0
        about = {"tracklet_id": tracklet_id, "identity_id": identity_id}
        with self._store.read() as connection:
            found = ledger.entries(connection, self._audit_key, gallery_id, **about, after=after, limit=limit + 1)
        items = tuple(entry for _, entry in found[:limit])
        more = len(found) > limit
        return Page(items, paging.make_token(self._page_key, bound_to, str(found[limit - 1][0])) if more else "")

    # Tracklets

    def ingest(
        self,
        gallery_id: str,
        tracklet: NewTracklet,
        descriptor: NDArray[np.float32],
        fingerprint: str,
        thumbnail: bytes,
        request_id: str = "",
        request_digest: bytes = b"",
        frames: Sequence[bytes] = (),
    ) -> TrackletRecord:
        validate.check_tracklet(tracklet)
        vector = validate.checked_descriptor(descriptor)
        if request_id and not request_digest:
            request_digest = _ingest_digest(tracklet, vector, fingerprint, thumbnail)
        request = Request(gallery_id, request_id, "IngestTracklet", request_digest)

        def change(connection: sqlite3.Connection) -> _Ingested:
            gallery = rows.get_gallery(connection, gallery_id)
            done = ledger.find(connection, request)
            if done is not None:
                vector_id = ledger.still_there(done)
                return _Ingested(record_of(connection, gallery, vector_id), gallery.key, vector_id, None)
            validate.check_model(gallery_id, gallery.record.space, fingerprint, vector)
            tracklet_id = tracklet.tracklet_id or uuid.uuid4().hex
            self._check_not_erased(connection, gallery, tracklet_id)
            precision = gallery.record.options.descriptor_precision
            stored = validate.as_stored(vector, precision)
            vector_id = _insert(connection, gallery, tracklet_id, tracklet)
            rows.put_descriptor(connection, vector_id, stored, precision)
            if thumbnail:
                rows.put_thumbnail(connection, vector_id, thumbnail)
            if gallery.record.options.keep_frames:
                rows.put_frames(connection, vector_id, frames)
            ledger.remember(connection, request, Outcome(vector_id))
            ledger.record(connection, "IngestTracklet", gallery_id, tracklet_id)
            return _Ingested(record_of(connection, gallery, vector_id), gallery.key, vector_id, stored)

        return self._store.write(change, self._publish_tracklet).record

    def find_request(self, gallery_id: str, request_id: str, request_digest: bytes) -> TrackletRecord | None:
        request = Request(gallery_id, request_id, "IngestTracklet", request_digest)
        with self._store.read() as connection:
            gallery = rows.get_gallery(connection, gallery_id)
            done = ledger.find(connection, request)
            return None if done is None else record_of(connection, gallery, ledger.still_there(done))

    def get_tracklet(self, gallery_id: str, tracklet_id: str) -> TrackletRecord:
        return self._of_tracklet(gallery_id, tracklet_id, record_of)

    def get_descriptor(self, gallery_id: str, tracklet_id: str) -> NDArray[np.float32]:
        return self._of_tracklet(
            gallery_id, tracklet_id, lambda connection, _, vector_id: rows.get_descriptor(connection, vector_id)
        )

    def get_thumbnail(self, gallery_id: str, tracklet_id: str) -> bytes:
        return self._of_tracklet(
            gallery_id,
            tracklet_id,
            lambda connection, _, vector_id: rows.get_thumbnail(connection, vector_id),
        )

    def get_frames(self, gallery_id: str, tracklet_id: str) -> tuple[bytes, ...]:
        return self._of_tracklet(
            gallery_id, tracklet_id, lambda connection, _, vector_id: rows.get_frames(connection, vector_id)
        )

    def list_tracklets(
        self, gallery_id: str, filter: TrackletFilter, page_size: int, page_token: str = ""
    ) -> Page[TrackletRecord]:
        validate.check_filter(filter)
        limit = paging.page_limit(page_size)
        with self._store.read() as connection:
            gallery = self._with_damaged(rows.get_gallery(connection, gallery_id))
            bound_to = paging.listing("ListTracklets", gallery.key, filter)
            after = int(paging.read_token(self._page_key, bound_to, page_token)) if page_token else 0
            found = rows.list_records(connection, gallery, filter, after, limit + 1)
        items = tuple(record for _, record in found[:limit])
        more = len(found) > limit
        return Page(items, paging.make_token(self._page_key, bound_to, str(found[limit - 1][0])) if more else "")

    # Search

    def search(self, gallery_id: str, query: SearchQuery) -> tuple[Hit, ...]:
        search.check_query(query)
        validate.check_filter(query.filter)
        validate.checked_descriptor(query.descriptor)
        for attempt in range(OPTIMISTIC_SEARCHES + 1):
            with nullcontext() if attempt < OPTIMISTIC_SEARCHES else self._store.paused():
                try:
                    return self._search_once(gallery_id, query, rebuild=attempt == OPTIMISTIC_SEARCHES)
                except search.StateMovedError:
                    continue
        # Without the gallery's name: what is internal is logged, and names never are.
        raise InternalError("index and store of a gallery disagree even after a rebuild: restart the server")

    def close(self) -> None:
        self._stop_maintenance()
        self._store.close()
        self._pool.shutdown()

    def _search_once(self, gallery_id: str, query: SearchQuery, *, rebuild: bool) -> tuple[Hit, ...]:
        with self._store.read() as connection:
            gallery = self._with_damaged(rows.get_gallery(connection, gallery_id))
            validate.check_model(gallery_id, gallery.record.space, query.fingerprint, query.descriptor)
            live = self._live.get(gallery.key)
            if live is None:
                raise search.StateMovedError
            if live.damage is not None:
                raise DataLossError(live.damage.message, reason=live.damage.reason)
            if rebuild and live.stale:
                live.rebuild(connection, self._stop)
            if live.stale:
                raise search.StateMovedError
            try:
                return search.run(connection, gallery, live.index, query, live.audit)
            except search.StateMovedError:
                if not rebuild:
                    raise
            logger.error("the index of gallery %d is not what the store says, and is built anew", gallery.key)
            live.rebuild(connection, self._stop)
            return search.run(connection, gallery, live.index, query, live.audit)

    def _of_tracklet(
        self, gallery_id: str, tracklet_id: str, get: Callable[[sqlite3.Connection, GalleryRow, int], T]
    ) -> T:
        with self._store.read() as connection:
            gallery = rows.get_gallery(connection, gallery_id)
            return get(connection, gallery, rows.get_vector_id(connection, gallery, tracklet_id))

    def _publish_tracklet(self, ingested: _Ingested) -> None:
        if ingested.vector is not None:
            self._live[ingested.gallery_key].add(ingested.vector_id, ingested.vector)


def find_damage(connection: sqlite3.Connection) -> dict[int, frozenset[int]]:
    """Vector ids of damaged tracklets by gallery key. The log has their number only: names never stand there."""
    found: dict[int, set[int]] = {}
    for gallery_key, vector_id in sealing.damaged_tracklets(connection):
        found.setdefault(gallery_key, set()).add(vector_id)
    if found:
        logger.error(
            "%d tracklets are damaged in the store: answers that would need them fail. `passerby gallery check` names "
            "them; restore the data folder from a backup",
            sum(map(len, found.values())),
        )
    return {gallery_key: frozenset(ids) for gallery_key, ids in found.items()}


def _insert(connection: sqlite3.Connection, gallery: GalleryRow, tracklet_id: str, tracklet: NewTracklet) -> int:
    """Stores what is said of a tracklet; its vector id. Raises AlreadyExistsError (TRACKLET_EXISTS)."""
    taken = connection.execute(
        "SELECT 1 FROM tracklets WHERE gallery_key = ? AND tracklet_id = ?", (gallery.key, tracklet_id)
    ).fetchone()
    if taken:
        raise AlreadyExistsError(
            f"{tracklet_name(gallery.record.gallery_id, tracklet_id)} exists already", reason="TRACKLET_EXISTS"
        )
    vector_id = connection.execute(
        "INSERT INTO tracklets (gallery_key, tracklet_id, camera_id, start_time, end_time, identity_id, frame_count, "
        "create_time) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            gallery.key,
            tracklet_id,
            tracklet.camera_id,
            rows.to_microseconds(tracklet.start_time),
            rows.to_microseconds(tracklet.end_time),
            tracklet.identity_id,
            tracklet.frame_count,
            rows.now(),
        ),
    ).lastrowid
    labels = [(vector_id, key, value) for key, value in tracklet.labels.items()]
    connection.executemany("INSERT INTO labels VALUES (?, ?, ?)", labels)
    return int(vector_id or 0)


def _ingest_digest(tracklet: NewTracklet, vector: NDArray[np.float32], fingerprint: str, thumbnail: bytes) -> bytes:
    return ledger.digest_of(
        tracklet.tracklet_id,
        tracklet.camera_id,
        rows.to_microseconds(tracklet.start_time),
        rows.to_microseconds(tracklet.end_time),
        tracklet.identity_id,
        dict(tracklet.labels),
        tracklet.frame_count,
        fingerprint,
        vector.tobytes().hex(),
        thumbnail.hex(),
    )
