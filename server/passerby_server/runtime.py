"""What the services work with: the loaded bundle, its encoder, the galleries, and the threads for blocking calls.

The bundle can be loaded anew while the server serves: the new model is opened, verified and warmed up beside the old one,
then new calls get it, and the old one is closed once the last call that began with it has ended. If anything fails, the
old one goes on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from contextvars import Context, copy_context
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import grpc
import numpy as np
from passerby.errors import FailedPreconditionError, PasserbyError, UnavailableError
from passerby_model.backends import Backend
from passerby_model.backends.cores import usable_cores
from passerby_model.bundle import Bundle, open_bundle

from passerby_server.backend import Sized, open_sized
from passerby_server.batcher import Batcher
from passerby_server.config import ServerConfig
from passerby_server.decode import Decoder
from passerby_server.decode import warm_up as warm_up_decoding
from passerby_server.encoder import TrackletEncoder
from passerby_server.gallery.embedded import open_galleries
from passerby_server.gallery.types import Galleries, GalleryRecord, ModelSpace
from passerby_server.generation import Generation
from passerby_server.logs import event
from passerby_server.queueing import warm_up_sizes
from passerby_server.telemetry.calls import current
from passerby_server.telemetry.metrics import Metrics
from passerby_server.telemetry.watched import WatchedBackend
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
class Model:
    """What belongs to one bundle."""

    bundle: Bundle
    backend: Backend
    encoder: TrackletEncoder
    space: ModelSpace
    max_batch: int


@dataclass(frozen=True, slots=True)
class Loaded(Model):
    """Everything that exists once the server has loaded."""

    galleries: Galleries
    upkeep: Upkeep
    load_time: float
    """Seconds since 1970."""


class Runtime:
    """Loads in the background of an already listening server; `loaded` refuses calls until then."""

    def __init__(self, config: ServerConfig, metrics: Metrics | None = None) -> None:
        self.config = config
        self.draining = asyncio.Event()
        """Set when the server begins to shut down: endless streams end then."""
        self.on_encoder_health: Callable[[bool], None] = lambda healthy: None
        """Is called on the event loop when the encoder that new calls get begins to hang, and when it answers again."""
        self._metrics = metrics or Metrics()
        self._generation: Generation | None = None
        self._stack = AsyncExitStack()
        self._reloading: asyncio.Task[tuple[str, Loaded]] | None = None
        self._retiring: asyncio.Task[None] | None = None
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="passerby-read")
        self._writers = ThreadPoolExecutor(WRITE_THREADS, thread_name_prefix="passerby-write")

    @property
    def newest(self) -> Loaded | None:
        """What new calls get; None while loading and after closing. For any thread."""
        generation = self._generation
        return None if generation is None else generation.loaded

    @property
    def loaded(self) -> Loaded:
        """What the running call works with, the same from its beginning to its end. Raises UnavailableError (LOADING)
        while the server loads."""
        return self._current().of(current()).loaded

    async def load(self) -> Loaded:
        """Opens bundle, encoder and galleries and warms up; raises their errors."""
        config = self.config
        model, closing = await self._open_model()
        async with closing:
            rewrite_delay = timedelta(seconds=config.upkeep.rewrite_seconds)
            stop = threading.Event()  # a large gallery loads for minutes: a server that is stopped does not wait for it
            self._stack.callback(stop.set)
            galleries = await asyncio.to_thread(
                open_galleries, config.data, rewrite_delay=rewrite_delay, index=config.index, stop=stop
            )
            self._stack.callback(galleries.close)
            keep = timedelta(days=config.upkeep.audit_days) or None
            upkeep = Upkeep(galleries, config.upkeep.sweep_seconds, keep)
            self._stack.push_async_callback(asyncio.to_thread, upkeep.close)
            self._generation = Generation(_loaded(model, galleries, upkeep), closing.pop_all())
        return self._generation.loaded

    async def reload(self, expected_fingerprint: str = "") -> tuple[str, Loaded]:
        """Loads the bundle's folder anew and switches to it; the fingerprint before, and what new calls get then.

        The settings stay as they are.

        Raises:
            FailedPreconditionError: another reload is under way, or calls still use the model before this one
                (RELOAD_UNDER_WAY); the folder holds another bundle than one whose fingerprint begins with
                `expected_fingerprint` (OTHER_BUNDLE).
            UnavailableError: the server is loading or shutting down.
            PasserbyError: as `load` for the bundle and its encoder. The old model goes on serving.
        """
        for task in (self._reloading, self._retiring):
            if task is not None and not task.done():
                raise FailedPreconditionError(
                    "a reload is under way, or calls still use the model before this one; try again later",
                    reason="RELOAD_UNDER_WAY",
                )
        # What is made here outlives the call that asked for it: none of it belongs to that call.
        self._reloading = asyncio.create_task(self._reload(expected_fingerprint), context=Context())
        self._reloading.add_done_callback(lambda done: done.cancelled() or done.exception())
        # Whoever asked may go away: the reload goes on, and the next one has to wait for it.
        return await asyncio.shield(self._reloading)

    async def close(self) -> None:
        """Stops the encoder and closes the galleries, once running gallery calls have ended."""
        generation, self._generation = self._generation, None
        if self._reloading is not None:
            await asyncio.gather(self._reloading, return_exceptions=True)
        for threads in (self._writers, self._readers):
            await asyncio.to_thread(threads.shutdown)
        if self._retiring is not None:
            await self._retiring
        if generation is not None:
            await generation.close()
        await self._stack.aclose()

    async def reading(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a method of the galleries that changes nothing, in a thread."""
        return await _in(self._readers, lambda: function(*args, **kwargs))

    async def writing(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a method of the galleries that writes, in a thread that no read ever waits for."""
        return await _in(self._writers, lambda: function(*args, **kwargs))

    async def gallery_of_this_model(self, gallery_id: str) -> GalleryRecord:
        """The gallery; raises NotFoundError, or FailedPreconditionError when another model made it."""
        loaded = self.loaded
        record = await self.reading(loaded.galleries.get_gallery, gallery_id)
        check_fingerprint(loaded.space.fingerprint, record, "this server runs")
        return record

    def _note_encoder(self, _healthy: bool) -> None:
        if (newest := self.newest) is not None:  # one that hangs and was replaced meanwhile says nothing
            self.on_encoder_health(newest.encoder.batcher.healthy)

    def _current(self) -> Generation:
        if self._generation is None:
            self._check_going_on()
            raise UnavailableError("the server is loading its model; retry soon", reason="LOADING", retry_delay=1.0)
        return self._generation

    def _check_going_on(self) -> None:
        """Raises UnavailableError (SHUTTING_DOWN) when the server shuts down. For any thread."""
        if self.draining.is_set():
            raise UnavailableError("the server is shutting down", reason="SHUTTING_DOWN")

    async def _reload(self, expected_fingerprint: str) -> tuple[str, Loaded]:
        old, start = self._current(), time.monotonic()
        try:
            loaded = await self._switch(old.loaded, expected_fingerprint)
        except Exception as error:
            # The traceback stays with whoever asked, and the model that was not to be must not stay with it.
            traceback.clear_frames(error.__traceback__)
            self._metrics.reloaded("failed")
            why = error.message if isinstance(error, PasserbyError) else repr(error)
            event(log, logging.ERROR, f"the bundle was not reloaded, the model before goes on: {why}")
            raise
        self._note_encoder(True)  # the one before may have hung
        self._metrics.reloaded("switched")
        seconds = f"{time.monotonic() - start:.2f}"
        fields = {"before": old.loaded.bundle.fingerprint[:12], "fingerprint": loaded.bundle.fingerprint[:12]}
        event(log, logging.INFO, "the model was switched", seconds=seconds, calls=old.users, **fields)
        self._retiring = asyncio.create_task(_retire(old))
        return old.loaded.bundle.fingerprint, loaded

    async def _switch(self, old: Loaded, expected_fingerprint: str) -> Loaded:
        """Puts the model of the bundle's folder in the place of `old`'s."""
        model, closing = await self._open_model(expected_fingerprint)
        async with closing:
            self._current()  # raises, if the server has begun to close meanwhile
            loaded = _loaded(model, old.galleries, old.upkeep)
            self._generation = Generation(loaded, closing.pop_all())
        return loaded

    async def _open_model(self, expected_fingerprint: str = "") -> tuple[Model, AsyncExitStack]:
        """The model of the bundle's folder, warmed up, and what frees it.

        When the server begins to shut down meanwhile it raises UnavailableError at the next opportunity: a stopped server
        waits for what still loads.
        """
        config = self.config
        # Where a link leads now: were it changed in between, one bundle would be checked and another one loaded.
        folder = config.bundle.resolve() if config.bundle.exists() else config.bundle
        bundle = await asyncio.to_thread(open_bundle, folder, allow_unverified=config.allow_unverified)
        if not bundle.fingerprint.startswith(expected_fingerprint):
            raise FailedPreconditionError(
                f"{config.bundle} holds the bundle {bundle.fingerprint[:12]}, not {expected_fingerprint}",
                reason="OTHER_BUNDLE",
                metadata={"fingerprint": bundle.fingerprint},
            )
        self._check_going_on()
        size, manifest = bundle.manifest.input, bundle.manifest
        async with AsyncExitStack() as closing:
            sized = await asyncio.to_thread(open_sized, bundle, config)
            closing.callback(sized.stop)
            backend, max_batch = sized.backend, sized.max_batch
            shape = (size.snippet_length, size.height, size.width, 3)
            await asyncio.to_thread(warm_up, sized, shape, self._check_going_on)
            decoder = Decoder(size.height, size.width, config.limits, config.decode_threads or usable_cores())
            closing.callback(decoder.close)
            await warm_up_decoding(size.height, size.width)
            watched = WatchedBackend(backend, self._metrics)
            closing.callback(watched.close)
            batcher = await closing.enter_async_context(
                Batcher(
                    watched,
                    max_batch=max_batch,
                    max_wait=config.batching.max_wait_ms / 1000,
                    max_admitted=config.batching.max_queued_snippets,
                    workers=sized.workers,
                    bulk_share=config.batching.bulk_share,
                    watchdog=config.batching.watchdog_seconds,
                    on_health=self._note_encoder,
                )
            )
            encoder = TrackletEncoder(
                decoder, batcher, snippet_length=size.snippet_length, max_frames=config.limits.max_frames
            )
            space = ModelSpace(bundle.fingerprint, manifest.descriptor_dim, manifest.metric)
            return Model(bundle, backend, encoder, space, max_batch), closing.pop_all()


def _loaded(model: Model, galleries: Galleries, upkeep: Upkeep) -> Loaded:
    return Loaded(
        model.bundle, model.backend, model.encoder, model.space, model.max_batch, galleries, upkeep, time.time()
    )


async def _retire(old: Generation) -> None:
    start = time.monotonic()
    await old.retire()
    seconds = f"{time.monotonic() - start:.2f}"
    event(
        log,
        logging.INFO,
        "the model before was closed",
        fingerprint=old.loaded.bundle.fingerprint[:12],
        seconds=seconds,
    )


async def _in(threads: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    """Runs `function` in one of `threads`, as part of the running call."""
    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, function)


def check_fingerprint(fingerprint: str, gallery: GalleryRecord, whose: str) -> None:
    """Raises FailedPreconditionError (MODEL_MISMATCH) unless the gallery was made by the model `fingerprint`."""
    if fingerprint != gallery.space.fingerprint:
        raise FailedPreconditionError(
            f"the gallery was filled by the model {gallery.space.fingerprint[:12]}, {whose} {fingerprint[:12]}: "
            "descriptors of two models cannot be compared; serve the gallery's bundle, or fill it anew with "
            "`passerby gallery reindex`",
            reason="MODEL_MISMATCH",
            metadata={"gallery_fingerprint": gallery.space.fingerprint, "fingerprint": fingerprint},
        )


def warm_up(sized: Sized, shape: tuple[int, ...], check: Callable[[], None]) -> None:
    """Runs every batch size that the batcher makes, and as many full batches at the same time as it lets compute, so that no
    caller waits for the first run. Raises what `check`, which is called before each of them, raises."""
    sizes = warm_up_sizes(sized.max_batch)
    start = time.perf_counter()
    for size in sizes:
        check()
        sized.backend.encode(np.zeros((size, *shape), dtype=np.uint8))
    if sized.workers > 1:
        check()
        full = np.zeros((sized.max_batch, *shape), dtype=np.uint8)
        with ThreadPoolExecutor(sized.workers + 1) as pool:  # whoever is first computes as if alone
            list(pool.map(sized.backend.encode, [full] * (sized.workers + 1)))
    event(log, logging.INFO, "warmed up", batches=len(sizes), seconds=f"{time.perf_counter() - start:.2f}")


def deadline_of(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """The caller's deadline on the event loop's clock, None without one."""
    remaining = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining
