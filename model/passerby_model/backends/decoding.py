"""Weights stored as w8, decoded before TensorRT sees them: it has no Cast from int8, with which they begin.

    int8 initialiser -> Cast -> Mul by a scale -> layer        becomes        float32 initialiser -> layer

Each product is one multiplication in float32, as the runtimes of a CPU make it when they load the graph: what a layer
computes with is the same to the last bit. QuantizeLinear and DequantizeLinear stay: with these TensorRT computes in int8.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError

DECODED = "w8"
"""The precision whose artefacts need it."""
_DECODERS = {"Cast", "Mul"}


def decode_weights(path: Path) -> bytes:
    """The graph at `path` (.onnx) with every Cast and Mul of constants replaced by what it gives.

    Raises:
        FailedPreconditionError: the package onnx is not installed (BACKEND_MISSING), or the file cannot be read
            (BACKEND_LOAD).
    """
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError as error:
        raise FailedPreconditionError(
            f"{path} stores its weights as {DECODED}, and decoding them for TensorRT needs onnx ({error}): "
            "pip install 'passerby[tensorrt]'",
            reason="BACKEND_MISSING",
        ) from error
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's errors and onnx's share no base but Exception
        raise FailedPreconditionError(f"{path} cannot be read: {error}", reason="BACKEND_LOAD") from error
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    left = []
    for node in graph.node:
        if node.op_type not in _DECODERS or not stored.keys() >= set(node.input):
            left.append(node)
            continue
        values: list[NDArray[np.generic]] = [numpy_helper.to_array(stored[name]) for name in node.input]
        if node.op_type == "Cast":
            wanted = next(attribute.i for attribute in node.attribute if attribute.name == "to")
            made = values[0].astype(helper.tensor_dtype_to_np_dtype(wanted))
        else:
            made = np.multiply(values[0], values[1])
        stored[node.output[0]] = numpy_helper.from_array(made, node.output[0])
    used = {name for node in left for name in node.input} | {value.name for value in graph.output}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(left)
    graph.initializer.extend(tensor for name, tensor in stored.items() if name in used)
    return bytes(model.SerializeToString(deterministic=True))
