"""A server that was told to use a GPU: it serves on what there is, prepares what is missing, and says both."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import pytest
from passerby.errors import FailedPreconditionError
from passerby.v1 import model_service_pb2 as model_v1
from passerby_model.backends import BackendName, Options, opening_gpu
from passerby_model.backends.gpu import Gpu
from passerby_model.bundle import open_bundle
from passerby_server.preparing import Preparation

from tests.server.live import running
from tests.server.pictures import crops, sequence

H200 = Gpu(name="NVIDIA H200", compute_capability="9.0", driver="575.57.08")

pytestmark = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is an NVIDIA driver here")


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-cuda"])
def test_without_a_gpu_the_next_backend_serves(
    bundle: Path, tmp_path: Path, backend: BackendName, caplog: pytest.LogCaptureFixture
) -> None:
    with running(bundle, tmp_path / "data", backend=backend, cache={"folder": tmp_path / "cache"}) as server:
        info = server.model.GetModelInfo(model_v1.GetModelInfoRequest(), timeout=20).model_info
        assert info.backend == model_v1.BACKEND_OPENVINO
        assert server.ingest(server.new_gallery(), sequence(crops(5))).name
    assert "falling back to encoder.onnx on openvino" in caplog.text


def test_an_engine_that_is_missing_is_prepared_while_the_next_backend_serves(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(opening_gpu, "find_gpus", lambda: (H200,))
    monkeypatch.setattr(opening_gpu, "_installed", lambda runtime: "11.4.0")
    with running(bundle, tmp_path / "data", backend="tensorrt", cache={"folder": tmp_path / "cache"}) as server:
        assert server.ingest(server.new_gallery(), sequence(crops(5))).name
        # The process that prepares it is a real one, and finds neither TensorRT nor a GPU.
        end = time.monotonic() + 60
        while "the encoder stays on openvino" not in caplog.text:
            assert time.monotonic() < end, caplog.text
            time.sleep(0.1)
        assert server.ingest(server.new_gallery(), sequence(crops(5))).name
    assert "TensorRT 11.4.0 has no engine of encoder.onnx for NVIDIA H200 and driver 575.57.08 yet" in caplog.text
    assert "tensorrt was not prepared: passerby: " in caplog.text


def test_a_preparation_that_was_stopped_does_not_start(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    preparation = Preparation(opened, opened.manifest.artefacts[0], "tensorrt", Options(cache=tmp_path))
    preparation.stop()
    with pytest.raises(FailedPreconditionError, match="shutting down"):
        preparation.run()
