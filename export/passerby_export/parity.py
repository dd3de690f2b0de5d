"""The parity gate: an encoder is compared with the model that it was made from, by the code that will serve it.

Reported failures elsewhere that it is here to stop: a batched graph that gives other descriptors than single images,
a graph that only runs at the batch it was traced with, reduced precision that quietly changes the ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError
from passerby_model import preprocess
from passerby_model.backends import Backend, BackendName, Encoded, EncoderFormat, open_encoder
from passerby_model.bundle import Input, Parity, ParityRow

BATCHES = (1, 2, 3, 8)
FRAME_KINDS = ("noise", "smooth")
_GRID = (16, 8)  # smooth frames: so many random colours, blurred over the whole frame
_DARK = 12  # brightest pixel of the nearly dark snippet
_DRIFT = 6  # pixels that a smooth frame moves against the one before

Reference = Callable[[NDArray[np.uint8]], Encoded]
"""The model itself: uint8 (B, N, H, W, 3) RGB -> descriptors float32 (B, D) and masks float32 (B, N, h, w)."""


@dataclass(frozen=True)
class Limits:
    """What one comparison may differ by: max relative L2, min cosine, max absolute difference of a mask."""

    relative_l2: float
    cosine: float
    mask_error: float


# Why these: fp32 runs the same arithmetic in another order, over about sixty layers (measured: below 1e-5); it is held
# a tenfold above that. Stored fp16 rounds each weight by 2^-12 at most, int8 ("w8") by 1/254 of its channel's largest.
# Measured on SE-ResNet50 at 128 x 64, relative L2: fp16 3e-4 trained without COSAM, 2e-4 with COSAM_4,5 of random
# weights; w8 2e-2 trained without COSAM, 4e-2 in the sample bundle (COSAM_4,5, trained; cosine 0.9994, masks 2e-2), where
# the nearly dark snippet is the worst and all others stay at 5e-3. fp16 is held well above, w8 just above what it needs.
LIMITS = {
    "fp32": Limits(relative_l2=1e-4, cosine=0.999999, mask_error=1e-4),
    "fp16": Limits(relative_l2=1e-2, cosine=0.9999, mask_error=1e-2),
    "w8": Limits(relative_l2=5e-2, cosine=0.999, mask_error=5e-2),
}


def sample_snippets(count: int, input: Input, kind: str, *, seed: int = 0) -> NDArray[np.uint8]:
    """Snippets to compare on: uint8 (count, N, H, W, 3).

    `noise` is independent in every pixel, which excites every filter. `smooth` is like pictures: blurred colours that
    drift from frame to frame; its first snippet is nearly dark, as at night. Wholly black frames are left out: in
    networks with instance normalisation they amplify the last bit (measured: 1e-3 on one), which proves nothing.
    """
    random = np.random.default_rng([seed, FRAME_KINDS.index(kind)])
    shape = (count, input.snippet_length, input.height, input.width, 3)
    if kind == "noise":
        return random.integers(0, 256, shape, dtype=np.uint8)
    snippets = np.zeros(shape, np.uint8)
    for number, snippet in enumerate(snippets):
        colours = random.integers(0, 256 if number else _DARK, (*_GRID, 3), dtype=np.uint8)
        picture = preprocess.resize(colours, input.height, input.width)
        for n, frame in enumerate(snippet):
            frame[...] = np.roll(picture, _DRIFT * n, axis=1)
    return snippets


def compare(
    backend: Backend,
    reference: Reference,
    input: Input,
    limits: Limits,
    *,
    batches: Iterable[int] = BATCHES,
) -> list[ParityRow]:
    """One row for each kind of frames and batch size; the reference sees one snippet at a time."""
    rows = []
    for kind in FRAME_KINDS:
        snippets = sample_snippets(max(batches), input, kind)
        expected = _one_by_one(reference, snippets)
        first = 0
        for batch in batches:
            # Each batch takes other snippets in another place: rows that depend on their neighbours are caught.
            chosen = (first + np.arange(batch)) % len(snippets)
            first += batch
            actual = backend.encode(snippets[chosen])
            rows.append(_row(backend.name, kind, actual, _pick(expected, chosen), limits))
    return rows


def check_encoder(
    path: Path,
    format: EncoderFormat,
    runtimes: Iterable[BackendName],
    reference: Reference,
    input: Input,
    limits: Limits,
    *,
    described: str,
    batches: Iterable[int] = BATCHES,
) -> Parity:
    """The parity report of the encoder file at `path`, on each of `runtimes`. `described`: what the reference is.

    Raises:
        FailedPreconditionError: a runtime cannot load or run the encoder, at any of the batch sizes.
    """
    rows: list[ParityRow] = []
    cached = _Cached(reference)
    for runtime in runtimes:
        backend = open_encoder(path, format, runtime)
        rows += compare(backend, cached, input, limits, batches=tuple(batches))
    return Parity(reference=described, rows=tuple(rows), passed=all(row.passed for row in rows))


class _Cached:
    """Remembers the reference's answers: every runtime is compared on the same snippets, the reference is slow."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._answers: dict[bytes, Encoded] = {}

    def __call__(self, snippets: NDArray[np.uint8]) -> Encoded:
        key = snippets.tobytes()
        if key not in self._answers:
            self._answers[key] = self._reference(snippets)
        return self._answers[key]


def _one_by_one(reference: Reference, snippets: NDArray[np.uint8]) -> Encoded:
    answers = [reference(snippet[None]) for snippet in snippets]
    encoded = Encoded(
        np.concatenate([answer.descriptors for answer in answers]),
        {block: np.concatenate([answer.masks[block] for answer in answers]) for block in answers[0].masks},
    )
    if not np.isfinite(encoded.descriptors).all():
        raise FailedPreconditionError(
            "the model itself gives descriptors that are not finite: nothing can be proven equal to it",
            reason="MODEL_NOT_FINITE",
        )
    return encoded


def _pick(encoded: Encoded, rows: NDArray[np.int64]) -> Encoded:
    return Encoded(encoded.descriptors[rows], {block: mask[rows] for block, mask in encoded.masks.items()})


def _row(runtime: str, kind: str, actual: Encoded, expected: Encoded, limits: Limits) -> ParityRow:
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
    cosine = float(cosines.min())
    errors = [float(np.abs(actual.masks[block] - expected.masks[block]).max()) for block in expected.masks]
    mask_error = max(errors) if errors else None
    row = ParityRow(
        runtime=runtime,
        snippets=len(a),
        frames=kind,
        relative_l2=relative_l2,
        cosine=cosine,
        mask_error=mask_error,
        max_relative_l2=limits.relative_l2,
        min_cosine=limits.cosine,
        max_mask_error=limits.mask_error if errors else None,
        passed=True,
    )
    return row.model_copy(update={"passed": row.within_limits})
