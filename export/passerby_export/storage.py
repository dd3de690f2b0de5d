"""How weights are stored in an encoder file.

    fp32  as they are
    bf16  half the size, with the exponents of fp32
    w8    a quarter: int8 with one scale for each output channel, symmetric, w = q * scale

A stored weight is followed by Cast (and Mul): runtimes fold these when they load the graph. Weights of the COSAM
modules always stay in single precision: they are few, and the masks live on small differences. So do small tensors.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Storage = Literal["fp32", "bf16", "w8"]

_LEVELS = 127
_SMALLEST = 4096  # values: below this a tensor does not matter for the size of the file
# Which axis of the weight (the node's second input) counts output channels.
_CHANNEL_AXIS = {"Conv": 0, "Gemm": 0, "MatMul": 1}
_KEPT_SCOPE = "/cosam."


def store_weights(model: onnx.ModelProto, storage: Storage) -> onnx.ModelProto:
    """A copy of `model` with its large weights stored as `storage` says."""
    stored = onnx.ModelProto()
    stored.CopyFrom(model)
    if storage == "fp32":
        return stored
    graph = stored.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kept = {name for node in graph.node if _KEPT_SCOPE in f"/{node.name}" for name in node.input}
    decoders: list[onnx.NodeProto] = []
    for node in graph.node:
        name = node.input[1] if len(node.input) > 1 else ""
        tensor = tensors.get(name)
        if node.op_type not in _CHANNEL_AXIS or tensor is None or name in kept:
            continue
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _SMALLEST:
            continue
        values = numpy_helper.to_array(tensor)
        if storage == "bf16":
            decoders += _bf16(tensor, values)
        else:
            decoders += _int8(graph, tensor, values, _channel_axis(node))
        del tensors[name]  # its name is now a node's output: a second user shares it
    own = list(graph.node)
    del graph.node[:]
    graph.node.extend([*decoders, *own])
    return stored


def quantise(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 values and float32 scales with `weight` ~ values * scales; one scale for each index of `axis`.

    The scales have the rank of the weight, so that they broadcast. Rounding is to nearest, the error of a value at
    most half a scale; a channel of zeros gets scale 1.
    """
    others = tuple(other for other in range(weight.ndim) if other != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    scales = np.where(largest > 0, largest / np.float32(_LEVELS), np.float32(1)).astype(np.float32)
    values = np.clip(np.rint(weight / scales), -_LEVELS, _LEVELS).astype(np.int8)
    return values, scales


def _channel_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Gemm":
        transposed = next((attribute.i for attribute in node.attribute if attribute.name == "transB"), 0)
        return 0 if transposed else 1
    return _CHANNEL_AXIS[node.op_type]


def _bf16(tensor: onnx.TensorProto, values: NDArray[np.float32]) -> list[onnx.NodeProto]:
    name = tensor.name
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(kind), f"{name}/bf16"))
    return [helper.make_node("Cast", [f"{name}/bf16"], [name], name=f"{name}/decode", to=TensorProto.FLOAT)]


def _int8(
    graph: onnx.GraphProto, tensor: onnx.TensorProto, values: NDArray[np.float32], axis: int
) -> list[onnx.NodeProto]:
    name = tensor.name
    codes, scales = quantise(values, axis)
    tensor.CopyFrom(numpy_helper.from_array(codes, f"{name}/int8"))
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}/scale"))
    return [
        helper.make_node("Cast", [f"{name}/int8"], [f"{name}/cast"], name=f"{name}/decode", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}/cast", f"{name}/scale"], [name], name=f"{name}/scaled"),
    ]
