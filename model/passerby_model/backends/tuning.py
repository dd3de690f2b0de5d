"""What `passerby bundle tune` found out for an encoder on a machine, and when it holds."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from passerby_model.backends.base import BackendName
from passerby_model.backends.cores import usable_cores
from passerby_model.backends.versions import runtime_version
from passerby_model.bundle import Artefact, Bundle
from passerby_model.machine import key_id, processor, read_record, write_record

log = logging.getLogger(__name__)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TuningKey(_Part):
    """Everything that a tuning depends on; it is used where all of it is the same."""

    fingerprint: str
    files: dict[str, str]
    """The artefact's files and their sha256."""
    runtime: str
    version: str
    """Of the runtime."""
    processor: str
    cores: int
    """That the process may use."""
    threads: int
    """That it was told to use; 0 for all cores."""


class Setting(_Part):
    """`streams` batches of at most `max_batch` snippets compute at the same time, on `threads` threads in all."""

    streams: int = Field(ge=1, le=64)
    threads: int = Field(ge=1, le=1024)
    max_batch: int = Field(ge=1, le=1024)


class Measured(_Part):
    """One setting: median throughput over `rounds` rounds, and the time of a lone call of one snippet, in seconds."""

    setting: Setting
    snippets_per_second: float
    lone_seconds: float
    rounds: int


class Tuning(_Part):
    """The setting `chosen`, and how it came about: `gain` is its throughput divided by that of `default`, 1.0 when that
    is what was chosen; `noise` is what the gain had to exceed 1 by."""

    key: TuningKey
    chosen: Setting
    default: Setting
    gain: float
    noise: float
    measured: tuple[Measured, ...]
    created: str
    """UTC, ISO 8601."""


def tuning_key(bundle: Bundle, artefact: Artefact, runtime: BackendName, threads: int) -> TuningKey:
    """The key of that artefact on that runtime, here. Raises ImportError when the runtime is not installed."""
    return TuningKey(
        fingerprint=bundle.fingerprint,
        files={name: bundle.manifest.files[name].sha256 for name in artefact.files},
        runtime=runtime,
        version=runtime_version(runtime),
        processor=processor(),
        cores=usable_cores(),
        threads=threads,
    )


def tuning_path(cache: Path, key: TuningKey) -> Path:
    """Where the tuning for `key` lies in the cache folder."""
    return cache / "tuning" / f"{key.fingerprint[:12]}-{key.runtime}-{key_id(key)}.json"


def save_tuning(cache: Path, tuning: Tuning) -> Path:
    """Writes it; returns the file. Raises OSError."""
    path = tuning_path(cache, tuning.key)
    write_record(path, tuning)
    return path


def find_tuning(cache: Path, bundle: Bundle, artefact: Artefact, runtime: BackendName, threads: int) -> Tuning | None:
    """The tuning that holds for that artefact on that runtime, here; None when there is none."""
    try:
        key = tuning_key(bundle, artefact, runtime, threads)
    except ImportError:  # opening the encoder says so
        return None
    path = tuning_path(cache, key)
    tuning = read_record(path, Tuning)
    if tuning is not None and tuning.key != key:
        log.warning("%s is ignored: it is for something else than its name says", path)
        return None
    return tuning
