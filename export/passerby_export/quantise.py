"""int8 by quantisation after training, calibrated on tracklets.

    what      every convolution and linear layer outside COSAM: masks live on small differences, NCC in float32
    weights   symmetric, a scale for each output channel
    between   a scale for each tensor, from the least and the greatest value that calibration saw; a percentile instead
              cut off a dark snippet's features (measured: cosine 0.73 against 0.99)
    kept      the first convolution, which sees the picture itself and is 2 % of the work, in float; where that is not
              enough, further groups of layers, the most sensitive ones first; enough is the least descriptor cosine
              (GOAL) and, on labelled tracklets, rankings within the limits of the parity gate

OpenVINO gets an IR from NNCF, which knows what its CPU plugin fuses, and computes what is not quantised in bf16 where the
processor has it, but for NCC. ONNX Runtime and TensorRT get an ONNX graph with
QuantizeLinear and DequantizeLinear around each layer, zero points 0 and biases in float32, as TensorRT demands.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError
from passerby_model.backends.base import UNQUANTISED
from passerby_model.backends.choice import processor_has_bf16
from passerby_model.backends.openvino_package import openvino_core
from passerby_model.bundle import DESCRIPTOR_NAME, INPUT_NAME

from .openvino_ir import openvino, read_model, shield_correlation, write_ir

log = logging.getLogger(__name__)

GOAL = 0.998
"""Least descriptor cosine to float32 on tracklets that calibration did not see; layers are kept until it is reached."""
CALIBRATED_ON = 64
"""Snippets that give the ranges; more hardly widen them (35 or 70 of WARD: the worst cosine moves by 0.0003)."""
JUDGED_ON = 16
"""Snippets that sensitivity is measured on."""
_DARK_EVERY, _DARKER = 4, 8  # every fourth snippet is calibrated on once more, at an eighth of its light: as at night
_COSAM = "/cosam."
_LAYERS = {"Conv", "Gemm", "MatMul"}
_OPENVINO_LAYERS = {"Convolution", "GroupConvolution", "MatMul"}
_FIRST = "encoder/backbone.stem"
_GROUP = re.compile(r"(encoder/backbone\.\w+(?:/\d+)?|encoder/[^/]+)")


Describe = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""An encoder: snippets uint8 (S, N, H, W, 3) -> descriptors float32 (S, D)."""


@dataclass(frozen=True)
class Calibration:
    """Snippets, uint8 (S, N, H, W, 3): `seen` give the ranges, on `unseen` the error is measured. `data`: their set.

    `lost`: what an encoder's rankings of labelled tracklets lose beyond their limits, in words, "" for nothing
    (`parity.lost_rankings`); None without labels.
    """

    data: str
    seen: NDArray[np.uint8]
    unseen: NDArray[np.uint8]
    lost: Callable[[Describe], str] | None = None


def calibration_of(data: str, snippets: NDArray[np.uint8]) -> Calibration:
    """Snippets of any number >= 2, divided: every fifth is judged on, the others, some of them darkened, are seen."""
    unseen = np.arange(len(snippets)) % 5 == 4 if len(snippets) >= 5 else np.arange(len(snippets)) == 0
    seen, rest = _spread(snippets[~unseen], CALIBRATED_ON), _spread(snippets[unseen], JUDGED_ON)
    return Calibration(data, np.concatenate([seen, seen[::_DARK_EVERY] // _DARKER]), rest)


def groups_of(graph: onnx.ModelProto) -> dict[str, list[str]]:
    """Layers that can be quantised, by the block of the backbone (or other module) that they belong to: node names."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    groups: dict[str, list[str]] = {}
    for node in graph.graph.node:
        weighed = node.op_type in _LAYERS and node.input[1] in constants
        match = _GROUP.match(node.name)
        if weighed and match and _COSAM not in f"/{node.name}":
            groups.setdefault(match[1], []).append(node.name)
    return groups


@dataclass(frozen=True)
class Quantised:
    """`kept`: groups that stayed in float; `cosine`: the least on snippets that calibration did not see."""

    kept: tuple[str, ...]
    cosine: float


def keep_until_good(
    error_of: Callable[[Sequence[str]], float],
    worst_first: Callable[[], Sequence[str]],
    goal: float = GOAL,
    always: Sequence[str] = (),
    lost: Callable[[Sequence[str]], str] = lambda _kept: "",
) -> Quantised:
    """Which groups have to stay in float: `always`, or more, the most sensitive ones, one at a time, up to a half.

    Args:
        error_of: the least cosine with these groups kept, all others quantised.
        worst_first: all groups, the most sensitive ones first; asked for only when it is needed.
        lost: what rankings lose beyond their limits with these groups kept, "" for nothing; asked for only where the
            cosine is good. What is lost with a half kept is left to the parity gate, which names it.
    """

    def is_good() -> bool:
        if not reached >= goal:  # nor is what is not a number
            return False
        if problem := lost(kept):
            log.info("cosine %.6f, but rankings lose too much: %s", reached, problem)
        return not problem

    kept = list(always)
    reached = error_of(kept)
    if not is_good():
        order = [name for name in worst_first() if name not in kept]
        for name in order[: len(order) // 2]:
            kept.append(name)
            reached = error_of(kept)
            log.info("%s kept in float: cosine %.6f", name, reached)
            if is_good():
                break
    if not reached >= goal:
        log.warning("int8 reaches cosine %.6f of the %.3f aimed at, with half of the layers in float", reached, goal)
    return Quantised(tuple(kept), reached)


class OpenVinoQuantiser:
    """Quantises the graph at `path` (.onnx, float32) for OpenVINO. Raises FailedPreconditionError without NNCF."""

    def __init__(self, path: Path, groups: dict[str, list[str]], calibration: Calibration) -> None:
        self._path, self._groups, self._calibration = path, groups, calibration
        self._expected = self._encode(read_model(path))
        self._all = self._quantise(())

    @cached_property
    def worst_first(self) -> list[str]:
        """The groups, by the cosine that is left when a group alone is quantised."""
        alone = {name: self._error(self._in_float(set(self._groups) - {name})) for name in self._groups}
        return sorted(alone, key=lambda name: alone[name])

    def write(self, target: Path) -> tuple[tuple[Path, Path], Quantised]:
        """The IR at `target` (.xml), and what was kept."""
        made = keep_until_good(
            lambda kept: self._error(self._in_float(set(kept))),
            lambda: self.worst_first,
            always=_first(self._groups),
            lost=lambda kept: _lost(self._calibration, lambda: self._describer(self._in_float(set(kept)))),
        )
        model = self._quantise(made.kept) if made.kept else self._all
        shield_correlation(model)
        model.set_rt_info("bf16" if processor_has_bf16() else "f32", [*UNQUANTISED])
        return write_ir(model, target), made

    def _quantise(self, kept: Sequence[str]) -> Any:
        nncf = _nncf()
        seen = self._calibration.seen
        with _quiet():
            return nncf.quantize(
                read_model(self._path),
                nncf.Dataset([seen[i : i + 1] for i in range(len(seen))]),
                subset_size=len(seen),
                preset=nncf.QuantizationPreset.MIXED,  # weights symmetric, what is between as it comes
                target_device=nncf.TargetDevice.CPU,
                ignored_scope=nncf.IgnoredScope(
                    patterns=[rf".*{re.escape(_COSAM)}.*", *(rf"{re.escape(name)}/.*" for name in kept)],
                    validate=False,  # a network without COSAM has nothing to match
                ),
                advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=_min_max()),
            )

    def _in_float(self, kept: set[str]) -> Any:
        """The quantised model with the layers of these groups as they were: an estimate that takes no calibration."""
        if not kept:
            return self._all
        model = self._all.clone()
        originals = {op.get_friendly_name(): op for op in read_model(self._path).get_ordered_ops()}
        for operation in model.get_ordered_ops():
            name = operation.get_friendly_name()
            if operation.get_type_name() not in _OPENVINO_LAYERS or not _is_in(name, kept):
                continue
            source = operation.input_value(0).get_node()
            if source.get_type_name() == "FakeQuantize":
                operation.input(0).replace_source_output(source.input_value(0))
            weight = originals[name].input_value(1).get_node()
            if weight.get_type_name() == "Constant":
                copy = openvino().op.Constant(weight.get_data(), shared_memory=False)
                operation.input(1).replace_source_output(copy.output(0))
        model.validate_nodes_and_infer_types()
        return model

    def _error(self, model: Any) -> float:
        return least_cosine(self._encode(model), self._expected)

    def _encode(self, model: Any) -> NDArray[np.float32]:
        return self._describer(model)(self._calibration.unseen)

    def _describer(self, model: Any) -> Describe:
        compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda snippets: np.concatenate(
            [compiled({INPUT_NAME: snippet[None]})[DESCRIPTOR_NAME].copy() for snippet in snippets]
        )


class OnnxQuantiser:
    """Quantises the graph at `path` (.onnx, float32) for ONNX Runtime and TensorRT."""

    def __init__(
        self,
        path: Path,
        groups: dict[str, list[str]],
        calibration: Calibration,
        worst_first: Callable[[], Sequence[str]],
    ) -> None:
        self._path, self._groups, self._calibration, self._worst_first = path, groups, calibration, worst_first
        self._names = [node.name for node in onnx.load(path, load_external_data=False).graph.node]
        self._expected = self._encode(path)

    def write(self, target: Path) -> Quantised:
        """The graph at `target` (.onnx), and what was kept."""

        def error_of(kept: Sequence[str]) -> float:
            self._quantise(target, kept)
            return least_cosine(self._encode(target), self._expected)

        return keep_until_good(
            error_of,
            self._worst_first,
            always=_first(self._groups),
            lost=lambda _kept: _lost(self._calibration, lambda: self._describer(target)),  # as error_of has written it
        )

    def _quantise(self, target: Path, kept: Sequence[str]) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
        from onnxruntime.quantization.quantize import quantize_static

        chosen = {name for group, names in self._groups.items() if group not in kept for name in names}
        with _quiet():
            quantize_static(
                self._path,
                target,
                _reader(self._calibration.seen),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=sorted(_LAYERS),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_exclude=[name for name in self._names if name not in chosen],
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
            )
        model = onnx.load(target)
        # Without the tool's traces and in one order, so that the same weights give the same file.
        del model.metadata_props[:]
        target.write_bytes(model.SerializeToString(deterministic=True))

    def _encode(self, path: Path) -> NDArray[np.float32]:
        return self._describer(path)(self._calibration.unseen)

    def _describer(self, path: Path) -> Describe:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda snippets: np.concatenate(
            [session.run([DESCRIPTOR_NAME], {INPUT_NAME: snippet[None]})[0] for snippet in snippets]
        )


def least_cosine(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Of descriptors (S, D), row by row."""
    lengths = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((actual * expected).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)).min())


def _lost(calibration: Calibration, describer: Callable[[], Describe]) -> str:
    return "" if calibration.lost is None else calibration.lost(describer())


def _first(groups: Iterable[str]) -> list[str]:
    return [name for name in groups if name.startswith(_FIRST)]


def _is_in(name: str, groups: set[str]) -> bool:
    return any(name.startswith(f"{group}/") for group in groups)


def _spread(snippets: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """At most so many, evenly spread."""
    chosen = np.linspace(0, len(snippets) - 1, min(most, len(snippets))).round().astype(np.int64)
    return snippets[chosen]


def _reader(snippets: NDArray[np.uint8]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(snippets)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            snippet = next(self._left, None)
            return None if snippet is None else {INPUT_NAME: snippet[None]}

    return Reader()


def _nncf() -> Any:
    openvino()  # before NNCF imports it, so that neither reports its use to anyone
    try:
        with _quiet():
            import nncf
    except ImportError as error:
        raise FailedPreconditionError(
            f"int8 for OpenVINO needs nncf ({error}): pip install 'passerby[export]'", reason="EXTRA_MISSING"
        ) from error
    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level would change handlers of others, too
    return nncf


def _min_max() -> Any:
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return RangeEstimatorParametersSet.MINMAX


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Both tools print progress to standard output and log advice to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
