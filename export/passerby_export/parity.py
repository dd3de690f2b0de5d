"""The parity gate: an encoder is compared with the network that it was made from, by the code that will serve it.

Reported failures elsewhere that it is here to stop: a batched graph that gives other descriptors than single images,
a graph that only runs at the batch it was traced with, reduced precision that quietly changes the ranking.

    samples -> the network, one snippet at a time -> Trial -+
                                                            +-> a row for each runtime, kind of frames and batch size
    samples -> the encoder, batches of every size ----------+
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError, InternalError
from passerby_model.backends import Backend, Encoded, default_max_batch, open_encoder
from passerby_model.bundle import Artefact, Input, Metric, Parity, ParityRow, RankingRow
from passerby_model.metrics import RankingResult, cosine_distance, evaluate, squared_euclidean

from .samples import DRAWN, SYNTHETIC, Tracklets, drawn_snippets, sample_snippets

log = logging.getLogger(__name__)

FEW = 3  # of the smallest batch sizes, and the largest
ROUNDED = "(rounded to float16)"
"""In a row of the report: computed on a CPU as a GPU does, see `half.py`."""

Row = TypeVar("Row", ParityRow, RankingRow)
Reference = Callable[[NDArray[np.uint8]], Encoded]
"""The network itself: uint8 (B, N, H, W, 3) RGB -> descriptors, masks and cost volumes as `Encoded` has them."""


@dataclass(frozen=True)
class Limits:
    """What one comparison may differ by: max relative L2, min cosine, max absolute difference of a mask and of a cost
    volume; and what a ranking may lose of rank-1 and mAP, as shares of 1. A set of few queries cannot show so little:
    one query may always lose its first place to the second (1 / queries of rank-1, half of that of mAP)."""

    relative_l2: float
    cosine: float
    mask_error: float
    cost_volume_error: float
    ranking_loss: float


# Why these: fp32 runs the same arithmetic in another order, over about sixty layers (measured: below 1e-5); it is held
# a tenfold above that. fp16 rounds each weight by 2^-12 at most, on a GPU each activation, too (measured on the sample
# network and WARD: relative L2 1e-3, cosine 0.9999995, masks 1e-3). Stored int8 ("w8") rounds by 1/254 of its channel's
# largest (measured on the sample network: cosine 0.99935, masks 0.02). bf16 rounds every weight and every activation by 2^-9
# (measured there: 0.99998, masks 0.01); at 0.9999 the angle is 0.8 degrees, a hundredth of that between two people.
# int8 rounds both by 1/254 of the largest seen in calibration (measured: 0.998 on people, 0.992 on pictures unlike
# them, masks 0.16). The cost volume is made of correlations in [-1, 1] of features that are off by as much.
# Rankings: half a point shows in no use; a third of it is the line, which fp32 must not even approach.
LIMITS = {
    "fp32": Limits(1e-4, 0.999999, 1e-4, 1e-3, 0.0005),
    "fp16": Limits(1e-2, 0.9999, 1e-2, 5e-2, 0.003),
    "w8": Limits(5e-2, 0.999, 5e-2, 2e-1, 0.003),
    "bf16": Limits(1.5e-2, 0.9999, 5e-2, 1e-1, 0.003),
    "int8": Limits(1.5e-1, 0.99, 2.5e-1, 5e-1, 0.003),
}


@dataclass(frozen=True)
class Trial:
    """Snippets and what the network makes of each, alone. `frames` is what they are called in a row."""

    frames: str
    snippets: NDArray[np.uint8]
    expected: Encoded


@dataclass(frozen=True)
class Proof:
    """What an artefact has to pass; `described` says what it is compared with."""

    described: str
    input: Input
    trials: Sequence[Trial]
    ranking: RankingTrial | None = None


@dataclass(frozen=True)
class RankingTrial:
    """Tracklets and the network's descriptor of each, float32 (T, D)."""

    tracklets: Tracklets
    metric: Metric
    expected: NDArray[np.float32]


def all_batches(input: Input) -> tuple[int, ...]:
    """Every batch size that a server makes: 1 to `default_max_batch`."""
    return tuple(range(1, default_max_batch(input.snippet_length) + 1))


def make_samples(input: Input, tracklets: Tracklets | None = None) -> dict[str, NDArray[np.uint8]]:
    """What to compare on, by name, most real first: `tracklets`, drawn people, made-up frames; of each as many
    snippets as the largest batch."""
    count = max(all_batches(input))
    samples: dict[str, NDArray[np.uint8]] = {}
    if tracklets is not None:
        # Under a name of its own, for `write_reference` keeps what is called like made-up frames.
        name = f"data set {tracklets.name}" if tracklets.name in (DRAWN, *SYNTHETIC) else tracklets.name
        samples[name] = tracklets.snippets[:: max(1, len(tracklets.snippets) // count)][:count]
    if (drawn := drawn_snippets(count, input)) is not None:
        samples[DRAWN] = drawn
    return samples | {kind: sample_snippets(count, input, kind) for kind in SYNTHETIC}


def make_trials(reference: Reference, samples: Mapping[str, NDArray[np.uint8]]) -> list[Trial]:
    """The samples with the network's answers, one snippet at a time.

    Raises:
        FailedPreconditionError: the network's own descriptors are not finite.
    """
    return [Trial(frames, snippets, _one_by_one(reference, snippets)) for frames, snippets in samples.items()]


def make_ranking_trial(reference: Reference, tracklets: Tracklets, metric: Metric) -> RankingTrial:
    """The tracklets with the network's descriptors."""
    return RankingTrial(tracklets, metric, _descriptors(reference, tracklets, 1))


def prove(
    folder: Path, artefact: Artefact, proof: Proof, limits: Limits | None = None, *, rounded: Backend | None = None
) -> Artefact:
    """The artefact in `folder` with its parity report, on each runtime that it is for.

    Args:
        limits: by default those of its precision.
        rounded: the encoder as a GPU computes it (`half.open_rounded`), which has to be within the same limits.

    Raises:
        FailedPreconditionError: a runtime cannot load the encoder, or it gives other outputs than the network; or what
            runs between its layers is beyond the range of float16.
        InternalError: a runtime fails at one of the batch sizes.
    """
    limits = limits or LIMITS[artefact.precision]
    batches = all_batches(proof.input)
    rows: list[ParityRow] = []
    ranking: list[RankingRow] = []
    for runtime in artefact.runtimes:
        log.info("comparing %s on %s", artefact.file, runtime)
        backend = open_encoder(folder / artefact.file, artefact.format, runtime, precision=artefact.precision)
        rows += compare(backend, proof.trials, limits, batches)
        if proof.ranking is not None:
            ranking += compare_rankings(backend, proof.ranking, limits, batches[-1])
    if rounded is not None:
        log.info("comparing %s with its values rounded as on a GPU", artefact.file)
        try:
            rows += _marked(compare(rounded, proof.trials, limits, sorted({batches[0], batches[-1]})), "frames")
            if proof.ranking is not None:
                ranking += _marked(compare_rankings(rounded, proof.ranking, limits, batches[-1]), "data")
        except InternalError as error:
            raise FailedPreconditionError(
                f"{artefact.file} cannot be computed in float16, as a GPU would: {error.message}; leave fp16 out",
                reason="PARITY_FAILED",
            ) from error
    passed = all(row.passed for row in rows) and all(row.passed for row in ranking)
    parity = Parity(reference=proof.described, rows=tuple(rows), ranking=tuple(ranking), passed=passed)
    return artefact.model_copy(update={"parity": parity})


def _marked(rows: Sequence[Row], key: str) -> list[Row]:
    """The rows, with `ROUNDED` after their `key`."""
    return [row.model_copy(update={key: f"{getattr(row, key)} {ROUNDED}"}) for row in rows]


def compare(backend: Backend, trials: Sequence[Trial], limits: Limits, batches: Sequence[int]) -> list[ParityRow]:
    """A row for every batch size on the first trial, and for a few of them on the others: a fault in the handling of a
    size does not depend on what is in the frames."""
    few = sorted({*batches[:FEW], batches[-1]})
    rows = []
    for number, trial in enumerate(trials):
        first = 0
        for batch in few if number else batches:
            # Each batch takes other snippets in another place: rows that depend on their neighbours are caught.
            chosen = (first + np.arange(batch)) % len(trial.snippets)
            first += batch
            actual = backend.encode(trial.snippets[chosen])
            rows.append(_row(backend.name, trial.frames, actual, _pick(trial.expected, chosen), limits))
    return rows


def compare_rankings(backend: Backend, trial: RankingTrial, limits: Limits, batch: int) -> list[RankingRow]:
    """Two rows: queries against a gallery of the encoder's own descriptors, and of the network's.

    Every tracklet is searched for among all others; those of its identity and camera do not count.

    Raises:
        InvalidArgumentError: no tracklet has a match in another camera.
    """
    return _ranking_rows(backend.name, _descriptors(backend.encode, trial.tracklets, batch), trial, limits)


def lost_rankings(
    describe: Callable[[NDArray[np.uint8]], NDArray[np.float32]], trial: RankingTrial, limits: Limits
) -> str:
    """What an encoder that is being quantised would lose beyond `limits`, row by row; "" for nothing.

    Args:
        describe: uint8 (S, N, H, W, 3) -> float32 (S, D).
    """
    found = _descriptors(lambda snippets: Encoded(describe(snippets)), trial.tracklets, 1)
    return "; ".join(row.describe() for row in _ranking_rows("int8", found, trial, limits) if not row.passed)


def _ranking_rows(runtime: str, found: NDArray[np.float32], trial: RankingTrial, limits: Limits) -> list[RankingRow]:
    """The rows for descriptors of the trial's tracklets, float32 (T, D)."""
    network = _rank(trial.expected, trial.expected, trial)
    rows = []
    galleries: dict[Literal["own", "network"], NDArray[np.float32]] = {"own": found, "network": trial.expected}
    for gallery, descriptors in galleries.items():
        result = _rank(found, descriptors, trial)
        row = RankingRow(
            runtime=runtime,
            data=trial.tracklets.name,
            queries=result.valid_queries,
            gallery=gallery,
            rank1=float(result.cmc[0]),
            network_rank1=float(network.cmc[0]),
            mean_average_precision=result.mean_average_precision,
            network_mean_average_precision=network.mean_average_precision,
            max_rank1_loss=max(limits.ranking_loss, 1 / result.valid_queries),
            max_map_loss=max(limits.ranking_loss, 0.5 / result.valid_queries),
            passed=True,
        )
        rows.append(row.model_copy(update={"passed": row.within_limits}))
    return rows


def _rank(query: NDArray[np.float32], gallery: NDArray[np.float32], trial: RankingTrial) -> RankingResult:
    distance = cosine_distance if trial.metric == "cosine" else squared_euclidean
    identities, cameras = trial.tracklets.identities, trial.tracklets.cameras
    return evaluate(distance(query, gallery), identities, identities, cameras, cameras)


def _descriptors(encode: Reference, tracklets: Tracklets, batch: int) -> NDArray[np.float32]:
    """Mean descriptor of each tracklet, float32 (T, D)."""
    starts = range(0, len(tracklets.snippets), batch)
    rows = np.concatenate([encode(tracklets.snippets[start : start + batch]).descriptors for start in starts])
    firsts = np.flatnonzero(np.diff(tracklets.owner, prepend=-1))
    sums = np.add.reduceat(rows.astype(np.float64), firsts, axis=0)
    means: NDArray[np.float32] = (sums / np.bincount(tracklets.owner)[:, None]).astype(np.float32)
    return means


def _one_by_one(reference: Reference, snippets: NDArray[np.uint8]) -> Encoded:
    answers = [reference(snippet[None]) for snippet in snippets]
    first = answers[0]
    encoded = Encoded(
        np.concatenate([answer.descriptors for answer in answers]),
        {block: np.concatenate([answer.masks[block] for answer in answers]) for block in first.masks},
        {block: np.concatenate([answer.cost_volumes[block] for answer in answers]) for block in first.cost_volumes},
    )
    if not np.isfinite(encoded.descriptors).all():
        raise FailedPreconditionError(
            "the model itself gives descriptors that are not finite: nothing can be proven equal to it",
            reason="MODEL_NOT_FINITE",
        )
    return encoded


def _pick(encoded: Encoded, rows: NDArray[np.int64]) -> Encoded:
    return Encoded(
        encoded.descriptors[rows],
        {block: mask[rows] for block, mask in encoded.masks.items()},
        {block: volume[rows] for block, volume in encoded.cost_volumes.items()},
    )


def _row(runtime: str, frames: str, actual: Encoded, expected: Encoded, limits: Limits) -> ParityRow:
    a, e = actual.descriptors.astype(np.float64), expected.descriptors.astype(np.float64)
    if a.shape != e.shape or actual.masks.keys() != expected.masks.keys():
        raise FailedPreconditionError(
            f"{runtime} gives descriptors {a.shape} and masks of blocks {sorted(actual.masks)}, "
            f"the model {e.shape} and {sorted(expected.masks)}",
            reason="PARITY_FAILED",
        )
    tiny = np.finfo(np.float64).tiny
    length_a, length_e = np.linalg.norm(a, axis=1), np.linalg.norm(e, axis=1)
    relative_l2 = float((np.linalg.norm(a - e, axis=1) / np.maximum(length_e, tiny)).max())
    # Two zero descriptors are the same one.
    cosines = np.where((length_a == 0) & (length_e == 0), 1.0, (a * e).sum(1) / np.maximum(length_a * length_e, tiny))
    mask_error = _largest_difference(actual.masks, expected.masks)
    volume_error = _largest_difference(actual.cost_volumes, expected.cost_volumes)
    row = ParityRow(
        runtime=runtime,
        snippets=len(a),
        frames=frames,
        relative_l2=relative_l2,
        cosine=float(cosines.min()),
        mask_error=mask_error,
        cost_volume_error=volume_error,
        max_relative_l2=limits.relative_l2,
        min_cosine=limits.cosine,
        max_mask_error=None if mask_error is None else limits.mask_error,
        max_cost_volume_error=None if volume_error is None else limits.cost_volume_error,
        passed=True,
    )
    return row.model_copy(update={"passed": row.within_limits})


def _largest_difference(
    actual: Mapping[int, NDArray[np.float32]], expected: Mapping[int, NDArray[np.float32]]
) -> float | None:
    """Over the blocks that both have: an encoder gives cost volumes on demand only, the network always."""
    errors = [float(np.abs(actual[block] - expected[block]).max()) for block in actual if block in expected]
    return float(np.max(errors)) if errors else None  # Python's max passes over what is not a number
