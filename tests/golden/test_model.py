"""Whole models against the reference's outputs, with golden weights: every variant whose outputs are to hand.

Of a variant without outputs its key list proves names and shapes; `test_transcription` covers what it computes.
"""

import json
import re
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from passerby_model import checkpoint

from tests.golden import variants

# Largest difference: relative L2 of the descriptor (float32 and float64 differ by up to 2e-6, with the LSTM 7e-6),
# absolute for masks, relative to the array's largest value for what lies in between.
DESCRIPTOR_L2, MASK, INNER = 1e-5, 2e-5, 2e-5
NEVER_ABSENT = "se_resnet50_cosam45_tp"
_ARRAY = re.compile(r"(?:([A-Z])_)?([a-z]\w*)")


@pytest.mark.parametrize("name", variants.NAMES)
def test_key_lists_import_and_export_without_loss(golden, name):
    path = golden / f"keys_{name}.json"
    if not path.exists():
        pytest.skip(f"no {path.name}: nothing of the reference says which tensors this model has")
    state = {key: torch.empty(shape, device="meta") for key, shape in json.loads(path.read_text())}
    imported = checkpoint.import_reference({f"module.{key}": value for key, value in state.items()})
    assert imported.architecture == variants.architecture(name)
    assert imported.class_count == 625
    back = checkpoint.export_reference(imported)
    assert back.keys() == state.keys()
    assert all(back[key] is value for key, value in state.items())
    ours = imported.architecture
    assert checkpoint.import_reference(state, ours).state.keys() == imported.state.keys()


def test_fill_gives_the_golden_weights(golden, reference_state):
    expected = json.loads((golden / f"fillcrc_{NEVER_ABSENT}.json").read_text())
    got = {key: zlib.crc32(value.numpy().tobytes()) for key, value in reference_state(NEVER_ABSENT).items()}
    assert got == expected


@pytest.fixture(scope="module", params=variants.NAMES)
def case(request, golden, reference_state):
    """(model with golden weights, {array name: array}) of one variant."""
    name = request.param
    path = golden / f"model_{name}.npz"
    if not path.exists():
        assert name != NEVER_ABSENT, f"{path} is part of the golden vectors"
        pytest.skip(f"no {path.name}: no outputs of the reference for this model, only test_transcription")
    with np.load(path) as file:
        arrays = dict(file)
    return checkpoint.import_reference(reference_state(name), variants.architecture(name)).build(), arrays


def test_model_equals_reference(case):
    model, arrays = case
    prefixes = sorted({match[1] or "" for match in map(_ARRAY.fullmatch, arrays) if match and "descriptor" in match[2]})
    assert prefixes, "the file holds no descriptor"
    for prefix in prefixes:
        expected = {
            match[2]: value
            for match, value in ((_ARRAY.fullmatch(key), value) for key, value in arrays.items())
            if match and (match[1] or "") == prefix
        }
        got = outputs(model, variants.golden_input(prefix, model.encoder.architecture.snippet_length))
        compared = {name for name, array in expected.items() if compare(name, got, array, expected)}
        assert {"descriptor", "logits"} <= compared
        assert {f"cosam{block}_spatial_mask" for block in model.encoder.architecture.cosam} <= compared
        assert not set(expected) - compared - NOT_OF_THE_MODEL, "arrays that nothing was compared with"


# Pictures of masks (`tests/model/test_attention.py` has them), and places of the sample.
NOT_OF_THE_MODEL = {"cosam4_viz_frame1", "cosam5_viz_frame1", "final_sample_index"}


def compare(name, got, expected, arrays):
    """Hold one of the reference's arrays against ours; False where there is nothing of that name."""
    if name in ("descriptor", "descriptor_f64"):
        assert np.linalg.norm(got["descriptor"] - expected) <= DESCRIPTOR_L2 * np.linalg.norm(expected), name
        return True
    if frames := re.fullmatch(r"(cosam\d_(?:reduced|cost_volume))_frames?_?([\d_]+)", name):
        found = got[frames[1]][[int(n) for n in frames[2].split("_")]].reshape(expected.shape)
    elif name == "final_sample":
        found = got["final"].ravel()[arrays["final_sample_index"]]
    elif name in got:
        found = got[name]
    else:
        return False
    assert found.shape == expected.shape, name
    error = MASK if name.endswith("_spatial_mask") else INNER * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=error, rtol=0, err_msg=name)
    return True


def outputs(model, frames):
    """Everything that the reference's files tell of, by their names: numpy arrays, frames of all snippets in a row."""
    encoder, length = model.encoder, frames.shape[1]
    seen: dict[str, Any] = {}

    def keep(name):
        return lambda _module, _given, gave: seen.__setitem__(name, gave)

    handles = [module.register_forward_hook(keep(f"block{n}")) for n, module in encoder.backbone.blocks()]
    for block, cosam in encoder.cosam.items():
        handles += [
            getattr(cosam, part).register_forward_hook(keep(f"cosam{block}_{name}"))
            for part, name in {"reduce": "reduced", "ncc": "cost_volume", "summary": "mask_logit"}.items()
        ]
        handles.append(cosam.attend.register_forward_pre_hook(lambda _, given, b=block: keep_gap(seen, b, given)))
        handles.append(cosam.attend.register_forward_hook(keep(f"cosam{block}_importance_logit")))
        handles.append(cosam.register_forward_hook(keep(f"cosam{block}")))
    with torch.inference_mode():
        descriptor, masks = encoder(torch.from_numpy(frames))
        found = {"descriptor": descriptor, "logits": model.classifier(descriptor)}
        for handle in handles:
            handle.remove()
        last = seen["cosam5"][0] if "5" in encoder.cosam else seen["block5"]
        found |= {"final": last, "final_channel_mean": last.mean(dim=(2, 3))}
        found |= {f"block{n}_channel_mean": seen[f"block{n}"].mean(dim=(2, 3)) for n in range(1, 6)}
        for block, mask in masks.items():
            part = f"cosam{block}"
            per_frame = torch.sigmoid(seen[f"{part}_importance_logit"])
            found |= {
                f"{part}_spatial_mask": mask.flatten(0, 1),
                f"{part}_channel_importance": per_frame.unflatten(0, (-1, length)).mean(dim=1),
                f"{part}_channel_importance_per_frame": per_frame,
                f"{part}_gap_input": seen[f"{part}_gap_input"],
                f"{part}_out_channel_mean": seen[part][0].mean(dim=(2, 3)),
                f"{part}_mask_logit": seen[f"{part}_mask_logit"].squeeze(1),
                f"{part}_reduced": seen[f"{part}_reduced"],
                f"{part}_cost_volume": seen[f"{part}_cost_volume"],
            }
        if encoder.architecture.aggregation == "ta":
            found["ta_frame_weights"] = encoder.aggregation.weights(last)
    return {name: value.numpy() for name, value in found.items()}


def keep_gap(seen, block, given):
    seen[f"cosam{block}_gap_input"] = given[0]
