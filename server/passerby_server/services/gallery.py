"""GalleryService."""

from __future__ import annotations

from passerby import names
from passerby.v1 import gallery_service_pb2 as v1
from passerby.v1 import gallery_service_pb2_grpc as v1_grpc
from passerby.v1 import resources_pb2 as resources

from passerby_server import convert, messages
from passerby_server.gallery.types import NO_OPTIONS, GalleryRecord
from passerby_server.interceptors import Context
from passerby_server.runtime import Runtime
from passerby_server.security import permit


class GalleryService(v1_grpc.GalleryServiceServicer):
    """Creates, reads and deletes galleries."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def CreateGallery(  # noqa: N802
        self, request: v1.CreateGalleryRequest, context: Context
    ) -> v1.CreateGalleryResponse:
        loaded, problems = self._runtime.loaded, convert.Problems()
        problems.catch(names.check_gallery_id, request.gallery_id)
        problems.catch(convert.display_name, request.gallery)
        problems.catch(convert.check_request_id, request.request_id)
        options = problems.catch(convert.gallery_options, request.gallery)
        problems.check()
        if options and options.follows:
            permit.current().check_gallery(options.follows)
        record = await self._runtime.writing(
            loaded.galleries.create_gallery,
            request.gallery_id,
            request.gallery.display_name,
            loaded.space,
            request.request_id,
            options or NO_OPTIONS,
        )
        return v1.CreateGalleryResponse(gallery=_shown(record))

    async def GetGallery(  # noqa: N802
        self, request: v1.GetGalleryRequest, context: Context
    ) -> v1.GetGalleryResponse:
        gallery_id = names.parse_gallery_name(request.name)
        record = await self._runtime.reading(self._runtime.loaded.galleries.get_gallery, gallery_id)
        return v1.GetGalleryResponse(gallery=_shown(record))

    async def ListGalleries(  # noqa: N802
        self, request: v1.ListGalleriesRequest, context: Context
    ) -> v1.ListGalleriesResponse:
        size = convert.page_size(request.page_size, self._runtime.config.limits)
        page = await self._runtime.reading(
            self._runtime.loaded.galleries.list_galleries, size, request.page_token, only=permit.current().galleries
        )
        return v1.ListGalleriesResponse(
            galleries=[_shown(record) for record in page.items], next_page_token=page.next_page_token
        )

    async def UpdateGallery(  # noqa: N802
        self, request: v1.UpdateGalleryRequest, context: Context
    ) -> v1.UpdateGalleryResponse:
        gallery_id = names.parse_gallery_name(request.gallery.name, field="gallery.name")
        changes = convert.gallery_changes(request)
        record = await self._runtime.writing(self._runtime.loaded.galleries.update_gallery, gallery_id, **changes)
        return v1.UpdateGalleryResponse(gallery=_shown(record))

    async def ReplaceGallery(  # noqa: N802
        self, request: v1.ReplaceGalleryRequest, context: Context
    ) -> v1.ReplaceGalleryResponse:
        problems = convert.Problems()
        gallery_id = problems.catch(names.parse_gallery_name, request.name) or ""
        replacement = problems.catch(names.parse_gallery_name, request.replacement, field="replacement") or ""
        problems.catch(names.check_gallery_id, request.retired_gallery_id, field="retired_gallery_id")
        problems.catch(convert.check_request_id, request.request_id)
        problems.check()
        for other in (replacement, request.retired_gallery_id):
            permit.current().check_gallery(other)
        done = await self._runtime.writing(
            self._runtime.loaded.galleries.replace_gallery,
            gallery_id,
            replacement,
            request.retired_gallery_id,
            allow_missing=request.allow_missing,
            request_id=request.request_id,
        )
        return v1.ReplaceGalleryResponse(
            gallery=_shown(done.gallery),
            retired=_shown(done.retired),
            missing_tracklet_count=done.missing_count,
        )

    async def DeleteGallery(  # noqa: N802
        self, request: v1.DeleteGalleryRequest, context: Context
    ) -> v1.DeleteGalleryResponse:
        gallery_id = names.parse_gallery_name(request.name)
        convert.check_request_id(request.request_id)
        erasure = await self._runtime.writing(
            self._runtime.loaded.galleries.delete_gallery,
            gallery_id,
            force=request.force,
            request_id=request.request_id,
        )
        seen = permit.current().galleries
        receipt = messages.receipt_message(erasure.receipt, seen) if erasure.receipt else None
        return v1.DeleteGalleryResponse(deleted_tracklet_count=erasure.tracklet_count, receipt=receipt)

    async def GetGalleryStats(  # noqa: N802
        self, request: v1.GetGalleryStatsRequest, context: Context
    ) -> v1.GetGalleryStatsResponse:
        gallery_id = names.parse_gallery_name(request.name)
        stats = await self._runtime.reading(self._runtime.loaded.galleries.stats, gallery_id)
        return messages.stats_message(stats)

    async def SetRetention(  # noqa: N802
        self, request: v1.SetRetentionRequest, context: Context
    ) -> v1.SetRetentionResponse:
        gallery_id = names.parse_gallery_name(request.name)
        rules = convert.retention_rules(request.rules, self._runtime.config.limits)
        stored = await self._runtime.writing(self._runtime.loaded.galleries.set_retention, gallery_id, rules)
        self._runtime.loaded.upkeep.hurry()
        return v1.SetRetentionResponse(rules=[messages.retention_message(rule) for rule in stored])

    async def GetRetention(  # noqa: N802
        self, request: v1.GetRetentionRequest, context: Context
    ) -> v1.GetRetentionResponse:
        gallery_id = names.parse_gallery_name(request.name)
        rules = await self._runtime.reading(self._runtime.loaded.galleries.get_retention, gallery_id)
        return v1.GetRetentionResponse(rules=[messages.retention_message(rule) for rule in rules])

    async def ListAuditEntries(  # noqa: N802
        self, request: v1.ListAuditEntriesRequest, context: Context
    ) -> v1.ListAuditEntriesResponse:
        page = await self._runtime.reading(
            self._runtime.loaded.galleries.list_audit,
            names.parse_gallery_name(request.parent, field="parent"),
            request.tracklet_id,
            request.identity_id,
            convert.page_size(request.page_size, self._runtime.config.limits),
            request.page_token,
        )
        return v1.ListAuditEntriesResponse(
            entries=[messages.audit_message(entry) for entry in page.items], next_page_token=page.next_page_token
        )


def _shown(record: GalleryRecord) -> resources.Gallery:
    """A gallery as the caller may see it: without the name of another one that is not the caller's."""
    message, visible = messages.gallery_message(record), permit.current().galleries
    if visible is not None and record.options.follows not in visible:
        message.follows = ""
    return message
