"""`passerby export inspect`: what is in an encoder file, and in which number format its correlation is computed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, shape_inference
from passerby.errors import FailedPreconditionError, InvalidArgumentError
from passerby_model.backends.base import NCC_SCOPE

from .bundle import require_file

# ONNX's element types in the words of TensorRT's list.
_TENSORRT_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.BOOL: "BOOL",
}


@dataclass(frozen=True)
class Port:
    """A value of the graph: an input, an output, or what an operator gives. `shape`: `batch` or `?` where open."""

    name: str
    type: str
    shape: tuple[int | str, ...]

    def describe(self) -> str:
        """`descriptor float32 (batch, 2048)`."""
        return f"{self.name} {self.type} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class GraphReport:
    """What `inspect_encoder` finds.

    Attributes:
        format: `onnx` or `openvino`.
        versions: opset, IR version and producer, as far as the format has them.
        inputs, outputs: in the graph's order.
        correlation: the operators of the correlation of each COSAM, in the order in which they run; the name is the
            node's, with its scope (`encoder/cosam.4/ncc/MatMul`), type and shape are those of its result.
        operators: how many of each type.
        weights: bytes of constants by number format.
        not_in_tensorrt: operators (with what they are fed) that TensorRT's list lacks; empty for OpenVINO's format.
    """

    path: Path
    format: str
    versions: dict[str, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    correlation: tuple[tuple[str, Port], ...]
    operators: dict[str, int]
    weights: dict[str, int]
    not_in_tensorrt: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "file": self.path.name,
            "format": self.format,
            "versions": self.versions,
            "inputs": [vars(port) for port in self.inputs],
            "outputs": [vars(port) for port in self.outputs],
            "correlation": [{"operator": operator, **vars(port)} for operator, port in self.correlation],
            "operators": self.operators,
            "weights": self.weights,
            "not_in_tensorrt": list(self.not_in_tensorrt),
        }

    def lines(self) -> list[str]:
        """The report, to be read."""
        total = sum(self.weights.values())
        sizes = ", ".join(f"{size / 1e6:.2f} MB {kind}" for kind, size in sorted(self.weights.items()))
        counts = sorted(self.operators.items(), key=lambda item: (-item[1], item[0]))
        found = [
            f"{self.path.name}: " + ", ".join([self.format, *(f"{k} {v}" for k, v in self.versions.items())]),
            *(f"  input   {port.describe()}" for port in self.inputs),
            *(f"  output  {port.describe()}" for port in self.outputs),
            f"  weights {total / 1e6:.2f} MB: {sizes}",
            f"  operators {sum(self.operators.values())}: " + ", ".join(f"{name} {count}" for name, count in counts),
        ]
        if self.format == "onnx":
            missing = "; ".join(self.not_in_tensorrt)
            found.append(
                f"  TensorRT {tensorrt_list().version}: " + (f"lacks {missing}" if missing else "has them all")
            )
        found.append(f"  correlation (NCC): {len(self.correlation)} operators")
        found += [f"    {operator:12}{port.describe()}" for operator, port in self.correlation]
        return found


@dataclass(frozen=True)
class TensorRtList:
    """TensorRT's published operator support: version, range of opsets, and the types of each operator's first input."""

    version: str
    opsets: tuple[int, int]
    types: dict[str, frozenset[str]]


@cache
def tensorrt_list() -> TensorRtList:
    """The list in tensorrt_operators.json, which names its source."""
    content = json.loads(resources.files(__package__).joinpath("tensorrt_operators.json").read_text())
    types = {operator: frozenset(kinds.split()) for kinds, names in content["operators"].items() for operator in names}
    return TensorRtList(content["tensorrt"], tuple(content["opsets"]), types)


def inspect_encoder(path: Path) -> GraphReport:
    """What is in the encoder file at `path` (`.onnx`, or the `.xml` of an OpenVINO IR).

    Raises:
        NotFoundError: no such file.
        InvalidArgumentError: neither format.
    """
    require_file(path, "encoder")
    if path.suffix == ".xml":
        return _inspect_ir(path)
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and onnx's errors share no base but Exception
        raise InvalidArgumentError(f"{path}: neither an ONNX model nor an OpenVINO IR: {error}") from error
    return inspect_onnx(model, path)


def inspect_onnx(model: onnx.ModelProto, path: Path = Path("encoder.onnx")) -> GraphReport:
    """The report of an ONNX graph in memory; `path` is only named."""
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    ports = {value.name: _port(value) for value in [*graph.value_info, *graph.input, *graph.output]}
    weights: Counter[str] = Counter()
    for tensor in graph.initializer:
        weights[_type_name(tensor.data_type)] += len(tensor.raw_data) or tensor.ByteSize()
    return GraphReport(
        path=path,
        format="onnx",
        versions={
            "opset": ",".join(str(entry.version) for entry in model.opset_import),
            "IR": str(model.ir_version),
            "by": f"{model.producer_name} {model.producer_version}".strip(),
        },
        inputs=tuple(ports[value.name] for value in graph.input),
        outputs=tuple(ports[value.name] for value in graph.output),
        correlation=tuple(
            (node.op_type, Port(node.name, ports[node.output[0]].type, ports[node.output[0]].shape))
            for node in graph.node
            if NCC_SCOPE in node.name
        ),
        operators=dict(Counter(node.op_type for node in graph.node)),
        weights=dict(weights),
        not_in_tensorrt=tuple(not_in_tensorrt(model)),
    )


def not_in_tensorrt(model: onnx.ModelProto) -> list[str]:
    """What of the graph TensorRT's list does not have: operators, or the type of what they are fed; and the opset."""
    known = tensorrt_list()
    graph = shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    problems = []
    for entry in model.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            problems.append(f"operators of {entry.domain}")
        elif not known.opsets[0] <= entry.version <= known.opsets[1]:
            problems.append(f"opset {entry.version}")
    for node in graph.node:
        kind = _TENSORRT_TYPES.get(types.get(node.input[0], TensorProto.UNDEFINED), "?") if node.input else ""
        if node.op_type not in known.types:
            problems.append(node.op_type)
        elif kind and kind not in known.types[node.op_type]:
            problems.append(f"{node.op_type} of {kind}")
    return sorted(set(problems))


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    sizes = (dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim)
    return Port(value.name, _type_name(tensor.elem_type), tuple(sizes))


def _type_name(kind: int) -> str:
    name = TensorProto.DataType.Name(kind).lower()
    return "float32" if name == "float" else name


def _inspect_ir(path: Path) -> GraphReport:
    """The report of an OpenVINO IR. Raises FailedPreconditionError without OpenVINO, InvalidArgumentError for no IR."""
    try:
        from passerby_model.backends.openvino_package import openvino_core

        core = openvino_core()
    except ImportError as error:
        raise FailedPreconditionError(f"inspecting {path} needs openvino: pip install openvino") from error
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise InvalidArgumentError(f"{path}: OpenVINO cannot read it: {error}") from error
    operations = model.get_ordered_ops()
    weights: Counter[str] = Counter()
    for operation in operations:
        if operation.get_type_name() == "Constant":
            weights[str(operation.get_output_element_type(0).to_string())] += operation.get_byte_size()
    return GraphReport(
        path=path,
        format="openvino",
        versions=_ir_versions(model),
        inputs=tuple(_ir_port(port, port.any_name) for port in model.inputs),
        outputs=tuple(_ir_port(port, port.any_name) for port in model.outputs),
        correlation=tuple(_ir_correlation(operations)),
        operators=dict(Counter(op.get_type_name() for op in operations if op.get_type_name() != "Constant")),
        weights=dict(weights),
    )


def _ir_correlation(operations: Iterable[Any]) -> Iterable[tuple[str, Port]]:
    for operation in operations:
        name = operation.get_friendly_name()
        if NCC_SCOPE in name and operation.get_type_name() != "Constant":
            yield operation.get_type_name(), _ir_port(operation.output(0), name)


def _ir_versions(model: Any) -> dict[str, str]:
    path = ["Runtime_version"]
    return {"by": f"OpenVINO {model.get_rt_info(path).value}"} if model.has_rt_info(path) else {}


def _ir_port(port: Any, name: str) -> Port:
    shape = port.get_partial_shape()
    sizes = ["?" if size.is_dynamic else size.get_length() for size in shape]
    kind = port.get_element_type().to_string()
    return Port(name, {"f32": "float32", "u8": "uint8"}.get(kind, kind), tuple(sizes))
