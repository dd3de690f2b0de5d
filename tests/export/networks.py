"""Encoders with random weights for the tests of the export room."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import torch
from passerby_export import artefacts
from passerby_model.backends.choice import processor_has_bf16
from passerby_model.bundle import Input
from passerby_model.encoder import Architecture, TrackletEncoder

SMALL = Architecture.parse("resnet18+cosam45+tp", snippet_length=3, height=64, width=32)
SMALL_INPUT = Input(snippet_length=3, height=64, width=32)

PRECISIONS = tuple(name for name in artefacts.PRECISIONS if name != "bf16" or processor_has_bf16())
"""All that can be made and proven on this machine."""


@dataclass(frozen=True)
class Network:
    """An encoder and its exported graph, which tests must not change."""

    encoder: TrackletEncoder
    graph: onnx.ModelProto


def random_encoder(architecture: Architecture) -> TrackletEncoder:
    """Random weights, with batch statistics that are not those of a new network, so that folding shows."""
    torch.manual_seed(1)
    encoder = TrackletEncoder(architecture).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(std=0.05)
            module.get_buffer("running_var").uniform_(0.8, 1.2)
            # New networks have residual branches of zero, in which a wrong weight would not show.
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.05)
    return encoder
