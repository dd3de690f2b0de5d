"""A query that still grows: frames of a live track in, ranked hits of the mean descriptor so far out.

    caller --reader, a little ahead--> frames of whole snippets --> encoder --> running mean --> search --> answer

One snippet after the other, in the caller's order; when frames come faster than they are encoded, those of several
snippets are taken together, so the answers are fewer and never late. Nothing is kept but the running mean, the frames of
the unfinished snippet and what was read ahead; a caller that does not read its answers is not read from either. The mean
and the last search are those of SearchTracklets over all frames, to the bit.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from passerby import names
from passerby.errors import FieldViolation, InvalidArgumentError, UnavailableError
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as v1

from passerby_server import convert, messages
from passerby_server.encoder import EncodedTracklet, Run
from passerby_server.ingest import GrowingTracklet, Ingester
from passerby_server.interceptors import check_message_size, stream_idle
from passerby_server.runtime import Runtime
from passerby_server.searcher import Query, Search, Searcher, Times
from passerby_server.security import permit

# Frames are read ahead up to one batch, and up to this many bytes.
_AHEAD_BYTES = 4 * 1024 * 1024
Answer = v1.StreamSearchTrackletsResponse
Requests = AsyncIterator[v1.StreamSearchTrackletsRequest]


class GrowingSearch:
    """Answers streams of live tracks."""

    def __init__(self, runtime: Runtime, searcher: Searcher, ingester: Ingester) -> None:
        self._runtime = runtime
        self._searcher = searcher
        self._ingester = ingester

    async def answers(self, requests: Requests, *, deadline: float | None = None) -> AsyncGenerator[Answer, None]:
        """The answers of one stream; `deadline`: of the whole of it, on the event loop's clock.

        Raises:
            InvalidArgumentError, NotFoundError, FailedPreconditionError: as SearchTracklets; and as StreamTracklet where
                the tracklet is to be stored.
            UnavailableError: the server began to shut down (SHUTTING_DOWN).
            DeadlineExceededError: no frame came for `stream_idle_seconds` (STREAM_IDLE).
        """
        encoder = self._runtime.loaded.encoder
        async with _Reader(requests, self._runtime, most=encoder.chunk_frames) as reader:
            header = await reader.header()
            search, stored = await self._begin(header)
            pace, track = _Pace.of(header), _Track()
            async with Run(encoder, field="frame", deadline=deadline) as run:
                async for frames in reader.snippets(encoder.snippet_length):
                    track.add(frames, stored)
                    async with encoder.batcher.admit(math.ceil(len(frames) / encoder.snippet_length), patient=True):
                        await run.add(frames)
                        encoded = await run.finish()
                    if not reader.ended and pace.due(encoded.frame_count):
                        yield await self._answer(search, encoded, track, deadline)
                encoded = await run.finish()
            last = await self._answer(search, encoded, track, deadline)
            last.last = True
            if stored is not None:
                last.tracklet.CopyFrom(messages.tracklet_message(await self._ingester.end(stored, encoded)))
            yield last

    async def _begin(self, header: v1.StreamSearchTrackletsRequest.Header) -> tuple[Search, GrowingTracklet | None]:
        with suppress(InvalidArgumentError):  # said below, with what else is wrong
            # Before it is looked up: what is not the caller's is refused alike whether it exists or not.
            permit.current().check_gallery(names.parse_gallery_name(header.search.parent))
        with _at("header.search."):
            search = await self._searcher.prepared(header.search, growing=True)
        permit.current().note(header.search)
        if header.HasField("answer_frames") and header.answer_frames < 1:
            raise InvalidArgumentError.of("header.answer_frames", f"{header.answer_frames} is below 1")
        if header.answer_interval.ToNanoseconds() < 0:
            raise InvalidArgumentError.of("header.answer_interval", "is negative")
        if not header.HasField("ingest"):
            return search, None
        if header.ingest.parent not in ("", header.search.parent):
            raise InvalidArgumentError.of("header.ingest.parent", "is another gallery than that of the search")
        header.ingest.parent = header.search.parent
        permit.current().check_gallery(search.gallery.gallery_id, "ingester")
        permit.current().note(header.ingest)
        return search, await self._ingester.begin(header.ingest, "header.ingest")

    async def _answer(self, search: Search, encoded: EncodedTracklet, track: _Track, deadline: float | None) -> Answer:
        # Whoever was allowed to begin may have been shut out since.
        permit.current().check_gallery(search.gallery.gallery_id)
        request = search.request
        times = convert.query_times(request) or track.times
        query = Query(encoded.descriptor, request.query_camera_id, times=times)
        with _at("header.search."):
            found = await self._searcher.ranked(search, query, deadline=deadline)
        permit.current().note(found)
        return Answer(search=found, frame_count=encoded.frame_count)


class _Reader:
    """Reads a stream ahead, in a task of its own: at most `most` frames, and about `_AHEAD_BYTES`."""

    def __init__(self, requests: Requests, runtime: Runtime, *, most: int) -> None:
        self._requests = requests
        self._limits = runtime.config.limits
        self._draining = runtime.draining
        self._most = most
        self._read: asyncio.Queue[v1.StreamSearchTrackletsRequest | _End] = asyncio.Queue(maxsize=most)
        self._bytes = 0
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.ended = False
        """Whether all frames have been given out."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read_ahead())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def header(self) -> v1.StreamSearchTrackletsRequest.Header:
        """The first message."""
        message = await self._next()
        if message is None or message.WhichOneof("payload") != "header":
            raise InvalidArgumentError.of("header", "the first message must hold the header", reason="STREAM_ORDER")
        return message.header

    async def snippets(self, length: int) -> AsyncIterator[list[resources.Frame]]:
        """The frames of as many whole snippets as there are, at least one; in the end those that are left."""
        frames: list[resources.Frame] = []
        while (message := await self._next()) is not None:
            if message.WhichOneof("payload") != "frame":
                raise InvalidArgumentError.of(
                    "frame", "every message after the first is a frame", reason="STREAM_ORDER"
                )
            frames.append(message.frame)
            whole = len(frames) - len(frames) % length
            if whole and (self._read.empty() or whole >= self._most):
                yield frames[:whole]
                del frames[:whole]
        self.ended = True
        if frames:
            yield frames

    async def _next(self) -> v1.StreamSearchTrackletsRequest | None:
        """The next message, None at the end; raises what reading raised, once everything before it is used."""
        if self._draining.is_set():
            raise _shutting_down()
        item = await self._arrival() if self._read.empty() else self._read.get_nowait()
        if isinstance(item, _End):
            if item.error is not None:
                raise item.error
            return None
        self._bytes -= item.ByteSize()
        self._room.set()
        return item

    async def _arrival(self) -> v1.StreamSearchTrackletsRequest | _End:
        coming, draining = asyncio.create_task(self._read.get()), asyncio.create_task(self._draining.wait())
        try:
            idle = self._limits.stream_idle_seconds
            done, _ = await asyncio.wait((coming, draining), timeout=idle, return_when=asyncio.FIRST_COMPLETED)
            if coming in done:
                return coming.result()
            raise _shutting_down() if draining in done else stream_idle(idle)
        finally:
            for task in (coming, draining):
                task.cancel()

    async def _read_ahead(self) -> None:
        error: Exception | None = None
        try:
            async for message in self._requests:
                check_message_size(message, self._limits.max_message_bytes)
                self._bytes += message.ByteSize()
                await self._read.put(message)
                while self._bytes > _AHEAD_BYTES:
                    self._room.clear()
                    await self._room.wait()
        except Exception as raised:  # noqa: BLE001 - raised by `_next`, once everything before it is used
            error = raised
        await self._read.put(_End(error))


@dataclass(frozen=True, slots=True)
class _End:
    """The stream is over: in order, or with `error`."""

    error: Exception | None


class _Track:
    """What is known of the frames so far besides their pixels."""

    def __init__(self) -> None:
        self.times: Times | None = None
        self._count = 0

    def add(self, frames: list[resources.Frame], stored: GrowingTracklet | None) -> None:
        for frame in frames:
            captured: tuple[datetime, datetime] | None = convert.capture_times([frame], self._count, "frame")
            self._count += 1
            if captured:
                earlier = self.times or captured
                self.times = (min(earlier[0], captured[0]), max(earlier[1], captured[1]))
            if stored is not None:
                stored.note(frame)


class _Pace:
    """When an answer is due: so many frames and so many seconds after the one before."""

    def __init__(self, frames: int, seconds: float) -> None:
        self._frames = frames
        self._seconds = seconds
        self._answered_frames = 0
        self._answered_at = -math.inf

    @classmethod
    def of(cls, header: v1.StreamSearchTrackletsRequest.Header) -> Self:
        return cls(header.answer_frames, header.answer_interval.ToNanoseconds() / 1e9)

    def due(self, frame_count: int) -> bool:
        """Whether to answer now, at `frame_count` frames; then the next is counted from here."""
        now = asyncio.get_running_loop().time()
        if frame_count - self._answered_frames < self._frames or now - self._answered_at < self._seconds:
            return False
        self._answered_frames, self._answered_at = frame_count, now
        return True


@contextmanager
def _at(prefix: str) -> Iterator[None]:
    """Puts `prefix` before the fields of an InvalidArgumentError."""
    try:
        yield
    except InvalidArgumentError as error:
        found = [FieldViolation(prefix + where, what) for where, what in error.violations]
        text = "; ".join(f"{where}: {what}" for where, what in found) or error.message
        raise InvalidArgumentError(text, reason=error.reason, violations=found) from None


def _shutting_down() -> UnavailableError:
    return UnavailableError("the server is shutting down; send the track again", reason="SHUTTING_DOWN")
