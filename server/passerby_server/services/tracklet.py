"""TrackletService."""

from __future__ import annotations

from collections.abc import AsyncIterator

from passerby import names
from passerby.errors import UnimplementedError
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import tracklet_service_pb2 as v1
from passerby.v1 import tracklet_service_pb2_grpc as v1_grpc

from passerby_server import convert
from passerby_server.bulk import BulkIngest
from passerby_server.ingest import Ingester
from passerby_server.interceptors import Context
from passerby_server.runtime import Runtime, deadline_of


class TrackletService(v1_grpc.TrackletServiceServicer):
    """Ingests, reads, corrects and deletes tracklets."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._ingester = Ingester(runtime)

    async def IngestTracklet(  # noqa: N802
        self, request: v1.IngestTrackletRequest, context: Context
    ) -> v1.IngestTrackletResponse:
        record = await self._ingester.ingest(request, deadline=deadline_of(context))
        return v1.IngestTrackletResponse(tracklet=convert.tracklet_message(record))

    async def StreamTracklet(  # noqa: N802
        self, request_iterator: AsyncIterator[v1.StreamTrackletRequest], context: Context
    ) -> v1.StreamTrackletResponse:
        record = await self._ingester.ingest_stream(request_iterator, deadline=deadline_of(context))
        return v1.StreamTrackletResponse(tracklet=convert.tracklet_message(record))

    async def BulkIngestTracklets(  # noqa: N802
        self, request_iterator: AsyncIterator[v1.BulkIngestTrackletsRequest], context: Context
    ) -> AsyncIterator[v1.BulkIngestTrackletsResponse]:
        async with BulkIngest(
            self._ingester,
            self._runtime.config.limits,
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
        response = v1.GetTrackletResponse(tracklet=convert.tracklet_message(record))
        if request.include_descriptor:
            gallery = await reading(galleries.get_gallery, gallery_id)
            values = await reading(galleries.get_descriptor, gallery_id, tracklet_id)
            response.tracklet_descriptor.CopyFrom(
                resources.TrackletDescriptor(values=values, model_fingerprint=gallery.space.fingerprint)
            )
        if request.include_thumbnail:
            response.thumbnail = await reading(galleries.get_thumbnail, gallery_id, tracklet_id)
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
            tracklets=[convert.tracklet_message(record) for record in page.items],
            next_page_token=page.next_page_token,
        )

    async def DeleteTracklet(  # noqa: N802
        self, request: v1.DeleteTrackletRequest, context: Context
    ) -> v1.DeleteTrackletResponse:
        gallery_id, tracklet_id = names.parse_tracklet_name(request.name)
        convert.check_request_id(request.request_id)
        await self._runtime.writing(
            self._runtime.loaded.galleries.delete_tracklet, gallery_id, tracklet_id, request.request_id
        )
        return v1.DeleteTrackletResponse()

    async def AssignIdentity(  # noqa: N802
        self, request: v1.AssignIdentityRequest, context: Context
    ) -> v1.AssignIdentityResponse:
        gallery_id, tracklet_id = names.parse_tracklet_name(request.name)
        record = await self._runtime.writing(
            self._runtime.loaded.galleries.assign_identity,
            gallery_id,
            tracklet_id,
            convert.check_identity_id(request.identity_id),
            convert.check_request_id(request.request_id),
        )
        return v1.AssignIdentityResponse(tracklet=convert.tracklet_message(record))

    async def EraseIdentity(  # noqa: N802
        self, request: v1.EraseIdentityRequest, context: Context
    ) -> v1.EraseIdentityResponse:
        raise UnimplementedError(
            "EraseIdentity is not built in this version, because it has to prove what it erased; "
            "list the identity's tracklets with ListTracklets and delete each with DeleteTracklet",
            reason="ERASURE_NOT_BUILT",
        )
