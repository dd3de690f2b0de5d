"""Search, and the model without a gallery."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Unpack

from passerby.errors import PasserbyError
from passerby.v1 import model_service_pb2, search_service_pb2, tracklet_service_pb2

from passerby_client import _requests
from passerby_client._async.connection import AsyncConnection
from passerby_client._channel import async_answers, explained
from passerby_client._concurrency import ASYNC_CANCELLED, AsyncMailbox, AsyncSource, async_each, async_made
from passerby_client._frames import FrameInput
from passerby_client._requests import DescriptorInput, LiveFrame, SearchOptions


class AsyncSearchMethods(AsyncConnection):
    """The methods of `AsyncClient` about searches and the model."""

    async def search(
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
        request = await async_made(
            _requests.search,
            gallery,
            frames=frames,
            descriptor_=descriptor,
            tracklet_=tracklet,
            top_k=top_k,
            cameras=cameras,
            exclude_cameras=exclude_cameras,
            start_time=start_time,
            end_time=end_time,
            labels=labels,
            identities=identities,
            rerank=rerank,
            group_by_identity=group_by_identity,
            query_camera=query_camera,
            exclude_query_camera=exclude_query_camera,
            query_time=query_time,
            travel_windows=travel_windows,
            false_match_rate=false_match_rate,
            thumbnails=thumbnails,
            max_message_bytes=self._max_message_bytes,
        )
        return await self._call(
            self._searches.SearchTracklets, request, self._timeout_for(len(request.frames.frames), timeout)
        )

    def stream_search(
        self,
        gallery: str,
        frames: AsyncSource[LiveFrame],
        *,
        answer_frames: int | None = None,
        answer_interval: timedelta | None = None,
        ingest: tracklet_service_pb2.StreamTrackletRequest.Header | None = None,
        timeout: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> AsyncIterator[search_service_pb2.StreamSearchTrackletsResponse]:
        """Searches with a track that still grows: yields hits of its frames so far, `last` those of all of them.

        The last answer's `search` is what `search` says of all frames. Close the iterator to give the track up: nothing
        is stored then. A stream that breaks is not repeated, since frames cannot be taken twice: UnavailableError.
        A server ends a stream to which no frame comes for long (60 s unless configured): DeadlineExceededError.

        Args:
            frames: one by one as they come, each as in `ingest_tracklet` or with its capture time, (frame, time);
                taken from a plain iterable in another thread.
            answer_frames: least new frames between two answers; None for an answer after each snippet.
            answer_interval: least time between two answers.
            ingest: from `tracklet_header`: store the tracklet under that id when all frames have come. The last
                answer's `tracklet` is the stored one.
            timeout: seconds for the whole stream; None for no limit.
            options: those of `search`.

        Raises what `search` and `ingest_tracklet` raise, and whatever `frames` raises.
        """
        self._check_open()
        header = _requests.stream_search_header(
            gallery, answer_frames=answer_frames, answer_interval=answer_interval, ingest=ingest, options=options
        )
        return self._growing(header, frames, timeout)

    async def _growing(
        self,
        header: search_service_pb2.StreamSearchTrackletsRequest,
        frames: AsyncSource[LiveFrame],
        timeout: float | None,
    ) -> AsyncIterator[search_service_pb2.StreamSearchTrackletsResponse]:
        failures: list[BaseException] = []
        opened: AsyncMailbox[Any] = AsyncMailbox()

        async def messages() -> AsyncIterator[search_service_pb2.StreamSearchTrackletsRequest]:
            yield header
            try:
                async for source in async_each(frames):
                    yield await async_made(_requests.live_frame, source)
            except ASYNC_CANCELLED:
                raise
            except BaseException as raised:  # noqa: BLE001 (raised again where the caller iterates)
                failures.append(raised)
                # Not to end in order: the server would take the track for complete.
                broken = await opened.get()
                broken.cancel()

        call = self._stream(self._searches.StreamSearchTracklets, messages(), timeout)
        opened.put(call)
        try:
            async for answer in async_answers(call):
                yield answer
        except PasserbyError as error:
            raise (failures[0] if failures else explained(error, self.target)) from None
        finally:
            call.cancel()

    async def embed(
        self, frames: Iterable[FrameInput], *, timeout: float | None = None
    ) -> model_service_pb2.EmbedTrackletResponse:
        """The descriptor of a tracklet, which is not stored."""
        sequence = await async_made(_requests.query_frames, frames, self._max_message_bytes)
        request = model_service_pb2.EmbedTrackletRequest(frames=sequence)
        return await self._call(self._models.EmbedTracklet, request, self._timeout_for(len(sequence.frames), timeout))

    async def explain(
        self, frames: Iterable[FrameInput], *, timeout: float | None = None
    ) -> model_service_pb2.ExplainTrackletResponse:
        """Where the model looks: a mask for each frame and COSAM layer. FailedPreconditionError without masks."""
        sequence = await async_made(_requests.query_frames, frames, self._max_message_bytes)
        request = model_service_pb2.ExplainTrackletRequest(frames=sequence)
        return await self._call(self._models.ExplainTracklet, request, self._timeout_for(len(sequence.frames), timeout))

    async def model_info(self, *, timeout: float | None = None) -> model_service_pb2.ModelInfo:
        """The model that the server runs."""
        return (
            await self._call(self._models.GetModelInfo, model_service_pb2.GetModelInfoRequest(), timeout)
        ).model_info

    async def reload_bundle(
        self, expected_fingerprint: str = "", *, timeout: float | None = None
    ) -> model_service_pb2.ReloadBundleResponse:
        """Makes the server load its bundle folder anew and switch to what is in it; for administrators.

        `expected_fingerprint`: of the bundle, or its first 12 hex digits or more.
        Raises FailedPreconditionError: the folder holds another bundle than `expected_fingerprint` (OTHER_BUNDLE), a
        reload is under way (RELOAD_UNDER_WAY); or what is wrong with the bundle. The model before goes on then.
        """
        request = model_service_pb2.ReloadBundleRequest(model_fingerprint=expected_fingerprint)
        return await self._call(self._models.ReloadBundle, request, timeout)
