"""The weights of an encoder file by name, as float32, however they are stored: what two files are compared by.

    ONNX   initialisers (those of `half.py` are float16), and what Cast, Mul and DequantizeLinear make of them alone (`storage.py`, QDQ)
    IR     constants, and what Convert, Multiply and Subtract make of them alone (`openvino_ir.py`, NNCF)

The name is the trained parameter's, `encoder.cosam.4.reduce.0.weight`, where the file has it. NNCF gives constants
running numbers instead of names; those are called by the layer that they feed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from passerby.errors import InvalidArgumentError

from .openvino_ir import read_model

Weights = dict[str, NDArray[np.float32]]

_STORED = re.compile(r"(/fp16|/bf16|/int8|_DequantizeLinear_Output)$")
_NUMBERED = re.compile(r"[A-Za-z]+_\d+")
_DECODERS = {"Cast", "Mul", "DequantizeLinear"}
_RANGES = {"QuantizeLinear", "DequantizeLinear", "FakeQuantize"}  # whose constants say how to quantise
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_IR_DECODERS = {"Convert", "Multiply", "Subtract"}
_IR_FLOATS = {"f32", "f16", "bf16", "f64"}


def read_weights(path: Path) -> Weights:
    """Tensors of one dimension or more of the encoder at `path` (`.onnx`, or the `.xml` of an OpenVINO IR), float32.

    Raises:
        InvalidArgumentError: the file cannot be read.
        FailedPreconditionError: an IR, and OpenVINO is not installed.
    """
    try:
        named = _of_ir(path) if path.suffix == ".xml" else _of_onnx(path)
        return {name: values.astype(np.float32, copy=False) for name, values in named if values.ndim > 0}
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: OpenVINO's; ValueError: protobuf's
        raise InvalidArgumentError(f"{path} cannot be read: {error}", reason="MODEL_UNREADABLE") from error


def _of_onnx(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    decoders: list[onnx.NodeProto] = []
    known = set(constants)
    for node in graph.node:
        if node.op_type in _DECODERS and known.issuperset(node.input):
            decoders.append(node)
            known.update(node.output)
    decoding = {id(node) for node in decoders}
    used = dict.fromkeys(
        name
        for node in graph.node
        if id(node) not in decoding and node.op_type not in _RANGES
        for name in node.input
        if name in known
    )
    decoded = _decode(decoders, constants, [name for name in used if name not in constants])
    for name in used:
        if name in decoded:
            yield _STORED.sub("", name), decoded[name]
        elif name in constants and constants[name].data_type in _FLOATS:
            yield _STORED.sub("", name), numpy_helper.to_array(constants[name])


def _decode(
    nodes: list[onnx.NodeProto], constants: dict[str, onnx.TensorProto], wanted: list[str]
) -> dict[str, NDArray[Any]]:
    """What these nodes give for `wanted`, by ONNX's own reference implementation."""
    if not wanted:
        return {}
    from onnx.reference import ReferenceEvaluator

    needed = {name for node in nodes for name in node.input}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted]
    fed = [tensor for name, tensor in constants.items() if name in needed]
    graph = helper.make_graph(nodes, "weights", [], outputs, fed)
    values = ReferenceEvaluator(helper.make_model(graph)).run(wanted, {})
    return {name: np.asarray(value) for name, value in zip(wanted, values, strict=True)}


def _of_ir(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    for operation in read_model(path).get_ordered_ops():
        kind = operation.get_type_name()
        if kind in _RANGES or (kind in _IR_DECODERS and _constant(operation) is not None):
            continue
        for number in range(operation.get_input_size()):
            source = operation.input_value(number).get_node()
            leaf = _constant(source)
            if leaf is None or source.get_output_element_type(0).to_string() not in _IR_FLOATS:
                continue
            name = _STORED.sub("", leaf.get_friendly_name())
            if _NUMBERED.fullmatch(name):
                name = f"{operation.get_friendly_name()}:{number}"
            yield name, _value(source)


def _constant(node: Any) -> Any:
    """The constant that all of `node` is made of (the first of several); None when it depends on the input."""
    kind = node.get_type_name()
    if kind == "Constant":
        return node
    if kind not in _IR_DECODERS:
        return None
    leaves = [_constant(node.input_value(number).get_node()) for number in range(node.get_input_size())]
    return None if None in leaves else leaves[0]


def _value(node: Any) -> NDArray[np.float32]:
    if node.get_type_name() == "Constant":
        values: NDArray[np.float32] = node.get_data(dtype=np.float32)
        return values
    parts = [_value(node.input_value(number).get_node()) for number in range(node.get_input_size())]
    if node.get_type_name() == "Convert":
        return parts[0]
    return parts[0] * parts[1] if node.get_type_name() == "Multiply" else parts[0] - parts[1]
