# Made of _async/galleries.py by clients/unasync.py: edit that one.
"""Galleries: creating, reading and deleting them; retention and audit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from passerby.v1 import gallery_service_pb2, resources_pb2

from passerby_client import _requests
from passerby_client._requests import LIST_PAGE_SIZE
from passerby_client._sync.connection import Connection


class GalleryMethods(Connection):
    """The methods of `Client` about galleries."""

    def create_gallery(
        self,
        gallery: str,
        *,
        display_name: str = "",
        index_kind: str = "",
        false_match_rate: float = 0.0,
        follows: str = "",
        keep_frames: bool = False,
        descriptor_precision: str = "fp32",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> resources_pb2.Gallery:
        """Creates a gallery, bound to the server's model. AlreadyExistsError when the name is taken.

        index_kind: `auto`, `exact`, `fp16`, `int8` or a FAISS factory string; empty for the server's setting.
        false_match_rate: of decisions, in (0, 1), where a search names none; 0 for the server's.
        follows: the gallery whose place this one is to take (`replace_gallery`): what is erased there is erased here.
        keep_frames: keep some frames of each tracklet, so that another model can fill the gallery anew.
        descriptor_precision: format of the stored descriptors, `fp32` or `fp16`: half the room, values up to 65504.
        """
        request = _requests.create_gallery(gallery, display_name, request_id)
        request.gallery.index_kind = index_kind
        request.gallery.false_match_rate = false_match_rate
        request.gallery.keep_frames = keep_frames
        request.gallery.descriptor_precision = _requests.precision(descriptor_precision)
        request.gallery.follows = _requests.gallery(follows) if follows else ""
        return self._call(self._galleries.CreateGallery, request, timeout).gallery

    def get_gallery(self, gallery: str, *, timeout: float | None = None) -> resources_pb2.Gallery:
        """One gallery. NotFoundError when there is none of that name."""
        request = gallery_service_pb2.GetGalleryRequest(name=_requests.gallery(gallery))
        return self._call(self._galleries.GetGallery, request, timeout).gallery

    def list_galleries(
        self, *, page_size: int = LIST_PAGE_SIZE, timeout: float | None = None
    ) -> Iterator[resources_pb2.Gallery]:
        """All galleries by name; further pages are fetched as the iterator gets to them. `timeout` is for each page."""
        request = gallery_service_pb2.ListGalleriesRequest(page_size=page_size)
        for page in self._pages(self._galleries.ListGalleries, request, timeout):
            yield from page.galleries

    def update_gallery(
        self,
        gallery: str,
        *,
        display_name: str | None = None,
        index_kind: str | None = None,
        false_match_rate: float | None = None,
        timeout: float | None = None,
    ) -> resources_pb2.Gallery:
        """Changes what is given; an empty `index_kind`, or a rate of 0, gives back to the server's setting."""
        values: dict[str, Any] = {
            "display_name": display_name,
            "index_kind": index_kind,
            "false_match_rate": false_match_rate,
        }
        given = {name: value for name, value in values.items() if value is not None}
        request = gallery_service_pb2.UpdateGalleryRequest(
            gallery=resources_pb2.Gallery(name=_requests.gallery(gallery), **given)
        )
        request.update_mask.paths.extend(given)
        return self._call(self._galleries.UpdateGallery, request, timeout).gallery

    def replace_gallery(
        self,
        gallery: str,
        replacement: str,
        *,
        keep_as: str,
        allow_missing: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> gallery_service_pb2.ReplaceGalleryResponse:
        """Puts `replacement`, which follows `gallery`, in its place; the old one is called `keep_as` from then on.

        Identities, labels, times, corrections and retention go along. FailedPreconditionError when the replacement
        lacks tracklets of the old gallery, unless `allow_missing` says that those stay there alone.
        """
        request = gallery_service_pb2.ReplaceGalleryRequest(
            name=_requests.gallery(gallery),
            replacement=_requests.gallery(replacement),
            retired_gallery_id=keep_as,
            allow_missing=allow_missing,
            request_id=_requests.new_request_id(request_id),
        )
        return self._call(self._galleries.ReplaceGallery, request, timeout)

    def delete_gallery(
        self, gallery: str, *, force: bool = False, request_id: str | None = None, timeout: float | None = None
    ) -> gallery_service_pb2.DeleteGalleryResponse:
        """Deletes a gallery; with `force` also one that holds tracklets, else FailedPreconditionError.

        Returns how many tracklets went with it, and what was done for the files.
        """
        request = gallery_service_pb2.DeleteGalleryRequest(
            name=_requests.gallery(gallery), force=force, request_id=_requests.new_request_id(request_id)
        )
        return self._call(self._galleries.DeleteGallery, request, timeout)

    def gallery_stats(
        self, gallery: str, *, timeout: float | None = None
    ) -> gallery_service_pb2.GetGalleryStatsResponse:
        """How many tracklets, identities, cameras and frames a gallery holds; its index, and the recall of that."""
        request = gallery_service_pb2.GetGalleryStatsRequest(name=_requests.gallery(gallery))
        return self._call(self._galleries.GetGalleryStats, request, timeout)

    def set_retention(
        self, gallery: str, keep: Mapping[str, timedelta], *, timeout: float | None = None
    ) -> dict[str, timedelta]:
        """Says how long a gallery keeps what each camera saw; "" is for all cameras without a rule of their own.

        Replaces all rules; none keeps everything. What is older is erased soon. Returns the rules as stored.
        """
        request = gallery_service_pb2.SetRetentionRequest(name=_requests.gallery(gallery))
        for camera, time in keep.items():
            request.rules.add(camera_id=camera).keep.FromTimedelta(time)
        answer = self._call(self._galleries.SetRetention, request, timeout)
        return {rule.camera_id: rule.keep.ToTimedelta() for rule in answer.rules}

    def get_retention(self, gallery: str, *, timeout: float | None = None) -> dict[str, timedelta]:
        """How long a gallery keeps what each camera saw; see `set_retention`."""
        request = gallery_service_pb2.GetRetentionRequest(name=_requests.gallery(gallery))
        answer = self._call(self._galleries.GetRetention, request, timeout)
        return {rule.camera_id: rule.keep.ToTimedelta() for rule in answer.rules}

    def audit(
        self,
        gallery: str,
        *,
        identity: str = "",
        tracklet_id: str = "",
        page_size: int = LIST_PAGE_SIZE,
        timeout: float | None = None,
    ) -> Iterator[gallery_service_pb2.AuditEntry]:
        """The recorded changes of a gallery, also of a deleted one, oldest first; `timeout` is for each page.

        identity, tracklet_id: only what is about that one. Its name finds what was done to it after its erasure too.
        """
        request = gallery_service_pb2.ListAuditEntriesRequest(
            parent=_requests.gallery(gallery), identity_id=identity, tracklet_id=tracklet_id, page_size=page_size
        )
        for page in self._pages(self._galleries.ListAuditEntries, request, timeout):
            yield from page.entries
