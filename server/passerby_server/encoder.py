"""Frames of a tracklet -> its descriptor: decode, split into snippets, encode in batches, mean.

A tracklet is cut into chunks of whole snippets, one batch each, and at most two chunks are on their way at a time.
So memory does not grow with the tracklet's length, and a short tracklet behind a long one waits for two batches.
Chunks of whole snippets give exactly the snippets of the undivided tracklet, since only the last one is padded.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError
from passerby.v1 import resources_pb2 as resources
from passerby_model.backends import Encoded
from passerby_model.snippets import split

from passerby_server.batcher import Batcher
from passerby_server.decode import Decoder
from passerby_server.telemetry.calls import stage

CHUNKS_ON_THE_WAY = 2


@dataclass(frozen=True, slots=True)
class EncodedTracklet:
    """`descriptor` float32 (D,), the mean over `snippet_count` snippets of `frame_count` frames; `masks` maps a CNN
    block to float32 (frame_count, h, w) in [0, 1], empty unless asked for."""

    descriptor: NDArray[np.float32]
    snippet_count: int
    frame_count: int
    masks: dict[int, NDArray[np.float32]]


class TrackletEncoder:
    """Encodes tracklets, many at a time."""

    def __init__(self, decoder: Decoder, batcher: Batcher, *, snippet_length: int, max_frames: int) -> None:
        self.decoder = decoder
        self.batcher = batcher
        self.snippet_length = snippet_length
        self.max_frames = max_frames
        self.chunk_frames = batcher.max_batch * snippet_length

    async def encode(
        self,
        frames: Sequence[resources.Frame],
        *,
        field: str = "frames.frames",
        deadline: float | None = None,
        patient: bool = False,
        with_masks: bool = False,
    ) -> EncodedTracklet:
        """Encodes a tracklet that is in memory as a whole.

        Args:
            frames: in time order, at least one.
            field: path of the frames in the request, for error messages.
            deadline: time on the event loop's clock after which nobody wants the answer.
            patient: wait for room in the queue instead of being refused.

        Raises:
            InvalidArgumentError: no frames, too many, or frames that cannot be read (a violation for each).
            ResourceExhaustedError: the queue is full, or too long for the deadline.
            DeadlineExceededError, InternalError, UnavailableError: as `Batcher.submit`.
        """
        self.check_count(len(frames), field)
        snippets = math.ceil(len(frames) / self.snippet_length)
        room = min(snippets, CHUNKS_ON_THE_WAY * self.batcher.max_batch)
        async with (
            self.batcher.admit(room, patient=patient, deadline=deadline),
            Run(self, field=field, deadline=deadline, with_masks=with_masks) as run,
        ):
            for start in range(0, len(frames), self.chunk_frames):
                await run.add(frames[start : start + self.chunk_frames])
            return await run.finish()

    def check_count(self, frames: int, field: str) -> None:
        """Raises InvalidArgumentError unless a tracklet may have so many frames."""
        if frames < 1:
            raise InvalidArgumentError.of(field, "the tracklet has no frames; send at least one", reason="NO_FRAMES")
        if frames > self.max_frames:
            raise InvalidArgumentError.of(
                field, f"more than the allowed {self.max_frames:,} frames; cut the tracklet", reason="TOO_MANY_FRAMES"
            )


class Run:
    """One tracklet on its way: `add` frames as they come, then `finish`. Leaving the block early drops what waits."""

    def __init__(
        self,
        encoder: TrackletEncoder,
        *,
        field: str,
        deadline: float | None = None,
        with_masks: bool = False,
        patient: bool = False,
    ) -> None:
        """
        Args:
            patient: waits for room for each chunk, and holds it until the chunk is encoded: a camera that sends a frame
                now and then must not hold a place all along. Otherwise whoever makes the run holds room for it.
        """
        self._encoder = encoder
        self._patient = patient
        self._field = field
        self._deadline = deadline
        self._with_masks = with_masks
        self._pixels: list[NDArray[np.uint8]] = []
        self._ready = 0
        self._sent: deque[tuple[int, asyncio.Future[Encoded]]] = deque()
        self._total: NDArray[np.float64] | None = None
        self._masks: dict[int, list[NDArray[np.float32]]] = {}
        self.frame_count = 0
        self._snippet_count = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for _frames, encoded in self._sent:
            if not encoded.cancel() and not encoded.cancelled():
                encoded.exception()  # nobody will ask for it any more

    async def add(self, frames: Sequence[resources.Frame]) -> None:
        """Decodes frames, a chunk of them at most, and sends off the chunk that they complete; waits when two are on their
        way already."""
        encoder = self._encoder
        encoder.check_count(self.frame_count + len(frames), self._field)
        completes = self._ready + len(frames) >= encoder.chunk_frames
        # That of the whole chunk at once: whoever waits for more holds nothing but what is on its way.
        with await self._room(encoder.chunk_frames if completes else len(frames)) as room:
            with encoder.batcher.announce(), stage("decode"):
                self._pixels.append(await encoder.decoder.decode(frames, self.frame_count, self._field))
            self.frame_count += len(frames)
            self._ready += len(frames)
            if completes:
                await self._send(encoder.chunk_frames, room.pop_all())

    async def finish(self) -> EncodedTracklet:
        """Waits for all that was added; raises as `TrackletEncoder.encode`.

        May be called while the tracklet still grows, as long as what was added until then are whole snippets.
        """
        self._encoder.check_count(self.frame_count, self._field)
        if self._ready:
            await self._send(self._ready, await self._room(self._ready))
        while self._sent:
            await self._receive()
        if self._total is None:
            raise InvalidArgumentError.of(self._field, "the tracklet has no frames", reason="NO_FRAMES")
        # The mean of `snippets.mean_descriptor`, which sums in float64 too, without keeping all snippets.
        descriptor = (self._total / self._snippet_count).astype(np.float32)
        masks = {block: np.concatenate(parts) for block, parts in self._masks.items()}
        return EncodedTracklet(descriptor, self._snippet_count, self.frame_count, masks)

    async def _room(self, frames: int) -> ExitStack:
        if not self._patient:
            return ExitStack()
        return await self._encoder.batcher.room(math.ceil(frames / self._encoder.snippet_length), patient=True)

    async def _send(self, count: int, room: ExitStack) -> None:
        """Sends off the first `count` frames; closes `room` once they are encoded."""
        with room:
            while len(self._sent) >= CHUNKS_ON_THE_WAY:
                await self._receive()
            pixels = self._pixels[0] if len(self._pixels) == 1 else np.concatenate(self._pixels)
            chunk, rest = pixels[:count], pixels[count:]
            self._pixels, self._ready = ([rest], len(rest)) if len(rest) else ([], 0)
            snippets = chunk[split(count, self._encoder.snippet_length)]
            encoded = self._encoder.batcher.submit(snippets, deadline=self._deadline)
            held = room.pop_all()
            encoded.add_done_callback(lambda _: held.close())
        self._sent.append((count, encoded))

    async def _receive(self) -> None:
        frames, future = self._sent[0]
        encoded = await future
        self._sent.popleft()
        # One snippet after the other: the sum does not depend, to the last bit, on how they were put into batches.
        if self._total is None:
            self._total = np.zeros(encoded.descriptors.shape[1])
        for descriptor in encoded.descriptors:
            self._total += descriptor
        self._snippet_count += len(encoded.descriptors)
        if self._with_masks:
            for block, mask in encoded.masks.items():
                # (S, N, h, w) -> one for each frame; what follows is the padding of the last snippet.
                self._masks.setdefault(block, []).append(mask.reshape(-1, *mask.shape[2:])[:frames])
