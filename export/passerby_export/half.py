"""The network in half precision: a graph of float16, which a GPU computes on its tensor cores.

TensorRT's networks are strongly typed, and ONNX Runtime's CUDA provider keeps to the graph: both compute in float16 only
what the graph says is float16.

    float16  products (convolutions, linear layers) outside of what follows, and what is computed from their results
    float32  pixels and their normalisation; the correlation (NCC) and the summary that makes masks of it; means, sums and
             normalisations, in which float16 overflows or loses small addends; the aggregation; all outputs

On a CPU the runtimes compute this graph in float32, from weights that are rounded to float16, and leave out the rounding
of what runs between the layers, which a GPU does not. `rounded` puts it in, so that the parity gate sees what it costs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from passerby.errors import FailedPreconditionError
from passerby_model.backends import Backend, open_encoder
from passerby_model.backends.base import NCC_SCOPE

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_KEPT_OPERATORS = frozenset(
    (
        *("Exp", "Pow", "Softmax", "LogSoftmax", "GlobalAveragePool"),
        *("GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization"),
        *("ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceSum", "ReduceSumSquare"),
    )
)
_KEPT_SCOPES = (NCC_SCOPE, "/summary/", "/aggregation/")


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the float32 graph `model` that is typed as said above; inputs and outputs keep their types.

    Raises:
        FailedPreconditionError: a weight is beyond the range of float16, +-65504 (PRECISION_UNSUPPORTED).
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    typed = _Typed(model)
    nodes: list[onnx.NodeProto] = []
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        kind = _FLOAT if outputs & set(node.output) else typed.kind_of(node)
        fed = [typed.fed(name, kind) for name in node.input]
        nodes += [*typed.taken_casts(), _renamed(node, fed, list(node.output))]
        typed.note(node, kind)
    return _finished(half, nodes, [*graph.initializer, *typed.constants], typed.kinds)


def rounded(half: onnx.ModelProto) -> onnx.ModelProto:
    """What the graph `half` (of `to_half`) computes on a GPU, in float32: each value that is float16 there is rounded to
    float16 here once it is computed. Sums inside an operator are float32 in both."""
    plain = onnx.ModelProto()
    plain.CopyFrom(half)
    types = _types(half)
    nodes: list[onnx.NodeProto] = []
    for node in half.graph.node:
        if types.get(node.output[0]) != _HALF:
            nodes.append(node)
            continue
        exact = [f"{name}/exact" for name in node.output]
        if node.op_type != "Cast":
            nodes.append(_renamed(node, list(node.input), exact))
        for name, before in zip(node.output, node.input if node.op_type == "Cast" else exact, strict=True):
            nodes.append(helper.make_node("Cast", [before], [f"{name}/half"], name=f"{name}/half", to=_HALF))
            nodes.append(helper.make_node("Cast", [f"{name}/half"], [name], name=f"{name}/back", to=_FLOAT))
    widened = [
        numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        if tensor.data_type == _HALF
        else tensor
        for tensor in half.graph.initializer
    ]
    return _finished(plain, nodes, widened, {name: _FLOAT for name, kind in types.items() if kind == _HALF})


def open_rounded(path: Path) -> Backend:
    """The encoder at `path`, a graph of `to_half`, as `rounded` computes it, in ONNX Runtime on the CPU.

    Raises:
        FailedPreconditionError: ONNX Runtime is not installed, or cannot run it.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        graph = Path(scratch) / path.name
        onnx.save(rounded(onnx.load(path)), graph)
        return open_encoder(graph, "onnx", "onnxruntime", precision="fp16")


class _Typed:
    """The types that the values of a graph get, from its inputs on."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._floats = {name for name, kind in _types(model).items() if kind == _FLOAT}
        self._values = {tensor.name: tensor for tensor in model.graph.initializer}
        self.kinds: dict[str, int] = {}
        self._converted: set[str] = set()
        self._casts: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def kind_of(self, node: onnx.NodeProto) -> int:
        """In which type the node is to be computed."""
        if node.op_type in _KEPT_OPERATORS or any(scope in f"/{node.name}" for scope in _KEPT_SCOPES):
            return _FLOAT
        follows = any(self.kinds.get(name) == _HALF for name in node.input)
        return _HALF if node.op_type in _PRODUCTS or follows else _FLOAT

    def fed(self, name: str, kind: int) -> str:
        """What a node of type `kind` takes for the value `name`: that, or its conversion, which is made once."""
        if name not in self._floats or self.kinds.get(name, _FLOAT) == kind:
            return name
        converted = f"{name}/{'fp16' if kind == _HALF else 'fp32'}"
        if converted not in self._converted:
            self._converted.add(converted)
            if name in self._values:
                self.constants.append(_half_constant(self._values[name], converted))
            else:
                self._casts.append(helper.make_node("Cast", [name], [converted], name=converted, to=kind))
        return converted

    def note(self, node: onnx.NodeProto, kind: int) -> None:
        """The node's results are of type `kind`, as far as they are numbers with a fraction."""
        self.kinds.update({name: kind for name in node.output if name in self._floats})

    def taken_casts(self) -> Iterator[onnx.NodeProto]:
        """Conversions that have to come before the next node."""
        while self._casts:
            yield self._casts.pop(0)


def _half_constant(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > float(np.finfo(np.float16).max):
        raise FailedPreconditionError(
            f"{tensor.name} has values up to {largest:g}, which float16 cannot hold (65504): leave fp16 out",
            reason="PRECISION_UNSUPPORTED",
        )
    return numpy_helper.from_array(values.astype(np.float16), name)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _renamed(node: onnx.NodeProto, inputs: list[str], outputs: list[str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    copy.output.extend(outputs)
    return copy


def _finished(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], kinds: Mapping[str, int]
) -> onnx.ModelProto:
    """`model` with these nodes, and those of the constants that they use; checked. `kinds`: new types of its values."""
    graph = model.graph
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in constants if tensor.name in used]
    made = {name for node in nodes for name in node.output}
    known = [value for value in graph.value_info if value.name in made]
    for value in known:
        value.type.tensor_type.elem_type = kinds.get(value.name, value.type.tensor_type.elem_type)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.value_info.extend(known)
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    onnx.checker.check_model(model)
    shape_inference.infer_shapes(model, strict_mode=True)
    return model
