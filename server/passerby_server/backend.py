"""Which encoder the server runs, and with how many threads, streams and snippets a batch.

What the configuration says wins; then what `passerby bundle tune` found out for exactly this encoder on this machine;
then the defaults.

A GPU that was asked for and is not to be had yet (no engine, no proof) is prepared in the background, while the next
runtime serves; where it cannot be had at all, the next one serves for good. The log says which.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from passerby.errors import FailedPreconditionError
from passerby_model.backends import (
    Backend,
    BackendName,
    Options,
    default_max_batch,
    default_streams,
    first_that_opens,
    open_artefact,
)
from passerby_model.backends.base import GPU_RUNTIMES
from passerby_model.backends.buckets import buckets
from passerby_model.backends.choice import serving_order
from passerby_model.backends.opening_gpu import ENGINE_MISSING, PROOF_MISSING
from passerby_model.backends.standby import StandbyBackend
from passerby_model.backends.tuning import find_tuning
from passerby_model.bundle import Artefact, Bundle

from passerby_server.config import ServerConfig
from passerby_server.logs import event
from passerby_server.preparing import Preparation

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sized:
    """A loaded encoder; `workers` batches of at most `max_batch` snippets compute at the same time. `stop` ends what is
    still being prepared."""

    backend: Backend
    workers: int
    max_batch: int
    stop: Callable[[], None] = lambda: None


def open_sized(bundle: Bundle, config: ServerConfig) -> Sized:
    """The encoder that `config` asks for, or the next best while that is prepared. Raises the errors of
    `passerby_model.backends.open_backend`."""
    waiting: list[tuple[Artefact, BackendName]] = []

    def opener(artefact: Artefact, runtime: BackendName) -> Sized:
        try:
            return _open(bundle, config, artefact, runtime)
        except FailedPreconditionError as error:
            if runtime == config.backend and error.reason in (ENGINE_MISSING, PROOF_MISSING):
                waiting.append((artefact, runtime))
            raise

    sized = first_that_opens(serving_order(bundle, config.backend, config.precision), opener)
    if not waiting or config.cache.folder is None:
        return sized
    artefact, runtime = waiting[0]
    options = Options(cache=config.cache.folder, cuda_graphs=config.cuda_graphs)
    preparation = Preparation(bundle, artefact, runtime, options)

    def prepare() -> Backend:
        event(log, logging.INFO, "preparing in the background", runtime=runtime, artefact=artefact.file)
        preparation.run()
        made = _open(bundle, config, artefact, runtime).backend
        size = bundle.manifest.input
        for batch in buckets(sized.max_batch):
            made.encode(np.zeros((batch, size.snippet_length, size.height, size.width, 3), np.uint8))
        return made

    return replace(sized, backend=StandbyBackend(sized.backend, prepare), stop=preparation.stop)


def _open(bundle: Bundle, config: ServerConfig, artefact: Artefact, runtime: BackendName) -> Sized:
    threads = config.threads
    workers = config.batching.workers or default_streams(runtime, threads)
    max_batch = config.batching.max_snippets or default_max_batch(bundle.manifest.input.snippet_length)
    folder = config.cache.folder
    if folder is not None and config.cache.tuning:
        tuning = find_tuning(folder, bundle, artefact, runtime, config.threads)
        by_hand = {"workers", "max_snippets"} & config.batching.model_fields_set
        if tuning is not None and by_hand:
            event(log, logging.INFO, "tuning put aside, the configuration sets " + " and ".join(sorted(by_hand)))
        elif tuning is not None:
            threads, workers, max_batch = tuning.chosen.threads, tuning.chosen.streams, tuning.chosen.max_batch
            fields = {"threads": threads, "workers": workers, "max_snippets": max_batch, "gain": f"{tuning.gain:.2f}"}
            event(log, logging.INFO, "tuned for this machine", runtime=runtime, measured=tuning.created, **fields)
    kept = folder if config.cache.compiled or runtime in GPU_RUNTIMES else None
    options = Options(threads, workers, cache=kept, cuda_graphs=config.cuda_graphs)
    backend = open_artefact(bundle, artefact, runtime, options)
    return Sized(backend, workers, max_batch)
