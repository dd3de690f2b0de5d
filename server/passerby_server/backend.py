"""Which encoder the server runs, and with how many threads, streams and snippets a batch.

What the configuration says wins; then what `passerby bundle tune` found out for exactly this encoder on this machine;
then the defaults.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from passerby_model.backends import (
    Backend,
    BackendName,
    Options,
    default_max_batch,
    first_that_opens,
    open_artefact,
)
from passerby_model.backends.choice import candidates
from passerby_model.backends.tuning import find_tuning
from passerby_model.bundle import Artefact, Bundle

from passerby_server.config import ServerConfig
from passerby_server.logs import event

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sized:
    """A loaded encoder; `workers` batches of at most `max_batch` snippets compute at the same time."""

    backend: Backend
    workers: int
    max_batch: int


def open_sized(bundle: Bundle, config: ServerConfig) -> Sized:
    """The encoder that `config` asks for. Raises the errors of `passerby_model.backends.open_backend`."""
    found = candidates(bundle, config.backend, config.precision)
    return first_that_opens(found, lambda artefact, runtime: _open(bundle, config, artefact, runtime))


def _open(bundle: Bundle, config: ServerConfig, artefact: Artefact, runtime: BackendName) -> Sized:
    threads, workers = config.threads, config.batching.workers
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
    kept = folder if config.cache.compiled else None
    backend = open_artefact(bundle, artefact, runtime, Options(threads, workers, cache=kept))
    return Sized(backend, workers, max_batch)
