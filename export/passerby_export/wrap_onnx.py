"""Wrapping an ONNX model: uint8 snippets in front, descriptors of length 1 behind, an open batch in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper, shape_inference
from passerby.errors import FailedPreconditionError, InvalidArgumentError
from passerby_model.backends import EncoderFormat
from passerby_model.bundle import DESCRIPTOR_NAME, INPUT_NAME

from .foreign import MIN_LENGTH, Ports, Shape, frame_by_frame, resolve_ports
from .parity import Reference
from .spec import WrapSpec

_PREFIX = "model/"
_BATCH = "batch"
_OLDEST_OPSET = 9  # older ones broadcast by other rules
_REDUCE_SUM_AXES_INPUT = 13  # from this opset on, ReduceSum takes its axes as an input
_NUMPY_TYPES: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.UINT8: np.dtype(np.uint8),
}
_PRECISIONS: dict[int, str] = {TensorProto.FLOAT16: "fp16", TensorProto.INT8: "int8", TensorProto.UINT8: "int8"}
_ERROR_LOGS_ONLY = 3


class OnnxModel:
    """A foreign ONNX model, ready to be wrapped.

    Raises:
        InvalidArgumentError: not an ONNX model, too old an opset, or ports that do not fit the spec.
    """

    format: EncoderFormat = "onnx"

    def __init__(self, path: Path, spec: WrapSpec) -> None:
        self.path, self.spec = path, spec
        self._model = _load(path)
        self._opset = next((o.version for o in self._model.opset_import if o.domain in ("", "ai.onnx")), 0)
        if self._opset < _OLDEST_OPSET:
            raise InvalidArgumentError(
                f"{path} is of opset {self._opset}, at least {_OLDEST_OPSET} is needed: "
                "convert it with onnx.version_converter"
            )
        graph = self._model.graph
        constants = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in constants]
        self.ports: Ports = resolve_ports(
            spec, [(value.name, _shape(value)) for value in inputs], [value.name for value in graph.output], path
        )
        element = inputs[0].type.tensor_type.elem_type
        if element not in _NUMPY_TYPES:
            raise InvalidArgumentError(f"{path}: input of type {TensorProto.DataType.Name(element)} cannot be fed")
        self._element, self.dtype = element, _NUMPY_TYPES[element]
        scale, shift = spec.scale_and_shift()
        self._identity = bool((scale == 1).all() and (shift == 0).all())
        if self.dtype == np.uint8 and not self._identity:
            raise InvalidArgumentError(f"{path} takes uint8 pixels: range must be [0, 255], without mean and std")

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `int8`: how most of the model's weights are stored."""
        sizes: dict[int, int] = {}
        for tensor in self._model.graph.initializer:
            sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
        largest = max(sizes, key=lambda kind: sizes[kind], default=int(TensorProto.FLOAT))
        return _PRECISIONS.get(largest, "fp32")

    def reference(self) -> Reference:
        """The original file in ONNX Runtime, frame by frame. Raises InvalidArgumentError when it does not load."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERROR_LOGS_ONLY
        try:
            session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            raise InvalidArgumentError(f"ONNX Runtime cannot load {self.path}: {error}") from error
        ports = self.ports

        def run(values: NDArray[np.generic]) -> NDArray[np.generic]:
            try:
                return np.asarray(session.run([ports.output], {ports.input: values})[0])
            except Exception as error:
                raise InvalidArgumentError(f"{self.path} does not run on one frame: {error}") from error

        return frame_by_frame(self.spec, ports, run, self.dtype)

    def write(self, folder: Path) -> Path:
        """The wrapped encoder as encoder.onnx in `folder`.

        Raises:
            FailedPreconditionError: the wrapped graph is not valid.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        open_batch(model, self.ports.input)
        model = compose.add_prefix(model, _PREFIX)
        graph = model.graph
        before, after = self._before(), self._after()
        own = list(graph.node)
        del graph.node[:], graph.input[:], graph.output[:]
        graph.node.extend([*before.nodes, *own, *after.nodes])
        graph.initializer.extend([*before.constants, *after.constants])
        sizes: list[str | int | None] = [_BATCH, 1, self.ports.height, self.ports.width, 3]
        graph.input.append(helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, sizes))
        graph.output.append(helper.make_tensor_value_info(DESCRIPTOR_NAME, TensorProto.FLOAT, [_BATCH, None]))
        target = folder / "encoder.onnx"
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError as error:
            raise FailedPreconditionError(f"{self.path} cannot be wrapped: {error}", reason="WRAP_FAILED") from error
        target.write_bytes(model.SerializeToString())
        return target

    def _before(self) -> _Chain:
        """snippets uint8 (B, 1, H, W, 3) -> the model's input."""
        chain = _Chain("before", INPUT_NAME)
        chain.add("Reshape", np.array([-1, self.ports.height, self.ports.width, 3], np.int64))
        if self.spec.colour == "BGR":
            chain.add("Gather", np.array([2, 1, 0], np.int64), axis=3)
        if self.dtype != np.uint8:
            chain.add("Cast", to=TensorProto.FLOAT)
        if not self._identity:
            scale, shift = self.spec.scale_and_shift()
            chain.add("Mul", scale)
            chain.add("Add", shift)
        if self.dtype not in (np.uint8, np.float32):
            chain.add("Cast", to=self._element)
        if self.spec.layout == "NCHW":
            chain.add("Transpose", perm=[0, 3, 1, 2])
        chain.finish(_PREFIX + self.ports.input)
        return chain

    def _after(self) -> _Chain:
        """The model's output -> descriptor float32 (B, D)."""
        chain = _Chain("after", _PREFIX + self.ports.output)
        chain.add("Flatten", axis=1)
        chain.add("Cast", to=TensorProto.FLOAT)
        if self.spec.unit_length:
            flat = chain.last
            chain.add("Mul", flat)
            if self._opset >= _REDUCE_SUM_AXES_INPUT:
                chain.add("ReduceSum", np.array([1], np.int64), keepdims=1)
            else:
                chain.add("ReduceSum", axes=[1], keepdims=1)
            chain.add("Sqrt")
            chain.add("Max", np.array([MIN_LENGTH], np.float32))
            length, chain.last = chain.last, flat
            chain.add("Div", length)
        chain.finish(DESCRIPTOR_NAME)
        return chain


class _Chain:
    """Nodes one after the other, each fed by the one before."""

    def __init__(self, scope: str, first: str) -> None:
        self.scope, self.last = scope, first
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op: str, second: str | NDArray[Any] | None = None, **attributes: Any) -> None:
        """Append `op`; `second` is its second input, by name or as a constant."""
        name = f"{self.scope}/{len(self.nodes)}_{op}"
        inputs = [self.last]
        if isinstance(second, str):
            inputs.append(second)
        elif second is not None:
            self.constants.append(numpy_helper.from_array(second, f"{name}/constant"))
            inputs.append(f"{name}/constant")
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self.last = name

    def finish(self, output: str) -> None:
        """Name the end of the chain."""
        self.nodes.append(helper.make_node("Identity", [self.last], [output], name=f"{self.scope}/end"))


def open_batch(model: onnx.ModelProto, input_name: str) -> None:
    """Make the first dimension of the model's input and outputs open, in place.

    A batch that was fixed at conversion is also written into the constants of Reshape nodes: in each, every size but
    the first is fixed as shape inference finds it, and the first left open (-1). For the original batch that is the
    same shape; for others it is right wherever the batch is the leading dimension, which the parity check verifies.
    """
    graph = model.graph
    value = next(value for value in graph.input if value.name == input_name)
    batch = value.type.tensor_type.shape.dim[0]
    if batch.HasField("dim_value"):
        _open_reshapes(model)
    for port in [value, *graph.output]:
        if port.type.tensor_type.shape.dim:
            port.type.tensor_type.shape.dim[0].Clear()
            port.type.tensor_type.shape.dim[0].dim_param = _BATCH
    del graph.value_info[:]


def _open_reshapes(model: onnx.ModelProto) -> None:
    graph = model.graph
    inferred = shape_inference.infer_shapes(model).graph
    shapes = {value.name: _shape(value) for value in [*inferred.value_info, *inferred.output]}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    for number, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        wanted = numpy_helper.to_array(constants[node.input[1]])
        sizes = shapes.get(node.output[0], ())
        if wanted.size == 0 or wanted[0] in (0, -1) or len(sizes) != wanted.size or None in sizes[1:]:
            continue
        opened = np.array([-1, *sizes[1:]], np.int64)
        graph.initializer.append(numpy_helper.from_array(opened, f"open_batch/{number}"))
        node.input[1] = f"open_batch/{number}"


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except FileNotFoundError as error:  # weights in a file of their own
        raise InvalidArgumentError(f"{path}: {error}") from error
    except Exception as error:  # protobuf's and the checker's errors share no base but Exception
        why = " ".join(str(error).split()) or type(error).__name__
        raise InvalidArgumentError(f"{path} is not a valid ONNX model: {why}", reason="MODEL_UNREADABLE") from error
    return model


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in value.type.tensor_type.shape.dim
    )
