"""A trained encoder as an ONNX graph that keeps the bundle's contract (see `passerby_model.bundle`).

torch.onnx's exporter over torch.export is used: it knows every shape but the batch, folds batch normalisation into
the convolutions, and says for each node which module it comes from. That scope becomes the node's name, so that the
correlation (`encoder/cosam.4/ncc/...`) can be found in the file, shown, and kept in single precision. It is a name and
no ONNX function because names reach what OpenVINO finally runs, where its precision can be read off (`inspection.py`).
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper, shape_inference
from passerby.errors import FailedPreconditionError
from passerby_model.backends.base import NCC_SCOPE
from passerby_model.bundle import DESCRIPTOR_NAME, INPUT_NAME
from passerby_model.encoder import Architecture, TrackletEncoder

from .deployed import DeployedEncoder

# What the oldest runtimes that we install read (ONNX Runtime 1.24, OpenVINO 2026.0, TensorRT 10.0), and the exporter's
# own opset, so that nothing is converted.
OPSET = 18
IR_VERSION = 10
_SCOPES = "pkg.torch.onnx.name_scopes"
_HALF_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def mask_name(block: int) -> str:
    """Name of the output with the masks of the COSAM after CNN block `block`."""
    return f"mask_cosam{block}"


def cost_volume_name(block: int) -> str:
    """Name of the output with the cost volume of that COSAM, where it was asked for."""
    return f"cost_volume_cosam{block}"


def to_onnx(encoder: TrackletEncoder) -> onnx.ModelProto:
    """The graph of `encoder` (in eval mode, on the CPU), with an open batch.

    Raises:
        FailedPreconditionError: the graph is not what a bundle needs (see `check_graph`).
    """
    arch = encoder.architecture
    example = torch.zeros(2, arch.snippet_length, arch.height, arch.width, 3, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            DeployedEncoder(encoder).eval(),
            (example,),
            input_names=[INPUT_NAME],
            output_names=[DESCRIPTOR_NAME, *(mask_name(block) for block in arch.cosam)],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise FailedPreconditionError("torch.onnx.export gave no graph", reason="EXPORT_FAILED")
    model: onnx.ModelProto = program.model_proto
    model.ir_version = IR_VERSION
    _tidy(model)
    check_graph(model, blocks=arch.cosam)
    return model


def add_cost_volumes(model: onnx.ModelProto, arch: Architecture) -> onnx.ModelProto:
    """A copy of `model` that also gives what each COSAM's correlation computes, for verification.

    The outputs: float32 (B, N, (N-1)*h*w, h, w), channels as `passerby_model.cosam` orders them.
    """
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    graph = shown.graph
    for block in arch.cosam:
        volume = ncc_nodes(shown, block)[-1].output[0]  # nodes are in the order in which they run
        height, width = arch.map_size(block)
        sizes = [-1, arch.snippet_length, (arch.snippet_length - 1) * height * width, height, width]
        name = cost_volume_name(block)
        graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), f"{name}/shape"))
        graph.node.append(helper.make_node("Reshape", [volume, f"{name}/shape"], [name], name=f"{name}/Reshape"))
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *sizes[1:]]))
    onnx.checker.check_model(shown)
    return shown


def ncc_nodes(model: onnx.ModelProto, block: int) -> list[onnx.NodeProto]:
    """The nodes of the normalised cross-correlation of the COSAM after CNN block `block`, by their names."""
    return [node for node in model.graph.node if f"/cosam.{block}{NCC_SCOPE}" in f"/{node.name}"]


def check_graph(model: onnx.ModelProto, *, blocks: tuple[int, ...]) -> None:
    """A valid graph in which the correlation of every COSAM is whole and in single precision, without a classifier.

    Raises:
        FailedPreconditionError: it is not; the message says what is missing.
    """
    onnx.checker.check_model(model)
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    for block in blocks:
        nodes = ncc_nodes(model, block)
        if not {"MatMul", "Sqrt"} <= {node.op_type for node in nodes}:
            raise FailedPreconditionError(
                f"the graph has no correlation of COSAM_{block} left: its nodes are {[n.name for n in nodes]}",
                reason="EXPORT_FAILED",
            )
        half = [node.name for node in nodes if types.get(node.output[0]) in _HALF_TYPES]
        if half:
            raise FailedPreconditionError(f"not in single precision: {', '.join(half)}", reason="EXPORT_FAILED")
    if any("classifier" in tensor.name for tensor in model.graph.initializer):
        raise FailedPreconditionError("the classifier is in the graph", reason="EXPORT_FAILED")


def _tidy(model: onnx.ModelProto) -> None:
    """Name nodes by scope and drop what the exporter notes of its own: source lines with paths of this machine."""
    used: set[str] = set()
    for node in model.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
        # A list of scopes from outside in; the last entry is the operation itself.
        parts = [part for part in ast.literal_eval(scopes)[:-1] if part]
        path = "/".join(_relative(parts))
        name = f"{path}/{node.op_type}" if path else node.op_type
        number = 2
        unique = name
        while unique in used:
            unique, number = f"{name}_{number}", number + 1
        used.add(unique)
        node.name = unique
        node.doc_string = ""
        del node.metadata_props[:]
    graph = model.graph
    described: list[onnx.ValueInfoProto | onnx.TensorProto] = [*graph.input, *graph.output, *graph.value_info]
    described += graph.initializer
    for item in described:
        item.doc_string = ""
        del item.metadata_props[:]
    graph.doc_string = ""
    graph.name = "passerby"
    del graph.metadata_props[:], model.metadata_props[:]


def _relative(scopes: list[str]) -> list[str]:
    """['encoder', 'encoder.cosam.4', 'encoder.cosam.4.ncc'] -> ['encoder', 'cosam.4', 'ncc']."""
    outer = ["", *scopes]
    return [inner.removeprefix(f"{above}.") if above else inner for above, inner in zip(outer, scopes, strict=False)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns of its own internals, which is nothing that a user can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
