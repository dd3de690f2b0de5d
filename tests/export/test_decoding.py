"""w8 for TensorRT: what is decoded before an engine is built computes what the artefact computes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from passerby.errors import FailedPreconditionError
from passerby_export.artefacts import serialised
from passerby_export.inspection import not_in_tensorrt
from passerby_export.samples import sample_snippets
from passerby_export.storage import store_weights
from passerby_model.backends.decoding import decode_weights

from tests.export.networks import SMALL_INPUT, Network


@pytest.fixture
def stored(network: Network, tmp_path: Path) -> Path:
    path = tmp_path / "encoder.w8.onnx"
    path.write_bytes(serialised(store_weights(network.graph, "w8")))
    return path


def test_tensorrt_has_every_operator_once_weights_are_decoded(stored: Path) -> None:
    assert not_in_tensorrt(onnx.load(stored)) == ["Cast of INT8"]
    decoded = onnx.load_from_string(decode_weights(stored))
    onnx.checker.check_model(decoded)
    assert not_in_tensorrt(decoded) == []


def test_decoded_weights_are_codes_times_scales(stored: Path) -> None:
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(stored).graph.initializer}
    after = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(decode_weights(stored)).graph.initializer
    }
    names = [name.removesuffix("/int8") for name in before if name.endswith("/int8")]
    assert len(names) > 10
    for name in names:
        expected = before[f"{name}/int8"].astype(np.float32) * before[f"{name}/scale"]
        np.testing.assert_array_equal(after[name], expected)
    assert not [name for name in after if name.endswith(("/int8", "/scale"))]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_decoded_graph_computes_what_the_stored_one_does(stored: Path, batch: int) -> None:
    snippets = sample_snippets(batch, SMALL_INPUT, "smooth")
    found = [
        onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"snippets": snippets})
        for graph in (stored, decode_weights(stored))
    ]
    assert len(found[0]) == 3  # a descriptor, two masks
    for plain, decoded in zip(*found, strict=True):
        np.testing.assert_array_equal(decoded, plain)


def test_what_cannot_be_decoded_says_why(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored.write_bytes(stored.read_bytes()[:-100])
    with pytest.raises(FailedPreconditionError, match=r"encoder\.w8\.onnx cannot be read") as raised:
        decode_weights(stored)
    assert raised.value.reason == "BACKEND_LOAD"
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(FailedPreconditionError, match=r"pip install 'passerby\[tensorrt\]'") as raised:
        decode_weights(stored)
    assert raised.value.reason == "BACKEND_MISSING"
