"""The synchronous client: arguments -> request (`_requests`) -> call with deadline and retries -> protocol buffers.

Errors are those of `passerby.errors`: what the server raised is raised here again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from passerby.v1 import (
    gallery_service_pb2,
    model_service_pb2,
    resources_pb2,
    search_service_pb2,
    tracklet_service_pb2,
)

from passerby_client import _requests
from passerby_client._bulk import BulkIngest
from passerby_client._connection import DEFAULT_TARGET, Connection
from passerby_client._frames import FrameInput, frame_sequence
from passerby_client._requests import DescriptorInput

__all__ = ["DEFAULT_TARGET", "Client"]

_LIST_PAGE_SIZE = 500


class Client(Connection):
    """A connection to a passerby server. Use it as a context manager, or `close` it. Safe to share between threads.

    Args:
        target: HOST:PORT of the server.
        timeout: seconds for each call with all its retries, unless the call is given its own; calls that carry frames
            get 0.25 s more for each frame.
        credentials: for TLS, `grpc.ssl_channel_credentials(...)`; None connects without encryption.
        retry: when and how often a failed call is repeated, see `RetryPolicy`.
        max_message_bytes: largest message to send. Keep it at the server's limit: longer tracklets are streamed.
        max_receive_bytes: largest answer to accept.
        options: further gRPC channel options.

    Methods take a gallery by its id (`station`) or name (`galleries/station`), tracklets by name. Each raises
    passerby.errors.PasserbyError: InvalidArgumentError and NotFoundError (also for what is wrong on this side),
    FailedPreconditionError, UnavailableError after the last retry, DeadlineExceededError, and so on.
    Writes take a `request_id` (UUID); without one, each call makes its own and keeps it over its retries.
    """

    # Galleries

    def create_gallery(
        self,
        gallery: str,
        *,
        display_name: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> resources_pb2.Gallery:
        """Creates a gallery, bound to the server's model. AlreadyExistsError when the name is taken."""
        request = _requests.create_gallery(gallery, display_name, request_id)
        return self._call(self._galleries.CreateGallery, request, timeout).gallery

    def get_gallery(self, gallery: str, *, timeout: float | None = None) -> resources_pb2.Gallery:
        """One gallery. NotFoundError when there is none of that name."""
        request = gallery_service_pb2.GetGalleryRequest(name=_requests.gallery(gallery))
        return self._call(self._galleries.GetGallery, request, timeout).gallery

    def list_galleries(
        self, *, page_size: int = _LIST_PAGE_SIZE, timeout: float | None = None
    ) -> Iterator[resources_pb2.Gallery]:
        """All galleries by name; further pages are fetched as the iterator gets to them. `timeout` is for each page."""
        request = gallery_service_pb2.ListGalleriesRequest(page_size=page_size)
        for page in self._pages(self._galleries.ListGalleries, request, timeout):
            yield from page.galleries

    def delete_gallery(
        self, gallery: str, *, force: bool = False, request_id: str | None = None, timeout: float | None = None
    ) -> int:
        """Deletes a gallery; with `force` also one that holds tracklets, else FailedPreconditionError.

        Returns how many tracklets went with it.
        """
        request = gallery_service_pb2.DeleteGalleryRequest(
            name=_requests.gallery(gallery), force=force, request_id=_requests.new_request_id(request_id)
        )
        return self._call(self._galleries.DeleteGallery, request, timeout).deleted_tracklet_count

    def gallery_stats(
        self, gallery: str, *, timeout: float | None = None
    ) -> gallery_service_pb2.GetGalleryStatsResponse:
        """How many tracklets, identities, cameras and frames a gallery holds."""
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
        page_size: int = _LIST_PAGE_SIZE,
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

    # Tracklets

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
        request = _requests.tracklet_request(
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
        requests: Iterable[tracklet_service_pb2.IngestTrackletRequest],
        *,
        max_in_flight: int = 16,
        quiet_timeout: float = 300.0,
    ) -> Iterator[tracklet_service_pb2.BulkIngestTrackletsResponse]:
        """Stores many tracklets over one stream; yields a result for each, in the order in which they complete.

        A result names its request by `request_id` and holds either `tracklet` (durable) or `status` (refused;
        `passerby.errors.from_status` makes an error of it): one bad tracklet does not end the run.

        Args:
            requests: made by `tracklet_request`; taken lazily, in another thread, as results are consumed. A request
                without a request_id is given one.
            max_in_flight: tracklets taken from `requests` whose results have not been consumed yet.
            quiet_timeout: seconds without an answer to any sent tracklet before DeadlineExceededError.

        Raises PasserbyError when the stream fails for good, and whatever `requests` raises.
        """
        self._check_open()
        run = BulkIngest(
            requests,
            open_stream=lambda outgoing: self._once(lambda _: self._tracklets.BulkIngestTracklets(outgoing), 0.0),
            ingest_large=self._ingest,
            retry=self._retry,
            max_message_bytes=self._max_message_bytes,
            max_in_flight=max_in_flight,
            quiet_timeout=quiet_timeout,
        )
        return run.results()

    def get_tracklet(
        self, tracklet: str, *, descriptor: bool = False, thumbnail: bool = False, timeout: float | None = None
    ) -> tracklet_service_pb2.GetTrackletResponse:
        """One tracklet, on request with its descriptor and thumbnail (JPEG of its middle frame)."""
        request = tracklet_service_pb2.GetTrackletRequest(
            name=_requests.tracklet(tracklet), include_descriptor=descriptor, include_thumbnail=thumbnail
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
        page_size: int = _LIST_PAGE_SIZE,
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

    # Search and model

    def search(
        self,
        gallery: str,
        *,
        frames: Iterable[FrameInput] | None = None,
        descriptor: DescriptorInput | None = None,
        tracklet: str | None = None,
        top_k: int | None = None,
        cameras: Iterable[str] = (),
        exclude_cameras: Iterable[str] = (),
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        labels: Mapping[str, str] | None = None,
        identities: Iterable[str] = (),
        rerank: bool | search_service_pb2.RerankOptions = False,
        group_by_identity: bool = False,
        query_camera: str = "",
        exclude_query_camera: bool = False,
        query_time: tuple[datetime, datetime] | None = None,
        travel_windows: Mapping[str, tuple[timedelta, timedelta]] | None = None,
        false_match_rate: float | None = None,
        thumbnails: bool = False,
        timeout: float | None = None,
    ) -> search_service_pb2.SearchTrackletsResponse:
        """Ranks a gallery's tracklets by their distance to a query, best first.

        The query is exactly one of:
            frames: as in `ingest_tracklet`, at most one message of them.
            descriptor: from `embed` or `get_tracklet`, or (values (D,), fingerprint of their model).
            tracklet: the name of one stored in the gallery; it is never its own hit.
        What may be a hit:
            cameras, exclude_cameras: any of the ones, none of the others.
            start_time, end_time: seen at or after the one, and before the other; with a time zone.
            labels: all of these. identities: any of these.
            exclude_query_camera: not what the query's own camera saw (`query_camera`; known for a stored tracklet).
            travel_windows: by camera the least and the most time between what it saw and the query (`query_time`, the
                times of its first and last frame; known for a stored tracklet with times).
        How they are ranked:
            top_k: hits, or identities when grouped; the server's default (10) when None.
            rerank: k-reciprocal re-ranking of the best candidates; True for the defaults.
            group_by_identity: one hit for each identity.
            false_match_rate: the wanted one, in (0, 1), where the model is calibrated.
            thumbnails: also return a JPEG of each hit's middle frame.
        """
        chosen = _requests.tracklet_filter(
            cameras=cameras,
            exclude_cameras=exclude_cameras,
            start_time=start_time,
            end_time=end_time,
            labels=labels,
            identities=identities,
        )
        request = _requests.search(
            gallery,
            frames=frames,
            descriptor_=descriptor,
            tracklet_=tracklet,
            top_k=top_k,
            filter_=chosen,
            rerank=rerank,
            group_by_identity=group_by_identity,
            query_camera=query_camera,
            exclude_query_camera=exclude_query_camera,
            query_time=query_time,
            travel_windows=travel_windows or {},
            false_match_rate=false_match_rate,
            thumbnails=thumbnails,
            max_message_bytes=self._max_message_bytes,
        )
        return self._call(
            self._searches.SearchTracklets, request, self._timeout_for(len(request.frames.frames), timeout)
        )

    def embed(
        self, frames: Iterable[FrameInput], *, timeout: float | None = None
    ) -> model_service_pb2.EmbedTrackletResponse:
        """The descriptor of a tracklet, which is not stored."""
        sequence = _requests.check_fits(frame_sequence(frames), self._max_message_bytes)
        request = model_service_pb2.EmbedTrackletRequest(frames=sequence)
        return self._call(self._models.EmbedTracklet, request, self._timeout_for(len(sequence.frames), timeout))

    def explain(
        self, frames: Iterable[FrameInput], *, timeout: float | None = None
    ) -> model_service_pb2.ExplainTrackletResponse:
        """Where the model looks: a mask for each frame and COSAM layer. FailedPreconditionError without masks."""
        sequence = _requests.check_fits(frame_sequence(frames), self._max_message_bytes)
        request = model_service_pb2.ExplainTrackletRequest(frames=sequence)
        return self._call(self._models.ExplainTracklet, request, self._timeout_for(len(sequence.frames), timeout))

    def model_info(self, *, timeout: float | None = None) -> model_service_pb2.ModelInfo:
        """The model that the server runs."""
        return self._call(self._models.GetModelInfo, model_service_pb2.GetModelInfoRequest(), timeout).model_info

    def _ingest(
        self, request: tracklet_service_pb2.IngestTrackletRequest, timeout: float | None = None
    ) -> resources_pb2.Tracklet:
        limit = self._timeout_for(len(request.frames.frames), timeout)
        if _requests.fits(request.ByteSize(), self._max_message_bytes):
            return self._call(self._tracklets.IngestTracklet, request, limit).tracklet
        return self._attempts(
            lambda seconds: self._tracklets.StreamTracklet(_requests.stream_messages(request), timeout=seconds), limit
        ).tracklet
