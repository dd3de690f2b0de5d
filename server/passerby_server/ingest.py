"""Ingest: check, look the request up, encode, store. Shared by the unary, the streaming and the bulk method."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from passerby import names
from passerby.errors import InvalidArgumentError
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import tracklet_service_pb2 as v1

from passerby_server import convert
from passerby_server.encoder import EncodedTracklet, Run
from passerby_server.gallery.types import NewTracklet, TrackletRecord
from passerby_server.runtime import Runtime
from passerby_server.security import permit
from passerby_server.telemetry.calls import stage

# Frames of a stream gather up to this many bytes before they are decoded together.
_STREAM_BUFFER_BYTES = 4 * 1024 * 1024
KEPT_BYTES = 3 * 1024 * 1024
"""Of a tracklet's kept frames: they have to go into one answer of gRPC's usual 4 MiB."""


class Ingester:
    """Stores tracklets: once a method returns, the tracklet is durable."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def ingest(
        self, request: v1.IngestTrackletRequest, *, deadline: float | None = None, patient: bool = False
    ) -> TrackletRecord:
        """Stores a tracklet that is in memory as a whole; a repeated request is answered without the model.

        Args:
            deadline: on the event loop's clock.
            patient: wait for room in the encoder's queue instead of being refused.

        Raises:
            InvalidArgumentError, NotFoundError (gallery), AlreadyExistsError (tracklet), FailedPreconditionError
            (another model's gallery), and what `TrackletEncoder.encode` raises.
        """
        loaded, frames = self._runtime.loaded, request.frames.frames
        gallery_id, tracklet = self._checked(request)
        permit.current().check_gallery(gallery_id)
        gallery = await self._runtime.gallery_of_this_model(gallery_id)
        digest = b""
        if request.request_id:
            digest = await asyncio.to_thread(request_digest, request)
            done = await self._runtime.reading(loaded.galleries.find_request, gallery_id, request.request_id, digest)
            if done is not None:
                return done
        encoded = await loaded.encoder.encode(frames, deadline=deadline, patient=patient)
        kept = frames[:: math.ceil(len(frames) / MiddleFrame.KEPT)] if gallery.options.keep_frames else []
        middle = frames[len(frames) // 2]
        return await self._store(gallery_id, tracklet, encoded, middle, request.request_id, digest, kept)

    async def ingest_stream(
        self, messages: AsyncIterator[v1.StreamTrackletRequest], *, deadline: float | None = None
    ) -> TrackletRecord:
        """Stores a tracklet that comes frame by frame; memory does not grow with its length. Raises as `ingest`."""
        encoder = self._runtime.loaded.encoder
        growing = await self.begin(await _header(messages))
        async with Run(encoder, field="frame", deadline=deadline, patient=True) as run:
            async for frames in growing.buffered(messages, encoder.chunk_frames):
                await run.add(frames)
            encoded = await run.finish()
        return await self.end(growing, encoded)

    async def begin(self, header: v1.StreamTrackletRequest.Header, field: str = "header") -> GrowingTracklet:
        """Checks what precedes the frames of a tracklet, at the path `field` of the request. Raises as `ingest`."""
        problems, at = convert.Problems(), f"{field}."
        gallery_id = problems.catch(names.parse_gallery_name, header.parent, field=f"{at}parent") or ""
        problems.catch(convert.check_request_id, header.request_id, f"{at}request_id")
        # Times may still come from the frames, so all but them is checked now and all of it at the end.
        timeless = resources.Tracklet()
        timeless.CopyFrom(header.tracklet)
        timeless.ClearField("start_time")
        timeless.ClearField("end_time")
        problems.catch(convert.new_tracklet, header.tracklet_id, timeless, None, 0, prefix=at)
        problems.check()
        permit.current().check_gallery(gallery_id)
        gallery = await self._runtime.gallery_of_this_model(gallery_id)
        return GrowingTracklet(header, gallery_id, field, keep_frames=gallery.options.keep_frames)

    async def end(self, growing: GrowingTracklet, encoded: EncodedTracklet) -> TrackletRecord:
        """Stores a tracklet of which all frames have come and are `encoded`. Raises as `ingest`."""
        # Frames may have come for hours, and whoever was allowed to begin may have been shut out since.
        permit.current().check_again(growing.gallery_id, "ingester")
        header, field = growing.header, growing.field
        if header.HasField("frame_count") and header.frame_count != encoded.frame_count:
            raise InvalidArgumentError.of(
                f"{field}.frame_count",
                f"{header.frame_count} frames were announced, {encoded.frame_count} came; nothing is stored",
                reason="STREAM_INCOMPLETE",
            )
        tracklet = convert.new_tracklet(
            header.tracklet_id, header.tracklet, growing.captured, encoded.frame_count, prefix=f"{field}."
        )
        return await self._store(
            growing.gallery_id,
            tracklet,
            encoded,
            growing.middle.frame(),
            header.request_id,
            growing.digest.digest(),
            growing.middle.frames if growing.keep_frames else [],
        )

    def _checked(self, request: v1.IngestTrackletRequest) -> tuple[str, NewTracklet]:
        problems, frames = convert.Problems(), request.frames.frames
        gallery_id = problems.catch(names.parse_gallery_name, request.parent, field="parent") or ""
        problems.catch(convert.check_request_id, request.request_id)
        problems.catch(self._runtime.loaded.encoder.check_count, len(frames), "frames.frames")
        captured = problems.catch(convert.capture_times, frames)
        tracklet = problems.catch(convert.new_tracklet, request.tracklet_id, request.tracklet, captured, len(frames))
        problems.check()
        if tracklet is None:  # then there was a problem
            raise InvalidArgumentError("the tracklet is not valid")
        return gallery_id, tracklet

    async def _store(
        self,
        gallery_id: str,
        tracklet: NewTracklet,
        encoded: EncodedTracklet,
        middle: resources.Frame,
        request_id: str,
        digest: bytes,
        kept: Sequence[resources.Frame],
    ) -> TrackletRecord:
        loaded = self._runtime.loaded
        with stage("thumbnail"):
            thumbnail = await loaded.encoder.decoder.thumbnail(middle)
        with stage("store"):
            return await self._runtime.writing(
                loaded.galleries.ingest,
                gallery_id,
                tracklet,
                encoded.descriptor,
                loaded.space.fingerprint,
                thumbnail,
                request_id,
                digest if request_id else b"",
                _to_keep(kept),
            )


class GrowingTracklet:
    """A tracklet to be stored that comes frame by frame, and what is kept of its frames besides their pixels."""

    def __init__(
        self, header: v1.StreamTrackletRequest.Header, gallery_id: str, field: str, *, keep_frames: bool = False
    ) -> None:
        self.header = header
        self.keep_frames = keep_frames
        self.gallery_id = gallery_id
        self.field = field
        """Path of the header in the request."""
        self.digest = _header_digest(header)
        self.middle = MiddleFrame()
        self.captured: tuple[datetime, datetime] | None = None
        self._count = 0

    async def buffered(
        self, messages: AsyncIterator[v1.StreamTrackletRequest], most: int
    ) -> AsyncIterator[list[resources.Frame]]:
        """The frames in lists of at most `most`."""
        buffer: list[resources.Frame] = []
        size = 0
        async for message in messages:
            if message.WhichOneof("payload") != "frame":
                raise InvalidArgumentError.of(
                    "frame", "every message after the first is a frame", reason="STREAM_ORDER"
                )
            self.note(message.frame)
            buffer.append(message.frame)
            size += len(message.frame.encoded) + len(message.frame.raw.rgb)
            if len(buffer) >= most or size >= _STREAM_BUFFER_BYTES:
                yield buffer
                buffer, size = [], 0
        if buffer:
            yield buffer

    def note(self, frame: resources.Frame) -> None:
        """The next frame."""
        serialised = frame.SerializeToString(deterministic=True)
        self.digest.update(len(serialised).to_bytes(8, "little") + serialised)
        self.middle.add(frame)
        captured = convert.capture_times([frame], self._count, "frame")
        self._count += 1
        if captured:
            earlier = self.captured or captured
            self.captured = (min(earlier[0], captured[0]), max(earlier[1], captured[1]))


class MiddleFrame:
    """Finds the middle of a stream of unknown length while it keeps at most `KEPT` frames.

    Every `stride`-th frame is kept, and the stride doubles when there are too many: exact up to `KEPT` frames, and
    afterwards within a thirty-second of the length.
    """

    KEPT = 32

    def __init__(self) -> None:
        self._frames: list[resources.Frame] = []
        self._stride = 1
        self._count = 0

    def add(self, frame: resources.Frame) -> None:
        """The next frame of the stream."""
        if self._count % self._stride == 0:
            if len(self._frames) == self.KEPT:
                self._frames = self._frames[::2]
                self._stride *= 2
            if self._count % self._stride == 0:
                self._frames.append(frame)
        self._count += 1

    @property
    def frames(self) -> list[resources.Frame]:
        """All kept frames, evenly spaced."""
        return self._frames

    def frame(self) -> resources.Frame:
        """The kept frame that is nearest to the middle; at least one must have been added."""
        nearest = round(self._count // 2 / self._stride)
        return self._frames[min(nearest, len(self._frames) - 1)]


def _to_keep(frames: Sequence[resources.Frame]) -> list[bytes]:
    """The frames as they are kept; every second one of them until they are small enough."""
    kept = [frame.SerializeToString(deterministic=True) for frame in frames]
    while len(kept) > 1 and sum(map(len, kept)) > KEPT_BYTES:
        kept = kept[::2]
    return kept


def request_digest(request: v1.IngestTrackletRequest) -> bytes:
    """sha256 over the request without its id: 32 bytes that tell whether a repeated id repeats the same request."""
    subject = v1.IngestTrackletRequest()
    subject.CopyFrom(request)
    subject.ClearField("request_id")
    return hashlib.sha256(subject.SerializeToString(deterministic=True)).digest()


def _header_digest(header: v1.StreamTrackletRequest.Header) -> Any:
    subject = v1.StreamTrackletRequest.Header()
    subject.CopyFrom(header)
    subject.ClearField("request_id")
    return hashlib.sha256(subject.SerializeToString(deterministic=True))


async def _header(messages: AsyncIterator[v1.StreamTrackletRequest]) -> v1.StreamTrackletRequest.Header:
    async for message in messages:
        if message.WhichOneof("payload") == "header":
            return message.header
        break
    raise InvalidArgumentError.of("header", "the first message must hold the header", reason="STREAM_ORDER")
