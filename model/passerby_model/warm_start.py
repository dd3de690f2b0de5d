"""Starting from weights that exist: a checkpoint of another variant, or ImageNet weights of the backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from passerby.errors import InvalidArgumentError, UnavailableError
from torch import Tensor, nn

from passerby_model import backbones, checkpoint
from passerby_model.encoder import Classifier

HUB = "hub"


@dataclass(frozen=True)
class WarmStart:
    """Names of the model's tensors: taken over; left as initialised; and of the file's tensors that found no place."""

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = sorted({".".join(key.split(".")[:3]) for key in self.fresh})
        listed = f" ({', '.join(parts)})" if parts else ""
        return f"{len(self.taken)} tensors taken, {len(self.fresh)} fresh{listed}, {len(self.unused)} unused"


def take_matching(model: Classifier, state: Mapping[str, Tensor]) -> WarmStart:
    """Load the tensors of `state` whose name and shape fit; the model keeps its own values elsewhere.

    Raises:
        InvalidArgumentError: no tensor of the backbone fits: the file is of another kind of model.
    """
    own = model.state_dict()
    fitting = take_fitting(model, state)
    if not any(key.startswith("encoder.backbone.") for key in fitting):
        raise InvalidArgumentError("nothing in these weights fits the model's backbone; is it another architecture?")
    return WarmStart(
        taken=tuple(fitting),
        fresh=tuple(key for key in own if key not in fitting),
        unused=tuple(key for key in state if key not in fitting),
    )


def take_fitting(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Load the tensors of `state` whose name and shape fit; which they are."""
    own = module.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    module.load_state_dict(fitting, strict=False)
    return fitting


@dataclass(frozen=True)
class Start:
    """What a checkpoint brings: weights by name, and the map to the teacher's descriptors, if it was trained with one."""

    state: dict[str, Tensor]
    imitation: dict[str, Tensor] | None


def checkpoint_start(path: Path, identities: Sequence[str]) -> Start:
    """A checkpoint (ours or the reference's) to start from, for a training set of these identities.

    The classifier is left out unless it was trained on the very same identities: its rows mean other people.

    Raises:
        NotFoundError, InvalidArgumentError: see `checkpoint.load`.
    """
    saved = checkpoint.load(path)
    same = saved.metadata.get("identities") == list(identities)
    state = {key: value for key, value in saved.state.items() if same or not key.startswith("classifier.")}
    return Start(state, (saved.training or {}).get("imitation"))


def imagenet_state(backbone: str, source: str) -> dict[str, Tensor]:
    """ImageNet weights of a backbone, by our names; without timm's head, which has no place here.

    Args:
        backbone: which one.
        source: path of a state dict in timm's naming (.pth or .safetensors), or "hub" to download it.

    Raises:
        NotFoundError, InvalidArgumentError: no such file, or not such weights.
        UnavailableError: the hub cannot be reached, or has no weights of this network.
    """
    theirs = _download(backbone) if source == HUB else checkpoint.read_tensors(Path(source))
    anatomy = backbones.read(backbone, *backbones.native_size(backbone))
    ours = {}
    for key, value in theirs.items():
        name = key.removeprefix("module.")
        place = anatomy.our_key(name)
        if place is not None:
            ours[f"encoder.backbone.{place}"] = value
        elif name not in anatomy.heads:
            ours[name] = value  # stays unused, and is reported as such
    return ours


def _download(backbone: str) -> dict[str, Tensor]:
    name = backbones.timm_name(backbone)
    try:
        net: Any = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:  # huggingface_hub's errors are OSError and ValueError
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UnavailableError(
            f"the ImageNet weights of timm's {name} cannot be downloaded ({why}); "
            "fetch them elsewhere and give the file: pretrained=PATH"
        ) from error
    return dict(net.state_dict())
