"""A trained encoder as an ONNX graph that keeps the bundle's contract (see `passerby_model.bundle`).

torch.onnx's exporter over torch.export is used: it knows every shape but the batch, folds batch normalisation into
the convolutions, and says for each node which module it comes from. That scope becomes the node's name, so that the
correlation (`encoder/cosam.4/ncc/...`) can be found in the file, shown, and kept in single precision.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from onnx import TensorProto, shape_inference
from passerby.errors import FailedPreconditionError
from passerby_model.bundle import DESCRIPTOR_NAME, INPUT_NAME
from passerby_model.encoder import TrackletEncoder
from passerby_model.preprocess import IMAGENET_MEAN, IMAGENET_STD
from torch import Tensor, nn

# The exporter's own opset, so that nothing is converted; ONNX Runtime reads it since 1.14, OpenVINO since 2023,
# TensorRT since 8.6.
OPSET = 18
_SCOPES = "pkg.torch.onnx.name_scopes"
_HALF_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


class DeployedEncoder(nn.Module):
    """The encoder as it is served: pixels in, normalisation inside, no classifier."""

    def __init__(self, encoder: TrackletEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        lstm = getattr(encoder.aggregation, "lstm", None)
        if isinstance(lstm, nn.LSTM):
            self.encoder = copy.deepcopy(encoder)
            self.encoder.aggregation.lstm = UnrolledLstm(lstm, encoder.architecture.snippet_length)
        std = torch.tensor(IMAGENET_STD, dtype=torch.float64)
        mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64)
        # (pixel / 255 - mean) / std as one product and one sum.
        self.register_buffer("scale", (1 / (255 * std)).float().reshape(3, 1, 1))
        self.register_buffer("shift", (-mean / std).float().reshape(3, 1, 1))
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, snippets: Tensor) -> tuple[Tensor, ...]:
        """uint8 (B, N, H, W, 3) RGB -> descriptor float (B, D), then masks float (B, N, h, w) by rising CNN block."""
        frames = snippets.permute(0, 1, 4, 2, 3).float() * self.scale + self.shift
        descriptor, masks = self.encoder(frames)
        return descriptor, *(masks[block] for block in sorted(masks))


class UnrolledLstm(nn.Module):
    """One-layer LSTM written out for N frames: torch.export makes a loop of nn.LSTM, which runtimes run badly."""

    def __init__(self, lstm: nn.LSTM, snippet_length: int) -> None:
        super().__init__()
        self.snippet_length, self.hidden_size = snippet_length, lstm.hidden_size
        self.into = nn.Linear(lstm.input_size, 4 * lstm.hidden_size)
        self.again = nn.Linear(lstm.hidden_size, 4 * lstm.hidden_size)
        named = dict(lstm.named_parameters())
        self.into.weight, self.into.bias = named["weight_ih_l0"], named["bias_ih_l0"]
        self.again.weight, self.again.bias = named["weight_hh_l0"], named["bias_hh_l0"]

    def forward(self, sequence: Tensor) -> tuple[Tensor, None]:
        """float (B, N, C) -> (outputs float (B, N, hidden), None), the first element as of nn.LSTM."""
        hidden = cell = sequence.new_zeros(1, self.hidden_size)
        outputs = []
        for n in range(self.snippet_length):
            gates = self.into(sequence[:, n]) + self.again(hidden)
            enter, forget, new, leave = gates.chunk(4, dim=1)  # PyTorch's order: i, f, g, o
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
            hidden = torch.sigmoid(leave) * torch.tanh(cell)
            outputs.append(hidden)
        return torch.stack(outputs, dim=1), None


def mask_name(block: int) -> str:
    """Name of the output with the masks of the COSAM after CNN block `block`."""
    return f"mask_cosam{block}"


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
    _tidy(model)
    check_graph(model, blocks=arch.cosam)
    return model


def ncc_nodes(model: onnx.ModelProto, block: int) -> list[onnx.NodeProto]:
    """The nodes of the normalised cross-correlation of the COSAM after CNN block `block`, by their names."""
    return [node for node in model.graph.node if f"/cosam.{block}/ncc/" in f"/{node.name}"]


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
