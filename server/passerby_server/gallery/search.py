"""One search: filter -> allowed ids (store) -> ranking (index) -> optional re-ranking -> optional grouping -> hits.

Runs on one snapshot of the store while the index may move on; where the two disagree it raises StateMovedError and
the caller tries again, so that an answer is never short because of a delete that happened in between.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError
from passerby_model.rerank import check_options, shortlist_rerank

from passerby_server.gallery import rows
from passerby_server.gallery.descriptors import Remembered, stored_in
from passerby_server.gallery.index import Index, Stored
from passerby_server.gallery.pace import PACE, LateError
from passerby_server.gallery.recall import RecallAudit
from passerby_server.gallery.rows import GalleryRow
from passerby_server.gallery.turns import turn
from passerby_server.gallery.types import MAX_SIBLINGS, Hit, Rerank, SearchQuery, TrackletFilter, TrackletRecord

MAX_SHORTLIST = 2000
"""Candidates of one re-ranking at most: its distances are an M x M matrix (16 MB) and its time grows as M^2."""
GROUP_GROWTH = 4
"""Candidates fetched for each group wanted, and the growth when they hold too few identities."""


class StateMovedError(Exception):
    """Store and index were read on two sides of a write. Never leaves the gallery."""


@dataclass(frozen=True, slots=True)
class _Ranked:
    """A candidate; `reranked` is None beyond the shortlist."""

    vector_id: int
    distance: float
    reranked: float | None


def check_query(query: SearchQuery) -> None:
    """Raises InvalidArgumentError for options out of range."""
    if query.top_k < 1:
        raise InvalidArgumentError.of("top_k", f"must be at least 1, not {query.top_k}")
    if query.rerank is not None:
        check_options(query.rerank.k1, query.rerank.k2, query.rerank.original_weight)
        if not query.rerank.budget > 0:
            raise InvalidArgumentError.of("rerank.time_budget", f"must be above 0, not {query.rerank.budget} s")
        if not 1 <= query.rerank.shortlist_size <= MAX_SHORTLIST:
            raise InvalidArgumentError.of(
                "rerank.shortlist_size", f"must be from 1 to {MAX_SHORTLIST}, not {query.rerank.shortlist_size}"
            )
        if query.top_k > MAX_SHORTLIST:
            raise InvalidArgumentError.of("top_k", f"must be at most {MAX_SHORTLIST} with re-ranking")


def run(
    connection: sqlite3.Connection,
    gallery: GalleryRow,
    index: Index,
    query: SearchQuery,
    audit: RecallAudit | None = None,
) -> tuple[Hit, ...]:
    """The hits of a checked query; raises StateMovedError when a write came between."""
    allowed = None
    if query.filter != TrackletFilter():
        allowed = rows.allowed_ids(connection, gallery, query.filter)
        if not len(allowed):
            return ()
    ranker = _Ranker(gallery, index, query, allowed, _excluded(connection, gallery, query), stored_in(connection))
    if index.approximate and audit is not None:
        ranker.audited = (audit, rows.last_vector_id(connection))
    if query.group_by_identity:
        groups = _groups(connection, gallery, ranker, query)
    else:
        groups = [[ranked] for ranked in ranker.best(query.top_k)]
    with turn():
        return _hits(connection, gallery, groups, query.include_thumbnails)


class _Ranker:
    """Ranks the allowed candidates of one query. The shortlist is re-ranked once, on first use."""

    def __init__(
        self,
        gallery: GalleryRow,
        index: Index,
        query: SearchQuery,
        allowed: NDArray[np.int64] | None,
        excluded: int | None,
        stored: Stored,
    ) -> None:
        self._stored = stored if query.rerank is None else Remembered(stored)
        self._metric = gallery.record.space.metric
        self._index = index
        self._query = query
        self._allowed = allowed
        self._excluded = excluded
        self._shortlist: list[_Ranked] | None = None
        self.audited: tuple[RecallAudit, int] | None = None
        """Where searches are offered for the audit, and the newest vector id that they might find."""

    def best(self, count: int) -> list[_Ranked]:
        """The best `count` candidates: the re-ranked shortlist first, then the others by distance."""
        if self._query.rerank is None:
            return self._nearest(count, self._allowed)
        if self._shortlist is None:
            self._shortlist = self._rerank(max(self._query.rerank.shortlist_size, self._query.top_k))
        if count <= len(self._shortlist):
            return self._shortlist[:count]
        taken = {ranked.vector_id for ranked in self._shortlist}
        others = [ranked for ranked in self._nearest(count, self._allowed) if ranked.vector_id not in taken]
        return self._shortlist + others

    def among(self, members: NDArray[np.int64]) -> list[_Ranked]:
        """All of `members` (ascending ids), in the order that `best` gives them."""
        own = set(members.tolist())
        first = [ranked for ranked in self._shortlist or () if ranked.vector_id in own]
        taken = {ranked.vector_id for ranked in first}
        others = self._nearest(len(members), members)
        return first + [ranked for ranked in others if ranked.vector_id not in taken]

    def _nearest(self, count: int, allowed: NDArray[np.int64] | None) -> list[_Ranked]:
        wanted = count + (self._excluded is not None)  # one more, for the excluded one may be among them
        found = self._index.search(self._query.descriptor, wanted, allowed, self._stored)
        if allowed is not None and len(found.ids) < min(wanted, len(allowed)):
            raise StateMovedError
        if self.audited is not None and allowed is self._allowed:
            self.audited[0].offer(self._query.descriptor, allowed, self.audited[1], found)
        pairs = zip(found.ids.tolist(), found.distances.tolist(), strict=True)
        kept = [_Ranked(vector_id, distance, None) for vector_id, distance in pairs if vector_id != self._excluded]
        return kept[:count]

    def _rerank(self, size: int) -> list[_Ranked]:
        options = self._query.rerank
        nearest = self._nearest(size, self._allowed)
        if options is None or not nearest:
            return nearest
        ids = np.array([ranked.vector_id for ranked in nearest], np.int64)
        try:
            reranked = PACE.within(options.budget, len(ids), lambda check: self._reranked(ids, options, check))
        except LateError:
            return nearest
        # Equal re-ranked distances keep the order by distance, and that keeps the storing order.
        best = np.argsort(reranked, kind="stable")
        return [
            _Ranked(nearest[place].vector_id, nearest[place].distance, distance)
            for place, distance in zip(best.tolist(), reranked[best].tolist(), strict=True)
        ]

    def _reranked(self, ids: NDArray[np.int64], options: Rerank, check: Callable[[], None]) -> NDArray[np.float32]:
        """Re-ranked distances float32 (n,) of the nearest, in their order."""
        kept, vectors = self._index.take(np.sort(ids), self._stored)
        if len(kept) < len(ids):
            raise StateMovedError
        vectors = vectors[np.searchsorted(kept, ids)]
        check()
        return shortlist_rerank(
            self._query.descriptor, vectors, self._metric, options.k1, options.k2, options.original_weight, check
        )


def _excluded(connection: sqlite3.Connection, gallery: GalleryRow, query: SearchQuery) -> int | None:
    """Vector id of the tracklet that must not be a hit; None when there is none."""
    if not query.exclude_tracklet_id:
        return None
    return rows.find_vector_id(connection, gallery, query.exclude_tracklet_id)


def _groups(
    connection: sqlite3.Connection, gallery: GalleryRow, ranker: _Ranker, query: SearchQuery
) -> list[list[_Ranked]]:
    """The best `top_k` identities, each with its best tracklets; without identity, each tracklet is its own."""
    count = query.top_k * GROUP_GROWTH
    while True:
        candidates = ranker.best(count)
        identities = rows.get_identities(connection, gallery, [ranked.vector_id for ranked in candidates])
        if len(identities) < len(candidates):
            raise StateMovedError
        leaders: dict[str | int, _Ranked] = {}
        for ranked in candidates:
            leaders.setdefault(identities[ranked.vector_id] or ranked.vector_id, ranked)
        if len(leaders) >= query.top_k or len(candidates) < count:
            break
        count *= GROUP_GROWTH
    chosen = dict(list(leaders.items())[: query.top_k])
    groups = {name: [leader] for name, leader in chosen.items()}
    for ranked, identity in _members(connection, gallery, ranker, query, [n for n in chosen if isinstance(n, str)]):
        if ranked.vector_id != chosen[identity].vector_id and len(groups[identity]) <= MAX_SIBLINGS:
            groups[identity].append(ranked)
    return list(groups.values())


def _members(
    connection: sqlite3.Connection, gallery: GalleryRow, ranker: _Ranker, query: SearchQuery, identities: Sequence[str]
) -> list[tuple[_Ranked, str]]:
    """Every tracklet of `identities` that passes the filter, best first, with its identity."""
    if not identities:
        return []
    where = replace(query.filter, identity_ids=frozenset(identities))
    members = rows.allowed_ids(connection, gallery, where)
    identity_of = rows.get_identities(connection, gallery, members.tolist())
    return [(ranked, identity_of[ranked.vector_id]) for ranked in ranker.among(members)]


def _hits(
    connection: sqlite3.Connection, gallery: GalleryRow, groups: list[list[_Ranked]], include_thumbnails: bool
) -> tuple[Hit, ...]:
    everyone = [ranked.vector_id for group in groups for ranked in group]
    records = rows.get_records(connection, gallery, everyone)
    if len(records) < len(everyone):
        raise StateMovedError
    leaders = [group[0].vector_id for group in groups]
    thumbnails = rows.get_thumbnails(connection, leaders) if include_thumbnails else {}
    return tuple(_hit(group, records, thumbnails.get(group[0].vector_id, b"")) for group in groups)


def _hit(group: list[_Ranked], records: dict[int, TrackletRecord], thumbnail: bytes) -> Hit:
    leader, *siblings = group
    return Hit(
        tracklet=records[leader.vector_id],
        distance=leader.distance,
        reranked_distance=leader.reranked,
        siblings=tuple(records[sibling.vector_id] for sibling in siblings),
        thumbnail=thumbnail,
    )
