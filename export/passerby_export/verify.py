"""`passerby bundle verify`: is this bundle whole, and does it compute here what the network computes?"""

from __future__ import annotations

import logging
from pathlib import Path

from passerby.errors import FailedPreconditionError
from passerby_model.backends import Backend, BackendKind, BackendName, PrecisionKind, open_artefact
from passerby_model.backends.choice import candidates, processor_has_bf16
from passerby_model.bundle import Artefact, Bundle, Parity, ParityRow, open_bundle

from .parity import LIMITS, Limits, Trial, all_batches, compare, make_samples, make_trials
from .reference import read_reference

log = logging.getLogger(__name__)

ABSENT = ("BACKEND_MISSING", "BACKEND_LOAD", "NCC_PRECISION")
"""Why an artefact cannot run here, which is no fault of the bundle."""


def verify(path: Path, backend: BackendKind = "auto", precision: PrecisionKind | None = None) -> Parity:
    """Checks files, fingerprint and the stored parity reports; then runs the gate again, on this machine.

    What the encoder has to give is in the bundle (`reference`); in a bundle without that, it is what the first
    artefact gives for one snippet at a time on the first runtime.

    Args:
        backend, precision: as the server is told; by default every artefact on every runtime that is installed.

    Returns:
        The comparison.

    Raises:
        The errors of `open_bundle` and `open_backend`; FailedPreconditionError when no runtime here loads the encoder
        (BACKEND_LOAD), or a row failed (BUNDLE_UNSTABLE, naming it).
    """
    bundle = open_bundle(path)
    loaded = _load(bundle, backend, precision)
    described, trials = trials_of(bundle, loaded[0][1])
    batches = all_batches(bundle.manifest.input)
    rows: list[ParityRow] = []
    for artefact, encoder in loaded:
        found = compare(encoder, trials, limits_of(bundle, artefact), batches)
        rows += [row.model_copy(update={"frames": f"{row.frames}, {artefact.precision}"}) for row in found]
    report = Parity(reference=described, rows=tuple(rows), passed=all(row.passed for row in rows))
    if not report.passed:
        raise FailedPreconditionError(
            f"{path} does not compute on this machine what it should: " + "; ".join(report.failures()),
            reason="BUNDLE_UNSTABLE",
        )
    return report


def limits_of(bundle: Bundle, artefact: Artefact) -> Limits:
    """What the artefact may differ by. Raises FailedPreconditionError for a precision that has no limits."""
    # A wrapped model has the weights of its original whatever they are stored in.
    precision = "fp32" if bundle.manifest.architecture.startswith("wrapped:") else artefact.precision
    if precision not in LIMITS:
        raise FailedPreconditionError(
            f"{bundle.root / artefact.file} is of precision {precision!r}, which this passerby has no limits for: "
            f"it knows {', '.join(LIMITS)}",
            reason="PRECISION_MISSING",
        )
    return LIMITS[precision]


def trials_of(bundle: Bundle, first: Backend) -> tuple[str, list[Trial]]:
    """What the bundle is compared with, in words, and the snippets; `first` answers where it has no reference."""
    name = bundle.manifest.reference
    if name is not None:
        described = bundle.manifest.parity.reference if bundle.manifest.parity else "the network"
        return described, read_reference(bundle.root / name)
    samples = make_samples(bundle.manifest.input)
    return f"itself, one snippet at a time on {first.name}", make_trials(first.encode, samples)


def _load(bundle: Bundle, backend: BackendKind, precision: PrecisionKind | None) -> list[tuple[Artefact, Backend]]:
    """What is asked for: what the server would run, or all that this machine can."""
    as_server = backend != "auto" or precision is not None
    loaded, problems = [], []
    for artefact, runtime in candidates(bundle, backend, precision or "auto") if as_server else _all(bundle):
        try:
            loaded.append((artefact, open_artefact(bundle, artefact, runtime)))
        except FailedPreconditionError as error:
            if error.reason not in ABSENT:
                raise
            problems.append(error.message)
            log.warning("not verified: %s", error.message)
        if loaded and as_server:  # which takes the first that loads
            break
    if not loaded:
        raise FailedPreconditionError(
            f"no runtime here can load {bundle.root}: {'; '.join(problems)}", reason="BACKEND_LOAD"
        )
    return loaded


def _all(bundle: Bundle) -> list[tuple[Artefact, BackendName]]:
    return [
        (artefact, runtime)
        for artefact in bundle.manifest.artefacts
        for runtime in sorted(artefact.runtimes, reverse=True)  # OpenVINO first, as the server has it
        if artefact.precision != "bf16" or processor_has_bf16()
    ]
