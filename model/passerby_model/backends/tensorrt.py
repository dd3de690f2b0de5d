"""TensorRT, by its own tools: an engine is built from the ONNX artefact, kept in the cache folder, and run.

An engine is worth something on the GPU, driver and TensorRT that it was built with and nowhere else, so all of that is
its key, besides the content of the artefact. The network is strongly typed: every operator computes in the type that the
ONNX file gives it, and TF32 stays off. One optimisation profile covers every batch size from 1 to the largest.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError, InternalError
from pydantic import BaseModel, ConfigDict, Field

from passerby_model.backends.base import (
    BackendName,
    Encoded,
    EncoderSpec,
    check_encoded,
    check_snippets,
    default_max_batch,
)
from passerby_model.backends.buckets import pieces
from passerby_model.backends.decoding import DECODED, decode_weights
from passerby_model.backends.engine_ports import check_ports, read_ports
from passerby_model.backends.gpu import Gpu
from passerby_model.bundle import DESCRIPTOR_NAME, INPUT_NAME, Input, Manifest
from passerby_model.machine import key_id, least_used, make_folder, mark_used, read_record, write_record

log = logging.getLogger(__name__)

KEPT = 8
"""Engines that are kept, the latest used ones; each is about as large as the encoder's file."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineKey(_Part):
    """Everything that an engine depends on: when any of it differs, another one is built."""

    files: Mapping[str, str]
    """The artefact's files and their sha256."""
    input: Input
    max_batch: int
    gpus: tuple[Gpu, ...]
    tensorrt: str
    """Its version."""
    decoded: bool = False
    """Whether the weights are decoded before the engine is built (`decoding.py`)."""


class _Record(_Part):
    """What lies beside an engine."""

    key: EngineKey
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def engine_key(
    files: Mapping[str, str], input: Input, gpus: tuple[Gpu, ...], version: str, precision: str = "fp32"
) -> EngineKey:
    """The key of the engine that a server here would run."""
    return EngineKey(
        files=dict(files),
        input=input,
        max_batch=default_max_batch(input.snippet_length),
        gpus=gpus,
        tensorrt=version,
        decoded=precision == DECODED,
    )


def engine_path(cache: Path, key: EngineKey) -> Path:
    """Where the engine for `key` lies in the cache folder."""
    return cache / "tensorrt" / f"{key_id(key)}.plan"


def timing_path(cache: Path, key: EngineKey) -> Path:
    """Where TensorRT keeps what it has timed: the next engine for the same GPU is built sooner."""
    hardware = {"gpus": [gpu.model_dump() for gpu in key.gpus], "tensorrt": key.tensorrt}
    return cache / "tensorrt" / f"{key_id(hardware)}.timing"


def load_engine(cache: Path, key: EngineKey) -> bytes | None:
    """The engine for `key`; None when there is none, or (said in the log) one that is damaged."""
    path = engine_path(cache, key)
    record = read_record(path.with_suffix(".json"), _Record)
    if record is None or record.key != key:
        return None
    try:
        plan = path.read_bytes()
    except OSError as error:
        log.warning("TensorRT's engine is to be built anew: %s", error)
        return None
    if hashlib.sha256(plan).hexdigest() != record.sha256:
        log.warning("TensorRT's engine is to be built anew: %s is damaged", path)
        return None
    mark_used(path)
    return plan


def save_engine(cache: Path, key: EngineKey, plan: bytes) -> None:
    """Keeps an engine: whole under its name, or not at all; and of all engines the `KEPT` latest used ones, with what
    TensorRT timed for their hardware. Raises OSError."""
    path = engine_path(cache, key)
    handle, scratch = tempfile.mkstemp(prefix=".", suffix=".partial", dir=make_folder(path.parent))
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(plan)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    write_record(path.with_suffix(".json"), _Record(key=key, sha256=hashlib.sha256(plan).hexdigest()))
    _remove_unused(cache, path.parent)


def _remove_unused(cache: Path, folder: Path) -> None:
    try:
        for plan in least_used(folder.glob("*.plan"), KEPT):
            plan.with_suffix(".json").unlink(missing_ok=True)
            plan.unlink(missing_ok=True)
            log.info("removed %s, which had not been used for the longest time", plan)
        records = [read_record(path, _Record) for path in folder.glob("*.json")]
        timed = {timing_path(cache, record.key) for record in records if record is not None}
        for timing in set(folder.glob("*.timing")) - timed:
            timing.unlink(missing_ok=True)
    except OSError as error:
        log.warning("engines that are no longer used cannot be removed: %s", error)


def build_engine(path: Path, key: EngineKey, cache: Path) -> bytes:
    """Builds the engine for `key` from `path` (.onnx) and keeps it. Takes minutes.

    Raises:
        FailedPreconditionError: TensorRT cannot build it (BACKEND_LOAD), or its weights cannot be decoded.
        OSError: it cannot be kept.
    """
    from polygraphy.backend import trt

    shape = (key.input.snippet_length, key.input.height, key.input.width, 3)
    largest = (key.max_batch, *shape)
    profile = trt.Profile().add(INPUT_NAME, min=(1, *shape), opt=largest, max=largest)
    timing = timing_path(cache, key)
    make_folder(timing.parent)
    config = trt.CreateConfig(profiles=[profile], load_timing_cache=str(timing) if timing.is_file() else None)
    if key.decoded:
        network = trt.NetworkFromOnnxBytes(decode_weights(path), strongly_typed=True)
    else:
        network = trt.NetworkFromOnnxPath(str(path), strongly_typed=True)
    log.info("TensorRT %s builds an engine of %s", key.tensorrt, path)
    try:
        plan = bytes(trt.EngineBytesFromNetwork(network, config=config, save_timing_cache=str(timing))())
    except Exception as error:  # polygraphy's errors and TensorRT's share no base but Exception
        raise FailedPreconditionError(f"TensorRT cannot build {path}: {error}", reason="BACKEND_LOAD") from error
    save_engine(cache, key, plan)
    return plan


class TensorRtBackend:
    """An engine on the GPU. One call computes at a time; others wait."""

    name: BackendName = "tensorrt"

    def __init__(self, plan: bytes, key: EngineKey, *, manifest: Manifest, precision: str = "fp32") -> None:
        """Loads an engine.

        Raises:
            FailedPreconditionError: it does not load here, or takes or gives something else than the manifest says.
        """
        from polygraphy.backend import trt

        size, self.precision = manifest.input, precision
        blocks = tuple(sorted(mask.block for mask in manifest.masks))
        self.spec = EncoderSpec(size.snippet_length, size.height, size.width, manifest.descriptor_dim, blocks)
        self.engine_sha256 = hashlib.sha256(plan).hexdigest()
        self._max_batch = key.max_batch
        self._lock = threading.Lock()
        self._runner: Any = trt.TrtRunner(trt.EngineFromBytes(plan))
        try:
            self._runner.activate()
        except Exception as error:  # see build_engine
            raise FailedPreconditionError(f"TensorRT cannot load its engine: {error}", reason="BACKEND_LOAD") from error
        try:
            check_ports(*read_ports(self._runner.engine), manifest, key.max_batch)
        except FailedPreconditionError:
            self._runner.deactivate()
            raise

    def encode(self, snippets: NDArray[np.uint8]) -> Encoded:
        """See `Backend.encode`: uint8 (B, N, H, W, 3) -> descriptors float32 (B, D), masks float32 (B, N, h, w)."""
        check_snippets(snippets, self.spec)
        parts = [self._run(part) for part in pieces(snippets, self._max_batch)]
        masks = {
            block: np.concatenate([part[f"mask_cosam{block}"] for part in parts]) for block in self.spec.mask_blocks
        }
        descriptors = np.concatenate([part[DESCRIPTOR_NAME] for part in parts])
        return check_encoded(Encoded(descriptors, masks), len(snippets), self.spec)

    def _run(self, snippets: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        with self._lock:
            try:
                outputs = self._runner.infer({INPUT_NAME: np.ascontiguousarray(snippets)})
            except Exception as error:  # see build_engine
                raise InternalError(f"TensorRT failed: {error}", reason="ENCODER_FAILED") from error
            # The runner's buffers are written again by the next call.
            return {name: np.array(value, dtype=np.float32) for name, value in outputs.items()}
