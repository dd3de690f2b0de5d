"""Encoder backends: one interface (`Backend`) over OpenVINO and ONNX Runtime; numpy in, numpy out, no torch.

Export's parity check and the server open encoders here, so that what was checked is what runs.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from passerby.errors import FailedPreconditionError, NotFoundError

from passerby_model.backends.base import Backend, BackendKind, BackendName, Encoded, EncoderFormat, EncoderSpec
from passerby_model.bundle import Bundle, Manifest

__all__ = [
    "Backend",
    "BackendKind",
    "BackendName",
    "Encoded",
    "EncoderFormat",
    "EncoderSpec",
    "open_backend",
    "open_encoder",
]

log = logging.getLogger(__name__)

InferencePrecision = Literal["f32", "bf16"]


def open_backend(
    bundle: Bundle,
    kind: BackendKind = "auto",
    *,
    threads: int = 0,
    streams: int = 1,
    inference_precision: InferencePrecision = "f32",
) -> Backend:
    """Loads the bundle's encoder.

    Args:
        kind: `auto` takes OpenVINO when it is installed and loads the encoder, else ONNX Runtime.
        threads: CPU threads; 0 for all cores.
        streams: calls that compute at the same time (OpenVINO only; ONNX Runtime takes any number).
        inference_precision: `bf16` for speed on processors that have it (OpenVINO only).

    Raises:
        FailedPreconditionError: the runtime is not installed (BACKEND_MISSING), cannot run this format
            (BACKEND_FORMAT) or this encoder (BACKEND_LOAD), or the graph is not the bundle's (ENCODER_CONTRACT).
    """
    manifest = bundle.manifest
    return _open(
        bundle.encoder_path,
        manifest.format,
        kind,
        manifest=manifest,
        precision=manifest.precision,
        threads=threads,
        streams=streams,
        inference_precision=inference_precision,
    )


def open_encoder(
    path: str | Path,
    format: EncoderFormat,
    kind: BackendKind = "auto",
    *,
    precision: str = "fp32",
    threads: int = 0,
    inference_precision: InferencePrecision = "f32",
) -> Backend:
    """Loads an encoder that is not in a bundle yet; sizes come from its graph. Arguments and errors as `open_backend`.

    Args:
        path: `.onnx`, or the `.xml` of an OpenVINO IR.
        precision: what the backend reports as its number format.
    """
    return _open(
        Path(path),
        format,
        kind,
        manifest=None,
        precision=precision,
        threads=threads,
        streams=1,
        inference_precision=inference_precision,
    )


def _open(
    path: Path,
    format: EncoderFormat,
    kind: BackendKind,
    *,
    manifest: Manifest | None,
    precision: str,
    threads: int,
    streams: int,
    inference_precision: InferencePrecision,
) -> Backend:
    if not path.is_file():
        raise NotFoundError(f"{path} is missing", reason="ENCODER_NOT_FOUND")
    if kind == "onnxruntime" and format == "openvino":
        raise FailedPreconditionError(
            f"{path} is an OpenVINO IR, which ONNX Runtime cannot run: use the OpenVINO backend",
            reason="BACKEND_FORMAT",
        )
    if kind != "onnxruntime":
        try:
            return _open_openvino(path, manifest, precision, threads, streams, inference_precision)
        except FailedPreconditionError as error:
            # A graph that breaks the contract breaks it everywhere.
            if kind == "openvino" or format == "openvino" or error.reason == "ENCODER_CONTRACT":
                raise
            log.warning("falling back to ONNX Runtime: %s", error.message)
    if inference_precision != "f32":
        raise FailedPreconditionError("ONNX Runtime computes in f32 only: use the OpenVINO backend for bf16")
    return _open_onnxruntime(path, manifest, precision, threads)


def _open_openvino(
    path: Path,
    manifest: Manifest | None,
    precision: str,
    threads: int,
    streams: int,
    inference_precision: InferencePrecision,
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
            threads=threads,
            streams=streams,
            inference_precision=inference_precision,
        )
    except RuntimeError as error:
        raise FailedPreconditionError(f"OpenVINO cannot load {path}: {error}", reason="BACKEND_LOAD") from error


def _open_onnxruntime(path: Path, manifest: Manifest | None, precision: str, threads: int) -> Backend:
    try:
        from passerby_model.backends.onnxruntime import OnnxRuntimeBackend
    except ImportError as error:
        raise _missing("ONNX Runtime", "onnxruntime", error) from error
    try:
        return OnnxRuntimeBackend(path, manifest=manifest, precision=precision, threads=threads)
    except FailedPreconditionError:
        raise
    except Exception as error:  # ONNX Runtime's errors share no base but Exception
        raise FailedPreconditionError(f"ONNX Runtime cannot load {path}: {error}", reason="BACKEND_LOAD") from error


def _missing(name: str, package: str, error: ImportError) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{name} is not installed ({error}): pip install {package}, or passerby[server]", reason="BACKEND_MISSING"
    )
