"""Where the snapshots of one gallery's index lie: when to write one, and whether to believe the one that is there."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from pathlib import Path

import faiss
import numpy as np

from passerby_server.gallery import kinds, snapshot
from passerby_server.gallery.approximate import ApproximateIndex
from passerby_server.gallery.descriptors import BATCH, StoppedError, descriptors_lack, gallery_ids, get_descriptors
from passerby_server.gallery.files import put_in_place
from passerby_server.gallery.kinds import IndexKind
from passerby_server.gallery.snapshot import Header, Snapshot, drop_snapshots, path_of
from passerby_server.gallery.store import Store
from passerby_server.gallery.types import ModelSpace

logger = logging.getLogger(__name__)

INTERVAL = 600.0
"""Seconds between two snapshots at least: a gallery that is deleted from all the time shall not write all the time."""
GROWTH = 0.1
"""Share of new descriptors from which a new snapshot is worth it; fewer are caught up with from the store."""


class Shelf:
    """The snapshot of one gallery. `drop` may come at any moment, from the store's writer; the rest from one thread."""

    def __init__(self, folder: Path, gallery_key: int, key: bytes) -> None:
        self._folder = folder
        self._gallery_key = gallery_key
        self._key = key
        self._path = path_of(folder, gallery_key)
        self._lock = threading.Lock()
        self._removals = 0
        self._retired = False
        self._dropped: list[Path] = []
        self.left = False
        """Whether a snapshot lies there that could not be deleted."""
        self._saved: tuple[IndexKind, int] | None = None
        """Kind and size of the snapshot that lies there."""
        self._due = -INTERVAL

    def drop(self) -> None:
        """Deletes the snapshot, also one that is being written: something in it was erased. Sets `left` if it cannot."""
        with self._lock:
            self._removals += 1
            self._saved = None
            try:
                self._dropped += drop_snapshots(self._folder, self._gallery_key)
                self.left = False
            except OSError as error:
                if not self.left:
                    logger.error(  # noqa: TRY400
                        "the snapshot of gallery %d holds what was erased, and cannot be deleted (%s): it is tried again",
                        self._gallery_key,
                        error.strerror,
                    )
                self.left = True

    def retire(self) -> None:
        """Deletes the snapshot for good, for its gallery is deleted: an index that is still being built writes none."""
        with self._lock:
            self._retired = True
        self.drop()

    def dropped(self) -> list[Path]:
        """The files that were deleted since this was asked last."""
        with self._lock:
            dropped, self._dropped = self._dropped, []
        return sorted(set(dropped))

    def put(
        self,
        index: ApproximateIndex,
        kind: IndexKind,
        space: ModelSpace,
        store: Store,
        stop: threading.Event,
        *,
        closing: bool = False,
    ) -> None:
        """Writes a snapshot if there is none of this index or it has grown, unless the last was just written: that
        does not count when `closing`."""
        if (time.monotonic() < self._due and not closing) or not index.clean:
            return
        if self._saved is not None and self._saved[0] == kind and len(index) < (1 + GROWTH) * self._saved[1]:
            return
        with store.paused(), store.read() as connection:
            with self._lock:  # a drop under way shall have deleted what it deletes before anything is written
                removals, retired = self._removals, self._retired
            if retired or not index.clean:  # of now, when nothing is removed
                return
            ids, codes = index.dump()
            sequence, at = snapshot.last_entry(connection)
        header = Header(
            self._gallery_key, space.fingerprint, space.metric, space.descriptor_dim, kind.factory, kind.parameters,
            index.effort, len(ids), sequence, at,
        )  # fmt: skip
        written = self._path.with_name(self._path.name + ".new")
        try:
            snapshot.write(written, self._key, Snapshot(header, ids, codes), stop)
            with self._lock:
                if self._removals != removals:  # something in it was erased meanwhile
                    written.unlink(missing_ok=True)
                else:
                    put_in_place(written, self._path)
                    self._saved = (kind, len(ids))
        except StoppedError:
            return
        except OSError as error:
            logger.warning("no snapshot of the index of gallery %d: %s", self._gallery_key, error.strerror)
            with contextlib.suppress(OSError):
                written.unlink(missing_ok=True)
        self._due = time.monotonic() + INTERVAL

    def take(
        self, connection: sqlite3.Connection, space: ModelSpace, wanted: IndexKind | None
    ) -> tuple[ApproximateIndex, IndexKind] | None:
        """The index of the snapshot, caught up with the store; None, and the snapshot deleted, when in doubt."""
        taken = self._take(connection, space, wanted)
        self.dropped()  # no erasure asked for those
        return taken

    def _take(
        self, connection: sqlite3.Connection, space: ModelSpace, wanted: IndexKind | None
    ) -> tuple[ApproximateIndex, IndexKind] | None:
        found = snapshot.read(self._path, self._key)
        if found is None or not self._fits(connection, found.header, space, wanted):
            self.drop()
            return None
        kind = IndexKind(found.header.factory, found.header.parameters)
        stored = gallery_ids(connection, self._gallery_key)
        new = np.setdiff1d(stored, found.ids, assume_unique=True)
        if descriptors_lack(connection, self._gallery_key):  # building from the store will say so
            self.drop()
            return None
        if len(new) and len(found.ids) and new[0] < found.ids[-1]:
            self.drop()
            return None
        if wanted is None and kinds.choose(len(stored), kind, 0) != kind:  # whether components do is tried later
            self.drop()
            return None
        try:
            index = ApproximateIndex(space.metric, faiss.deserialize_index(found.codes), found.ids)
        except RuntimeError as error:
            logger.warning("this FAISS does not read %s: built from the store (%s)", self._path.name, error)
            self.drop()
            return None
        index.effort = found.header.effort
        gone = np.setdiff1d(found.ids, stored, assume_unique=True)
        if len(gone):  # a crash came between a delete and the end of the snapshot
            self.drop()
            index.remove(gone)
        else:
            self._saved = (kind, found.header.count)
        for start in range(0, len(new), BATCH):
            index.add(*get_descriptors(connection, new[start : start + BATCH]))
        return index, kind

    def _fits(
        self, connection: sqlite3.Connection, header: Header, space: ModelSpace, wanted: IndexKind | None
    ) -> bool:
        same = (header.gallery_key, header.fingerprint, header.metric, header.dimension) == (
            self._gallery_key, space.fingerprint, space.metric, space.descriptor_dim,
        )  # fmt: skip
        kind = IndexKind(header.factory, header.parameters)
        return same and wanted in (None, kind) and snapshot.is_past(connection, header)
