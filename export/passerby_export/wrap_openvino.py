"""Wrapping an OpenVINO IR: the same steps as for ONNX, written with OpenVINO's own operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError, InvalidArgumentError
from passerby_model.backends import EncoderFormat
from passerby_model.backends.openvino_package import import_openvino, openvino_core
from passerby_model.bundle import DESCRIPTOR_NAME, INPUT_NAME

from .foreign import MIN_LENGTH, Ports, Shape, frame_by_frame, resolve_ports
from .openvino_ir import save_ir
from .parity import Reference
from .spec import WrapSpec

openvino = import_openvino()
ops = openvino.opset13


class OpenVinoModel:
    """A foreign OpenVINO IR (.xml beside its .bin), ready to be wrapped.

    Raises:
        InvalidArgumentError: OpenVINO cannot read it, or its ports do not fit the spec.
    """

    format: EncoderFormat = "openvino"

    def __init__(self, path: Path, spec: WrapSpec) -> None:
        self.path, self.spec = path, spec
        if not path.with_suffix(".bin").is_file():
            raise InvalidArgumentError(f"{path.with_suffix('.bin')} is missing: an IR is an .xml and a .bin file")
        model = self._read()
        inputs = [(port.get_any_name(), _shape(port)) for port in model.inputs]
        self.ports: Ports = resolve_ports(spec, inputs, [port.get_any_name() for port in model.outputs], path)
        self.dtype: np.dtype[np.generic] = np.dtype(model.input(0).get_element_type().to_dtype())
        if self.dtype == np.uint8 and (spec.range != (0, 255) or any(spec.mean) or spec.std != (1, 1, 1)):
            raise InvalidArgumentError(f"{path} takes uint8 pixels: range must be [0, 255], without mean and std")

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `int8`: how most of the model's weights are stored."""
        sizes: dict[str, int] = {}
        for op in self._read().get_ops():
            if op.get_type_name() == "Constant":
                kind = op.get_element_type().get_type_name()
                sizes[kind] = sizes.get(kind, 0) + int(np.prod(op.get_output_shape(0)))
        largest = max(sizes, key=lambda kind: sizes[kind], default="f32")
        return {"f16": "fp16", "i8": "int8", "u8": "int8"}.get(largest, "fp32")

    def reference(self) -> Reference:
        """The original files in OpenVINO, frame by frame and in single precision."""
        try:
            compiled = openvino_core().compile_model(self._read(), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        except RuntimeError as error:
            raise InvalidArgumentError(f"OpenVINO cannot compile {self.path}: {error}") from error
        ports = self.ports
        request = compiled.create_infer_request()

        def run(values: NDArray[np.generic]) -> NDArray[np.generic]:
            try:
                request.infer({ports.input: values})
            except RuntimeError as error:
                raise InvalidArgumentError(f"{self.path} does not run on one frame: {error}") from error
            return np.array(request.get_tensor(ports.output).data)

        return frame_by_frame(self.spec, ports, run, self.dtype)

    def write(self, folder: Path) -> Path:
        """The wrapped encoder as encoder.xml and encoder.bin in `folder`.

        Raises:
            FailedPreconditionError: its batch cannot be opened.
            OSError: the disk is full.
        """
        model = self._read()
        try:
            self._open_batch(model)
            wrapped = self._wrap(model)
            target = folder / "encoder.xml"
            save_ir(wrapped, target)
        except RuntimeError as error:
            raise FailedPreconditionError(
                f"{self.path} cannot be wrapped with an open batch: {error}", reason="WRAP_FAILED"
            ) from error
        return target

    def _read(self) -> Any:
        try:
            return openvino_core().read_model(self.path)
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise InvalidArgumentError(f"OpenVINO cannot read {self.path}: {why}", reason="MODEL_UNREADABLE") from error

    def _open_batch(self, model: Any) -> None:
        """Leave the first dimension of the input open; also in Reshape nodes that have it as a constant."""
        if self.ports.batch is not None:
            for op in model.get_ops():
                if op.get_type_name() != "Reshape" or not op.output(0).get_partial_shape().is_static:
                    continue
                wanted = op.input_value(1).get_node()
                if wanted.get_type_name() != "Constant" or wanted.data.ravel()[:1].tolist() in ([0], [-1], []):
                    continue
                opened = np.array([-1, *list(op.get_output_shape(0))[1:]], np.int64)
                op.input(1).replace_source_output(ops.constant(opened).output(0))
        height, width = self.ports.height, self.ports.width
        sizes = [-1, 3, height, width] if self.spec.layout == "NCHW" else [-1, height, width, 3]
        model.reshape({model.input(0).get_any_name(): openvino.PartialShape(sizes)})

    def _wrap(self, model: Any) -> Any:
        spec, ports = self.spec, self.ports
        snippets = ops.parameter([-1, 1, ports.height, ports.width, 3], np.uint8, name=INPUT_NAME)
        snippets.output(0).set_names({INPUT_NAME})
        value = ops.reshape(snippets, np.array([-1, ports.height, ports.width, 3]), False)
        if spec.colour == "BGR":
            value = ops.gather(value, np.array([2, 1, 0]), np.array(3))
        if self.dtype != np.uint8:
            scale, shift = spec.scale_and_shift()
            value = ops.add(ops.multiply(ops.convert(value, "f32"), scale), shift)
            value = ops.convert(value, model.input(0).get_element_type().get_type_name())
        if spec.layout == "NCHW":
            value = ops.transpose(value, np.array([0, 3, 1, 2]))
        old = model.get_parameters()[0]
        for target in old.output(0).get_target_inputs():
            target.replace_source_output(value.output(0))
        output = model.output(ports.output).get_node().input_value(0)
        flat = ops.convert(ops.reshape(output, np.array([0, -1]), True), "f32")
        if spec.unit_length:
            flat = ops.normalize_l2(flat, np.array([1]), MIN_LENGTH**2, "max")
        flat.output(0).set_names({DESCRIPTOR_NAME})
        return openvino.Model([ops.result(flat)], [snippets], spec.name)


def _shape(port: Any) -> Shape:
    sizes = port.get_partial_shape()
    if sizes.rank.is_dynamic:
        return ()
    return tuple(None if size.is_dynamic else size.get_length() for size in sizes)
