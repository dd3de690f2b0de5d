"""Backbones in five blocks, so that an attention module can follow each of blocks 2 to 5.

A backbone is any timm network whose feature maps come in stages: its last four stages are blocks 2 to 5, what comes
before them is the stem. `se_resnet50` (the original SENet release as ported by Cadene, timm's `legacy_seresnet50`:
stride in the first 1x1, ceil-mode pooling) and `resnet50` (torchvision's: stride in the 3x3) are the reference's.
Widths and map sizes are read off the network by running it on shapes alone, and the cut is proven the same way: each
part must take exactly what the part before it gave. Nothing is downloaded unless a caller asks for it.
"""

from __future__ import annotations

import difflib
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from passerby.errors import InvalidArgumentError
from torch import Tensor, nn

# Block 1 is the stem, blocks 2 to 5 are layer1 to layer4.
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
# The reference's networks with the weights that it starts from (timm's own resnet50 weights are of another recipe).
_TIMM_NAMES = {"se_resnet50": "legacy_seresnet50.in1k", "resnet50": "resnet50.tv_in1k"}
_OURS = {"legacy_seresnet50": "se_resnet50"}
# What a network raises that cannot be built or run at a size.
_REFUSALS = (RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError)


@dataclass(frozen=True)
class Anatomy:
    """How a network falls into five blocks, for frames of one size.

    `parts[i]` are timm's names of the modules of block i+1, in the order in which they run. `maps[i]` are the (C, h, w)
    that stage i+1 (block i+2) gives at the network's own strides. `last_strides` are the strides that layer4 can have:
    the network's own and, where that can be taken away, 1. `heads` are timm's names of the tensors that are in no block.
    `channels_last`: modules work on (h, w, C) instead of (C, h, w).
    """

    backbone: str
    frame_size: tuple[int, int]
    parts: tuple[tuple[str, ...], ...]
    maps: tuple[tuple[int, int, int], ...]
    last_strides: tuple[int, ...]
    heads: frozenset[str]
    channels_last: bool

    def channels(self, block: int) -> int:
        """C of the maps after `block` (2..5)."""
        return self.maps[block - 2][0]

    def map_size(self, block: int, last_stride: int) -> tuple[int, int]:
        """(h, w) of the maps after `block` (2..5)."""
        return self.maps[2 if block == 5 and last_stride == 1 else block - 2][1:]

    def our_key(self, key: str) -> str | None:
        """Name in `Backbone` of the tensor that timm calls `key`; None for one that is in no block."""
        for stage, parts in zip(STAGES, self.parts, strict=True):
            for place, part in enumerate(parts):
                if key.startswith(f"{part}."):
                    tail = key.removeprefix(f"{part}.")
                    return f"{stage}.{tail}" if _stands_alone(parts, self.channels_last) else f"{stage}.{place}.{tail}"
        return None


class Backbone(nn.Module):
    """Five blocks, run in order: stem, layer1, layer2, layer3, layer4."""

    def __init__(self, anatomy: Anatomy, last_stride: int) -> None:
        """Build with random weights.

        Args:
            anatomy: from `read`.
            last_stride: of layer4; one of `anatomy.last_strides`.

        Raises:
            InvalidArgumentError: a stride that the network cannot have.
        """
        super().__init__()
        if last_stride not in anatomy.last_strides:
            raise InvalidArgumentError(
                f"the last stage of {anatomy.backbone} cannot have stride {last_stride}, "
                f"only {' or '.join(map(str, anatomy.last_strides))}"
            )
        net = _build(anatomy.backbone, *anatomy.frame_size)
        self.last_stride = last_stride
        if anatomy.backbone == "se_resnet50":
            _start_as_identity(net)
        for stage, block in zip(STAGES, _blocks(net, anatomy.parts, anatomy.channels_last), strict=True):
            self.add_module(stage, block)
        if last_stride == 1:
            _remove_stride(self.get_submodule(STAGES[-1]))

    def blocks(self) -> Iterator[tuple[int, nn.Module]]:
        """(block number 1..5, module), in the order in which they run."""
        for number, stage in enumerate(STAGES, start=1):
            yield number, self.get_submodule(stage)

    def forward(self, frames: Tensor) -> Tensor:
        """float (M, 3, H, W) -> (M, C, h, w), as block 5 gives them."""
        for _, block in self.blocks():
            frames = block(frames)
        return frames


def timm_name(backbone: str) -> str:
    """timm's name of a backbone, with the tag of the weights that ImageNet training starts from."""
    return _TIMM_NAMES.get(backbone, backbone)


def native_size(backbone: str) -> tuple[int, int]:
    """(height, width) in pixels of the images that a network was made for, which it takes in any case.

    Raises:
        InvalidArgumentError: no such network.
    """
    _check_name(backbone)
    known = _record(backbone)
    return (known.input_size[1], known.input_size[2]) if known is not None else (224, 224)


@functools.lru_cache(maxsize=64)
def read(backbone: str, height: int, width: int) -> Anatomy:
    """Take a network apart, without memory for weights or maps.

    Args:
        backbone: `se_resnet50`, `resnet50`, or timm's name of another network.
        height: of the frames, in pixels.
        width: likewise.

    Raises:
        InvalidArgumentError: no such network, one without staged maps, or frames that it cannot take; says why.
    """
    _check_name(backbone)
    with torch.device("meta"), torch.no_grad():
        try:
            net = _build(backbone, height, width).eval()
        except _REFUSALS as error:
            raise InvalidArgumentError(f"{backbone} cannot be built for {height} x {width}: {_why(error)}") from error
        levels = _levels(backbone, net)
        _check_size(backbone, height, width, levels[-1]["reduction"])
        parts = _cut(backbone, net, [level["module"] for level in levels])
        frames = torch.empty(1, 3, height, width)
        _check_chain(backbone, net, [part for block in parts for part in block], frames)
        maps, channels_last = _maps(backbone, net, parts, levels[-1]["num_chs"], frames)
        keys = net.state_dict()
        inside = tuple(f"{part}." for block in parts for part in block)
        return Anatomy(
            backbone=backbone,
            frame_size=(height, width),
            parts=parts,
            maps=maps,
            last_strides=_last_strides(_blocks(net, parts, channels_last)[-1], maps[-2], maps[-1]),
            heads=frozenset(key for key in keys if not key.startswith(inside)),
            channels_last=channels_last,
        )


class _ChannelsLast(nn.Sequential):
    """Modules that work on (M, h, w, C), for neighbours that work on (M, C, h, w)."""

    def __init__(self, *modules: nn.Module, takes_frames: bool) -> None:
        super().__init__(*modules)
        self.takes_frames = takes_frames

    def forward(self, input: Tensor) -> Tensor:
        """float (M, C, h, w) -> (M, C', h', w')."""
        x = input if self.takes_frames else input.permute(0, 2, 3, 1)
        for module in self:
            x = module(x)
        return x.permute(0, 3, 1, 2)


def _stands_alone(parts: tuple[str, ...], channels_last: bool) -> bool:
    """Whether a block is timm's module itself, instead of a sequence."""
    return len(parts) == 1 and not channels_last


def _blocks(net: nn.Module, parts: tuple[tuple[str, ...], ...], channels_last: bool) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for names in parts:
        modules = [net.get_submodule(name) for name in names]
        if _stands_alone(names, channels_last):
            blocks += modules
        elif channels_last:
            blocks.append(_ChannelsLast(*modules, takes_frames=not blocks))
        else:
            blocks.append(nn.Sequential(*modules))
    return blocks


def _build(backbone: str, height: int, width: int) -> nn.Module:
    """timm's network; those that are made for one size of input are made for ours."""
    known = _record(backbone)
    fixed = known is not None and known.fixed_input_size and tuple(known.input_size[1:]) != (height, width)
    size: dict[str, Any] = {"img_size": (height, width)} if fixed else {}
    net: nn.Module = timm.create_model(timm_name(backbone), pretrained=False, **size)
    return net


def _record(backbone: str) -> Any:
    """What timm notes of a network's weights: PretrainedCfg, or None for a network of which it has none."""
    try:
        return timm.get_pretrained_cfg(timm_name(backbone))
    except RuntimeError as error:  # the part after the dot
        raise InvalidArgumentError(f"unknown backbone {backbone!r}: {_why(error)}") from error


def _check_name(backbone: str) -> None:
    bare = backbone.partition(".")[0]
    if bare in _OURS:
        raise InvalidArgumentError(f"timm's {backbone} is called {_OURS[bare]} here")
    if backbone in _TIMM_NAMES or timm.is_model(backbone):
        return
    known = {*_TIMM_NAMES, *timm.list_models()}
    near = difflib.get_close_matches(backbone, known, n=3, cutoff=0.6)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise InvalidArgumentError(
        f"unknown backbone {backbone!r}: there are se_resnet50, resnet50 and timm's other networks with staged "
        f"feature maps, by timm's names (resnet18, convnext_atto, ...){hint}"
    )


def _levels(backbone: str, net: nn.Module) -> list[dict[str, Any]]:
    """timm's record of the feature maps: the last four, and the one before them where there is one."""
    levels: list[dict[str, Any]] = [dict(level) for level in getattr(net, "feature_info", None) or ()]
    factors = [level["reduction"] for level in levels]
    if len(factors) < 4 or any(one >= two for one, two in itertools.pairwise(factors[-4:])):
        listed = ", ".join(map(str, factors[:6])) or "none"
        raise InvalidArgumentError(
            f"{backbone} has no four stages of ever smaller feature maps, which COSAM_2 to COSAM_5 go after: its maps "
            f"are reduced by {listed}{', ...' if len(factors) > 6 else ''}; choose a network with stages, "
            "such as resnet50 or convnext_atto"
        )
    return levels[-5:]


def _check_size(backbone: str, height: int, width: int, factor: int) -> None:
    if height < factor or width < factor or height % factor or width % factor:
        raise InvalidArgumentError(
            f"height and width must be multiples of {factor} ({backbone} makes its maps that much smaller), "
            f"not {height} x {width}"
        )


def _cut(backbone: str, net: nn.Module, taps: list[str]) -> tuple[tuple[str, ...], ...]:
    """timm's names of the modules of each block; `taps` are those that end a level."""
    modules = dict(_walk(net, set(taps)))
    names = list(modules)
    lost = [tap for tap in taps[-4:] if tap not in modules]
    if lost:
        raise InvalidArgumentError(
            f"{backbone} cannot be cut into blocks: its maps come from within {', '.join(lost)}, which do not run "
            "one after another"
        )
    ends = [names.index(tap) + 1 for tap in taps[-4:]]
    start = ends[0] - 1
    if len(taps) == 5 and taps[0] in modules:
        start = names.index(taps[0]) + 1
        # A pool without weights belongs to the stem, as in the reference.
        while start < ends[0] - 1 and not any(True for _ in modules[names[start]].parameters()):
            start += 1
    bounds = [0, start, *ends]
    return tuple(tuple(names[a:b]) for a, b in itertools.pairwise(bounds))


def _walk(net: nn.Module, taps: set[str], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of the parts of a network in their order; sequences in which a tap lies are opened."""
    for name, module in net.named_children():
        path = f"{prefix}{name}"
        holds_tap = any(tap.startswith(f"{path}.") for tap in taps)
        if isinstance(module, nn.Sequential) and path not in taps and holds_tap:
            yield from _walk(module, taps, f"{path}.")
        else:
            yield path, module


def _check_chain(backbone: str, net: nn.Module, parts: list[str], frames: Tensor) -> None:
    """Run the whole network: each part must run once, in order, on nothing but what the part before it gave."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = []

    def watch(part: str) -> Any:
        return lambda _module, given, named, gave: calls.append((part, given, named, gave))

    handles = [net.get_submodule(part).register_forward_hook(watch(part), with_kwargs=True) for part in parts]
    try:
        net(frames)
    except _REFUSALS as error:
        raise InvalidArgumentError(
            f"{backbone} does not take frames of {frames.shape[2]} x {frames.shape[3]}: {_why(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    previous: Any = frames
    for (part, given, named, gave), expected in zip(calls, parts, strict=False):
        if part != expected or named or len(given) != 1 or given[0] is not previous:
            raise InvalidArgumentError(
                f"{backbone} cannot be cut into blocks: {part} works on more than the output of what precedes it"
            )
        previous = gave
    if len(calls) != len(parts):
        raise InvalidArgumentError(f"{backbone} cannot be cut into blocks: its parts do not run once each")


def _maps(
    backbone: str, net: nn.Module, parts: tuple[tuple[str, ...], ...], width: int, frames: Tensor
) -> tuple[tuple[tuple[int, int, int], ...], bool]:
    """(C, h, w) of the maps of each stage, and whether the modules work on (h, w, C); `width` is C of the last one."""
    outputs, x = [], frames
    for names in parts:
        for name in names:
            x = net.get_submodule(name)(x)
        outputs.append(x)
    stages = outputs[1:]
    if any(not isinstance(maps, Tensor) or maps.dim() != 4 for maps in stages):
        raise InvalidArgumentError(f"{backbone} cannot be a backbone: its stages do not give maps (C, H, W)")
    channels_last = stages[-1].shape[1] != width and stages[-1].shape[-1] == width
    if channels_last:
        stages = [maps.permute(0, 3, 1, 2) for maps in stages]
    return tuple((maps.shape[1], maps.shape[2], maps.shape[3]) for maps in stages), channels_last


def _last_strides(stage: nn.Module, takes: tuple[int, int, int], gives: tuple[int, int, int]) -> tuple[int, ...]:
    """The strides that the last stage can have: 1 if it then gives maps of just the size that it takes.

    Takes the stride of `stage` away for good.
    """
    own = round(takes[1] / gives[1])
    _remove_stride(stage)
    try:
        maps = stage(torch.empty(1, *takes))
    except _REFUSALS:
        return (own,)
    return (1, own) if tuple(maps.shape[2:]) == takes[1:] else (own,)


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


def _why(error: Exception) -> str:
    """One line of what went wrong inside a network."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
