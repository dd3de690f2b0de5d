"""ONNX Runtime on the CPU: the fall-back there. On a GPU: `onnxruntime_gpu.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from passerby.errors import InternalError

from passerby_model.backends.base import (
    COST_VOLUME_OUTPUT,
    BackendName,
    Encoded,
    EncoderSpec,
    blocks_of,
    check_encoded,
    check_manifest,
    check_snippets,
    spec_from_graph,
)
from passerby_model.bundle import DESCRIPTOR_NAME, INPUT_NAME, Manifest

# Also where its GPU build is installed: the bundle's parity report is one of the CPU.
PROVIDERS = ["CPUExecutionProvider"]
_ERROR_LOGS_ONLY = 3


class OnnxRuntimeBackend:
    """An ONNX encoder in one inference session, which any number of threads may call."""

    name: BackendName = "onnxruntime"

    def __init__(
        self, path: Path, *, manifest: Manifest | None = None, precision: str = "fp32", threads: int = 0
    ) -> None:
        """Loads `path` (.onnx).

        Args:
            manifest: what the bundle says of the encoder, checked against the graph.
            threads: threads within one operator; 0 leaves it to ONNX Runtime (one for each physical core).

        Raises:
            FailedPreconditionError: the graph is no passerby encoder, or not the manifest's.
            RuntimeError (and other errors of ONNX Runtime): it cannot read or run the graph.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERROR_LOGS_ONLY
        options.use_deterministic_compute = True
        # Waiting threads sleep: decoding and the index want the cores between batches.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, options, providers=PROVIDERS)
        spec = session_spec(path, self._session)
        self.spec: EncoderSpec = spec if manifest is None else check_manifest(spec, manifest)
        self.precision = precision
        names = [port.name for port in self._session.get_outputs()]
        self._volumes = blocks_of(COST_VOLUME_OUTPUT, names)
        self._outputs = [DESCRIPTOR_NAME, *(f"mask_cosam{block}" for block in self.spec.mask_blocks)]
        self._outputs += self._volumes.values()

    def encode(self, snippets: NDArray[np.uint8]) -> Encoded:
        """See `Backend.encode`: uint8 (B, N, H, W, 3) -> descriptors float32 (B, D), masks float32 (B, N, h, w)."""
        check_snippets(snippets, self.spec)
        try:
            outputs = self._session.run(self._outputs, {INPUT_NAME: np.ascontiguousarray(snippets)})
        except Exception as error:  # its errors share no base but Exception
            raise InternalError(f"ONNX Runtime failed: {error}", reason="ENCODER_FAILED") from error
        descriptors, *rest = (np.asarray(output, dtype=np.float32) for output in outputs)
        count = len(self.spec.mask_blocks)
        masks = dict(zip(self.spec.mask_blocks, rest[:count], strict=True))
        volumes = dict(zip(self._volumes, rest[count:], strict=True))
        return check_encoded(Encoded(descriptors, masks, volumes), len(snippets), self.spec)


def session_spec(path: Path, session: Any) -> EncoderSpec:
    """What the session's graph takes and gives. Raises FailedPreconditionError when it is no passerby encoder."""
    inputs = session.get_inputs()
    return spec_from_graph(
        path,
        {port.name: _shape(port) for port in inputs},
        {port.name: _shape(port) for port in session.get_outputs()},
        all(port.type == "tensor(uint8)" for port in inputs),
    )


def _shape(port: Any) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in port.shape)
