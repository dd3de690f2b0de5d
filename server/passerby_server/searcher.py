"""Search: check, find out what is looked for, rank. Shared by the unary and the streaming method."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from passerby import names
from passerby.errors import InvalidArgumentError
from passerby.v1 import search_service_pb2 as v1

from passerby_server import convert, decision, messages
from passerby_server.decision import Thresholds
from passerby_server.gallery.types import GalleryRecord, Rerank, SearchQuery, TrackletFilter
from passerby_server.runtime import Runtime, check_fingerprint
from passerby_server.telemetry.calls import stage

MIN_BUDGET = 1e-6
"""Seconds: of a call whose time is up, for which nothing is re-ranked."""

Times = tuple[datetime, datetime]
"""Of the first and the last frame."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for: `descriptor` float32 (D,), the camera that saw it ("" when unknown), and the stored
    tracklet that it is ("" when it is none)."""

    descriptor: NDArray[np.float32]
    camera_id: str
    tracklet_id: str = ""
    times: Times | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """A request that has been checked, and its gallery."""

    request: v1.SearchTrackletsRequest
    gallery: GalleryRecord
    top_k: int
    rerank: Rerank | None
    filter: TrackletFilter
    thresholds: Thresholds | None


class Searcher:
    """Ranks the tracklets of galleries."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def prepared(self, request: v1.SearchTrackletsRequest, *, growing: bool = False) -> Search:
        """Checks a request; one whose query follows as a stream (`growing`) has none in it.

        Raises:
            InvalidArgumentError, NotFoundError (gallery), FailedPreconditionError (a rate without calibration).
        """
        limits, problems = self._runtime.config.limits, convert.Problems()
        gallery_id = problems.catch(names.parse_gallery_name, request.parent, field="parent") or ""
        top_k = problems.catch(convert.top_k, request, limits) or 0
        rerank = problems.catch(convert.rerank, request, top_k, limits) if top_k else None
        filter = problems.catch(convert.tracklet_filter, request.filter, limits) or TrackletFilter()
        _check_query(problems, request, growing)
        problems.catch(convert.query_times, request)
        if request.HasField("false_match_rate") and not 0 < request.false_match_rate < 1:
            problems.add("false_match_rate", f"{request.false_match_rate} is not between 0 and 1")
        problems.check()
        loaded = self._runtime.loaded
        gallery = await self._runtime.reading(loaded.galleries.get_gallery, gallery_id)
        rate = request.false_match_rate if request.HasField("false_match_rate") else None
        usual = gallery.options.false_match_rate
        thresholds = decision.thresholds(loaded.bundle.manifest, gallery.space.fingerprint, rate, usual)
        if growing:
            check_fingerprint(loaded.space.fingerprint, gallery, "this server runs")
        return Search(request, gallery, top_k, rerank, filter, thresholds)

    async def query(self, search: Search, *, deadline: float | None) -> Query:
        """What a request that is complete looks for. `deadline`: on the event loop's clock.

        Raises:
            InvalidArgumentError, NotFoundError (a stored tracklet), FailedPreconditionError (another model's
            descriptor), and what `TrackletEncoder.encode` raises.
        """
        request, gallery = search.request, search.gallery
        kind = request.WhichOneof("query")
        if kind == "tracklet":
            return await self._stored(request, gallery)
        if kind == "tracklet_descriptor":
            descriptor = convert.descriptor(request.tracklet_descriptor)
            check_fingerprint(request.tracklet_descriptor.model_fingerprint, gallery, "the query comes from")
            if len(descriptor) != gallery.space.descriptor_dim:
                raise InvalidArgumentError.of(
                    "tracklet_descriptor.values",
                    f"has {len(descriptor)} values, the gallery's descriptors have {gallery.space.descriptor_dim}",
                    reason="DESCRIPTOR_SIZE",
                )
            return Query(descriptor, request.query_camera_id, times=convert.query_times(request))
        loaded = self._runtime.loaded
        check_fingerprint(loaded.space.fingerprint, gallery, "this server runs")
        encoded = await loaded.encoder.encode(request.frames.frames, deadline=deadline)
        return Query(encoded.descriptor, request.query_camera_id, times=convert.query_times(request))

    async def ranked(self, search: Search, query: Query, *, deadline: float | None) -> v1.SearchTrackletsResponse:
        """The hits. `deadline`: on the event loop's clock.

        Raises:
            InvalidArgumentError: travel windows, and nobody knows when the query was seen.
            NotFoundError: the gallery has been deleted since.
        """
        request, gallery, filter = search.request, search.gallery, search.filter
        if request.exclude_query_camera:
            filter = dataclasses.replace(filter, exclude_camera_ids=filter.exclude_camera_ids | {query.camera_id})
        windows = convert.travel_windows(request, query.times, self._runtime.config.limits)
        asked = SearchQuery(
            descriptor=query.descriptor,
            fingerprint=gallery.space.fingerprint,
            top_k=search.top_k,
            filter=dataclasses.replace(filter, travel=windows),
            rerank=_in_time(search.rerank, deadline),
            group_by_identity=request.group_by_identity,
            exclude_tracklet_id=query.tracklet_id,
            include_thumbnails=request.include_thumbnails,
        )
        with stage("search"):
            found = await self._runtime.reading(self._runtime.loaded.galleries.search, gallery.gallery_id, asked)
        skipped = search.rerank is not None and bool(found) and all(hit.reranked_distance is None for hit in found)
        return v1.SearchTrackletsResponse(
            hits=[messages.hit_message(hit, search.thresholds) for hit in found],
            model_fingerprint=gallery.space.fingerprint,
            reranked=search.rerank is not None and not skipped,
            rerank_skipped=skipped,
            metric=messages.METRICS[gallery.space.metric],
        )

    async def _stored(self, request: v1.SearchTrackletsRequest, gallery: GalleryRecord) -> Query:
        gallery_id, tracklet_id = names.parse_tracklet_name(request.tracklet, field="tracklet")
        if gallery_id != gallery.gallery_id:
            raise InvalidArgumentError.of(
                "tracklet", "is in another gallery than `parent`; search by its descriptor instead", reason="PARENT"
            )
        galleries = self._runtime.loaded.galleries
        record = await self._runtime.reading(galleries.get_tracklet, gallery_id, tracklet_id)
        if request.query_camera_id not in ("", record.camera_id):
            raise InvalidArgumentError.of("query_camera_id", "is not the camera of the stored tracklet")
        descriptor = await self._runtime.reading(galleries.get_descriptor, gallery_id, tracklet_id)
        times = (record.start_time, record.end_time) if record.start_time and record.end_time else None
        return Query(descriptor, record.camera_id, tracklet_id, convert.query_times(request) or times)


def _check_query(problems: convert.Problems, request: v1.SearchTrackletsRequest, growing: bool) -> None:
    kind = request.WhichOneof("query")
    if kind is None and not growing:
        problems.add("query", "is required: set frames, tracklet_descriptor or tracklet", reason="QUERY_MISSING")
    if kind is not None and growing:
        problems.add(kind, "stays unset: the frames that follow are the query", reason="QUERY_TWICE")
    if request.exclude_query_camera and not request.query_camera_id and kind != "tracklet":
        problems.add("query_camera_id", "is required with exclude_query_camera", reason="QUERY_CAMERA_MISSING")


def _in_time(options: Rerank | None, deadline: float | None) -> Rerank | None:
    """Re-ranking that leaves at least half of the call's remaining time to the rest."""
    if options is None or deadline is None:
        return options
    remaining = deadline - asyncio.get_running_loop().time()
    return dataclasses.replace(options, budget=min(options.budget, max(remaining / 2, MIN_BUDGET)))
