"""`passerby bundle verify`: is this bundle whole, and does its encoder behave on this machine?"""

from __future__ import annotations

import logging
from pathlib import Path

from passerby.errors import FailedPreconditionError
from passerby_model.backends import Backend, BackendName, open_backend
from passerby_model.bundle import Bundle, Parity, open_bundle

from .parity import LIMITS, compare

log = logging.getLogger(__name__)

_RUNTIMES: tuple[BackendName, ...] = ("openvino", "onnxruntime")


def verify(path: Path) -> Parity:
    """Checks files, fingerprint and the stored parity report; then runs the encoder on every runtime installed here.

    The first runtime, one snippet at a time, is what the others and all batches (1, 2, 3, 8) are compared with, to the
    limits of fp32: whatever a file's precision, runtimes have to agree on what it computes.

    Returns:
        That comparison.

    Raises:
        The errors of `open_bundle`; FailedPreconditionError when no runtime here loads the encoder, or they disagree.
    """
    bundle = open_bundle(path)
    backends = _load(bundle)
    first = backends[0]
    rows = [
        row for backend in backends for row in compare(backend, first.encode, bundle.manifest.input, LIMITS["fp32"])
    ]
    report = Parity(
        reference=f"itself, one snippet at a time on {first.name}",
        rows=tuple(rows),
        passed=all(row.passed for row in rows),
    )
    if not report.passed:
        raise FailedPreconditionError(
            f"{path} does not compute the same everywhere on this machine: " + "; ".join(report.failures()),
            reason="BUNDLE_UNSTABLE",
        )
    return report


def _load(bundle: Bundle) -> list[Backend]:
    backends: list[Backend] = []
    problems = []
    for runtime in _RUNTIMES:
        try:
            backends.append(open_backend(bundle, runtime))
        except FailedPreconditionError as error:
            problems.append(error.message)
            if error.reason != "BACKEND_FORMAT":  # that one is how IRs are, not a finding
                log.warning("%s", error.message)
    if not backends:
        raise FailedPreconditionError(
            f"no runtime here can load {bundle.root}: {'; '.join(problems)}", reason="BACKEND_LOAD"
        )
    return backends
