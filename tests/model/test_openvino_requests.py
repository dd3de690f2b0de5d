"""Calls side by side on OpenVINO: they compute what a lone one does, or are not made side by side."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from passerby_model.backends import Options, default_streams, open_artefact, open_backend
from passerby_model.backends import openvino as openvino_backend
from passerby_model.backends.openvino_package import openvino_core
from passerby_model.backends.openvino_requests import Requests, streams_agree
from passerby_model.bundle import open_bundle

from tests.encoders import make_bundle

SAMPLE = Path(__file__).resolve().parents[2] / "bundles" / "street-ward-cosam45"


def noise(batch: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, *shape, 3), dtype=np.uint8)


def test_streams_of_8_bit_weights_compute_what_another_runtime_does() -> None:
    # With weights stored as int8, several streams of OpenVINO 2026.4.1 alone are garbage.
    bundle = open_bundle(SAMPLE)
    backend = open_backend(bundle, "openvino", streams=2)
    batches = [noise(batch, 4, 128, 64) for batch in (1, 2, 3, 4, 1, 2)]
    with ThreadPoolExecutor(3) as pool:
        together = [encoded.descriptors for encoded in pool.map(backend.encode, batches)]
    other = open_backend(bundle, "onnxruntime")
    for batch, found in zip(batches, together, strict=True):
        np.testing.assert_allclose(found, other.encode(batch).descriptors, atol=1e-3)


def compiled(path: Path, streams: int) -> Any:
    return openvino_core().compile_model(path, "CPU", {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": 2})


def test_streams_that_compute_something_else_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    this = make_bundle(tmp_path / "this") / "encoder.onnx"
    other = make_bundle(tmp_path / "other", seed=1) / "encoder.onnx"
    probe = noise(1, 4, 32, 16)
    assert streams_agree(compiled(this, 1), compiled(this, 2), 2, probe)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert not streams_agree(compiled(this, 1), compiled(other, 2), 2, probe)
    assert "computes something else in 2 streams than in one" in caplog.text


def test_where_streams_disagree_calls_are_made_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, ...]] = []

    class Noted(Requests):
        def __init__(self, *arguments: Any) -> None:
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(openvino_backend, "streams_agree", lambda *_: False)
    monkeypatch.setattr(openvino_backend, "Requests", Noted)
    backend = open_backend(open_bundle(make_bundle(tmp_path)), "openvino", streams=2)
    assert made[0][1:] == (None, 2)
    assert np.isfinite(backend.encode(noise(2, 4, 32, 16)).descriptors).all()


def test_a_lone_call_has_all_threads_and_others_share_them(tmp_path: Path) -> None:
    path = make_bundle(tmp_path) / "encoder.onnx"
    requests = Requests(compiled(path, 1), compiled(path, 2), 2)

    def streams(request: Any) -> int:
        return int(request.get_compiled_model().get_property("NUM_STREAMS"))

    with requests.taken() as first:
        assert streams(first) == 1
        with requests.taken() as second, requests.taken() as third:
            assert (streams(second), streams(third)) == (2, 2)
            waiting = threading.Thread(target=lambda: requests.taken().__enter__(), daemon=True)
            waiting.start()
            waiting.join(0.1)
            assert waiting.is_alive()
        waiting.join(10)
        assert not waiting.is_alive()
    with pytest.raises(ZeroDivisionError), requests.taken():
        raise ZeroDivisionError


def test_two_streams_are_the_default_of_openvino_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [default_streams("openvino", threads) for threads in (1, 2, 16)] == [1, 2, 2]
    assert {default_streams(runtime, 16) for runtime in ("onnxruntime", "tensorrt", "onnxruntime-cuda")} == {1}


def test_what_is_compiled_for_streams_is_kept_too(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "bundle"))
    (artefact,) = bundle.manifest.artefacts
    snippets = noise(2, 4, 32, 16)
    answers = [
        open_artefact(bundle, artefact, "openvino", Options(2, 2, cache=tmp_path / "cache"))
        .encode(snippets)
        .descriptors
        for _ in range(2)
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    assert len([path for path in (tmp_path / "cache" / "openvino").iterdir() if path.is_dir()]) == 2
