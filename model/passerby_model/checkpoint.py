"""Checkpoints: our own format, and import of state dicts in the naming of the COSAM authors' code.

Own format: one file written by `torch.save` that holds plain values and tensors only, so that it loads with
`weights_only=True`; a pickle from a stranger never runs code here. The reference's files hold a bare state dict (or
one under "state_dict"), its keys optionally prefixed with "module." by data-parallel training.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from passerby.errors import InvalidArgumentError, NotFoundError
from torch import Tensor

from .aggregation import Aggregation
from .cosam import Form
from .encoder import Architecture, Classifier, TrackletEncoder

FORMAT = "passerby-checkpoint-1"
_LISTED = 5  # keys named in an error before "and N more"

# torch's restricted unpickler walks arbitrary bytes: garbage ends in any of these.
# PyTorch's own hints, the first of which is to load the file unsafely.
_ADVICE = ("Weights only load failed", "Please file an issue", "Check the documentation")
_UNPICKLER_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)

# The reference's backbones. It names attention modules by their place in a list, in which SE-ResNet50 counts its stem
# and ResNet50 does not.
_BLOCK_OFFSET = {"se_resnet50": 1, "resnet50": 2}
_RESNET_STAGES = {"0": "stem.0", "1": "stem.1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_COSAM_PARTS = {
    "dim_reduction": "reduce",
    "spatial_mask_summary": "summary",
    "channelwise_attention": "attend",
}
_COSAM_KEY = re.compile(r"attention_modules\.attention_modules\.(\d+)\.(\w+)\.(.+)")


@dataclass(frozen=True)
class Checkpoint:
    """Weights with what is needed to use them.

    `state` is the state dict of `Classifier` (encoder.* and classifier.*); `metadata` holds plain values: config,
    epoch, iteration, identities, results; `training` the optimiser and random state of an interrupted run, or None.
    """

    architecture: Architecture
    class_count: int
    state: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None

    @property
    def neck(self) -> bool:
        """Whether a batch norm stands between descriptor and classifier."""
        return "neck.weight" in self.state

    @property
    def fingerprint(self) -> str:
        """sha256 (64 hex digits) over names, types, shapes and bytes of the encoder's tensors."""
        digest = hashlib.sha256()
        for key in sorted(self.state):
            if key.startswith("encoder."):
                value = self.state[key].detach().cpu().contiguous()
                digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(value.numpy().tobytes())
        return digest.hexdigest()

    def build(self) -> Classifier:
        """The model with these weights, in eval mode.

        Raises:
            InvalidArgumentError: the weights do not fit the architecture.
        """
        model = Classifier(TrackletEncoder(self.architecture), self.class_count, neck=self.neck)
        check_state(self.state, model, self.architecture)
        model.load_state_dict(self.state)
        return model.eval()


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: a reader sees the old file or the new one, whole, even after a kill or a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    content = {
        "format": FORMAT,
        "architecture": checkpoint.architecture.to_dict(),
        "class_count": checkpoint.class_count,
        "fingerprint": checkpoint.fingerprint,
        "state": checkpoint.state,
        "metadata": checkpoint.metadata,
        "training": checkpoint.training,
    }
    with partial.open("wb") as stream:
        torch.save(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def load(path: Path, *, architecture: Architecture | None = None) -> Checkpoint:
    """Read a checkpoint of ours, or a state dict in the reference's naming.

    Args:
        path: the file.
        architecture: what it is; a reference state dict does not always say so, and it is guessed when not given.

    Raises:
        NotFoundError: no such file.
        InvalidArgumentError: not a checkpoint, damaged, or of another architecture than `architecture`.
    """
    content = _read(path)
    if content.get("format") != FORMAT:
        return import_reference(_tensors(path, content), architecture)
    try:
        saved = Checkpoint(
            architecture=Architecture.from_dict(content["architecture"]),
            class_count=content["class_count"],
            state=content["state"],
            metadata=content["metadata"],
            training=content["training"],
        )
    except (KeyError, TypeError) as error:
        raise InvalidArgumentError(
            f"{path}: a checkpoint of passerby in which {error} is missing or unknown; it is damaged, or was written by "
            "a newer version",
            reason="CHECKPOINT_UNREADABLE",
        ) from error
    if architecture is not None and architecture != saved.architecture:
        raise InvalidArgumentError(
            f"{path} was trained as {describe(saved.architecture)}, not as {describe(architecture)}; a checkpoint of "
            "passerby knows its architecture: leave it out",
            reason="CHECKPOINT_MISMATCH",
        )
    return saved


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A bare state dict (or one under "state_dict") from a .pt, .pth or .safetensors file, on the CPU.

    Raises:
        NotFoundError: no such file.
        InvalidArgumentError: damaged, or something else than named tensors.
    """
    return _tensors(path, _read(path))


def import_reference(state: Mapping[str, Tensor], architecture: Architecture | None = None) -> Checkpoint:
    """Weights that were trained with the authors' code (InnovArul/vidreid_cosegmentation).

    Args:
        state: tensors by the reference's names, optionally with the prefix "module.".
        architecture: what they are; guessed from keys and shapes when not given.

    Raises:
        InvalidArgumentError: unknown, missing or wrongly shaped tensors; the message lists them and names the
            architecture that would fit.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if not any(key.startswith("base.") for key in state) or "classifier.weight" not in state:
        raise InvalidArgumentError(
            "these weights are not in the naming of the COSAM authors' code: no base.* or no classifier.weight"
        )
    fits = guess_architecture(state)
    target = architecture or fits
    if target.backbone not in _BLOCK_OFFSET:
        raise InvalidArgumentError(
            f"these weights are of {describe(fits)}, not of {describe(target)}: the COSAM authors' code has the "
            f"backbones {' and '.join(_BLOCK_OFFSET)} only",
            reason="CHECKPOINT_MISMATCH",
        )
    renamed = {_from_reference(key, target.backbone): value for key, value in state.items()}
    class_count = state["classifier.weight"].shape[0]
    with torch.device("meta"):
        model = Classifier(TrackletEncoder(target), class_count)
    check_state(renamed, model, target, fits)
    return Checkpoint(target, class_count, renamed, {"source": "reference"})


def export_reference(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The inverse of `import_reference`: our weights in the reference's naming.

    Raises:
        InvalidArgumentError: a backbone that the authors' code does not have.
    """
    backbone = checkpoint.architecture.backbone
    if backbone not in _BLOCK_OFFSET:
        raise InvalidArgumentError(
            f"the COSAM authors' code has no {backbone}, only {' and '.join(_BLOCK_OFFSET)}; "
            "this checkpoint has no name in it"
        )
    return {_to_reference(key, backbone): value for key, value in checkpoint.state.items()}


def guess_architecture(state: Mapping[str, Tensor], height: int = 256, width: int = 128) -> Architecture:
    """The architecture that fits a reference state dict (keys without "module.") for frames of height x width."""
    backbone = "se_resnet50" if any(k.startswith("base.layer0.") for k in state) else "resnet50"
    aggregation: Aggregation = "tp"
    if "aggregation.attention_conv.weight" in state:
        aggregation = "ta"
    elif "aggregation.lstm.weight_ih_l0" in state:
        aggregation = "rnn"
    found = (_COSAM_KEY.fullmatch(key) for key in state)
    places = sorted({int(match[1]) for match in found if match})
    blocks = tuple(place + _BLOCK_OFFSET[backbone] for place in places)
    like_default = Architecture(backbone, blocks, aggregation, "code", 4, height, width)
    if not blocks:
        return like_default
    first = f"attention_modules.attention_modules.{places[0]}.spatial_mask_summary."
    h, w = like_default.map_size(blocks[0])
    rivals = state[f"{first}0.weight"].shape[1] // (h * w) if f"{first}0.weight" in state else 3
    form: Form = "code" if f"{first}3.weight" in state else "paper"
    return Architecture(backbone, blocks, aggregation, form, rivals + 1, height, width)


def describe(architecture: Architecture) -> str:
    """Name, snippet length and frame size in one line, for messages."""
    return (
        f"{architecture.name} with {architecture.snippet_length} frames a snippet, "
        f"{architecture.height} x {architecture.width} pixels"
    )


def check_state(
    state: Mapping[str, Tensor], model: Classifier, target: Architecture, fits: Architecture | None = None
) -> None:
    """Refuse weights that are not exactly those of `model`.

    Raises:
        InvalidArgumentError: lists unknown, missing and wrongly shaped tensors, and names `fits`.
    """
    expected = model.state_dict()
    unknown = [key for key in state if key not in expected]
    missing = [key for key in expected if key not in state]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = (("unknown", unknown), ("missing", missing), ("wrong shape", shapes))
    found = [f"{what}: {_some(keys)}" for what, keys in problems if keys]
    if not found:
        return
    hint = ""
    if fits is not None and fits != target:
        hint = f"; they would fit {describe(fits)}"
    raise InvalidArgumentError(
        f"the weights do not fit {describe(target)}{hint}. " + "; ".join(found),
        reason="CHECKPOINT_MISMATCH",
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotFoundError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        with torch.serialization.safe_globals(_numpy_number()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNPICKLER_ERRORS as error:
        told = (line for line in str(error).splitlines() if line.strip() and not line.startswith(_ADVICE))
        why = next(told, type(error).__name__)
        raise InvalidArgumentError(
            f"{path}: not a checkpoint that loads safely (weights only): {why}",
            reason="CHECKPOINT_UNREADABLE",
        ) from error
    if not isinstance(content, dict):
        raise InvalidArgumentError(f"{path}: holds {type(content).__name__}, not a checkpoint")
    return content


def _numpy_number() -> list[Any]:
    """What a numpy number in a pickle calls: the authors' code stores the rank-1 beside its weights as one."""
    make = np.float32(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in (np.float32, np.float64)]
    return [(make, "numpy.core.multiarray.scalar"), (make, "numpy._core.multiarray.scalar"), np.dtype, *kinds]


def _tensors(path: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InvalidArgumentError(
            f"{path}: neither a checkpoint of passerby nor a state dict (such as the COSAM authors' code writes)"
        )
    return state


def _from_reference(key: str, backbone: str) -> str:
    """Our name of a reference key; a key without one is returned as it is, for `check_state` to report."""
    cosam = _COSAM_KEY.fullmatch(key)
    if cosam and cosam[2] in _COSAM_PARTS:
        return f"encoder.cosam.{int(cosam[1]) + _BLOCK_OFFSET[backbone]}.{_COSAM_PARTS[cosam[2]]}.{cosam[3]}"
    if key.startswith("aggregation."):
        return f"encoder.{key}"
    head, _, tail = key.removeprefix("base.").partition(".")
    if key.startswith("base."):
        stages = {"layer0": "stem.0"} if backbone == "se_resnet50" else _RESNET_STAGES
        return f"encoder.backbone.{stages.get(head, head)}.{tail}"
    return key


def _to_reference(key: str, backbone: str) -> str:
    key = key.removeprefix("encoder.")
    if key.startswith("cosam."):
        _, block, part, tail = key.split(".", 3)
        names = {ours: theirs for theirs, ours in _COSAM_PARTS.items()}
        place = int(block) - _BLOCK_OFFSET[backbone]
        return f"attention_modules.attention_modules.{place}.{names[part]}.{tail}"
    if not key.startswith("backbone."):
        return key
    stages = {"layer0": "stem.0"} if backbone == "se_resnet50" else _RESNET_STAGES
    key = key.removeprefix("backbone.")
    for theirs, ours in stages.items():
        if key.startswith(f"{ours}."):
            return f"base.{theirs}.{key.removeprefix(f'{ours}.')}"
    return f"base.{key}"


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + more
