"""`passerby evaluate` on a GPU, as far as a machine without one can show: what is opened, what is made first, what is
missing. The encoder itself computes on the CPU here, under the name of the GPU's runtime."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from passerby.errors import FailedPreconditionError
from passerby_export import verify_gpu
from passerby_export.evaluate_models import open_model
from passerby_model.backends import open_backend, opening_gpu
from passerby_model.backends.gpu import Gpu
from passerby_model.bundle import open_bundle

from tests.commands import Run
from tests.encoders import make_bundle

H200 = Gpu(name="NVIDIA H200", compute_capability="9.0", driver="575.57.08")

pytestmark = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is an NVIDIA driver here")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", masks=(4,))


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda"])
def test_without_a_gpu_the_error_says_what_is_missing(run: Run, bundle: Path, tmp_path: Path, backend: str) -> None:
    flags = ["--backend", backend, "--machine-cache", tmp_path / "cache"]
    done = run("evaluate", bundle, "--data", tmp_path, *flags)
    assert done.code == 1
    assert "is not installed" in done.err or "no NVIDIA GPU can be used here" in done.err
    assert len(done.err.strip().splitlines()) == 1
    (tmp_path / "file").write_text("no folder")
    done = run("evaluate", bundle, "--data", tmp_path, "--backend", backend, "--machine-cache", tmp_path / "file")
    assert (done.code, "name another folder with --machine-cache" in done.err) == (1, True)


def test_what_has_no_proof_yet_is_compared_first_and_once(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu = open_backend(open_bundle(bundle), "onnxruntime")
    monkeypatch.setattr(on_cpu, "name", "onnxruntime-cuda")
    monkeypatch.setattr(opening_gpu, "find_gpus", lambda: (H200,))
    monkeypatch.setattr(opening_gpu, "_onnxruntime", lambda *args, **kwargs: on_cpu)
    snippets = np.zeros((2, 4, 32, 16, 3), np.uint8)
    with open_model(str(bundle), backend="onnxruntime-cuda", machine_cache=tmp_path) as model:
        assert model.description.runtime == "onnxruntime-cuda, fp32"
        assert model.encode(snippets)[0].shape == (2, 8)
    (proof,) = (tmp_path / "proofs").iterdir()
    assert proof.name.startswith("onnxruntime-cuda-")
    monkeypatch.setattr(verify_gpu, "verify_on_gpu", lambda *_, **__: pytest.fail("compared again"))
    with open_model(str(bundle), backend="onnxruntime-cuda", machine_cache=tmp_path):
        pass


def test_what_computes_otherwise_is_not_evaluated(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_backend(open_bundle(make_bundle(tmp_path / "other", masks=(4,), seed=1)), "onnxruntime")
    monkeypatch.setattr(other, "name", "onnxruntime-cuda")
    monkeypatch.setattr(opening_gpu, "find_gpus", lambda: (H200,))
    monkeypatch.setattr(opening_gpu, "_onnxruntime", lambda *args, **kwargs: other)
    with pytest.raises(FailedPreconditionError, match="does not compute on onnxruntime-cuda what it should"):
        open_model(str(bundle), backend="onnxruntime-cuda", machine_cache=tmp_path)
    assert not (tmp_path / "proofs").exists()


def test_an_engine_that_is_missing_is_built(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed")
    monkeypatch.setattr(opening_gpu, "find_gpus", lambda: (H200,))
    monkeypatch.setattr(opening_gpu, "_installed", lambda runtime: "11.4.0")
    # It gets as far as TensorRT itself, which is not there.
    with pytest.raises(FailedPreconditionError, match=r"TensorRT cannot build .*encoder\.onnx: .*tensorrt"):
        open_model(str(bundle), backend="tensorrt", machine_cache=tmp_path)
