"""Backbones in five blocks, so that an attention module can follow each of blocks 2 to 5.

`se_resnet50` is the original SENet release as ported by Cadene (timm `legacy_seresnet50`: stride in the first 1x1,
ceil-mode pooling), `resnet50` is torchvision's (stride in the 3x3); those two are the reference's. `resnet18` is for
tests, small data and small machines. Networks come from timm; nothing is downloaded unless a caller asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import timm
from torch import Tensor, nn

BackboneName = Literal["se_resnet50", "resnet50", "resnet18"]
# Block 1 is the stem, blocks 2 to 5 are layer1 to layer4.
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
_BOTTLENECK, _BASIC = (64, 256, 512, 1024, 2048), (64, 64, 128, 256, 512)
CHANNELS: dict[BackboneName, tuple[int, ...]] = {
    "se_resnet50": _BOTTLENECK,
    "resnet50": _BOTTLENECK,
    "resnet18": _BASIC,
}
TIMM_NAMES: dict[BackboneName, str] = {
    "se_resnet50": "legacy_seresnet50",
    "resnet50": "resnet50",
    "resnet18": "resnet18",
}


class Backbone(nn.Module):
    """Five blocks, run in order; `channels[i]` is the width of the output of block i+1."""

    def __init__(self, name: BackboneName, last_stride: int) -> None:
        """Build `name` with random weights; `last_stride` (1 or 2) is the stride of layer4."""
        super().__init__()
        net: Any = timm.create_model(TIMM_NAMES[name], pretrained=False)
        self.name, self.channels = name, CHANNELS[name]
        self.last_stride = last_stride
        if name == "se_resnet50":
            self.stem = nn.Sequential(net.layer0, net.pool0)
            _start_as_identity(net)
        else:
            self.stem = nn.Sequential(net.conv1, net.bn1, net.act1, net.maxpool)
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        if last_stride == 1:
            _remove_stride(self.layer4)

    def blocks(self) -> Iterator[tuple[int, nn.Module]]:
        """(block number 1..5, module), in the order in which they run."""
        for number, stage in enumerate(STAGES, start=1):
            yield number, getattr(self, stage)

    def forward(self, frames: Tensor) -> Tensor:
        """float (M, 3, H, W) -> (M, channels[-1], H/16, W/16), or H/32 with last stride 2."""
        for _, block in self.blocks():
            frames = block(frames)
        return frames


def map_size(block: int, height: int, width: int, last_stride: int) -> tuple[int, int]:
    """(h, w) of the maps after `block` (2..5) for frames of height x width, both multiples of 32."""
    stride = 2**block if block < 5 else 16 * last_stride
    return height // stride, width // stride


def _start_as_identity(net: nn.Module) -> None:
    """Zero the last batch norm of each residual branch (Goyal et al., arXiv 1706.02677, section 5.1).

    timm does so for ResNet but not for the SENet port. It only matters to training from scratch: weights that are
    loaded replace it.
    """
    for module in net.modules():
        if isinstance(last := getattr(module, "bn3", None), nn.BatchNorm2d):
            nn.init.zeros_(last.weight)


def _remove_stride(stage: nn.Module) -> None:
    """Stride 1 for a stage: its first block's strided convolution and the shortcut beside it."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)
