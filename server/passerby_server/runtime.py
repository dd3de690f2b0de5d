"""What the services work with: the loaded bundle, its encoder, the galleries, and the threads for blocking calls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import grpc
import numpy as np
from passerby.errors import FailedPreconditionError, UnavailableError
from passerby_model.backends import Backend
from passerby_model.backends.cores import usable_cores
from passerby_model.bundle import Bundle, open_bundle

from passerby_server.backend import open_sized
from passerby_server.batcher import Batcher, warm_up_sizes
from passerby_server.config import ServerConfig
from passerby_server.decode import Decoder
from passerby_server.encoder import TrackletEncoder
from passerby_server.gallery.embedded import open_galleries
from passerby_server.gallery.types import Galleries, GalleryRecord, ModelSpace
from passerby_server.logs import event
from passerby_server.upkeep import Upkeep

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)

# Reads of the galleries at the same time, searches among them.
READ_THREADS = 8
# Writes that wait for SQLite's one writer, which commits them together. Threads of their own: were they the readers',
# a long delete with a few writes behind it would hold up every search.
WRITE_THREADS = 8


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that exists once the server has loaded."""

    bundle: Bundle
    backend: Backend
    encoder: TrackletEncoder
    galleries: Galleries
    upkeep: Upkeep
    space: ModelSpace
    max_batch: int


class Runtime:
    """Loads in the background of an already listening server; `loaded` refuses calls until then."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.draining = asyncio.Event()
        """Set when the server begins to shut down: endless streams end then."""
        self._loaded: Loaded | None = None
        self._stack = AsyncExitStack()
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="passerby-read")
        self._writers = ThreadPoolExecutor(WRITE_THREADS, thread_name_prefix="passerby-write")

    @property
    def loaded(self) -> Loaded:
        """Raises UnavailableError (LOADING) while the server loads."""
        if self._loaded is None:
            raise UnavailableError("the server is loading its model; retry soon", reason="LOADING", retry_delay=1.0)
        return self._loaded

    async def load(self) -> Loaded:
        """Opens bundle, encoder and galleries and warms up; raises their errors."""
        config = self.config
        bundle = await asyncio.to_thread(open_bundle, config.bundle, allow_unverified=config.allow_unverified)
        sized = await asyncio.to_thread(open_sized, bundle, config)
        self._stack.callback(sized.stop)
        backend, max_batch = sized.backend, sized.max_batch
        size, manifest = bundle.manifest.input, bundle.manifest
        await asyncio.to_thread(warm_up, backend, (size.snippet_length, size.height, size.width, 3), max_batch)
        rewrite_delay = timedelta(seconds=config.upkeep.rewrite_seconds)
        galleries = await asyncio.to_thread(
            open_galleries, config.data, rewrite_delay=rewrite_delay, index=config.index
        )
        self._stack.callback(galleries.close)
        decoder = Decoder(size.height, size.width, config.limits, config.decode_threads or usable_cores())
        self._stack.callback(decoder.close)
        batcher = await self._stack.enter_async_context(
            Batcher(
                backend,
                max_batch=max_batch,
                max_wait=config.batching.max_wait_ms / 1000,
                max_admitted=config.batching.max_queued_snippets,
                workers=sized.workers,
            )
        )
        encoder = TrackletEncoder(
            decoder, batcher, snippet_length=size.snippet_length, max_frames=config.limits.max_frames
        )
        space = ModelSpace(bundle.fingerprint, manifest.descriptor_dim, manifest.metric)
        upkeep = Upkeep(galleries, config.upkeep.sweep_seconds)
        self._stack.push_async_callback(asyncio.to_thread, upkeep.close)
        self._loaded = Loaded(bundle, backend, encoder, galleries, upkeep, space, max_batch)
        return self._loaded

    async def close(self) -> None:
        """Stops the encoder and closes the galleries, once running gallery calls have ended."""
        self._loaded = None
        for threads in (self._writers, self._readers):
            await asyncio.to_thread(threads.shutdown)
        await self._stack.aclose()

    async def reading(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a method of the galleries that changes nothing, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, lambda: function(*args, **kwargs))

    async def writing(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a method of the galleries that writes, in a thread that no read ever waits for."""
        return await asyncio.get_running_loop().run_in_executor(self._writers, lambda: function(*args, **kwargs))

    async def gallery_of_this_model(self, gallery_id: str) -> GalleryRecord:
        """The gallery; raises NotFoundError, or FailedPreconditionError when another model made it."""
        loaded = self.loaded
        record = await self.reading(loaded.galleries.get_gallery, gallery_id)
        check_fingerprint(loaded.space.fingerprint, record, "this server runs")
        return record


def check_fingerprint(fingerprint: str, gallery: GalleryRecord, whose: str) -> None:
    """Raises FailedPreconditionError (MODEL_MISMATCH) unless the gallery was made by the model `fingerprint`."""
    if fingerprint != gallery.space.fingerprint:
        raise FailedPreconditionError(
            f"the gallery was filled by the model {gallery.space.fingerprint[:12]}, {whose} {fingerprint[:12]}: "
            "descriptors of two models cannot be compared; serve the gallery's bundle, or index again",
            reason="MODEL_MISMATCH",
            metadata={"gallery_fingerprint": gallery.space.fingerprint, "fingerprint": fingerprint},
        )


def warm_up(backend: Backend, shape: tuple[int, ...], max_batch: int) -> None:
    """Runs every batch size that the batcher makes, so that no caller waits for the first run."""
    sizes = warm_up_sizes(max_batch)
    start = time.perf_counter()
    for size in sizes:
        backend.encode(np.zeros((size, *shape), dtype=np.uint8))
    event(log, logging.INFO, "warmed up", batches=len(sizes), seconds=f"{time.perf_counter() - start:.2f}")


def deadline_of(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """The caller's deadline on the event loop's clock, None without one."""
    remaining = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining
