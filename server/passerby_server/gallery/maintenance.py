"""What an embedded gallery does in the background for its indexes: build the kind that is wanted, and switch to it.

One thread for all galleries. It is the index's own, apart from the upkeep that erases on time: a build takes minutes.
"""

from __future__ import annotations

import logging
import os
import threading

import faiss
from passerby.errors import UnavailableError

from passerby_server.gallery import rows
from passerby_server.gallery.home import Home
from passerby_server.gallery.kinds import IndexKind

logger = logging.getLogger(__name__)

PERIOD = 2.0
"""Seconds between two looks at whether there is something to do."""


class Maintaining(Home):
    """The part of the embedded gallery that keeps its indexes in shape."""

    _stop: threading.Event
    _maintainer: threading.Thread | None = None
    _round: threading.Lock

    def index_kind(self, gallery_id: str) -> IndexKind:
        """The kind of index that answers now. Raises NotFoundError."""
        with self._store.read() as connection:
            return self._live[rows.get_gallery(connection, gallery_id).key].kind

    def maintain(self) -> None:
        """One round of what the background thread does; returns when it is done."""
        with self._round:
            for live in list(self._live.values()):
                live.improve(self._store, self._stop)

    def _start_maintenance(self, *, in_background: bool) -> None:
        self._stop = threading.Event()
        self._round = threading.Lock()
        if in_background:
            self._maintainer = threading.Thread(target=self._maintain_forever, name="gallery-index", daemon=True)
            self._maintainer.start()

    def _stop_maintenance(self) -> None:
        """Returns once the round under way has ended, which it does early."""
        self._stop.set()
        if self._maintainer is not None:
            self._maintainer.join()

    def _maintain_forever(self) -> None:
        faiss.omp_set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))  # of this thread: the others have searches
        while not self._stop.wait(PERIOD):
            try:
                self.maintain()
            except UnavailableError:
                logger.info("the index's maintenance ends: the gallery is closed")
                return
            except Exception:
                logger.exception("maintenance of the indexes failed; it is tried again")
