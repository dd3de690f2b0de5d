"""OpenVINO on the CPU: the default there.

Single precision is the default, so that descriptors are those of the parity report: left alone, OpenVINO computes in
bf16 where the processor has it, about twice as fast and 1e-4 off in cosine. A bf16 artefact asks for that; its file
says which operators stay in float32, and what OpenVINO made of that is read off and checked when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError, InternalError

from passerby_model.backends.base import (
    COST_VOLUME_OUTPUT,
    MASK_OUTPUT,
    NCC_SCOPE,
    UNQUANTISED,
    BackendName,
    Encoded,
    EncoderSpec,
    InferencePrecision,
    blocks_of,
    check_encoded,
    check_manifest,
    check_snippets,
    spec_from_graph,
)
from passerby_model.backends.cores import usable_cores
from passerby_model.backends.openvino_cache import compile_cached
from passerby_model.backends.openvino_package import import_openvino, openvino_core
from passerby_model.backends.openvino_requests import Requests, fold_constants, streams_agree
from passerby_model.bundle import DESCRIPTOR_NAME, INPUT_NAME, Manifest

openvino = import_openvino()


@dataclass(frozen=True)
class Executed:
    """One operator that runs: the layers of the file that became it, the number format that it computes in, and that
    of its result (`f32`, `bf16`, `u8`, `i8`...)."""

    layers: tuple[str, ...]
    computed_in: str
    result: str


class OpenVinoBackend:
    """An ONNX or IR encoder compiled for the CPU, with a pool of infer requests so that any thread may call."""

    name: BackendName = "openvino"

    def __init__(
        self,
        path: Path,
        *,
        manifest: Manifest | None = None,
        precision: str = "fp32",
        threads: int = 0,
        streams: int = 1,
        inference_precision: InferencePrecision | None = None,
        cache: Path | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Loads and compiles `path` (.onnx or .xml).

        Args:
            manifest: what the bundle says of the encoder, checked against the graph.
            threads: CPU threads in all; 0 takes every core that the process may use.
            streams: calls that compute at the same time, each with threads / streams threads; a call that comes while no
                other computes has all of them. With more than one the weights are in memory twice.
            inference_precision: number format of what is not quantised; None for what the file says (`UNQUANTISED`),
                else f32.
            cache: the cache folder, where what is compiled is kept; None compiles each time.
            files: the encoder's files and their sha256, which say whether what is kept is of this encoder.

        Raises:
            FailedPreconditionError: the graph is no passerby encoder, or not the manifest's; or its correlation would
                not be computed in float32.
            RuntimeError: OpenVINO cannot read or compile it.
        """
        core = openvino_core()
        model = core.read_model(path)
        spec = _spec(path, model)
        self.spec: EncoderSpec = spec if manifest is None else check_manifest(spec, manifest)
        inference_precision = inference_precision or _unquantised(model)
        self.precision = "bf16" if inference_precision == "bf16" and precision == "fp32" else precision
        key = {"files": dict(files or {}), "openvino": openvino.__version__}

        def compiled_for(streams: int) -> Any:
            settings = _settings(threads, streams, inference_precision)
            if cache is None or not files:
                return core.compile_model(model, "CPU", settings)
            return compile_cached(core, model, settings, cache, key)

        if streams > 1 and precision != "int8":  # of int8 the 8-bit weights are what is computed with
            fold_constants(model)
        compiled = compiled_for(1)
        self._masks = {block: f"mask_cosam{block}" for block in self.spec.mask_blocks}
        self._volumes = blocks_of(COST_VOLUME_OUTPUT, [_name(port) for port in model.outputs])
        beside = compiled_for(streams) if streams > 1 else None
        self._compiled = [compiled] if beside is None else [compiled, beside]
        if inference_precision != "f32" or precision == "int8":
            self._check_correlation(path)
        if beside is not None and not streams_agree(compiled, beside, streams, _probe(self.spec)):
            beside, self._compiled = None, [compiled]  # what is not used gives its memory back
        self._requests = Requests(compiled, beside, streams)

    def encode(self, snippets: NDArray[np.uint8]) -> Encoded:
        """See `Backend.encode`: uint8 (B, N, H, W, 3) -> descriptors float32 (B, D), masks float32 (B, N, h, w)."""
        check_snippets(snippets, self.spec)
        try:
            with self._requests.taken() as request:
                request.infer({INPUT_NAME: np.ascontiguousarray(snippets)}, share_inputs=True)
                # The tensors are the request's own memory: they have to be copied before it is used again.
                descriptors = _copy(request, DESCRIPTOR_NAME)
                masks = {block: _copy(request, name) for block, name in self._masks.items()}
                volumes = {block: _copy(request, name) for block, name in self._volumes.items()}
        except RuntimeError as error:
            raise InternalError(f"OpenVINO failed: {error}", reason="ENCODER_FAILED") from error
        return check_encoded(Encoded(descriptors, masks, volumes), len(snippets), self.spec)

    def _check_correlation(self, path: Path) -> None:
        """NCC lives on small differences of normalised features: it is computed in float32, whatever the rest is."""
        wrong = [
            operator.layers[-1]
            for operator in self.executed()
            if any(NCC_SCOPE in layer for layer in operator.layers)
            and {operator.computed_in, operator.result} != {"f32"}
        ]
        if wrong:
            raise FailedPreconditionError(
                f"OpenVINO {openvino.__version__} would not compute the correlation of {path} in float32: "
                f"{', '.join(wrong)}; use another precision, or another version of OpenVINO",
                reason="NCC_PRECISION",
            )

    def executed(self) -> list[Executed]:
        """The operators as they run, after all that OpenVINO fused and rewrote."""
        return [
            Executed(
                layers=tuple(str(_value(info, "originalLayersNames")).split(",")),
                computed_in=str(_value(info, "runtimePrecision")),
                result=operation.get_output_element_type(0).to_string(),
            )
            for compiled in self._compiled
            for operation in compiled.get_runtime_model().get_ordered_ops()
            if (info := operation.get_rt_info())
        ]


def _probe(spec: EncoderSpec) -> NDArray[np.uint8]:
    """uint8 (1, N, H, W, 3) of noise; sizes that the graph leaves open are small."""
    sizes = (spec.snippet_length or 1, spec.height or 64, spec.width or 32)
    return np.random.default_rng(0).integers(0, 256, (1, *sizes, 3), dtype=np.uint8)


def capabilities() -> frozenset[str]:
    """What the processor does well, in OpenVINO's words: `BF16`, `INT8`, ..."""
    return frozenset(openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _copy(request: Any, name: str) -> NDArray[np.float32]:
    return np.array(request.get_tensor(name).data, dtype=np.float32)


def _value(info: Any, key: str) -> Any:
    value = info[key]
    return getattr(value, "value", value)  # plain, or wrapped in OpenVINO's Any


def _unquantised(model: Any) -> InferencePrecision:
    """bf16 where the file was proven with it, and the processor has it."""
    said = model.get_rt_info([*UNQUANTISED]).astype(str) if model.has_rt_info([*UNQUANTISED]) else "f32"
    return "bf16" if said == "bf16" and "BF16" in capabilities() else "f32"


def _settings(threads: int, streams: int, inference_precision: InferencePrecision) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": inference_precision,
        "NUM_STREAMS": str(max(1, streams)),
        "INFERENCE_NUM_THREADS": threads or usable_cores(),
        # Pinned threads fight with every other process on a shared machine.
        "ENABLE_CPU_PINNING": False,
    }


def _spec(path: Path, model: Any) -> EncoderSpec:
    inputs = {_name(port): _shape(port) for port in model.inputs}
    uint8 = all(port.get_element_type() == openvino.Type.u8 for port in model.inputs)
    outputs: Mapping[str, tuple[int | None, ...]] = {_name(port): _shape(port) for port in model.outputs}
    return spec_from_graph(path, inputs, outputs, uint8)


def _name(port: Any) -> str:
    """The contract's name among a tensor's names (conversion may leave several on one tensor)."""
    names = sorted(port.get_names())
    for name in names:
        if name in (INPUT_NAME, DESCRIPTOR_NAME) or MASK_OUTPUT.fullmatch(name) or COST_VOLUME_OUTPUT.fullmatch(name):
            return str(name)
    return str(names[0]) if names else ""


def _shape(port: Any) -> tuple[int | None, ...]:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return ()
    return tuple(None if size.is_dynamic else size.get_length() for size in shape)
