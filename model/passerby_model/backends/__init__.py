"""Encoder backends: one interface (`Backend`) over OpenVINO and ONNX Runtime; numpy in, numpy out, no torch.

Export's parity check and the server open encoders here, so that what was checked is what runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from passerby.errors import FailedPreconditionError, NotFoundError

from passerby_model.backends.base import (
    GPU_RUNTIMES,
    Backend,
    BackendKind,
    BackendName,
    Encoded,
    EncoderSpec,
    InferencePrecision,
    default_max_batch,
)
from passerby_model.backends.choice import PrecisionKind, candidates
from passerby_model.backends.cores import usable_cores
from passerby_model.bundle import Artefact, Bundle, EncoderFormat, Manifest

__all__ = [
    "Backend",
    "BackendKind",
    "BackendName",
    "Encoded",
    "EncoderFormat",
    "EncoderSpec",
    "InferencePrecision",
    "Options",
    "PrecisionKind",
    "default_max_batch",
    "default_streams",
    "first_that_opens",
    "open_artefact",
    "open_backend",
    "open_encoder",
]

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """How a runtime is to run an encoder.

    `threads`: CPU threads; 0 for all cores. `streams`: calls that compute at the same time (OpenVINO only; ONNX Runtime
    takes any number); a lone call has all threads. `inference_precision`: instead of what belongs to the artefact, which
    is what its parity report proved. `cache`: folder for what is compiled (`passerby_model.machine`); None keeps nothing. On a GPU, which needs
    one: `build_engine` lets TensorRT build what is not there, `cuda_graphs` lets ONNX Runtime capture them.
    """

    threads: int = 0
    streams: int = 1
    inference_precision: InferencePrecision | None = None
    cache: Path | None = None
    build_engine: bool = False
    cuda_graphs: bool = False


def open_backend(
    bundle: Bundle,
    kind: BackendKind = "auto",
    *,
    precision: PrecisionKind = "auto",
    threads: int = 0,
    streams: int = 1,
    inference_precision: InferencePrecision | None = None,
) -> Backend:
    """Loads an artefact of the bundle.

    Args:
        kind: the runtime; `auto` takes OpenVINO when it is installed and loads the encoder, else ONNX Runtime.
        precision: number format of the artefact; `auto` takes bf16 where the bundle has it and the processor too, else
            the most exact one. int8 is taken by name only, or when there is nothing else.
        threads, streams, inference_precision: see `Options`.

    Raises:
        FailedPreconditionError: the bundle has no such artefact (PRECISION_MISSING) or none for the runtime
            (BACKEND_FORMAT), the processor lacks the number format (PRECISION_UNSUPPORTED), no parity report passed for
            it (BUNDLE_UNVERIFIED, naming the row), the runtime is not installed (BACKEND_MISSING) or cannot run the
            encoder (BACKEND_LOAD), the graph is not the bundle's (ENCODER_CONTRACT), or the correlation would not be
            computed in float32 (NCC_PRECISION).
    """
    options = Options(threads, streams, inference_precision)
    return first_that_opens(
        candidates(bundle, kind, precision), lambda artefact, runtime: open_artefact(bundle, artefact, runtime, options)
    )


def default_streams(runtime: BackendName, threads: int) -> int:
    """Batches that compute at the same time, unless a server is told otherwise; `threads`: see `Options`.

    Two on OpenVINO, each with half of the threads: on two cores more throughput than one after the other on all of them
    (`benchmarks/serve.py`), and whoever computes alone still has all. The other runtimes gain nothing, or are a GPU's.
    """
    return 2 if runtime == "openvino" and (threads or usable_cores()) > 1 else 1


def first_that_opens(found: Sequence[tuple[Artefact, BackendName]], opener: Callable[[Artefact, BackendName], T]) -> T:
    """What `opener` makes of the first of `found` that can run here; that others cannot is said in the log.

    Raises:
        FailedPreconditionError: none can (the error of the last), or one must not: see `open_backend`.
    """
    for number, (artefact, runtime) in enumerate(found):
        try:
            return opener(artefact, runtime)
        except FailedPreconditionError as error:
            # A graph that breaks the contract breaks it everywhere, and a failed proof is nothing to step around.
            if number == len(found) - 1 or error.reason in ("ENCODER_CONTRACT", "BUNDLE_UNVERIFIED"):
                raise
            after, name = found[number + 1]
            log.warning("falling back to %s on %s: %s", after.file, name, error.message)
    raise AssertionError("candidates() never gives none")


def open_artefact(
    bundle: Bundle,
    artefact: Artefact,
    runtime: BackendName,
    options: Options = Options(),
) -> Backend:
    """Loads that artefact on that runtime, once its parity report says that it may. As `open_backend` otherwise."""
    if runtime in GPU_RUNTIMES:
        from passerby_model.backends.opening_gpu import open_on_gpu

        return open_on_gpu(bundle, artefact, runtime, options).backend
    if problem := artefact.unproven(runtime):
        if not bundle.allow_unverified:
            raise FailedPreconditionError(
                f"{bundle.root}: {problem}; export it again, or serve it all the same with --allow-unverified",
                reason="BUNDLE_UNVERIFIED",
            )
        log.warning("UNVERIFIED, descriptors may be wrong: %s", problem)
    return _open(
        bundle.root / artefact.file,
        artefact.format,
        runtime,
        bundle.manifest,
        artefact.precision,
        options,
        {name: bundle.manifest.files[name].sha256 for name in artefact.files},
    )


def open_encoder(
    path: str | Path,
    format: EncoderFormat,
    kind: BackendKind = "auto",
    *,
    precision: str = "fp32",
    threads: int = 0,
    inference_precision: InferencePrecision | None = None,
) -> Backend:
    """Loads an encoder that is not in a bundle yet; sizes come from its graph. Arguments and errors as `open_backend`.

    Args:
        path: `.onnx`, or the `.xml` of an OpenVINO IR.
        precision: its number format.
    """
    path, options = Path(path), Options(threads, inference_precision=inference_precision)
    if kind != "auto":
        return _open(path, format, kind, None, precision, options)
    try:
        return _open(path, format, "openvino", None, precision, options)
    except FailedPreconditionError as error:
        if format == "openvino" or error.reason == "ENCODER_CONTRACT":
            raise
        log.warning("falling back to ONNX Runtime: %s", error.message)
    return _open(path, format, "onnxruntime", None, precision, options)


def _open(
    path: Path,
    format: EncoderFormat,
    runtime: BackendName,
    manifest: Manifest | None,
    precision: str,
    options: Options,
    files: Mapping[str, str] | None = None,
) -> Backend:
    if not path.is_file():
        raise NotFoundError(f"{path} is missing", reason="ENCODER_NOT_FOUND")
    if runtime in GPU_RUNTIMES:
        raise FailedPreconditionError(
            f"{path} has to be in a bundle before it runs on {runtime}: `passerby bundle verify` proves it there",
            reason="BACKEND_FORMAT",
        )
    computed_in = options.inference_precision or ("bf16" if precision == "bf16" else None)
    if runtime == "openvino":
        return _open_openvino(path, manifest, precision, replace(options, inference_precision=computed_in), files)
    if format == "openvino":
        raise FailedPreconditionError(
            f"{path} is an OpenVINO IR, which ONNX Runtime cannot run: use the OpenVINO backend",
            reason="BACKEND_FORMAT",
        )
    if computed_in == "bf16":
        raise FailedPreconditionError(
            "ONNX Runtime computes in f32 only: use the OpenVINO backend for bf16", reason="BACKEND_FORMAT"
        )
    return _open_onnxruntime(path, manifest, precision, options)


def _open_openvino(
    path: Path,
    manifest: Manifest | None,
    precision: str,
    options: Options,
    files: Mapping[str, str] | None,
) -> Backend:
    try:
        from passerby_model.backends.openvino import OpenVinoBackend
    except ImportError as error:
        raise _missing("OpenVINO", "openvino", error) from error
    try:
        return OpenVinoBackend(
            path,
            manifest=manifest,
            precision=precision,
            threads=options.threads,
            streams=options.streams,
            inference_precision=options.inference_precision,
            cache=options.cache,
            files=files,
        )
    except RuntimeError as error:
        raise FailedPreconditionError(f"OpenVINO cannot load {path}: {error}", reason="BACKEND_LOAD") from error


def _open_onnxruntime(path: Path, manifest: Manifest | None, precision: str, options: Options) -> Backend:
    try:
        from passerby_model.backends.onnxruntime import OnnxRuntimeBackend
    except ImportError as error:
        raise _missing("ONNX Runtime", "onnxruntime", error) from error
    try:
        return OnnxRuntimeBackend(path, manifest=manifest, precision=precision, threads=options.threads)
    except FailedPreconditionError:
        raise
    except Exception as error:  # ONNX Runtime's errors share no base but Exception
        raise FailedPreconditionError(f"ONNX Runtime cannot load {path}: {error}", reason="BACKEND_LOAD") from error


def _missing(name: str, package: str, error: ImportError) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{name} is not installed ({error}): pip install {package}, or passerby[server]", reason="BACKEND_MISSING"
    )
