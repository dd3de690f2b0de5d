"""ONNX Runtime on a GPU: its CUDA provider, and its TensorRT provider.

Input and outputs stay in buffers on the device, one set for each of a few batch sizes, to which batches are padded:
memory grows with the sizes that there are, not with those that come. With fixed buffers a CUDA graph can be captured
for each size: the whole network is then launched at once.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError, InternalError

from passerby_model.backends.base import (
    BackendName,
    Encoded,
    EncoderSpec,
    check_encoded,
    check_manifest,
    check_snippets,
    default_max_batch,
)
from passerby_model.backends.buckets import bucket_for, padded, pieces
from passerby_model.backends.decoding import DECODED, decode_weights
from passerby_model.backends.onnxruntime import session_spec
from passerby_model.bundle import DESCRIPTOR_NAME, INPUT_NAME, Input, Manifest
from passerby_model.machine import key_id, least_used, make_folder, mark_used

GpuRuntime = Literal["onnxruntime-cuda", "onnxruntime-tensorrt"]
PROVIDER: Mapping[GpuRuntime, str] = {
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}
KEPT = 8
"""Encoders whose engines are kept, the latest used ones."""
_ERROR_LOGS_ONLY = 3
_NO_GRAPH = "-1"  # of the run option gpu_graph_id


def providers(
    runtime: GpuRuntime, input: Input, *, cuda_graphs: bool, engines: Path
) -> list[tuple[str, dict[str, str]]]:
    """Execution providers with their options, best first: the TensorRT provider leaves to CUDA what it cannot run.

    Args:
        engines: folder where the TensorRT provider keeps its engines and timings.
    """
    graphs = "1" if cuda_graphs else "0"
    cuda = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0", "enable_cuda_graph": graphs}
    if runtime == "onnxruntime-cuda":
        return [(PROVIDER[runtime], cuda)]
    frame = f"{input.snippet_length}x{input.height}x{input.width}x3"
    largest = f"{INPUT_NAME}:{default_max_batch(input.snippet_length)}x{frame}"
    tensorrt = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(engines),
        "trt_profile_min_shapes": f"{INPUT_NAME}:1x{frame}",
        "trt_profile_opt_shapes": largest,
        "trt_profile_max_shapes": largest,
        "trt_cuda_graph_enable": graphs,
    }
    return [(PROVIDER[runtime], tensorrt), (PROVIDER["onnxruntime-cuda"], cuda | {"enable_cuda_graph": "0"})]


def engine_folder(cache: Path, files: Mapping[str, str]) -> Path:
    """Where the TensorRT provider keeps engines of the encoder of these files (name -> sha256); folders of encoders
    that are not among the `KEPT` latest used ones are removed. Raises OSError."""
    folder = make_folder(cache / "onnxruntime-tensorrt" / key_id(files))
    mark_used(folder)
    for old in least_used(folder.parent.iterdir(), KEPT):
        shutil.rmtree(old, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class _Bound:
    """Buffers on the device for one batch size, and the binding that ties the session to them."""

    binding: Any
    input: Any
    options: Any


class BoundSession:
    """A session that reads and writes buffers on `device` (`cuda`, or `cpu` for tests), in a few batch sizes."""

    def __init__(
        self, session: Any, outputs: Sequence[str], *, device: str, max_batch: int, cuda_graphs: bool = False
    ) -> None:
        self._session, self._outputs, self._device = session, list(outputs), device
        self._max_batch, self._graphs = max_batch, cuda_graphs
        self._bound: dict[int, _Bound] = {}
        self._lock = threading.Lock()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes that have buffers so far, ascending."""
        return tuple(sorted(self._bound))

    def run(self, snippets: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """uint8 (B, N, H, W, 3) -> each output, float32 (B, ...), any B >= 1."""
        parts = [self._run(part) for part in pieces(snippets, self._max_batch)]
        return parts[0] if len(parts) == 1 else [np.concatenate(rows) for rows in zip(*parts, strict=True)]

    def _run(self, snippets: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        size = bucket_for(len(snippets), self._max_batch)
        rows = padded(snippets, size)
        with self._lock:
            if size not in self._bound:
                self._bound[size] = self._bind(rows)
            bound = self._bound[size]
            bound.input.update_inplace(rows)
            self._session.run_with_iobinding(bound.binding, bound.options)
            outputs = bound.binding.copy_outputs_to_cpu()
        return [np.array(output[: len(snippets)], dtype=np.float32) for output in outputs]

    def _bind(self, rows: NDArray[np.uint8]) -> _Bound:
        """One run with outputs wherever the session puts them tells their shapes; then all have a fixed place."""
        binding = self._session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy(rows, self._device, 0)
        binding.bind_ortvalue_input(INPUT_NAME, value)
        for name in self._outputs:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding, self._run_options(_NO_GRAPH))
        shapes = [output.shape() for output in binding.get_outputs()]
        binding.clear_binding_outputs()
        for name, shape in zip(self._outputs, shapes, strict=True):
            place = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device, 0)
            binding.bind_ortvalue_output(name, place)
        return _Bound(binding, value, self._run_options(str(len(rows))))

    def _run_options(self, graph: str) -> Any:
        options = onnxruntime.RunOptions()
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", graph)
        return options


class OnnxRuntimeGpuBackend:
    """An ONNX encoder on the GPU. One call computes at a time; others wait."""

    def __init__(
        self,
        path: Path,
        runtime: GpuRuntime,
        *,
        manifest: Manifest,
        precision: str = "fp32",
        cache: Path,
        files: Mapping[str, str],
        cuda_graphs: bool = False,
    ) -> None:
        """Loads `path` (.onnx).

        Args:
            cache: the cache folder, for engines of the TensorRT provider.
            files: the encoder's files and their sha256.

        Raises:
            FailedPreconditionError: the installed ONNX Runtime has no such provider, or it cannot run here; or the
                graph is not the manifest's.
            RuntimeError (and other errors of ONNX Runtime): it cannot read the graph.
        """
        self.name: BackendName = runtime
        self.precision = precision
        provider = PROVIDER[runtime]
        if provider not in onnxruntime.get_available_providers():
            raise FailedPreconditionError(
                f"ONNX Runtime {onnxruntime.__version__} has no {provider}: install its GPU build, passerby[server-gpu]",
                reason="BACKEND_MISSING",
            )
        engines = engine_folder(cache, files)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERROR_LOGS_ONLY
        chosen = providers(runtime, manifest.input, cuda_graphs=cuda_graphs, engines=engines)
        decoded = runtime == "onnxruntime-tensorrt" and precision == DECODED
        graph = decode_weights(path) if decoded else path
        session = onnxruntime.InferenceSession(graph, options, providers=chosen)
        if session.get_providers()[0] != provider:
            raise FailedPreconditionError(
                f"ONNX Runtime cannot use its {provider} here: driver or CUDA libraries are missing or of other versions",
                reason="BACKEND_LOAD",
            )
        self.spec: EncoderSpec = check_manifest(session_spec(path, session), manifest)
        outputs = [DESCRIPTOR_NAME, *(f"mask_cosam{block}" for block in self.spec.mask_blocks)]
        max_batch = default_max_batch(manifest.input.snippet_length)
        self._session = BoundSession(session, outputs, device="cuda", max_batch=max_batch, cuda_graphs=cuda_graphs)

    def encode(self, snippets: NDArray[np.uint8]) -> Encoded:
        """See `Backend.encode`: uint8 (B, N, H, W, 3) -> descriptors float32 (B, D), masks float32 (B, N, h, w)."""
        check_snippets(snippets, self.spec)
        try:
            descriptors, *masks = self._session.run(snippets)
        except Exception as error:  # its errors share no base but Exception
            raise InternalError(f"ONNX Runtime failed: {error}", reason="ENCODER_FAILED") from error
        named = dict(zip(self.spec.mask_blocks, masks, strict=True))
        return check_encoded(Encoded(descriptors, named), len(snippets), self.spec)
