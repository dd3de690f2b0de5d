"""COSAM and the aggregations alone, against the reference's outputs."""

import numpy as np
import pytest
import torch
from passerby_model.aggregation import TemporalAttention, TemporalPooling, TemporalRecurrence
from passerby_model.cosam import Cosam

PARTS = {"dim_reduction": "reduce", "spatial_mask_summary": "summary", "channelwise_attention": "attend"}


# The reference's outputs that are not to hand; `test_transcription` covers the same parts.
MAY_BE_ABSENT = {"unit_cosam_c300_t4", "unit_aggregation_rnn"}


def vectors(golden, name):
    path = golden / f"{name}.npz"
    if name in MAY_BE_ABSENT and not path.exists():
        pytest.skip(f"no {path.name}: no outputs of the reference for this part")
    return np.load(path)


def weights(file, rename):
    state = {key.removeprefix("weight/"): torch.from_numpy(file[key]) for key in file if "weight/" in key}
    return {rename(key): value for key, value in state.items()}


def cosam_name(key):
    part, _, tail = key.partition(".")
    return f"{PARTS[part]}.{tail}"


@pytest.fixture(
    params=["unit_cosam_c12_t3", "unit_cosam_c12_t3_smallvar", "unit_cosam_c12_t3_dead", "unit_cosam_c300_t4"],
    ids=lambda n: n[11:],
)
def unit(request, golden):
    file = vectors(golden, request.param)
    _, channels, height, width = file["x"].shape
    module = Cosam(channels, int(file["t"]), (height, width))
    module.load_state_dict(weights(file, cosam_name))
    return module.eval(), file


def test_cosam_equals_reference(unit):
    module, file = unit
    x = torch.from_numpy(file["x"])
    with torch.inference_mode():
        reduced = module.reduce(x)
        volume = module.ncc(reduced)
        out, mask = module(x)
    np.testing.assert_allclose(reduced, file["reduced"], atol=1e-6)
    np.testing.assert_allclose(volume, file["cost_volume"], atol=2e-6)
    np.testing.assert_allclose(mask[:, 0], file["spatial_mask"], atol=1e-6)
    np.testing.assert_allclose(out, file["out"], atol=2e-6)


def test_cosam_in_float64_equals_reference(unit):
    module, file = unit
    with torch.inference_mode():
        out, mask = module.double()(torch.from_numpy(file["x"]).double())
    assert mask.dtype == torch.float64
    np.testing.assert_allclose(mask[:, 0], file["spatial_mask_f64"], atol=1e-9)
    np.testing.assert_allclose(out, file["out_f64"], atol=1e-9)


def test_cosam_gradient_is_finite_everywhere(unit):
    module, file = unit
    x = torch.from_numpy(file["x"]).requires_grad_()
    out, mask = module(x)
    (out.square().sum() + mask.sum()).backward()
    for name, value in [("x", x), *module.named_parameters()]:
        assert value.grad is not None, name
        assert torch.isfinite(value.grad).all(), name


def test_temporal_pooling_equals_reference(golden):
    file = np.load(golden / "unit_aggregation_tp.npz")
    x = torch.from_numpy(file["x"])
    np.testing.assert_allclose(TemporalPooling(x.shape[1], int(file["t"]))(x), file["out"], atol=1e-6)


def test_temporal_attention_equals_reference(golden):
    file = np.load(golden / "unit_aggregation_ta.npz")
    x = torch.from_numpy(file["x"])
    module = TemporalAttention(x.shape[1], int(file["t"]), (x.shape[2], x.shape[3]))
    module.load_state_dict(weights(file, str))
    with torch.inference_mode():
        np.testing.assert_allclose(module(x), file["out"], atol=2e-6)


def test_recurrence_equals_reference(golden):
    file = vectors(golden, "unit_aggregation_rnn")
    x = torch.from_numpy(file["x"])
    module = TemporalRecurrence(x.shape[1], int(file["t"]))
    module.load_state_dict(weights(file, str))
    with torch.inference_mode():
        np.testing.assert_allclose(module(x), file["out"], atol=2e-6)
