"""TrackletService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from passerby import names
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import tracklet_service_pb2 as v1
from passerby.v1 import tracklet_service_pb2_grpc as v1_grpc

from passerby_server import convert, messages
from passerby_server.bulk import BulkIngest, ByteBudget
from passerby_server.ingest import Ingester
from passerby_server.interceptors import Context
from passerby_server.runtime import Runtime, deadline_of
from passerby_server.security import permit

ALL_GALLERIES = "galleries/-"


class TrackletService(v1_grpc.TrackletServiceServicer):
    """Ingests, reads, corrects and deletes tracklets."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._ingester = Ingester(runtime)
        self._bulk_budget = ByteBudget(runtime.config.limits.max_bulk_bytes)

    async def IngestTracklet(  # noqa: N802
        self, request: v1.IngestTrackletRequest, context: Context
    ) -> v1.IngestTrackletResponse:
        record = await self._ingester.ingest(request, deadline=deadline_of(context))
        return v1.IngestTrackletResponse(tracklet=messages.tracklet_message(record))

    async def StreamTracklet(  # noqa: N802
        self, request_iterator: AsyncIterator[v1.StreamTrackletRequest], context: Context
    ) -> v1.StreamTrackletResponse:
        record = await self._ingester.ingest_stream(request_iterator, deadline=deadline_of(context))
        return v1.StreamTrackletResponse(tracklet=messages.tracklet_message(record))

    async def BulkIngestTracklets(  # noqa: N802
        self, request_iterator: AsyncIterator[v1.BulkIngestTrackletsRequest], context: Context
    ) -> AsyncIterator[v1.BulkIngestTrackletsResponse]:
        async with BulkIngest(
            self._ingester,
            self._runtime.config.limits,
            budget=self._bulk_budget,
            draining=self._runtime.draining,
            deadline=deadline_of(context),
        ) as bulk:
            async for answer in bulk.answers(request_iterator):
                yield answer

    async def GetTracklet(  # noqa: N802
        self, request: v1.GetTrackletRequest, context: Context
    ) -> v1.GetTrackletResponse:
        gallery_id, tracklet_id = names.parse_tracklet_name(request.name)
        galleries, reading = self._runtime.loaded.galleries, self._runtime.reading
        record = await reading(galleries.get_tracklet, gallery_id, tracklet_id)
        response = v1.GetTrackletResponse(tracklet=messages.tracklet_message(record))
        if request.include_descriptor:
            gallery = await reading(galleries.get_gallery, gallery_id)
            values = await reading(galleries.get_descriptor, gallery_id, tracklet_id)
            response.tracklet_descriptor.CopyFrom(
                resources.TrackletDescriptor(values=values.tolist(), model_fingerprint=gallery.space.fingerprint)
            )
        if request.include_thumbnail:
            response.thumbnail = await reading(galleries.get_thumbnail, gallery_id, tracklet_id)
        if request.include_frames:
            permit.current().check_gallery(gallery_id, "admin")
            for frame in await reading(galleries.get_frames, gallery_id, tracklet_id):
                response.frames.frames.add().ParseFromString(frame)
        return response

    async def ListTracklets(  # noqa: N802
        self, request: v1.ListTrackletsRequest, context: Context
    ) -> v1.ListTrackletsResponse:
        limits = self._runtime.config.limits
        gallery_id = names.parse_gallery_name(request.parent, field="parent")
        page = await self._runtime.reading(
            self._runtime.loaded.galleries.list_tracklets,
            gallery_id,
            convert.tracklet_filter(request.filter, limits),
            convert.page_size(request.page_size, limits),
            request.page_token,
        )
        return v1.ListTrackletsResponse(
            tracklets=[messages.tracklet_message(record) for record in page.items],
            next_page_token=page.next_page_token,
        )

    async def DeleteTracklet(  # noqa: N802
        self, request: v1.DeleteTrackletRequest, context: Context
    ) -> v1.DeleteTrackletResponse:
        gallery_id, tracklet_id = names.parse_tracklet_name(request.name)
        convert.check_request_id(request.request_id)
        receipt = await self._runtime.writing(
            self._runtime.loaded.galleries.delete_tracklet, gallery_id, tracklet_id, request.request_id
        )
        seen = permit.current().galleries
        return v1.DeleteTrackletResponse(receipt=messages.receipt_message(receipt, seen) if receipt else None)

    async def AssignIdentity(  # noqa: N802
        self, request: v1.AssignIdentityRequest, context: Context
    ) -> v1.AssignIdentityResponse:
        gallery_id, tracklet_id = names.parse_tracklet_name(request.name)
        record, change_id = await self._runtime.writing(
            self._runtime.loaded.galleries.assign_identity,
            gallery_id,
            tracklet_id,
            convert.check_identity_id(request.identity_id),
            convert.check_request_id(request.request_id),
        )
        return v1.AssignIdentityResponse(tracklet=messages.tracklet_message(record), change_id=change_id)

    async def MergeIdentities(  # noqa: N802
        self, request: v1.MergeIdentitiesRequest, context: Context
    ) -> v1.MergeIdentitiesResponse:
        problems = convert.Problems()
        gallery_id = problems.catch(names.parse_gallery_name, request.parent, field="parent") or ""
        problems.catch(convert.check_identity_id, request.identity_id)
        self._check_count(problems, "merged_identity_ids", request.merged_identity_ids)
        problems.catch(convert.check_request_id, request.request_id)
        problems.check()
        change = await self._runtime.writing(
            self._runtime.loaded.galleries.merge_identities,
            gallery_id,
            request.identity_id,
            list(request.merged_identity_ids),
            request.request_id,
        )
        return v1.MergeIdentitiesResponse(change=messages.change_message(change))

    async def SplitIdentity(  # noqa: N802
        self, request: v1.SplitIdentityRequest, context: Context
    ) -> v1.SplitIdentityResponse:
        problems = convert.Problems()
        gallery_id = problems.catch(names.parse_gallery_name, request.parent, field="parent") or ""
        problems.catch(convert.check_identity_id, request.new_identity_id, "new_identity_id")
        self._check_count(problems, "tracklets", request.tracklets)
        tracklet_ids = []
        for index, name in enumerate(request.tracklets):
            field = f"tracklets[{index}]"
            parent, tracklet_id = problems.catch(names.parse_tracklet_name, name, field=field) or (gallery_id, "")
            if parent != gallery_id:
                problems.add(field, "is in another gallery than `parent`")
            tracklet_ids.append(tracklet_id)
        problems.catch(convert.check_request_id, request.request_id)
        problems.check()
        change = await self._runtime.writing(
            self._runtime.loaded.galleries.split_identity,
            gallery_id,
            request.identity_id,
            list(dict.fromkeys(tracklet_ids)),
            request.new_identity_id,
            request.request_id,
        )
        return v1.SplitIdentityResponse(change=messages.change_message(change))

    async def UndoIdentityChange(  # noqa: N802
        self, request: v1.UndoIdentityChangeRequest, context: Context
    ) -> v1.UndoIdentityChangeResponse:
        change = await self._runtime.writing(
            self._runtime.loaded.galleries.undo_identity_change,
            names.parse_gallery_name(request.parent, field="parent"),
            request.change_id,
            convert.check_request_id(request.request_id),
        )
        return v1.UndoIdentityChangeResponse(change=messages.change_message(change))

    async def EraseIdentity(  # noqa: N802
        self, request: v1.EraseIdentityRequest, context: Context
    ) -> v1.EraseIdentityResponse:
        problems = convert.Problems()
        gallery_id = "-"
        if request.parent != ALL_GALLERIES:
            gallery_id = problems.catch(names.parse_gallery_name, request.parent, field="parent") or ""
        problems.catch(convert.check_request_id, request.request_id)
        problems.check()
        erasure = await self._runtime.writing(
            self._runtime.loaded.galleries.erase_identity,
            gallery_id,
            request.identity_id,
            force=request.force,
            request_id=request.request_id,
        )
        return v1.EraseIdentityResponse(
            tracklet_count=erasure.tracklet_count,
            receipt=messages.receipt_message(erasure.receipt, permit.current().galleries) if erasure.receipt else None,
        )

    def _check_count(self, problems: convert.Problems, field: str, values: Sequence[str]) -> None:
        most = self._runtime.config.limits.max_filter_values
        if len(values) > most:
            problems.add(field, f"names {len(values)} values, more than the allowed {most}")
