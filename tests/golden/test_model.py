"""The whole model against the reference: SE-ResNet50 + COSAM_4,5 + TP with golden weights."""

import json
import zlib

import numpy as np
import pytest
import torch
from passerby_model import checkpoint

NAME = "se_resnet50_cosam45_tp"


@pytest.fixture(scope="module")
def model(reference_state):
    return checkpoint.import_reference(reference_state(NAME)).build()


def test_fill_gives_the_golden_weights(golden, reference_state):
    expected = json.loads((golden / f"fillcrc_{NAME}.json").read_text())
    got = {key: zlib.crc32(value.numpy().tobytes()) for key, value in reference_state(NAME).items()}
    assert got == expected


def golden_input(which):
    if which == "A":
        return np.random.RandomState(0).standard_normal((2, 4, 3, 256, 128)).astype(np.float32)
    small = np.random.RandomState(2).standard_normal((2, 4, 3, 16, 8)).astype(np.float32)
    return np.repeat(np.repeat(small, 16, axis=3), 16, axis=4)


@pytest.mark.parametrize("which", ["A", "B"])
def test_descriptor_masks_and_logits_equal_reference(golden, model, which):
    file = np.load(golden / f"model_{NAME}.npz")
    with torch.inference_mode():
        frames = torch.from_numpy(golden_input(which))
        descriptor, masks = model.encoder(frames)
        logits = model.classifier(descriptor)
    for expected in (file[f"{which}_descriptor"], file[f"{which}_descriptor_f64"]):
        error = np.linalg.norm(descriptor.numpy() - expected) / np.linalg.norm(expected)
        assert error <= 1e-5
    assert list(masks) == [4, 5]
    for block, mask in masks.items():
        assert mask.shape == (2, 4, 16, 8)
        np.testing.assert_allclose(mask.flatten(0, 1), file[f"{which}_cosam{block}_spatial_mask"], atol=2e-5, rtol=0)
    np.testing.assert_allclose(logits, file[f"{which}_logits"], rtol=1e-4, atol=1e-4)


def test_every_block_equals_reference(golden, model):
    file = np.load(golden / f"model_{NAME}.npz")
    x = torch.from_numpy(golden_input("B")).flatten(0, 1)
    with torch.inference_mode():
        for number, block in model.encoder.backbone.blocks():
            x = block(x)
            np.testing.assert_allclose(x.mean(dim=(2, 3)), file[f"B_block{number}_channel_mean"], rtol=1e-4, atol=1e-5)
            if number in (4, 5):
                x, _ = model.encoder.cosam[str(number)](x)
                np.testing.assert_allclose(
                    x.mean(dim=(2, 3)), file[f"B_cosam{number}_out_channel_mean"], rtol=1e-4, atol=1e-5
                )
