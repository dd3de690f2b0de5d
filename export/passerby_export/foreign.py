"""What is known of a foreign model before it is wrapped, and what both formats check alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError
from passerby_model.backends import Encoded, EncoderFormat

from .parity import Reference
from .spec import WrapSpec

Shape = tuple[int | None, ...]
RunFrames = Callable[[NDArray[np.generic]], NDArray[np.generic]]
"""The foreign model by its own runtime: its input, batch as the model has it -> the chosen output."""

# Least length that a descriptor is divided by, as in torch.nn.functional.normalize.
MIN_LENGTH = 1e-12


@dataclass(frozen=True)
class Ports:
    """The foreign model's input and the output that is its descriptor. `batch` is None when it is open already."""

    input: str
    output: str
    batch: int | None
    height: int
    width: int


class ForeignModel(Protocol):
    """A per-frame model in its own format, with its spec."""

    path: Path
    ports: Ports
    format: EncoderFormat

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `int8`: how most of the model's weights are stored."""
        ...

    def reference(self) -> Reference:
        """The original in its own runtime, frame by frame. Raises InvalidArgumentError when it does not run."""
        ...

    def write(self, folder: Path) -> Path:
        """Write the wrapped encoder; returns its main file. Raises FailedPreconditionError when it cannot be."""
        ...


def resolve_ports(spec: WrapSpec, inputs: Sequence[tuple[str, Shape]], outputs: Sequence[str], model: object) -> Ports:
    """Ports of the model with these inputs (name and shape) and outputs (names).

    Raises:
        InvalidArgumentError: several inputs, not an image input of the layout in the spec, several outputs and none
            chosen, an unknown output, a size that is not in the model and not in the spec, or that differs.
    """
    if len(inputs) != 1:
        names = ", ".join(name for name, _ in inputs)
        raise InvalidArgumentError(f"{model} has {len(inputs)} inputs ({names}): only one image input can be wrapped")
    name, shape = inputs[0]
    shown = "x".join("?" if size is None else str(size) for size in shape)
    if len(shape) != 4:
        raise InvalidArgumentError(f"{model}: input {name!r} is {shown}, not a batch of images (four dimensions)")
    channel, rows, columns = (1, 2, 3) if spec.layout == "NCHW" else (3, 1, 2)
    if shape[channel] not in (3, None):
        other = "NHWC" if spec.layout == "NCHW" else "NCHW"
        hint = f"; use --layout {other}" if shape[3 if other == "NHWC" else 1] == 3 else ""
        raise InvalidArgumentError(f"{model}: input {name!r} is {shown}, not {spec.layout} with 3 channels{hint}")
    return Ports(
        input=name,
        output=_choose_output(spec, outputs, model),
        batch=shape[0],
        height=_size("height", spec.height, shape[rows], model),
        width=_size("width", spec.width, shape[columns], model),
    )


def frame_by_frame(spec: WrapSpec, ports: Ports, run: RunFrames, dtype: np.dtype[np.generic]) -> Reference:
    """The foreign model as a parity reference: every frame alone, prepared in numpy, independent of the graph."""

    def reference(snippets: NDArray[np.uint8]) -> Encoded:
        frames = snippets[:, 0]
        descriptors = [_flat(run(_prepare(frame, spec, ports, dtype))) for frame in frames]
        rows = np.stack(descriptors).astype(np.float32)
        if spec.unit_length:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), MIN_LENGTH)
        return Encoded(rows)

    return reference


def _prepare(
    frame: NDArray[np.uint8], spec: WrapSpec, ports: Ports, dtype: np.dtype[np.generic]
) -> NDArray[np.generic]:
    """uint8 (H, W, 3) RGB -> the model's own input, repeated where its batch is fixed above 1."""
    pixels = frame[..., ::-1] if spec.colour == "BGR" else frame
    low, high = spec.range
    values = low + pixels.astype(np.float64) / 255.0 * (high - low)
    values = (values - np.asarray(spec.mean)) / np.asarray(spec.std)
    if spec.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return np.repeat(values[None], ports.batch or 1, axis=0).astype(dtype)


def _flat(output: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.asarray(output[0], dtype=np.float32).ravel()


def _choose_output(spec: WrapSpec, outputs: Sequence[str], model: object) -> str:
    listed = ", ".join(outputs)
    if spec.output is None:
        if len(outputs) == 1:
            return outputs[0]
        raise InvalidArgumentError(f"{model} has {len(outputs)} outputs: choose one with --output: {listed}")
    if spec.output not in outputs:
        raise InvalidArgumentError(f"{model} has no output {spec.output!r}; there are: {listed}")
    return spec.output


def _size(what: str, wanted: int | None, own: int | None, model: object) -> int:
    if own is None and wanted is None:
        raise InvalidArgumentError(f"{model} leaves its input {what} open: say it with --{what}")
    if own is not None and wanted is not None and own != wanted:
        raise InvalidArgumentError(f"{model} takes images of {what} {own}, not {wanted}")
    size = own if own is not None else wanted
    if size is None or not 16 <= size <= 2048:
        raise InvalidArgumentError(f"{model}: input {what} {size} is not within 16 to 2048 pixels; check --layout")
    return size
