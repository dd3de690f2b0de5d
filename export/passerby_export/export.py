"""`passerby export`: checkpoint -> bundle, with the proof that the encoder is the network that was trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError
from passerby_model import checkpoint as checkpoints
from passerby_model.backends import Encoded
from passerby_model.bundle import Input, Manifest, MaskOutput, Metric
from passerby_model.encoder import Architecture, TrackletEncoder
from passerby_model.preprocess import normalise

from .artefacts import Precision, Work, check_possible, make_artefacts
from .bundle import check_target, new_bundle, seal
from .half import open_rounded
from .onnx_export import add_cost_volumes, mask_name, to_onnx
from .parity import LIMITS, Proof, Reference, lost_rankings, make_ranking_trial, make_samples, make_trials, prove
from .quantise import Calibration, calibration_of
from .reference import write_reference
from .samples import Tracklets, read_tracklets

log = logging.getLogger(__name__)

METRIC: Metric = "squared_euclidean"
"""The protocol that these networks are trained and measured with."""


@dataclass(frozen=True)
class Options:
    """What to export, and what to prove it on.

    precisions: number formats, each of which becomes an artefact (see `artefacts`).
    name: of the model; default: its architecture.
    calibration: folder of tracklets that int8 is calibrated on; without `labelled`, every other person of it is left
        out of the calibration, and rankings are compared on those.
    labelled: folder of tracklets with identities and cameras on which rankings are compared.
    with_cost_volume: add the cost volume of each COSAM to the outputs (`onnx_export.add_cost_volumes`).
    force: replace a bundle at the target.
    """

    precisions: Sequence[Precision] = ("fp32",)
    name: str | None = None
    calibration: Path | None = None
    labelled: Path | None = None
    with_cost_volume: bool = False
    force: bool = False


def export(
    checkpoint: Path, target: Path, options: Options | None = None, *, architecture: Architecture | None = None
) -> Manifest:
    """Write a bundle of the encoder in `checkpoint` to `target`.

    Each artefact is compared with PyTorch on each runtime that it is for, at every batch size that a server makes;
    without passing on all, no bundle is written.

    Args:
        checkpoint: written by `passerby train`, or a state dict of the COSAM authors' code.
        target: the new bundle's folder.
        options: see there; by default float32.
        architecture: for a state dict of the authors' code that does not give it away.

    Raises:
        NotFoundError: no such checkpoint or data.
        InvalidArgumentError: not a checkpoint, its weights do not fit, or the data cannot be used.
        AlreadyExistsError: `target` exists and is not to be replaced.
        FailedPreconditionError: a runtime cannot run the graph, the parity check failed, or a tool or an ability of
            the processor is missing.
        ResourceExhaustedError: the disk is full.
    """
    options = options or Options()
    check_target(target, force=options.force)
    check_possible(options.precisions, calibrated=options.calibration is not None)
    loaded = checkpoints.load(checkpoint, architecture=architecture)
    encoder = loaded.build().encoder
    return export_encoder(encoder, target, options, training=_origin(checkpoint, loaded))


def export_encoder(
    encoder: TrackletEncoder,
    target: Path,
    options: Options | None = None,
    *,
    training: dict[str, object] | None = None,
) -> Manifest:
    """`export` for an encoder in memory; `training` says where its weights come from. Errors as there."""
    options = options or Options()
    check_possible(options.precisions, calibrated=options.calibration is not None)
    arch = encoder.architecture
    encoder.eval()
    input = Input(snippet_length=arch.snippet_length, height=arch.height, width=arch.width)
    calibration, ranked = _data(options, input)
    reference = torch_reference(encoder, with_cost_volume=options.with_cost_volume)
    ranking = None if ranked is None else make_ranking_trial(reference, ranked, METRIC)
    if calibration is not None and ranking is not None:
        lost = partial(lost_rankings, trial=ranking, limits=LIMITS["int8"])
        calibration = replace(calibration, lost=lost)
    proof = Proof(
        described=f"PyTorch {torch.__version__}, float32",
        input=input,
        trials=make_trials(reference, make_samples(input, ranked)),
        ranking=ranking,
    )
    graph = to_onnx(encoder)
    if options.with_cost_volume:
        graph = add_cost_volumes(graph, arch)
    with new_bundle(target, force=options.force) as folder:
        work = Work(graph, folder, calibration)
        made = [artefact for precision in options.precisions for artefact in make_artefacts(work, precision)]
        proven = [
            prove(folder, a, proof, rounded=open_rounded(folder / a.file) if a.precision == "fp16" else None)
            for a in made
        ]
        masks = ((block, *arch.map_size(block)) for block in arch.cosam)
        return seal(
            folder,
            proven,
            reference=write_reference(folder, proof.trials),
            name=options.name or arch.name,
            architecture=arch.name,
            input=input,
            descriptor_dim=encoder.descriptor_size,
            metric=METRIC,
            masks=tuple(MaskOutput(name=mask_name(b), block=b, height=h, width=w) for b, h, w in masks),
            training=training,
        )


def torch_reference(encoder: TrackletEncoder, *, with_cost_volume: bool = False) -> Reference:
    """The encoder in eager PyTorch, fed by the numpy normalisation: independent of the exported graph."""

    def reference(snippets: NDArray[np.uint8]) -> Encoded:
        volumes: dict[int, NDArray[np.float32]] = {}

        def keep(block: int, volume: torch.Tensor) -> None:
            frames = encoder.architecture.snippet_length
            volumes[block] = volume.reshape(-1, frames, *volume.shape[1:]).numpy()

        hooks = [
            cosam.get_submodule("ncc").register_forward_hook(
                lambda _m, _i, volume, block=int(name): keep(block, volume)
            )
            for name, cosam in encoder.cosam.items()
            if with_cost_volume
        ]
        try:
            with torch.inference_mode():
                descriptors, masks = encoder(torch.from_numpy(normalise(snippets)))
        finally:
            for hook in hooks:
                hook.remove()
        return Encoded(descriptors.numpy(), {block: mask.numpy() for block, mask in masks.items()}, volumes)

    return reference


def _data(options: Options, input: Input) -> tuple[Calibration | None, Tracklets | None]:
    """What int8 is calibrated on, and what rankings are compared on; no person of one folder is in both."""
    labelled = None if options.labelled is None else read_tracklets(options.labelled, input)
    if options.calibration is None:
        return None, labelled
    tracklets = read_tracklets(options.calibration, input)
    if labelled is None:
        tracklets, labelled = tracklets.halves()
        if not _can_be_ranked(labelled):
            log.warning("%s: no person is seen by two cameras, so rankings are not compared", options.calibration)
            labelled = None
    if len(tracklets.snippets) < 2:
        raise InvalidArgumentError(f"{options.calibration}: one snippet is too little to calibrate on")
    return calibration_of(tracklets.name, tracklets.snippets), labelled


def _can_be_ranked(tracklets: Tracklets) -> bool:
    pairs = set(zip(tracklets.identities.tolist(), tracklets.cameras.tolist(), strict=True))
    return len(pairs) > len({identity for identity, _ in pairs})


def _origin(path: Path, loaded: checkpoints.Checkpoint) -> dict[str, object]:
    """What bundle.json says of the weights: the checkpoint's own record, names of people counted only."""
    record = {key: _portable(value) for key, value in loaded.metadata.items()}
    identities = record.get("identities")
    if isinstance(identities, list):
        record["identities"] = len(identities)
    return {"checkpoint": path.name, "weights": loaded.fingerprint, **record}


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
