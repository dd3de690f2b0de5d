"""What an encoder backend is: uint8 snippets in, descriptors and masks out. One interface over several runtimes.

The batch contract is checked on both sides of every call: as many rows come back as went in, in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError, InternalError, InvalidArgumentError

from passerby_model.bundle import DESCRIPTOR_NAME, INPUT_NAME, Manifest

BackendName = Literal["openvino", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"]
BackendKind = Literal["auto", "openvino", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"]
GPU_RUNTIMES: tuple[BackendName, ...] = ("tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda")
"""Runtimes that no bundle has a proof for: they are compared on the machine that serves (`proofs.py`)."""
InferencePrecision = Literal["f32", "bf16"]
"""Number format in which a runtime computes what is not quantised."""

DEFAULT_BATCH_FRAMES = 32
"""Frames in the largest batch of a server whose configuration leaves it open: beyond, a CPU gains nothing."""

MASK_OUTPUT = re.compile(r"mask_cosam(\d+)")
COST_VOLUME_OUTPUT = re.compile(r"cost_volume_cosam(\d+)")
NCC_SCOPE = "/ncc/"
"""In the name of every operator of a COSAM's correlation, and of no other; it is computed in float32 always."""
UNQUANTISED = ("passerby", "unquantised")
"""Where an IR of int8 says in which number format the layers that are not quantised were proven: bf16 or f32."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the encoder makes of a batch: `descriptors` float32 (B, D); `masks` maps a CNN block to
    float32 (B, N, h, w) in [0, 1], empty for an encoder without COSAM; `cost_volumes` to float32
    (B, N, (N-1)*h*w, h, w) in about [-1, 1], empty unless the encoder was exported with them."""

    descriptors: NDArray[np.float32]
    masks: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    cost_volumes: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What a loaded encoder takes and gives, as its own graph says; None where the graph leaves a size open."""

    snippet_length: int | None
    height: int | None
    width: int | None
    descriptor_dim: int | None
    mask_blocks: tuple[int, ...]


class Backend(Protocol):
    """A loaded encoder. `encode` is safe to call from any thread and lets other Python threads run meanwhile."""

    @property
    def name(self) -> BackendName: ...

    @property
    def precision(self) -> str:
        """Number format of what runs, for example `fp32`, `int8`, `bf16`."""
        ...

    @property
    def spec(self) -> EncoderSpec: ...

    def encode(self, snippets: NDArray[np.uint8]) -> Encoded:
        """Encodes a batch.

        Args:
            snippets: uint8 (B, N, H, W, 3) RGB, B >= 1.

        Returns:
            Descriptors float32 (B, D) and masks, row b for snippet b.

        Raises:
            InvalidArgumentError: another shape or dtype than the encoder takes.
            InternalError: the runtime failed, or what it gave back breaks the batch contract.
        """
        ...


def default_max_batch(snippet_length: int) -> int:
    """Snippets in the largest batch that a server makes, unless it is told otherwise: as many as hold 32 frames."""
    return max(1, DEFAULT_BATCH_FRAMES // snippet_length)


def check_snippets(snippets: NDArray[np.uint8], spec: EncoderSpec) -> None:
    """Raises InvalidArgumentError unless `snippets` is uint8 (B >= 1, N, H, W, 3) as the encoder takes it."""
    wanted = (None, spec.snippet_length, spec.height, spec.width, 3)
    fits = snippets.ndim == 5 and all(
        want is None or have == want for have, want in zip(snippets.shape, wanted, strict=True)
    )
    if snippets.dtype != np.uint8 or not fits or snippets.size == 0:
        sizes = ", ".join(
            name if size is None else str(size) for name, size in zip(("B", "N", "H", "W", "C"), wanted, strict=True)
        )
        raise InvalidArgumentError(
            f"snippets must be uint8 ({sizes}) with B >= 1, got {snippets.dtype} {snippets.shape}",
            reason="SNIPPET_SHAPE",
        )


def check_encoded(encoded: Encoded, batch: int, spec: EncoderSpec) -> Encoded:
    """`encoded` unchanged; raises InternalError unless it is finite float32 with `batch` rows everywhere."""
    descriptors = encoded.descriptors
    if descriptors.ndim != 2 or descriptors.shape[0] != batch or descriptors.dtype != np.float32:
        raise InternalError(
            f"the encoder gave descriptors {descriptors.dtype} {descriptors.shape} for {batch} snippets",
            reason="ENCODER_CONTRACT",
        )
    if spec.descriptor_dim is not None and descriptors.shape[1] != spec.descriptor_dim:
        raise InternalError(
            f"the encoder gave {descriptors.shape[1]} values a descriptor, not {spec.descriptor_dim}",
            reason="ENCODER_CONTRACT",
        )
    if not np.isfinite(descriptors).all():
        raise InternalError("the encoder gave a descriptor that is not finite", reason="ENCODER_CONTRACT")
    for block, mask in encoded.masks.items():
        if mask.ndim != 4 or mask.shape[0] != batch:
            raise InternalError(
                f"the encoder gave masks of block {block} as {mask.shape} for {batch} snippets",
                reason="ENCODER_CONTRACT",
            )
    return encoded


def blocks_of(pattern: re.Pattern[str], names: Iterable[str]) -> dict[int, str]:
    """The outputs among `names` that match `pattern` (MASK_OUTPUT, COST_VOLUME_OUTPUT): CNN block -> name, ascending."""
    found = {int(match.group(1)): name for name in names if (match := pattern.fullmatch(name))}
    return dict(sorted(found.items()))


def spec_from_graph(
    path: object,
    inputs: Mapping[str, tuple[int | None, ...]],
    outputs: Mapping[str, tuple[int | None, ...]],
    input_is_uint8: bool,
) -> EncoderSpec:
    """Reads an encoder's spec off its graph (name -> shape, None for an open size) and checks the bundle's contract.

    Raises FailedPreconditionError (reason ENCODER_CONTRACT) when the graph is no passerby encoder.
    """
    shape = inputs.get(INPUT_NAME)
    if len(inputs) != 1 or shape is None or len(shape) != 5 or shape[4] not in (3, None) or not input_is_uint8:
        raise _no_encoder(path, f"its one input must be `{INPUT_NAME}` uint8 (B, N, H, W, 3), it has {dict(inputs)}")
    if shape[0] is not None:
        raise _no_encoder(path, f"its batch is fixed to {shape[0]}, it must be open")
    descriptor = outputs.get(DESCRIPTOR_NAME)
    if descriptor is None or len(descriptor) != 2:
        raise _no_encoder(path, f"it must have an output `{DESCRIPTOR_NAME}` (B, D), it has {dict(outputs)}")
    return EncoderSpec(shape[1], shape[2], shape[3], descriptor[1], tuple(blocks_of(MASK_OUTPUT, outputs)))


def check_manifest(spec: EncoderSpec, manifest: Manifest) -> EncoderSpec:
    """The spec with the manifest's sizes filled in; FailedPreconditionError where graph and manifest disagree."""
    wanted = EncoderSpec(
        manifest.input.snippet_length,
        manifest.input.height,
        manifest.input.width,
        manifest.descriptor_dim,
        tuple(sorted(mask.block for mask in manifest.masks)),
    )
    pairs = (
        ("snippet length", spec.snippet_length, wanted.snippet_length),
        ("input height", spec.height, wanted.height),
        ("input width", spec.width, wanted.width),
        ("descriptor size", spec.descriptor_dim, wanted.descriptor_dim),
    )
    wrong = [f"{what} is {have}, bundle.json says {want}" for what, have, want in pairs if have not in (None, want)]
    if not set(wanted.mask_blocks) <= set(spec.mask_blocks):
        wrong.append(f"masks of blocks {spec.mask_blocks}, bundle.json says {wanted.mask_blocks}")
    if wrong:
        raise _no_encoder(manifest.encoder, "; ".join(wrong))
    return wanted


def _no_encoder(path: object, problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"{path} is no passerby encoder: {problem}", reason="ENCODER_CONTRACT")
