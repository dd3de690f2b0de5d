"""The index of one gallery as the server uses it: follows the store, grows into its kind in the background, and is
rebuilt from the store when in doubt."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from passerby.errors import DataLossError, UnavailableError

from passerby_server.gallery import building, kinds
from passerby_server.gallery.approximate import ApproximateIndex
from passerby_server.gallery.descriptors import Reading, StoppedError, gallery_ids
from passerby_server.gallery.index import ExactIndex, Index
from passerby_server.gallery.kinds import EXACT, IndexKind
from passerby_server.gallery.recall import RecallAudit
from passerby_server.gallery.shelf import Shelf
from passerby_server.gallery.store import Store
from passerby_server.gallery.types import ModelSpace

logger = logging.getLogger(__name__)


class LiveIndex:
    """An index with its owner's duties. All changes come from the store's one writer, in storing order.

    A change that fails (out of memory, a fault in FAISS) cannot undo the commit that it follows: the index is then
    `stale`, takes no further changes, and must not be used before `rebuild`.

    `wanted` is the kind asked for; None means by size. A new index is exact, or of 8-bit codes when it is filled from a
    large store (`kinds.at_start`); `improve` builds what is wanted beside it and then puts it in its place. `shelf` is
    where its snapshots lie.
    """

    def __init__(
        self,
        gallery_key: int,
        space: ModelSpace,
        pool: ThreadPoolExecutor,
        wanted: IndexKind | None = EXACT,
        shelf: Shelf | None = None,
    ) -> None:
        self._shelf = shelf
        self.audit = RecallAudit(gallery_key, space)
        self._gallery_key = gallery_key
        self._space = space
        self._pool = pool
        self._wanted = wanted
        self._impossible: set[IndexKind] = set()
        self._retired = False
        self._removed: list[NDArray[np.int64]] | None = None
        """What was removed while another index is being built; None when none is."""
        self.index: Index = self._empty()
        self.kind = EXACT
        self.stale = False
        self.damage: DataLossError | None = None
        """Why it could not be built: a damaged descriptor, until a tracklet is deleted."""

    def want(self, kind: IndexKind | None) -> None:
        """Asks for another kind (None: by size), which the next `improve` builds."""
        self._wanted = kind
        self._impossible = set()

    def add(self, vector_id: int, descriptor: NDArray[np.float32]) -> None:
        """Follows a committed ingest. Never raises."""
        if self.stale:
            return
        try:
            self.index.add(np.array([vector_id], np.int64), descriptor[None, :])
        except Exception:  # noqa: BLE001 - whatever it was, the commit stands: log it and rebuild
            self._fail()

    def remove(self, *vector_ids: int) -> None:
        """Follows a committed delete. Never raises."""
        ids = np.unique(np.array(vector_ids, np.int64))
        if (removed := self._removed) is not None:
            removed.append(ids)
        self.damage = None
        if self._shelf is not None:
            self._shelf.drop()
        if self.stale:
            return
        try:
            self.index.remove(ids)
        except Exception:  # noqa: BLE001 - whatever it was, the commit stands: log it and rebuild
            self._fail()

    def erased(self) -> list[Path]:
        """Takes what was erased out of the files derived from this gallery; which files those were.

        Raises UnavailableError (REWRITE_BLOCKED) when one cannot be deleted; it is tried again in the background.
        """
        if self._shelf is None:
            return []
        self._shelf.drop()
        if self._shelf.left:
            raise UnavailableError(
                "what was deleted is gone from the galleries, but a snapshot of their index cannot be deleted: it is tried "
                "again; check the permissions of the data folder and the disk",
                reason="REWRITE_BLOCKED",
            )
        return self._shelf.dropped()

    @property
    def holds_erased(self) -> bool:
        """Whether a file derived from this gallery still holds what was erased."""
        return self._shelf is not None and self._shelf.left

    def retire(self) -> None:
        """Takes the files derived from this gallery away for good, for it is deleted; `erased` says which. Never raises.

        The background thread may be at it still, and what it builds must not come to the disk again.
        """
        self._retired = True
        if self._shelf is not None:
            self._shelf.retire()

    def rebuild(self, connection: sqlite3.Connection, stop: threading.Event) -> None:
        """Fills a fresh index from the store, while no write is under way, and puts it in place.

        Raises DataLossError, which is kept in `damage`, and UnavailableError (SHUTTING_DOWN) once `stop` is set.
        """
        kind = kinds.at_start(len(gallery_ids(connection, self._gallery_key)), self._wanted)
        self.stale = True
        try:
            index, _ = self._build(kind, lambda: contextlib.nullcontext(connection), stop)
        except DataLossError as error:
            self.damage = error
            logger.error("the index of gallery %d cannot be built: a descriptor is damaged", self._gallery_key)  # noqa: TRY400
            raise
        except StoppedError:
            raise UnavailableError("the gallery is closed: the server is going down", reason="SHUTTING_DOWN") from None
        self._switch(index, kind)

    def load(self, connection: sqlite3.Connection, stop: threading.Event) -> None:
        """Takes the index from its snapshot and brings it to the store's state, or builds one from the store.

        A snapshot that does not fit (another model or kind, a store set back to an earlier state) is deleted. Where a
        descriptor is damaged it stays `stale`: searches fail, everything else goes on. Raises UnavailableError
        (SHUTTING_DOWN) once `stop` is set.
        """
        with contextlib.suppress(DataLossError):  # kept in `damage`
            self._load(connection, stop)

    def _load(self, connection: sqlite3.Connection, stop: threading.Event) -> None:
        found = None if self._shelf is None else self._shelf.take(connection, self._space, self._wanted)
        if found is None:
            self.rebuild(connection, stop)
            return
        index, kind = found
        logger.info(
            "gallery %d has its %s index from the snapshot, %d descriptors", self._gallery_key, kind, len(index)
        )
        self._switch(index, kind)

    def save(self, store: Store, stop: threading.Event, *, closing: bool = False) -> None:
        """Writes a snapshot if one is due, or lacks when `closing`.

        Writes wait while the index is copied in memory, not while it is written.
        """
        index = self.index
        if self.holds_erased and self._shelf is not None:
            self._shelf.drop()
        if self._shelf is None or self.stale or self.kind != self._kind_for(len(index)):
            return  # one that only bridges the time until the wanted one is built is not worth it
        if isinstance(index, ApproximateIndex):
            self._shelf.put(index, self.kind, self._space, store, stop, closing=closing)

    def improve(self, store: Store, stop: threading.Event) -> bool:
        """Builds the index that is wanted for the present size, if it is another, and switches to it; whether it did.

        Takes long, and is for one background thread: searches and writes go on with the present index, but for the
        moment of the switch, in which writes wait.
        """
        kind = self._next_kind()
        if kind is None or kind in self._impossible:
            return False
        self._removed = []
        try:
            index, last = self._build(kind, store.read, stop)
            with store.paused():
                building.follow(index, self._gallery_key, last, store.read, stop)
                index.remove(np.unique(np.concatenate([np.zeros(0, np.int64), *self._removed])))
                self._switch(index, kind)
        except StoppedError:
            return False
        except building.CoarseError:
            logger.info("gallery %d takes another index: %s misses too many neighbours", self._gallery_key, kind)
            self._impossible.add(kind)
            return self.improve(store, stop)
        except UnavailableError:  # for a moment: another time it can be built
            raise
        except Exception:  # FAISS raises RuntimeError; whatever it is, the next try would not fare better
            if self._retired or self._next_kind() != kind:  # what it was for was deleted meanwhile
                return False
            logger.exception(
                "gallery %d stays with its %s index: %s cannot be built", self._gallery_key, self.kind, kind
            )
            self._impossible.add(kind)
            return False
        finally:
            self._removed = None
        logger.info("gallery %d has a new index of kind %s, %d descriptors", self._gallery_key, kind, len(index))
        return True

    def _kind_for(self, rows_here: int) -> IndexKind:
        """The kind that is wanted for so many tracklets."""
        if self._wanted is not None:
            return self._wanted
        return kinds.choose(rows_here, self.kind, self._space.descriptor_dim, *self._impossible)

    def _next_kind(self) -> IndexKind | None:
        """The kind to build now; None when the present index does."""
        rows_here = len(self.index)
        kind = self._kind_for(rows_here)
        if rows_here < kind.training_rows and self.kind != kind:
            return None
        return kind if kind != self.kind or self.index.worn else None

    def _build(self, kind: IndexKind, reading: Reading, stop: threading.Event) -> tuple[Index, int]:
        """An index of `kind`, and the last vector id in it."""
        if kind == EXACT:
            index = self._empty()
            return index, building.follow(index, self._gallery_key, -1, reading, stop)
        built = building.build(
            kind, self._gallery_key, self._space, reading, stop, choosy=self._wanted is None and kind.reduced
        )
        last = int(built.ids()[-1]) if len(built) else -1
        return built, building.follow(built, self._gallery_key, last, reading, stop)

    def _switch(self, index: Index, kind: IndexKind) -> None:
        if isinstance(index, ApproximateIndex):
            index.share(self._pool)
        self.index, self.kind = index, kind
        self.audit.forget()
        self.stale = False

    def _empty(self) -> Index:
        return ExactIndex(self._space.descriptor_dim, self._space.metric, self._pool)

    def _fail(self) -> None:
        self.stale = True
        logger.exception("the index of gallery %d failed; it will be rebuilt from the store", self._gallery_key)
