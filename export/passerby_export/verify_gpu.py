"""`passerby bundle verify --backend tensorrt`: the parity gate on a GPU, whose report stays on the machine that it is about.

`passerby evaluate` opens encoders on a GPU here, too: what has no proof yet goes through the gate first.
"""

from __future__ import annotations

import logging
from pathlib import Path

from passerby.errors import FailedPreconditionError
from passerby_model.backends import Backend, BackendName, Options, PrecisionKind, open_artefact, open_backend
from passerby_model.backends.choice import candidates
from passerby_model.backends.opening_gpu import ENGINE_MISSING, PROOF_MISSING, open_on_gpu
from passerby_model.backends.proofs import save_proof
from passerby_model.bundle import Bundle, Parity, open_bundle

from .bundle import clear_errors
from .parity import all_batches, compare
from .verify import limits_of, trials_of

log = logging.getLogger(__name__)


def verify_on_gpu(
    path: Path, runtime: BackendName, precision: PrecisionKind, cache: Path, *, cuda_graphs: bool = False
) -> tuple[Parity, Path]:
    """Builds the engine where there is none, compares what it computes with the network at every batch size, and keeps
    the report in the cache folder, where a server that is told the same finds it.

    Returns:
        The comparison, and the file that it is in.

    Raises:
        The errors of `open_bundle` and `open_on_gpu`; FailedPreconditionError when a row failed (BUNDLE_UNSTABLE, naming
        it): nothing is kept then; ResourceExhaustedError when the cache folder's disk is full.
    """
    bundle = open_bundle(path)
    artefact = candidates(bundle, runtime, precision)[0][0]
    options = Options(cache=cache, build_engine=True, cuda_graphs=cuda_graphs)
    with clear_errors(cache):
        found = open_on_gpu(bundle, artefact, runtime, options, proven=False)
    described, trials = trials_of(bundle, open_backend(bundle) if bundle.manifest.reference is None else found.backend)
    rows = compare(found.backend, trials, limits_of(bundle, artefact), all_batches(bundle.manifest.input))
    report = Parity(reference=described, rows=tuple(rows), passed=all(row.passed for row in rows))
    if not report.passed:
        raise FailedPreconditionError(
            f"{path} does not compute on {runtime} what it should: " + "; ".join(report.failures()),
            reason="BUNDLE_UNSTABLE",
        )
    with clear_errors(cache):
        return report, save_proof(cache, found.key, report)


def open_proven(bundle: Bundle, runtime: BackendName, precision: PrecisionKind, cache: Path) -> Backend:
    """The encoder on a GPU as a server runs it, from the same cache folder; what a server would have prepared beside
    it (the engine, the proof) is made here first.

    Raises:
        The errors of `open_artefact` and `verify_on_gpu`: nothing else is taken instead.
    """
    artefact = candidates(bundle, runtime, precision)[0][0]
    options = Options(cache=cache)
    try:
        return open_artefact(bundle, artefact, runtime, options)
    except FailedPreconditionError as error:
        if error.reason not in (ENGINE_MISSING, PROOF_MISSING):
            raise
    log.info("preparing %s on %s and comparing it with the network", artefact.file, runtime)
    verify_on_gpu(bundle.root, runtime, precision, cache)
    return open_artefact(bundle, artefact, runtime, options)
