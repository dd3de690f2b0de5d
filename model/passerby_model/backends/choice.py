"""Which artefact of a bundle runs, and on which runtime."""

from __future__ import annotations

from typing import Literal

from passerby.errors import FailedPreconditionError

from passerby_model.backends.base import GPU_RUNTIMES, BackendKind, BackendName
from passerby_model.bundle import Artefact, Bundle

PrecisionKind = Literal["auto", "fp32", "fp16", "w8", "bf16", "int8"]
_CPU_RUNTIMES: tuple[BackendName, ...] = ("openvino", "onnxruntime")  # the faster one first


def candidates(bundle: Bundle, kind: BackendKind, precision: PrecisionKind) -> list[tuple[Artefact, BackendName]]:
    """Artefacts and runtimes in the order in which they are to be tried; at least one.

    Raises:
        FailedPreconditionError: there are none; the message says what the bundle has.
    """
    artefacts = _by_precision(bundle, precision)
    found = [
        (artefact, runtime)
        for artefact in artefacts
        for runtime in (_CPU_RUNTIMES if kind == "auto" else (kind,))
        if _may_run(bundle, artefact, runtime)
    ]
    if not found:
        listed = "; ".join(f"{artefact.file} is for {' and '.join(artefact.runtimes)}" for artefact in artefacts)
        hint = ": use the OpenVINO backend" if {a.format for a in artefacts} == {"openvino"} else ""
        if kind in GPU_RUNTIMES:
            listed = ", ".join(f"{artefact.file} ({artefact.precision})" for artefact in artefacts)
            hint = ": a GPU runs ONNX artefacts; export it with --precision fp32 too"
        raise FailedPreconditionError(f"{bundle.root} has nothing for {kind}: {listed}{hint}", reason="BACKEND_FORMAT")
    return found


def serving_order(bundle: Bundle, kind: BackendKind, precision: PrecisionKind) -> list[tuple[Artefact, BackendName]]:
    """As `candidates`, and where a GPU was asked for also what a server runs while that is not to be had: another
    provider on the GPU, then the CPU."""
    found = candidates(bundle, kind, precision)
    if kind not in GPU_RUNTIMES:
        return found
    if kind != "onnxruntime-cuda":
        found += candidates(bundle, "onnxruntime-cuda", precision)
    return found + candidates(bundle, "auto", precision)


def processor_has_bf16() -> bool:
    """Whether OpenVINO computes in bf16 on this processor; False without OpenVINO."""
    try:
        from passerby_model.backends.openvino import capabilities
    except ImportError:
        return False
    return "BF16" in capabilities()


def _by_precision(bundle: Bundle, precision: PrecisionKind) -> list[Artefact]:
    artefacts = bundle.manifest.artefacts
    if precision == "auto":
        return _auto(artefacts)
    chosen = [artefact for artefact in artefacts if artefact.precision == precision]
    if not chosen:
        listed = ", ".join(dict.fromkeys(artefact.precision for artefact in artefacts))
        raise FailedPreconditionError(
            f"{bundle.root} has no {precision} artefact, it has {listed}: "
            f"choose one of them, or export it with --precision {listed.replace(' ', '')},{precision}",
            reason="PRECISION_MISSING",
        )
    if precision == "bf16" and not processor_has_bf16():
        raise FailedPreconditionError(
            "this processor does not compute in bf16 (or OpenVINO is not installed): choose another precision",
            reason="PRECISION_UNSUPPORTED",
        )
    return chosen


def _auto(artefacts: tuple[Artefact, ...]) -> list[Artefact]:
    """bf16 where it is to be had, then the others from exact to coarse; int8 only when there is nothing else."""
    half = [artefact for artefact in artefacts if artefact.precision == "bf16" and processor_has_bf16()]
    exact = [artefact for artefact in artefacts if artefact.precision not in ("bf16", "int8")]
    return half + exact or list(artefacts)


def _may_run(bundle: Bundle, artefact: Artefact, runtime: BackendName) -> bool:
    if runtime in GPU_RUNTIMES:
        return artefact.format == "onnx"
    if runtime in artefact.runtimes:
        return True
    return bundle.allow_unverified and artefact.format == "onnx"
