"""SearchService."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from passerby import names
from passerby.errors import InvalidArgumentError
from passerby.v1 import search_service_pb2 as v1
from passerby.v1 import search_service_pb2_grpc as v1_grpc

from passerby_server import convert, decision, messages
from passerby_server.gallery.types import GalleryRecord, Rerank, SearchQuery, TrackletFilter
from passerby_server.interceptors import Context
from passerby_server.runtime import Runtime, check_fingerprint, deadline_of
from passerby_server.telemetry.calls import stage

MIN_BUDGET = 1e-6
"""Seconds: of a call whose time is up, for which nothing is re-ranked."""


@dataclass(frozen=True, slots=True)
class _Query:
    """What is looked for: `descriptor` float32 (D,), the camera that saw it ("" when unknown), and the stored
    tracklet that it is ("" when it is none)."""

    descriptor: NDArray[np.float32]
    camera_id: str
    tracklet_id: str = ""
    times: tuple[datetime, datetime] | None = None
    """Of its first and its last frame."""


class SearchService(v1_grpc.SearchServiceServicer):
    """Ranks tracklets."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def SearchTracklets(  # noqa: N802
        self, request: v1.SearchTrackletsRequest, context: Context
    ) -> v1.SearchTrackletsResponse:
        loaded = self._runtime.loaded
        galleries = loaded.galleries
        gallery_id, hits, options, filter = self._options(request)
        gallery = await self._runtime.reading(galleries.get_gallery, gallery_id)
        rate = request.false_match_rate if request.HasField("false_match_rate") else None
        thresholds = decision.thresholds(loaded.bundle.manifest, gallery.space.fingerprint, rate)
        query = await self._query(request, gallery, context)
        if request.exclude_query_camera:
            filter = dataclasses.replace(filter, exclude_camera_ids=filter.exclude_camera_ids | {query.camera_id})
        windows = convert.travel_windows(request, query.times, self._runtime.config.limits)
        filter = dataclasses.replace(filter, travel=windows)
        asked = SearchQuery(
            descriptor=query.descriptor,
            fingerprint=gallery.space.fingerprint,
            top_k=hits,
            filter=filter,
            rerank=_in_time(options, context),
            group_by_identity=request.group_by_identity,
            exclude_tracklet_id=query.tracklet_id,
            include_thumbnails=request.include_thumbnails,
        )
        with stage("search"):
            found = await self._runtime.reading(galleries.search, gallery_id, asked)
        skipped = options is not None and bool(found) and all(hit.reranked_distance is None for hit in found)
        return v1.SearchTrackletsResponse(
            hits=[messages.hit_message(hit, thresholds) for hit in found],
            model_fingerprint=gallery.space.fingerprint,
            reranked=options is not None and not skipped,
            rerank_skipped=skipped,
            metric=messages.METRICS[gallery.space.metric],
        )

    def _options(self, request: v1.SearchTrackletsRequest) -> tuple[str, int, Rerank | None, TrackletFilter]:
        """Gallery id, top_k, re-ranking and filter; everything that can be checked before any work."""
        limits, problems = self._runtime.config.limits, convert.Problems()
        gallery_id = problems.catch(names.parse_gallery_name, request.parent, field="parent") or ""
        hits = problems.catch(convert.top_k, request, limits) or 0
        options = problems.catch(convert.rerank, request, hits, limits) if hits else None
        filter = problems.catch(convert.tracklet_filter, request.filter, limits) or TrackletFilter()
        kind = request.WhichOneof("query")
        if kind is None:
            problems.add("query", "is required: set frames, tracklet_descriptor or tracklet", reason="QUERY_MISSING")
        if request.exclude_query_camera and not request.query_camera_id and kind != "tracklet":
            problems.add("query_camera_id", "is required with exclude_query_camera", reason="QUERY_CAMERA_MISSING")
        problems.catch(convert.query_times, request)
        if request.HasField("false_match_rate") and not 0 < request.false_match_rate < 1:
            problems.add("false_match_rate", f"{request.false_match_rate} is not between 0 and 1")
        problems.check()
        return gallery_id, hits, options, filter

    async def _query(self, request: v1.SearchTrackletsRequest, gallery: GalleryRecord, context: Context) -> _Query:
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
            return _Query(descriptor, request.query_camera_id, times=convert.query_times(request))
        loaded = self._runtime.loaded
        check_fingerprint(loaded.space.fingerprint, gallery, "this server runs")
        encoded = await loaded.encoder.encode(request.frames.frames, deadline=deadline_of(context))
        return _Query(encoded.descriptor, request.query_camera_id, times=convert.query_times(request))

    async def _stored(self, request: v1.SearchTrackletsRequest, gallery: GalleryRecord) -> _Query:
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
        return _Query(descriptor, record.camera_id, tracklet_id, convert.query_times(request) or times)


def _in_time(options: Rerank | None, context: Context) -> Rerank | None:
    """Re-ranking that leaves at least half of the call's remaining time to the rest."""
    remaining = context.time_remaining()
    if options is None or remaining is None:
        return options
    return dataclasses.replace(options, budget=min(options.budget, max(remaining / 2, MIN_BUDGET)))
