"""`passerby export`: checkpoint -> bundle, with the proof that the encoder is the network that was trained."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from passerby_model import checkpoint as checkpoints
from passerby_model.backends import BackendName, Encoded
from passerby_model.bundle import Artefact, Input, Manifest, MaskOutput
from passerby_model.encoder import Architecture, TrackletEncoder
from passerby_model.preprocess import normalise

from .bundle import check_target, new_bundle, seal
from .onnx_export import add_cost_volumes, mask_name, to_onnx
from .parity import BATCHES, LIMITS, Reference, check_encoder
from .storage import Precision, store_weights

RUNTIMES: tuple[BackendName, ...] = ("onnxruntime", "openvino")


def export(
    checkpoint: Path,
    target: Path,
    *,
    precision: Precision = "fp32",
    name: str | None = None,
    architecture: Architecture | None = None,
    with_cost_volume: bool = False,
    force: bool = False,
) -> Manifest:
    """Write a bundle of the encoder in `checkpoint` to `target`.

    The encoder is compared with PyTorch on ONNX Runtime and OpenVINO, at batches 1, 2, 3 and 8; without passing on
    both, no bundle is written.

    Args:
        checkpoint: written by `passerby train`, or a state dict of the COSAM authors' code.
        target: the new bundle's folder.
        precision: how weights are stored, see `storage`.
        name: of the model; default: its architecture.
        architecture: for a state dict of the authors' code that does not give it away.
        with_cost_volume: add the cost volume of each COSAM to the outputs (`onnx_export.add_cost_volumes`).
        force: replace a bundle at `target`.

    Raises:
        NotFoundError: no such checkpoint.
        InvalidArgumentError: not a checkpoint, or its weights do not fit.
        AlreadyExistsError: `target` exists and `force` is not given.
        FailedPreconditionError: a runtime cannot run the graph, or the parity check failed.
        ResourceExhaustedError: the disk is full.
    """
    check_target(target, force=force)
    loaded = checkpoints.load(checkpoint, architecture=architecture)
    encoder = loaded.build().encoder
    return export_encoder(
        encoder,
        target,
        precision=precision,
        name=name,
        training=_origin(checkpoint, loaded),
        with_cost_volume=with_cost_volume,
        force=force,
    )


def export_encoder(
    encoder: TrackletEncoder,
    target: Path,
    *,
    precision: Precision = "fp32",
    name: str | None = None,
    training: dict[str, object] | None = None,
    with_cost_volume: bool = False,
    force: bool = False,
) -> Manifest:
    """`export` for an encoder in memory; `training` says where its weights come from. Errors as there."""
    arch = encoder.architecture
    encoder.eval()
    with new_bundle(target, force=force) as folder:
        path = folder / "encoder.onnx"
        graph = to_onnx(encoder)
        if with_cost_volume:
            graph = add_cost_volumes(graph, arch)
        path.write_bytes(_serialised(store_weights(graph, precision)))
        input = Input(snippet_length=arch.snippet_length, height=arch.height, width=arch.width)
        parity = check_encoder(
            path,
            "onnx",
            RUNTIMES,
            torch_reference(encoder),
            input,
            LIMITS[precision],
            described=f"PyTorch {torch.__version__}, float32",
            batches=BATCHES,
        )
        masks = ((block, *arch.map_size(block)) for block in arch.cosam)
        artefact = Artefact(precision=precision, format="onnx", files=(path.name,), runtimes=RUNTIMES, parity=parity)
        return seal(
            folder,
            [artefact],
            name=name or arch.name,
            architecture=arch.name,
            input=input,
            descriptor_dim=encoder.descriptor_size,
            metric="squared_euclidean",  # the protocol that these networks are trained and measured with
            masks=tuple(MaskOutput(name=mask_name(b), block=b, height=h, width=w) for b, h, w in masks),
            training=training,
        )


def torch_reference(encoder: TrackletEncoder) -> Reference:
    """The encoder in eager PyTorch, fed by the numpy normalisation: independent of the exported graph."""

    def reference(snippets: NDArray[np.uint8]) -> Encoded:
        with torch.inference_mode():
            descriptors, masks = encoder(torch.from_numpy(normalise(snippets)))
        return Encoded(descriptors.numpy(), {block: mask.numpy() for block, mask in masks.items()})

    return reference


def _origin(path: Path, loaded: checkpoints.Checkpoint) -> dict[str, object]:
    """What bundle.json says of the weights: the checkpoint's own record, names of people counted only."""
    record = {key: _portable(value) for key, value in loaded.metadata.items()}
    identities = record.get("identities")
    if isinstance(identities, list):
        record["identities"] = len(identities)
    return {"checkpoint": path.name, "weights": loaded.fingerprint, **record}


def _serialised(model: onnx.ModelProto) -> bytes:
    # Deterministic, so that the same weights give the same fingerprint.
    return bytes(model.SerializeToString(deterministic=True))


def _portable(value: Any) -> object:
    """A plain value without folders of the machine that trained: absolute paths keep their last part only."""
    if isinstance(value, dict):
        return {str(key): _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    if isinstance(value, PurePath) or (isinstance(value, str) and value.startswith(("/", "~"))):
        return PurePath(value).name
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
