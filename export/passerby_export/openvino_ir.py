"""Encoders as OpenVINO IR (.xml + .bin), with what ONNX cannot say: which operators stay in float32.

The attribute `DisablePrecisionConversion` of a layer tells OpenVINO to leave its number format alone when the rest is
computed in bf16. Python has no other way to set it than in the file. Whether a version of OpenVINO heeds it is checked
each time such a file is loaded (`passerby_model.backends.openvino`); 2026.4 does.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from passerby.errors import FailedPreconditionError
from passerby_model.backends.base import NCC_SCOPE
from passerby_model.backends.openvino_package import import_openvino, openvino_core

_PROBE = 1 << 20  # bytes
# What OpenVINO calls operators without a name: by a number that counts all operators of the process.
_NUMBERED = re.compile(r"(?P<type>[A-Z][A-Za-z0-9]*)_\d+")


def openvino() -> Any:
    """The package. Raises FailedPreconditionError when it is not installed."""
    try:
        return import_openvino()
    except ImportError as error:
        raise FailedPreconditionError(
            f"OpenVINO is not installed ({error}): pip install 'passerby[export]'", reason="EXTRA_MISSING"
        ) from error


def read_model(path: Path) -> Any:
    """The model at `path` (.onnx or .xml), as OpenVINO holds it."""
    openvino()
    return openvino_core().read_model(path)


def save_ir(model: Any, path: Path) -> tuple[Path, Path]:
    """Write `model` to `path` (.xml) and its weights beside it; returns the two files, the same for the same model.

    Raises:
        OSError: the disk is full (or over a quota or file size limit).
        RuntimeError: OpenVINO cannot write it for another reason.
    """
    files = path, path.with_suffix(".bin")
    for number, operation in enumerate(model.get_ordered_ops()):
        if numbered := _NUMBERED.fullmatch(operation.get_friendly_name()):
            operation.set_friendly_name(f"{numbered['type']}_{number}")
    try:
        openvino().save_model(model, path, compress_to_fp16=False)
    except RuntimeError:
        # A full disk is an "iostream error" to OpenVINO. Writing on where it stopped tells by name.
        for file in files:
            with file.open("ab") as stream:
                stream.write(bytes(_PROBE))
        raise
    return files


def shield_correlation(model: Any) -> None:
    """Rewrites the means of the correlation of a quantised model, in place, so that their float32 can be relied on.

    OpenVINO takes a factor before a sum for a scale of quantisation: it moves the factor behind the sum and forgets
    what was said of its number format (2026.4). A product with a column of that factor is the same and is left alone.
    Sums over other axes than the last two stay as they are: loading the file says then which are not float32.
    """
    make = import_module("openvino.opset13")
    for total in model.get_ordered_ops():
        if total.get_type_name() != "ReduceSum" or NCC_SCOPE not in total.get_friendly_name():
            continue
        scaled, axes = (total.input_value(place).get_node() for place in (0, 1))
        factor = scaled.input_value(1).get_node() if scaled.get_type_name() == "Multiply" else None
        if factor is None or factor.get_type_name() != "Constant":
            continue
        shape, (axis,) = scaled.get_output_partial_shape(0), axes.get_data().ravel()
        last = axis % len(shape) == len(shape) - 1
        if not last and axis % len(shape) != len(shape) - 2:
            continue
        column = np.full(shape[int(axis)].get_length(), factor.get_data().item(), np.float32)
        weights = make.constant(column[:, None] if last else column[None, :])
        rows = scaled.input_value(0)
        product = make.matmul(rows, weights, False, False) if last else make.matmul(weights, rows, False, False)
        product.set_friendly_name(total.get_friendly_name())
        total.output(0).replace(product.output(0))
    model.validate_nodes_and_infer_types()


def write_ir(model: Any, path: Path) -> tuple[Path, Path]:
    """`save_ir`, with the correlation marked to stay in float32."""
    files = save_ir(model, path)
    tree = ET.parse(path)  # noqa: S314  # written by OpenVINO just now
    for layer in tree.getroot().iter("layer"):
        if NCC_SCOPE in layer.get("name", ""):
            info = layer.find("rt_info")
            if info is None:
                info = ET.Element("rt_info")
                layer.insert(0, info)
            ET.SubElement(info, "attribute", name="DisablePrecisionConversion", version="0", value="dynamic:dynamic")
    tree.write(path, encoding="utf-8", xml_declaration=True)
    return files
