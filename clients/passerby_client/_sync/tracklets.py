# Made of _async/tracklets.py by clients/unasync.py: edit that one.
"""Tracklets: ingest, one by one and in bulk; reading, listing, correcting and erasing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from passerby.v1 import resources_pb2, tracklet_service_pb2

from passerby_client import _requests
from passerby_client._concurrency import Source, made
from passerby_client._frames import FrameInput
from passerby_client._requests import LIST_PAGE_SIZE
from passerby_client._sync.bulk import BulkIngest
from passerby_client._sync.connection import Connection


class TrackletMethods(Connection):
    """The methods of `Client` about tracklets."""

    def ingest_tracklet(
        self,
        gallery: str,
        frames: Iterable[FrameInput],
        *,
        camera: str,
        tracklet_id: str = "",
        identity: str = "",
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        capture_times: Sequence[datetime] | None = None,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> resources_pb2.Tracklet:
        """Stores one tracklet; when this returns, it is durable. A tracklet too large for one message is streamed.

        Args:
            gallery: id or name.
            frames: in time order: paths, encoded images (JPEG, PNG, WebP), or uint8 (h, w, 3) RGB arrays.
            camera: which camera saw the person.
            tracklet_id: last part of the name, `[A-Za-z0-9._~-]{1,128}`; chosen by the server when empty.
            identity: the person, where known.
            start_time, end_time: of the first and the last frame, with a time zone; from `capture_times` when None.
            capture_times: one for each frame.
            labels: free keys and values, for filters.
        """
        request = made(
            _requests.tracklet_request,
            gallery,
            frames,
            camera=camera,
            tracklet_id=tracklet_id,
            identity=identity,
            start_time=start_time,
            end_time=end_time,
            capture_times=capture_times,
            labels=labels,
            request_id=request_id,
        )
        return self._ingest(request, timeout)

    def bulk_ingest(
        self,
        requests: Source[tracklet_service_pb2.IngestTrackletRequest],
        *,
        max_in_flight: int = 16,
        quiet_timeout: float = 300.0,
    ) -> Iterator[tracklet_service_pb2.BulkIngestTrackletsResponse]:
        """Stores many tracklets over one stream; yields a result for each, in the order in which they complete.

        A result names its request by `request_id` and holds either `tracklet` (durable) or `status` (refused;
        `passerby.errors.from_status` makes an error of it): one bad tracklet does not end the run.

        Args:
            requests: made by `tracklet_request`; taken lazily as results are consumed, from a plain iterable in
                another thread. A request without a request_id is given one.
            max_in_flight: tracklets taken from `requests` whose results have not been consumed yet.
            quiet_timeout: seconds without an answer to any sent tracklet before DeadlineExceededError.

        Raises PasserbyError when the stream fails for good, and whatever `requests` raises.
        """
        self._check_open()
        run = BulkIngest(
            requests,
            open_stream=lambda outgoing: self._stream(self._tracklets.BulkIngestTracklets, outgoing),
            ingest_large=self._ingest,
            retry=self._retry,
            max_message_bytes=self._max_message_bytes,
            max_in_flight=max_in_flight,
            quiet_timeout=quiet_timeout,
        )
        return run.results()

    def get_tracklet(
        self,
        tracklet: str,
        *,
        descriptor: bool = False,
        thumbnail: bool = False,
        frames: bool = False,
        timeout: float | None = None,
    ) -> tracklet_service_pb2.GetTrackletResponse:
        """One tracklet, on request with its descriptor, thumbnail (JPEG of its middle frame) and kept frames."""
        request = tracklet_service_pb2.GetTrackletRequest(
            name=_requests.tracklet(tracklet),
            include_descriptor=descriptor,
            include_thumbnail=thumbnail,
            include_frames=frames,
        )
        return self._call(self._tracklets.GetTracklet, request, timeout)

    def list_tracklets(
        self,
        gallery: str,
        *,
        cameras: Iterable[str] = (),
        exclude_cameras: Iterable[str] = (),
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        labels: Mapping[str, str] | None = None,
        identities: Iterable[str] = (),
        page_size: int = LIST_PAGE_SIZE,
        timeout: float | None = None,
    ) -> Iterator[resources_pb2.Tracklet]:
        """Tracklets in the order in which they were stored; filters as in `search`. `timeout` is for each page."""
        request = tracklet_service_pb2.ListTrackletsRequest(
            parent=_requests.gallery(gallery),
            filter=_requests.tracklet_filter(
                cameras=cameras,
                exclude_cameras=exclude_cameras,
                start_time=start_time,
                end_time=end_time,
                labels=labels,
                identities=identities,
            ),
            page_size=page_size,
        )
        for page in self._pages(self._tracklets.ListTracklets, request, timeout):
            yield from page.tracklets

    def delete_tracklet(
        self, tracklet: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> tracklet_service_pb2.ErasureReceipt:
        """Erases a tracklet and says what was rewritten; the receipt is empty when the request is a repetition.

        NotFoundError when it is not there.
        """
        request = tracklet_service_pb2.DeleteTrackletRequest(
            name=_requests.tracklet(tracklet), request_id=_requests.new_request_id(request_id)
        )
        return self._call(self._tracklets.DeleteTracklet, request, timeout).receipt

    def assign_identity(
        self, tracklet: str, identity: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> resources_pb2.Tracklet:
        """Says whom a tracklet shows; an empty identity takes that back. Returns the tracklet as stored."""
        request = tracklet_service_pb2.AssignIdentityRequest(
            name=_requests.tracklet(tracklet),
            identity_id=identity,
            request_id=_requests.new_request_id(request_id),
        )
        return self._call(self._tracklets.AssignIdentity, request, timeout).tracklet

    def merge_identities(
        self,
        gallery: str,
        identity: str,
        merged: Iterable[str],
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> tracklet_service_pb2.IdentityChange:
        """Says that the identities `merged` are the person `identity`; what changed, with its number to undo it by."""
        request = tracklet_service_pb2.MergeIdentitiesRequest(
            parent=_requests.gallery(gallery),
            identity_id=identity,
            merged_identity_ids=merged,
            request_id=_requests.new_request_id(request_id),
        )
        return self._call(self._tracklets.MergeIdentities, request, timeout).change

    def split_identity(
        self,
        gallery: str,
        identity: str,
        tracklets: Iterable[str],
        new_identity: str = "",
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> tracklet_service_pb2.IdentityChange:
        """Says that `tracklets` (names) of `identity` show `new_identity` instead, or somebody unknown."""
        request = tracklet_service_pb2.SplitIdentityRequest(
            parent=_requests.gallery(gallery),
            identity_id=identity,
            tracklets=[_requests.tracklet(name) for name in tracklets],
            new_identity_id=new_identity,
            request_id=_requests.new_request_id(request_id),
        )
        return self._call(self._tracklets.SplitIdentity, request, timeout).change

    def undo_identity_change(
        self, gallery: str, change_id: int, *, request_id: str | None = None, timeout: float | None = None
    ) -> tracklet_service_pb2.IdentityChange:
        """Takes an assignment, a merge or a split back. FailedPreconditionError when a tracklet was assigned since."""
        request = tracklet_service_pb2.UndoIdentityChangeRequest(
            parent=_requests.gallery(gallery), change_id=change_id, request_id=_requests.new_request_id(request_id)
        )
        return self._call(self._tracklets.UndoIdentityChange, request, timeout).change

    def erase_identity(
        self,
        gallery: str,
        identity: str,
        *,
        force: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> tracklet_service_pb2.EraseIdentityResponse:
        """Erases every tracklet of an identity from a gallery ("-": from all), also on disk.

        Without `force` nothing is erased: the answer only counts.
        """
        request = tracklet_service_pb2.EraseIdentityRequest(
            parent=_requests.gallery_or_all(gallery),
            identity_id=identity,
            force=force,
            request_id=_requests.new_request_id(request_id),
        )
        return self._call(self._tracklets.EraseIdentity, request, timeout)

    def _ingest(
        self, request: tracklet_service_pb2.IngestTrackletRequest, timeout: float | None = None
    ) -> resources_pb2.Tracklet:
        limit = self._timeout_for(len(request.frames.frames), timeout)
        if _requests.fits(request.ByteSize(), self._max_message_bytes):
            return self._call(self._tracklets.IngestTracklet, request, limit).tracklet
        answer = self._attempts(
            lambda seconds: self._tracklets.StreamTracklet(_requests.stream_messages(request), timeout=seconds), limit
        )
        return answer.tracklet
