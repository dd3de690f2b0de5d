"""The encoder: frames of a snippet -> descriptor and attention masks; and the names of its variants.

A name reads backbone+attention+aggregation: `se_resnet50+cosam45+tp` is SE-ResNet50 with COSAM after CNN blocks 4 and
5 and temporal pooling; `none` instead of `cosam45` is the baseline; `cosam45-paper` is the module as printed in the
paper instead of as in the authors' code. The backbone may be any network of timm that has stages, by timm's name.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Self, get_args

from passerby.errors import InvalidArgumentError
from torch import Tensor, nn

from . import aggregation as aggregations
from . import backbones
from .aggregation import Aggregation
from .cosam import Cosam, Form

DEFAULT_NAME = "se_resnet50+cosam45+tp"
_NAME = re.compile(r"(?P<backbone>[\w.-]+)\+(?:none|cosam(?P<blocks>[2-5]+)(?P<paper>-paper)?)\+(?P<aggregation>\w+)")


@dataclass(frozen=True)
class Architecture:
    """What is needed to build an encoder; `cosam` lists the CNN blocks (2..5) that an attention module follows.

    Raises:
        InvalidArgumentError: a combination that cannot be built; the message says why.
    """

    backbone: str = "se_resnet50"
    cosam: tuple[int, ...] = (4, 5)
    aggregation: Aggregation = "tp"
    form: Form = "code"
    snippet_length: int = 4
    height: int = 256
    width: int = 128

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.aggregation, get_args(Aggregation), "aggregation"),
            (self.form, get_args(Form), "form"),
        ):
            if value not in known:
                raise InvalidArgumentError(f"unknown {what} {value!r}; there are {', '.join(known)}")
        if sorted(set(self.cosam)) != list(self.cosam) or not set(self.cosam) <= {2, 3, 4, 5}:
            raise InvalidArgumentError(f"COSAM goes after CNN blocks 2, 3, 4 and 5, each once, not {self.cosam}")
        if self.form == "paper" and not self.cosam:
            raise InvalidArgumentError(
                "the paper's form of COSAM needs a COSAM: name the blocks, or leave the form out"
            )
        self._check_snippet_length()
        backbones.read(self.backbone, self.height, self.width)

    def _check_snippet_length(self) -> None:
        """Nothing but temporal pooling has a meaning for a single frame."""
        reasons = {
            "ta": "temporal attention weighs frames against each other",
            "rnn": "a recurrence runs from frame to frame",
        }
        reason = "COSAM compares the frames of a snippet" if self.cosam else reasons.get(self.aggregation)
        least = 2 if reason else 1
        if self.snippet_length < least:
            why = f" ({reason}; with single frames use {self.backbone}+none+tp)" if reason else ""
            raise InvalidArgumentError(
                f"{self.name} needs snippets of at least {least} frames, not {self.snippet_length}{why}"
            )

    @classmethod
    def parse(cls, name: str, *, snippet_length: int = 4, height: int = 256, width: int = 128) -> Self:
        """The architecture called `name`, e.g. `se_resnet50+cosam45+tp`.

        Raises:
            InvalidArgumentError: not such a name, or a combination that cannot be built.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidArgumentError(
                f"unknown architecture {name!r}: write backbone+attention+aggregation, e.g. {DEFAULT_NAME}; "
                "backbones se_resnet50, resnet50 and timm's others; attention none or cosam with any of 2345, each once, "
                "with -paper for the paper's form; "
                f"aggregations {', '.join(get_args(Aggregation))}"
            )
        return cls(
            backbone=match["backbone"],
            cosam=tuple(int(digit) for digit in match["blocks"] or ""),
            aggregation=match["aggregation"],  # type: ignore[arg-type]  # checked in __post_init__
            form="paper" if match["paper"] else "code",
            snippet_length=snippet_length,
            height=height,
            width=width,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**{**values, "cosam": tuple(values["cosam"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "cosam": list(self.cosam)}

    @property
    def name(self) -> str:
        """The name that `parse` reads (snippet length and input size are not part of it)."""
        blocks = "".join(str(block) for block in self.cosam)
        attention = f"cosam{blocks}{'-paper' if self.form == 'paper' else ''}" if blocks else "none"
        return f"{self.backbone}+{attention}+{self.aggregation}"

    @property
    def anatomy(self) -> backbones.Anatomy:
        """How the backbone falls into blocks for frames of this size."""
        return backbones.read(self.backbone, self.height, self.width)

    @property
    def last_stride(self) -> int:
        """Stride of the last stage: the network's own (2) for TA, 1 for TP and RNN (the reference's choice).

        A network whose last stage cannot do without its stride keeps it (convnext: its 2x2 convolutions reduce).
        """
        strides = self.anatomy.last_strides
        return max(strides) if self.aggregation == "ta" else min(strides)

    def map_size(self, block: int) -> tuple[int, int]:
        """(h, w) of the feature maps after CNN block 2..5."""
        return self.anatomy.map_size(block, self.last_stride)


class TrackletEncoder(nn.Module):
    """Backbone, a COSAM after some of its blocks, temporal aggregation."""

    def __init__(self, architecture: Architecture) -> None:
        """Build with random weights: timm's initialisation in the backbone, PyTorch's default elsewhere."""
        super().__init__()
        self.architecture = architecture
        self.backbone = backbones.Backbone(architecture.anatomy, architecture.last_stride)
        self.cosam = nn.ModuleDict(
            {
                str(block): Cosam(
                    architecture.anatomy.channels(block),
                    architecture.snippet_length,
                    architecture.map_size(block),
                    architecture.form,
                )
                for block in architecture.cosam
            }
        )
        self.aggregation = aggregations.build(
            architecture.aggregation,
            architecture.anatomy.channels(5),
            architecture.snippet_length,
            architecture.map_size(5),
        )

    @property
    def descriptor_size(self) -> int:
        """D: the width of the backbone's last maps (2048 for the reference's), or 512 for RNN."""
        return self.aggregation.descriptor_size

    def forward(self, frames: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Encode snippets.

        Args:
            frames: float (B, N, 3, H, W), normalised pixels.

        Returns:
            (descriptors float (B, D), masks {CNN block: float (B, N, h, w) in (0, 1)}).

        Raises:
            InvalidArgumentError: another N, H or W than the architecture's.
        """
        arch = self.architecture
        expected = (arch.snippet_length, 3, arch.height, arch.width)
        if frames.dim() != 5 or tuple(frames.shape[1:]) != expected:
            raise InvalidArgumentError(
                f"{arch.name} takes (B, N, 3, H, W) = (B, {', '.join(map(str, expected))}), not {tuple(frames.shape)}"
            )
        x = frames.flatten(0, 1)
        masks: dict[int, Tensor] = {}
        for number, block in self.backbone.blocks():
            x = block(x)
            if str(number) in self.cosam:
                x, mask = self.cosam[str(number)](x)
                masks[number] = mask.reshape(-1, arch.snippet_length, *mask.shape[2:])
        descriptor: Tensor = self.aggregation(x)
        return descriptor, masks


class Classifier(nn.Module):
    """What training optimises: the encoder with a linear classifier on its descriptor.

    With a neck, the classifier (without a bias then) sees the descriptor after a batch norm whose bias stays 0, so
    that the triplet loss, which sees it before, is free to place it elsewhere (Luo et al., CVPRW 2019, section 3.6).
    """

    def __init__(self, encoder: TrackletEncoder, class_count: int, *, neck: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.neck: nn.Module = nn.Identity()
        self.classifier = nn.Linear(encoder.descriptor_size, class_count, bias=not neck)
        if neck:
            self.neck = norm = nn.BatchNorm1d(encoder.descriptor_size)
            norm.bias.requires_grad_(False)
            nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """Normalised frames (B, N, 3, H, W) -> (descriptors (B, D), logits (B, classes), masks as of the encoder)."""
        descriptor, masks = self.encoder(frames)
        return descriptor, self.classifier(self.neck(descriptor)), masks
