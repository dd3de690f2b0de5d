"""Networks of timm cut into five blocks: their maps stay timm's own, and what cannot be cut is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from passerby.errors import InvalidArgumentError
from passerby_model import backbones, warm_start
from passerby_model.backbones import STAGES, Backbone
from passerby_model.encoder import Architecture, TrackletEncoder
from torch import nn

# Stages of basic blocks, of 2x2 strides, after parts of a sequence, of (h, w, C) maps, without a map of the stem.
NETWORKS = ["resnet34", "convnext_atto", "mobilenetv3_small_050", "test_mambaout", "pvt_v2_b0"]


def timms(name: str) -> Any:
    """timm's network with weights and batch statistics that are not those of a new one."""
    torch.manual_seed(0)
    net = timm.create_model(name).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(std=0.1)
            module.get_buffer("running_var").uniform_(0.8, 1.2)
    for key, value in net.named_parameters():
        if key.endswith("gamma"):  # of ConvNeXt's residual branches: starts as good as zero
            nn.init.uniform_(value, 0.5, 1.0)
    return net


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_give_timms_maps_from_weights_in_timms_naming(name: str, tmp_path: Path) -> None:
    net = timms(name)
    torch.save(net.state_dict(), tmp_path / "imagenet.pth")
    anatomy = backbones.read(name, 64, 32)
    backbone = Backbone(anatomy, max(anatomy.last_strides)).eval()
    state = warm_start.imagenet_state(name, str(tmp_path / "imagenet.pth"))
    backbone.load_state_dict({key.removeprefix("encoder.backbone."): value for key, value in state.items()})
    x = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        expected = net.forward_intermediates(x, norm=False, intermediates_only=True)[-4:]
        for number, block in backbone.blocks():
            x = block(x)
            if number > 1:
                assert tuple(x.shape[1:]) == (anatomy.channels(number), *anatomy.map_size(number, 2))
                torch.testing.assert_close(x, expected[number - 2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_last_stride_of_one_keeps_the_maps_and_the_weights(name: str) -> None:
    anatomy = backbones.read(name, 64, 32)
    assert anatomy.last_strides == (1, 2)
    flat, own = Backbone(anatomy, 1), Backbone(anatomy, 2)
    assert flat.state_dict().keys() == own.state_dict().keys()
    frames = torch.randn(2, 3, 64, 32)
    assert flat.eval()(frames).shape[2:] == anatomy.map_size(5, 1) == (4, 2)
    assert own.eval()(frames).shape[2:] == anatomy.map_size(5, 2) == (2, 1)


@pytest.mark.parametrize("name", ["convnext_atto", "resnet50d", "densenet121"])
def test_a_stride_that_cannot_be_taken_away_stays(name: str) -> None:
    assert Architecture.parse(f"{name}+cosam5+tp", height=64, width=32).map_size(5) == (2, 1)
    with pytest.raises(InvalidArgumentError, match=rf"last stage of {name} cannot have stride 1, only 2"):
        Backbone(backbones.read(name, 64, 32), 1)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_tiny_patch16_224", "no four stages of ever smaller feature maps"),
        ("efficientvit_m0", "reduced by 16, 32, 64;"),
        ("hrnet_w18_small", "cannot be cut into blocks: its maps come from within stage1"),
        ("hieradet_small", "blocks.0 works on more than the output of what precedes it"),
        ("halonet_h1", "does not take frames of 64 x 32"),
        ("resnet51", "unknown backbone 'resnet51'.* did you mean .*resnet50"),
        ("resnet50.nonsense", "unknown backbone 'resnet50.nonsense'.*tag"),
        ("legacy_seresnet50", "called se_resnet50 here"),
        ("hf-hub:timm/resnet18", "unknown backbone"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        backbones.read(name, 64, 32)


@pytest.mark.parametrize("name", ["se_resnet50", "convnext_atto", "test_mambaout"])
def test_stages_hold_all_of_the_network_but_its_head(name: str) -> None:
    """So that `freeze` finds every stage by its name, whatever the network."""
    anatomy = backbones.read(name, 64, 32)
    with torch.device("meta"):
        backbone = Backbone(anatomy, max(anatomy.last_strides))
        net = timm.create_model(backbones.timm_name(name))
    assert [stage for stage, _ in backbone.named_children()] == list(STAGES)
    assert all(any(True for _ in getattr(backbone, stage).parameters()) for stage in STAGES)
    assert {anatomy.our_key(key) for key in net.state_dict()} - {None} == backbone.state_dict().keys()
    assert {key for key in net.state_dict() if anatomy.our_key(key) is None} == anatomy.heads
    assert all(key.startswith(("head.", "norm.", "last_linear.")) for key in anatomy.heads)


def test_tensor_names_of_the_first_three_networks_stay() -> None:
    """Checkpoints hold them."""
    expected = {
        "se_resnet50": ["stem.0.conv1.weight", "layer1.0.se_module.fc1.weight", "layer4.2.bn3.running_var"],
        "resnet50": ["stem.0.weight", "stem.1.running_mean", "layer1.0.downsample.0.weight", "layer4.2.conv3.weight"],
        "resnet18": ["stem.0.weight", "stem.1.bias", "layer2.0.downsample.1.weight", "layer4.1.bn2.weight"],
    }
    for name, keys in expected.items():
        with torch.device("meta"):
            state = Backbone(backbones.read(name, 64, 32), 1).state_dict()
        assert set(keys) <= state.keys()
        assert {key.split(".")[0] for key in state} == set(STAGES)


def test_the_reference_starts_from_these_imagenet_weights() -> None:
    assert backbones.timm_name("resnet50") == "resnet50.tv_in1k"  # torchvision's V1
    assert backbones.timm_name("se_resnet50") == "legacy_seresnet50.in1k"
    assert backbones.timm_name("convnext_atto.d2_in1k") == "convnext_atto.d2_in1k"
    assert all(timm.is_model_pretrained(backbones.timm_name(name)) for name in ("resnet50", "se_resnet50"))


def test_reading_a_network_draws_no_random_numbers_and_makes_no_weights() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    backbones.read.cache_clear()
    backbones.read("resnet18", 96, 32)
    assert torch.equal(torch.rand(3), expected)
    with torch.device("meta"):
        encoder = TrackletEncoder(Architecture.parse("resnet18+cosam5+tp", height=96, width=32))
    assert all(value.is_meta for value in encoder.parameters())


def test_a_network_made_for_one_size_is_built_for_ours() -> None:
    architecture = Architecture.parse("swin_tiny_patch4_window7_224+cosam45+tp", height=64, width=32)
    assert [architecture.map_size(block) for block in (2, 3, 4, 5)] == [(16, 8), (8, 4), (4, 2), (2, 1)]
    with torch.inference_mode():
        descriptor, masks = TrackletEncoder(architecture).eval()(torch.randn(1, 4, 3, 64, 32))
    assert descriptor.shape == (1, 768)
    assert {block: tuple(mask.shape) for block, mask in masks.items()} == {4: (1, 4, 4, 2), 5: (1, 4, 2, 1)}
