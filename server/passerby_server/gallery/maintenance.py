"""What an embedded gallery does in the background for its indexes: build the kind that is wanted, switch to it, keep a snapshot of
it, and audit what it finds.

One thread for all galleries. It is the index's own, apart from the upkeep that erases on time: a build takes minutes.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import faiss
from passerby.errors import InvalidArgumentError, UnavailableError

from passerby_server.gallery import kinds, rows
from passerby_server.gallery.descriptors import StoppedError
from passerby_server.gallery.home import Home
from passerby_server.gallery.kinds import IndexKind
from passerby_server.gallery.live import LiveIndex
from passerby_server.gallery.recall import Recall
from passerby_server.gallery.shelf import Shelf
from passerby_server.gallery.snapshot import path_of
from passerby_server.gallery.types import GalleryFigures

logger = logging.getLogger(__name__)

CLOSING_SECONDS = 10.0
"""For the snapshots that are written when the galleries close: between the server's drain and what the deploy files
allow a stop to take are 15."""
PERIOD = 2.0
"""Seconds between two looks at whether there is something to do; after one that failed twice as long, and so on."""
LONGEST_PERIOD = 60.0
"""One gallery that fails makes the others, and a snapshot that is still to be deleted, wait no longer."""


class Maintaining(Home):
    """The part of the embedded gallery that keeps its indexes in shape."""

    _pool: ThreadPoolExecutor
    _index_kind: IndexKind | None
    _snapshot_key: bytes
    _stop: threading.Event
    """Set when the galleries close: long work ends early."""
    _maintainer: threading.Thread | None = None
    _round: threading.Lock

    def index_kind(self, gallery_id: str) -> IndexKind:
        """The kind of index that answers now. Raises NotFoundError."""
        with self._store.read() as connection:
            return self._live[rows.get_gallery(connection, gallery_id).key].kind

    def recall(self, gallery_id: str) -> Recall:
        """What the audit of its approximate index has counted since that was built. Raises NotFoundError."""
        with self._store.read() as connection:
            return self._live[rows.get_gallery(connection, gallery_id).key].audit.recall

    def figures(self) -> tuple[GalleryFigures, ...]:
        """See `Galleries.figures`."""
        with self._store.read() as connection:
            counted = connection.execute(
                "SELECT gallery_id, gallery_key, (SELECT count(*) FROM tracklets WHERE gallery_key = g.gallery_key) "
                "FROM galleries AS g ORDER BY gallery_id"
            ).fetchall()
        return tuple(
            GalleryFigures(
                gallery_id=gallery_id,
                tracklets=count,
                # A stale index follows nothing and answers nothing until it is rebuilt.
                indexed=0 if live.stale else len(live.index),
                index_bytes=live.index.size_bytes(),
                index_kind=str(live.kind),
                recall=live.audit.recall.value,
                recall_queries=live.audit.recall.queries,
            )
            for gallery_id, key, count in counted
            if (live := self._live.get(key))
        )

    @property
    def unwritable(self) -> str:
        """See `Galleries.unwritable`."""
        return self._store.disk.reason

    def check_disk(self) -> str:
        return self._store.disk.look()

    def maintain(self) -> bool:
        """One round of what the background thread does; returns when it is done, whether nothing went wrong.

        What is wrong with one gallery, such as a damaged descriptor, is logged and keeps nothing from the others. Raises
        StoppedError and UnavailableError, which concern them all.
        """
        sound = True
        with self._round:
            for live in list(self._live.values()):
                try:
                    live.improve(self._store, self._stop)
                    live.save(self._store, self._stop)
                    live.audit.run(self._store.read, self._stop)
                except (StoppedError, UnavailableError):
                    raise
                except Exception:
                    sound = False
                    logger.exception("the index of one gallery is not looked after; the others are")
        return sound

    def _start(self, gallery: rows.GalleryRow) -> LiveIndex:
        """The index of a gallery, empty when it is new."""
        shelf = Shelf(self._store.path.parent, gallery.key, self._snapshot_key)
        live = LiveIndex(gallery.key, gallery.record.space, self._pool, self._kind_of(gallery), shelf)
        return self._live.setdefault(gallery.key, live)

    def _kind_of(self, gallery: rows.GalleryRow) -> IndexKind | None:
        """The kind that is wanted for a gallery; None: by its size. The server's where the gallery's own was taken once, and
        is refused now."""
        own = gallery.record.options.index_kind
        try:
            return kinds.parse(own) if own else self._index_kind
        except InvalidArgumentError as error:
            logger.error("gallery %d has the server's kind of index: %s", gallery.key, error.message)  # noqa: TRY400
            return self._index_kind

    def _prepare_snapshots(self) -> None:
        """Makes the key of the snapshots, if absent, and deletes those of galleries that are gone."""

        def change(connection: sqlite3.Connection) -> tuple[bytes, set[int]]:
            connection.execute(
                "INSERT OR IGNORE INTO secrets (name, value) VALUES ('snapshot', ?)", (secrets.token_bytes(32),)
            )
            return rows.get_secrets(connection)["snapshot"], {
                found for (found,) in connection.execute("SELECT gallery_key FROM galleries")
            }

        self._snapshot_key, present = self._store.write(change)
        folder = self._store.path.parent
        wanted = {path_of(folder, key) for key in present}
        for path in folder.glob("index-*.snapshot*"):
            if path not in wanted:
                path.unlink(missing_ok=True)

    def _start_maintenance(self, *, in_background: bool) -> None:
        self._round = threading.Lock()
        if in_background:
            self._maintainer = threading.Thread(target=self._maintain_forever, name="gallery-index", daemon=True)
            self._maintainer.start()

    def _stop_maintenance(self) -> None:
        """Returns once the round under way has ended, which it does early, and snapshots lie where they lacked.

        A gallery that is deleted from all the time has none most of the time.
        """
        self._stop.set()
        if self._maintainer is None:
            return
        self._maintainer.join()
        self._maintainer = None
        late = threading.Event()
        timer = threading.Timer(CLOSING_SECONDS, late.set)
        timer.start()
        try:
            for live in self._live.values():
                live.save(self._store, late, closing=True)
        except Exception:
            logger.exception("no snapshot at the end: the next start reads the database")
        finally:
            timer.cancel()

    def _maintain_forever(self) -> None:
        faiss.omp_set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))  # of this thread: the others have searches
        period = PERIOD
        while not self._stop.wait(period):
            sound = False
            try:
                sound = self.maintain()
            except StoppedError:
                return
            except UnavailableError as error:
                if error.reason == "SHUTTING_DOWN":
                    logger.info("the index's maintenance ends: the gallery is closed")
                    return
                logger.warning("maintenance of the indexes is tried again: %s", error.message)
            except Exception:
                logger.exception("maintenance of the indexes failed; it is tried again")
            period = PERIOD if sound else min(2 * period, LONGEST_PERIOD)
