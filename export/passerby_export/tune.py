"""`passerby bundle tune`: threads, streams and batch size for an encoder on this machine, measured.

    every setting, a call after the other --> the best by median --> it and the default, in turn, anew --> one of them

The first part compares many settings and so favours a lucky one; the second starts from nothing, and the default stays
unless the other is faster by more than the noise of its own rounds. Whatever else runs on the machine meets both alike.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError
from passerby_model.backends import (
    Backend,
    BackendKind,
    BackendName,
    Options,
    PrecisionKind,
    default_max_batch,
    default_streams,
    first_that_opens,
    open_artefact,
)
from passerby_model.backends.base import GPU_RUNTIMES
from passerby_model.backends.choice import candidates
from passerby_model.backends.cores import usable_cores
from passerby_model.backends.tuning import Measured, Setting, Tuning, tuning_key
from passerby_model.bundle import Artefact, Bundle, open_bundle

from .samples import sample_snippets

log = logging.getLogger(__name__)

STREAMS = (1, 2, 4, 8)
"""More divide the cores so finely that a batch takes long."""
LEAST_GAIN = 0.03
"""A setting that is faster by less than this is not worth another behaviour under load."""
HOPELESS = 0.85
"""Settings slower than this share of the best one are measured no further."""
FEWEST_ROUNDS = 3
FEWEST_PAIRS = 7


@dataclass(frozen=True)
class Verdict:
    """Throughput of a setting divided by that of the default: median over pairs of rounds, and by how much it has to
    exceed 1 for the setting to be taken."""

    gain: float
    noise: float

    @property
    def better(self) -> bool:
        return self.gain > 1 + self.noise


@dataclass
class _Runner:
    """A setting with its encoder, and what was measured so far."""

    setting: Setting
    backend: Backend
    rates: list[float] = field(default_factory=list)
    lone: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def run(self, snippets: NDArray[np.uint8], pool: ThreadPoolExecutor) -> float:
        """One round over `snippets`, as the server's batcher would cut them; snippets a second."""
        cut = range(0, len(snippets), self.setting.max_batch)
        batches = [snippets[start : start + self.setting.max_batch] for start in cut]
        mine = [batches[number :: self.setting.streams] for number in range(self.setting.streams)]
        start = time.perf_counter()
        list(pool.map(lambda part: [self.backend.encode(batch) for batch in part], mine))
        elapsed = time.perf_counter() - start
        once = time.perf_counter()
        self.backend.encode(snippets[:1])
        self.lone.append(time.perf_counter() - once)
        self.rates.append(len(snippets) / elapsed)
        return self.rates[-1]

    def measured(self) -> Measured:
        return Measured(
            setting=self.setting,
            snippets_per_second=round(self.rate, 3),
            lone_seconds=round(statistics.median(self.lone), 5),
            rounds=len(self.rates),
        )


def tune(
    path: Path,
    *,
    backend: BackendKind = "auto",
    precision: PrecisionKind = "auto",
    threads: int = 0,
    seconds: float = 60.0,
) -> Tuning:
    """Measures settings for the encoder that a server told the same would run.

    Args:
        backend, precision: as the server is told.
        threads: CPU threads that may be used, as the server is told; 0 for all cores.
        seconds: about how long to measure; a few rounds are made however long they take.

    Raises:
        InvalidArgumentError: `backend` is one of a GPU.
        The errors of `open_bundle` and `open_backend`.
    """
    if backend in GPU_RUNTIMES:
        raise InvalidArgumentError(
            f"there is nothing to tune for {backend}: one batch computes at a time, in one of a few sizes that are fixed"
        )
    bundle = open_bundle(path)
    found = candidates(bundle, backend, precision)
    artefact, runtime = first_that_opens(found, lambda a, r: (open_artefact(bundle, a, r, Options(threads)), (a, r)))[1]
    max_batch = default_max_batch(bundle.manifest.input.snippet_length)
    settings = settings_for(threads, max_batch, default_streams(runtime, threads))
    log.info("%d settings of %s on %s", len(settings), artefact.file, runtime)
    runners = _runners(bundle, artefact, runtime, settings)
    largest = max(setting.max_batch * setting.streams for setting in settings)
    snippets = sample_snippets(largest, bundle.manifest.input, "smooth")
    with ThreadPoolExecutor(max(setting.streams for setting in settings)) as pool:
        for runner in runners:
            runner.run(snippets, pool)  # runtimes prepare themselves for a new batch size
            runner.rates.clear()
            runner.lone.clear()
        every = list(runners)
        best = _race(runners, snippets, pool, seconds / 2)
        verdict = Verdict(1.0, LEAST_GAIN)
        if best is not every[0]:
            verdict = _confirm(every[0], best, snippets, pool, seconds / 2)
    chosen = best if verdict.better else every[0]
    return Tuning(
        key=tuning_key(bundle, artefact, runtime, threads),
        chosen=chosen.setting,
        default=every[0].setting,
        gain=round(verdict.gain, 4) if verdict.better else 1.0,
        noise=round(verdict.noise, 4),
        measured=tuple(runner.measured() for runner in every),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def settings_for(threads: int, max_batch: int, streams: int) -> list[Setting]:
    """The settings to measure, the default (`streams` streams, all threads, `max_batch`) first.

    Threads: those allowed, and half of all cores where there are four or more, since two of them are often one core's.
    Batches: `max_batch`, which is the largest that the parity report covers, its half and its quarter.
    """
    cores = threads or usable_cores()
    counts = [cores] if threads or cores < 4 else [cores, cores // 2]
    batches = [max_batch, *sorted({max(1, max_batch // 2), max(1, max_batch // 4)} - {max_batch}, reverse=True)]
    found = [
        Setting(streams=number, threads=count, max_batch=batch)
        for count in counts
        for number in STREAMS
        if number <= count
        for batch in batches
    ]
    default = Setting(streams=streams, threads=cores, max_batch=max_batch)
    return [default, *(setting for setting in found if setting != default)]


def verdict_of(pairs: Sequence[tuple[float, float]]) -> Verdict:
    """What pairs of (rate of the setting, rate of the default), each measured one right after the other, say.

    The noise is twice the standard error of the median gain (1.253 sigma / sqrt(n), sigma from the median absolute
    deviation), and LEAST_GAIN at least.
    """
    gains = [rate / default for rate, default in pairs]
    gain = statistics.median(gains)
    sigma = 1.4826 * statistics.median(abs(value - gain) for value in gains)
    return Verdict(gain, max(LEAST_GAIN, 2 * 1.253 * sigma / len(gains) ** 0.5))


def _runners(bundle: Bundle, artefact: Artefact, runtime: BackendName, settings: Sequence[Setting]) -> list[_Runner]:
    """One loaded encoder for each number of threads and streams; batch sizes share it."""
    loaded: dict[tuple[int, int], Backend] = {}
    for setting in settings:
        key = (setting.threads, setting.streams)
        if key not in loaded:
            loaded[key] = open_artefact(bundle, artefact, runtime, Options(*key))
    return [_Runner(setting, loaded[setting.threads, setting.streams]) for setting in settings]


def _race(runners: list[_Runner], snippets: NDArray[np.uint8], pool: ThreadPoolExecutor, seconds: float) -> _Runner:
    """Rounds over all, for about `seconds`; the one with the best median. The first, the default, is never dropped."""
    default, running = runners[0], list(runners)
    end = time.perf_counter() + seconds
    done = 0
    while done < FEWEST_ROUNDS or time.perf_counter() < end:
        for runner in running:
            runner.run(snippets, pool)
        done += 1
        most = max(runner.rate for runner in running)
        running = [runner for runner in running if runner is default or runner.rate >= HOPELESS * most]
        if running == [default]:
            break
    return max(running, key=lambda runner: runner.rate)


def _confirm(
    default: _Runner, other: _Runner, snippets: NDArray[np.uint8], pool: ThreadPoolExecutor, seconds: float
) -> Verdict:
    """The two in turn, for about `seconds`; who goes first alternates, so that a drift favours neither."""
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < FEWEST_PAIRS or time.perf_counter() < end:
        if len(pairs) % 2:
            base = default.run(snippets, pool)
            pairs.append((other.run(snippets, pool), base))
        else:
            rate = other.run(snippets, pool)
            pairs.append((rate, default.run(snippets, pool)))
    return verdict_of(pairs)
