"""Every variant of the reference against the second writing of it (`transcription.py`), which is itself held against
the reference's outputs where they are to hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from passerby_model import checkpoint
from passerby_model.aggregation import TemporalAttention, TemporalRecurrence
from passerby_model.cosam import Cosam
from passerby_model.encoder import Architecture, Classifier, TrackletEncoder
from torch import nn

from tests.golden import transcription
from tests.golden.variants import golden_input

OUR_PARTS = {"reduce": "dim_reduction", "summary": "spatial_mask_summary", "attend": "channelwise_attention"}


def randomise(module: Any) -> Any:
    """Weights and batch statistics unlike those of a new network, in which a wrong one could hide behind a zero."""
    torch.manual_seed(3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.0)
            nn.init.normal_(part.bias, std=0.1)
            part.get_buffer("running_mean").normal_(std=0.1)
            part.get_buffer("running_var").uniform_(0.8, 1.2)
        elif isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and part.bias is not None:
            nn.init.normal_(part.bias, std=0.1)
    return module.eval()


def plain(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: value.double().numpy() for key, value in state.items()}


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize(("channels", "length", "size"), [(12, 2, (3, 2)), (12, 8, (2, 3)), (300, 4, (2, 2))])
def test_cosam(channels: int, length: int, size: tuple[int, int], form: str) -> None:
    module = randomise(Cosam(channels, length, size, form)).double()  # type: ignore[arg-type]
    state = {
        f"{OUR_PARTS[part]}.{tail}": value
        for part, _, tail, value in ((*key.partition("."), value) for key, value in plain(module.state_dict()).items())
    }
    x = np.random.default_rng(0).normal(size=(2 * length, channels, *size))
    expected, expected_mask = transcription.cosam(x, state, length, form)
    with torch.inference_mode():
        out, mask = module(torch.from_numpy(x))
    np.testing.assert_allclose(mask[:, 0], expected_mask, atol=1e-12)
    np.testing.assert_allclose(out, expected, atol=1e-12)
    assert expected_mask.std() > 1e-3  # a mask that varies, or nothing was compared


@pytest.mark.parametrize("length", [2, 4, 8])
def test_temporal_attention(length: int) -> None:
    module = TemporalAttention(20, length, (8, 4)).double()
    x = np.random.default_rng(length).normal(size=(3 * length, 20, 8, 4))
    state = plain(module.state_dict())
    with torch.inference_mode():
        np.testing.assert_allclose(
            module.weights(torch.from_numpy(x)), transcription.frame_weights(x, state, length), atol=1e-12
        )
        np.testing.assert_allclose(
            module(torch.from_numpy(x)), transcription.temporal_attention(x, state, length), atol=1e-12
        )


@pytest.mark.parametrize("length", [2, 4, 8])
def test_recurrence(length: int) -> None:
    module = TemporalRecurrence(20, length).double()
    x = np.random.default_rng(length).normal(size=(3 * length, 20, 2, 1))
    expected = transcription.recurrence(x, plain(module.state_dict()), length)
    with torch.inference_mode():
        np.testing.assert_allclose(module(torch.from_numpy(x)), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("se_resnet50+cosam45+ta", 4),
        ("se_resnet50+cosam45+rnn", 4),
        ("se_resnet50+cosam2345-paper+tp", 2),
        ("se_resnet50+none+tp", 4),
        ("se_resnet50+cosam45+tp", 8),
        ("resnet50+cosam45+tp", 4),
        ("resnet50+cosam45+ta", 2),
        ("resnet50+cosam25+rnn", 4),
        ("resnet50+none+ta", 4),
    ],
)
def test_whole_models(name: str, length: int) -> None:
    """By way of the reference's tensor names, so that import, export and the strides of the stages are in it."""
    architecture = Architecture.parse(name, snippet_length=length, height=64, width=32)
    model = randomise(Classifier(TrackletEncoder(architecture), 7)).double()
    state = plain(checkpoint.export_reference(checkpoint.Checkpoint(architecture, 7, model.state_dict())))
    frames = np.random.default_rng(1).normal(size=(2, length, 3, 64, 32))
    expected, expected_masks, expected_logits = transcription.encode(
        state,
        frames,
        squeeze=architecture.backbone == "se_resnet50",
        blocks=architecture.cosam,
        aggregation=architecture.aggregation,
        form=architecture.form,
    )
    with torch.inference_mode():
        descriptor, masks = model.encoder(torch.from_numpy(frames))
        logits = model.classifier(descriptor)
    assert np.linalg.norm(descriptor.numpy() - expected) <= 1e-10 * np.linalg.norm(expected)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-8, atol=1e-10)
    assert list(masks) == list(expected_masks) == list(architecture.cosam)
    for block, mask in masks.items():
        np.testing.assert_allclose(mask, expected_masks[block], atol=1e-10)


def test_the_transcription_equals_the_reference(golden, reference_state):
    file = np.load(golden / "model_se_resnet50_cosam45_tp.npz")
    state = plain(reference_state("se_resnet50_cosam45_tp"))
    frames = golden_input("B", 4)[:1].astype(np.float64)
    descriptor, masks, _ = transcription.encode(state, frames, squeeze=True, blocks=(4, 5), aggregation="tp")
    expected = file["B_descriptor_f64"][:1]
    assert np.linalg.norm(descriptor - expected) <= 1e-9 * np.linalg.norm(expected)
    for block, mask in masks.items():
        np.testing.assert_allclose(mask[0], file[f"B_cosam{block}_spatial_mask"][:4], atol=2e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_resnet50_is_torchvisions(stride: int) -> None:
    """The reference takes torchvision's network apart into a list: its names are the places in it."""
    from torchvision.models import resnet50  # type: ignore[import-untyped]

    torch.manual_seed(0)
    theirs = nn.Sequential(*list(randomise(resnet50()).children())[:-2]).double()
    for part in theirs[7].modules():
        if isinstance(part, nn.Conv2d) and stride == 1:
            part.stride = (1, 1)
    architecture = Architecture.parse("resnet50+none+" + ("ta" if stride == 2 else "tp"), height=64, width=32)
    model = Classifier(TrackletEncoder(architecture), 7)
    state = checkpoint.export_reference(checkpoint.Checkpoint(architecture, 7, model.state_dict()))
    state |= {f"base.{key}": value for key, value in theirs.state_dict().items()}
    ours = checkpoint.import_reference(state, architecture).build().encoder.backbone.double()
    frames = torch.randn(2, 3, 64, 32, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(frames), theirs(frames), rtol=1e-10, atol=1e-10)
