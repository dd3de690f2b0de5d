"""Losses and their gradients against the reference's."""

import json

import numpy as np
import pytest
import torch
from passerby_model import losses

TAGS = ["p8k4_d2048", "p8k4_d64", "p4k4_d16_far", "p8k4_d64_f64"]


@pytest.mark.parametrize("tag", TAGS)
def test_losses_and_gradients_equal_reference(golden, tag):
    expected = next(case for case in json.loads((golden / "losses.json").read_text()) if case["tag"] == tag)
    file = np.load(golden / "losses_inputs.npz")
    dtype = torch.float64 if tag.endswith("f64") else torch.float32
    features = torch.from_numpy(file[f"{tag}/features"]).to(dtype).requires_grad_()
    logits = torch.from_numpy(file[f"{tag}/logits"]).to(dtype).requires_grad_()
    labels = torch.from_numpy(file[f"{tag}/labels"])
    triplet = losses.batch_hard_triplet(features, labels, expected["margin"])
    entropy = losses.cross_entropy(logits, labels, expected["epsilon"])
    grad_features, grad_logits = torch.autograd.grad(triplet + entropy, [features, logits])
    tolerance = 1e-7 if dtype == torch.float64 else 2e-6
    assert triplet.item() == pytest.approx(expected["triplet"], rel=tolerance, abs=2e-6)
    assert entropy.item() == pytest.approx(expected["ce_label_smooth"], rel=tolerance)
    np.testing.assert_allclose(grad_features, file[f"{tag}/grad_features"], atol=2e-6, rtol=1e-4)
    np.testing.assert_allclose(grad_logits, file[f"{tag}/grad_logits"], atol=1e-6, rtol=1e-4)
    plain = losses.cross_entropy(logits, labels, 0.0).item()
    assert plain == pytest.approx(expected["plain_ce_for_comparison"], rel=1e-6)


def test_identical_descriptors_have_finite_gradients(golden):
    case = next(c for c in json.loads((golden / "losses.json").read_text()) if c["tag"] == "duplicates")
    features = torch.tensor(case["features"], requires_grad=True)
    loss = losses.batch_hard_triplet(features, torch.tensor(case["labels"]), case["margin"])
    (gradient,) = torch.autograd.grad(loss, [features])
    assert loss.item() == pytest.approx(case["triplet"], abs=1e-6)
    assert torch.isfinite(gradient).all()
