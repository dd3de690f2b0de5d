"""Everything about encoders on a GPU that a machine without one can show: keys, sizes, padding, buffers, proofs, errors."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import onnxruntime
import pytest
from passerby.errors import FailedPreconditionError
from passerby_model.backends import (
    Options,
    onnxruntime_gpu,
    open_artefact,
    open_backend,
    open_encoder,
    opening_gpu,
    tensorrt,
)
from passerby_model.backends.base import GPU_RUNTIMES, BackendKind, BackendName
from passerby_model.backends.buckets import bucket_for, buckets, padded, pieces
from passerby_model.backends.choice import candidates, serving_order
from passerby_model.backends.engine_ports import EnginePort, check_ports, read_ports
from passerby_model.backends.gpu import Gpu, find_gpus, parse_gpus
from passerby_model.backends.onnxruntime_gpu import BoundSession, engine_folder, providers
from passerby_model.backends.opening_gpu import open_on_gpu
from passerby_model.backends.proofs import ProofKey, find_proof, proof_path, save_proof
from passerby_model.backends.standby import StandbyBackend
from passerby_model.backends.tensorrt import (
    EngineKey,
    TensorRtBackend,
    build_engine,
    engine_key,
    engine_path,
    load_engine,
    save_engine,
    timing_path,
)
from passerby_model.bundle import Bundle, Input, Parity, ParityRow, open_bundle

from tests.encoders import expected_descriptor, make_bundle, write_encoder

INPUT = Input(snippet_length=4, height=32, width=16)
H200 = Gpu(name="NVIDIA H200", compute_capability="9.0", driver="575.57.08")
T4 = Gpu(name="NVIDIA T4", compute_capability="7.5", driver="575.57.08")
FILES = {"encoder.onnx": "a" * 64}


def snippets_of(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(batch, 4, 32, 16, 3), dtype=np.uint8)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(make_bundle(tmp_path / "bundle", masks=(4,)))


@pytest.mark.parametrize("most", [1, 2, 3, 8, 12, 32])
def test_every_batch_has_one_of_a_few_sizes(most: int) -> None:
    chosen = {batch: bucket_for(batch, most) for batch in range(1, most + 1)}
    assert all(batch <= size <= most for batch, size in chosen.items())
    assert set(chosen.values()) == set(buckets(most))
    assert len(buckets(most)) <= most.bit_length() + 1
    for batch in (0, most + 1):
        with pytest.raises(ValueError, match=f"1 to {most}"):
            bucket_for(batch, most)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_padding_repeats_the_last_row(batch: int) -> None:
    rows = snippets_of(batch)
    wide = padded(rows, 4)
    assert wide.shape == (4, 4, 32, 16, 3)
    assert wide.dtype == np.uint8
    assert wide.flags.c_contiguous
    np.testing.assert_array_equal(wide[:batch], rows)
    np.testing.assert_array_equal(wide[batch:], np.repeat(rows[-1:], 4 - batch, axis=0))
    np.testing.assert_array_equal(np.concatenate(list(pieces(rows, 2))), rows)


def test_buffers_are_made_for_few_sizes_and_no_row_goes_astray(tmp_path: Path) -> None:
    """The very code of the GPU, on ONNX Runtime's own device of the CPU."""
    write_encoder(tmp_path / "encoder.onnx", masks=(4,))
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    bound = BoundSession(session, ["descriptor", "mask_cosam4"], device="cpu", max_batch=8)
    plain = open_encoder(tmp_path / "encoder.onnx", "onnx", "onnxruntime")
    for batch in (3, 1, 8, 5, 2, 7, 3, 20):  # 20 is more than a batch may have: it goes in pieces
        snippets = snippets_of(batch, seed=batch)
        descriptors, masks = bound.run(snippets)
        np.testing.assert_allclose(descriptors, [expected_descriptor(list(s)) for s in snippets], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(masks, plain.encode(snippets).masks[4], rtol=1e-5, atol=1e-6)
    assert bound.sizes == (1, 2, 4, 8)


def test_what_nvidia_smi_prints_is_read() -> None:
    assert parse_gpus("NVIDIA H200, 9.0, 575.57.08\n") == (H200,)
    assert len(parse_gpus("NVIDIA H200, 9.0, 575.57.08\nNVIDIA T4, 7.5, 575.57.08\n")) == 2
    for text in ("", "No devices were found", "NVIDIA H200, , 575.57.08", "a, b"):
        with pytest.raises(FailedPreconditionError, match="names no GPU") as raised:
            parse_gpus(text)
        assert raised.value.reason == "GPU_MISSING"


def test_a_driver_that_answers_with_an_error_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FailedPreconditionError, match="there is no nvidia-smi"):
        find_gpus()
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    tool.chmod(0o755)
    with pytest.raises(FailedPreconditionError, match="version mismatch"):
        find_gpus()
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 9.0, 575.57.08'\n")
    assert find_gpus() == (H200,)


CHANGED: dict[str, EngineKey] = {
    "content": engine_key({"encoder.onnx": "b" * 64}, INPUT, (H200,), "11.4.0"),
    "input": engine_key(FILES, Input(snippet_length=4, height=64, width=16), (H200,), "11.4.0"),
    "max-batch": engine_key(FILES, Input(snippet_length=2, height=32, width=16), (H200,), "11.4.0"),
    "gpu": engine_key(FILES, INPUT, (H200.model_copy(update={"name": "NVIDIA H100"}),), "11.4.0"),
    "capability": engine_key(FILES, INPUT, (H200.model_copy(update={"compute_capability": "10.0"}),), "11.4.0"),
    "driver": engine_key(FILES, INPUT, (H200.model_copy(update={"driver": "580.1"}),), "11.4.0"),
    "tensorrt": engine_key(FILES, INPUT, (H200,), "11.5.0"),
    "decoded": engine_key(FILES, INPUT, (H200,), "11.4.0", "w8"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_an_engine_holds_for_what_it_was_built_for(tmp_path: Path, what: str) -> None:
    key = engine_key(FILES, INPUT, (H200,), "11.4.0")
    assert key.max_batch == 8
    save_engine(tmp_path, key, b"plan")
    assert load_engine(tmp_path, key) == b"plan"
    other = CHANGED[what]
    assert load_engine(tmp_path, other) is None
    # Nor does it under another's name.
    for suffix in (".plan", ".json"):
        shutil.copy(engine_path(tmp_path, key).with_suffix(suffix), engine_path(tmp_path, other).with_suffix(suffix))
    assert load_engine(tmp_path, other) is None
    same_hardware = what in ("content", "input", "max-batch", "decoded")
    assert (timing_path(tmp_path, key) == timing_path(tmp_path, other)) == same_hardware


@pytest.mark.parametrize("damage", ["cut", "gone", "record"])
def test_a_damaged_engine_is_built_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    key = engine_key(FILES, INPUT, (H200,), "11.4.0")
    save_engine(tmp_path, key, b"plan" * 100)
    path = engine_path(tmp_path, key)
    if damage == "cut":
        path.write_bytes(b"plan")
    elif damage == "gone":
        path.unlink()
    else:
        path.with_suffix(".json").write_text("{}")
    assert load_engine(tmp_path, key) is None
    assert path.stem in caplog.text
    save_engine(tmp_path, key, b"new")
    assert load_engine(tmp_path, key) == b"new"


def key_for(number: int, gpu: Gpu = H200) -> EngineKey:
    return engine_key({"encoder.onnx": f"{number:064x}"}, INPUT, (gpu,), "11.4.0")


def used_at(cache: Path, key: EngineKey, second: int) -> None:
    os.utime(engine_path(cache, key), (second, second))


def test_the_latest_used_engines_are_kept(tmp_path: Path) -> None:
    keys = [key_for(number, T4 if number == 1 else H200) for number in range(tensorrt.KEPT)]
    for number, key in enumerate(keys):
        save_engine(tmp_path, key, b"plan")
        timing_path(tmp_path, key).write_bytes(b"timings")
        used_at(tmp_path, key, 1000 + number)
    assert load_engine(tmp_path, keys[0]) == b"plan"  # the oldest, which is used again
    new = key_for(100)
    save_engine(tmp_path, new, b"plan")
    assert [load_engine(tmp_path, key) is not None for key in keys] == [True, False, *[True] * (len(keys) - 2)]
    assert load_engine(tmp_path, new) == b"plan"
    # Of the other GPU, whose only engine is gone, nothing is left.
    found = {path.name for path in (tmp_path / "tensorrt").iterdir()}
    assert timing_path(tmp_path, new).name in found
    assert timing_path(tmp_path, keys[1]).name not in found
    assert len(found) == 2 * tensorrt.KEPT + 1


def test_engines_that_cannot_be_removed_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tensorrt, "KEPT", 1)
    save_engine(tmp_path, key_for(0), b"plan")
    used_at(tmp_path, key_for(0), 1000)
    engine_path(tmp_path, key_for(0)).with_suffix(".json").unlink()
    engine_path(tmp_path, key_for(0)).with_suffix(".json").mkdir()  # which unlink refuses, whoever runs it
    save_engine(tmp_path, key_for(1), b"plan")
    assert "cannot be removed" in caplog.text
    assert load_engine(tmp_path, key_for(1)) == b"plan"


def test_engines_of_onnx_runtimes_provider_are_kept_for_the_latest_used_encoders(tmp_path: Path) -> None:
    folders = [engine_folder(tmp_path, {"encoder.onnx": f"{number:064x}"}) for number in range(onnxruntime_gpu.KEPT)]
    for number, folder in enumerate(folders):
        (folder / "x.engine").write_bytes(b"engine")
        os.utime(folder, (1000 + number, 1000 + number))
    assert engine_folder(tmp_path, {"encoder.onnx": f"{0:064x}"}) == folders[0]
    added = engine_folder(tmp_path, {"encoder.onnx": f"{100:064x}"})
    assert [folder.is_dir() for folder in folders] == [True, False, *[True] * (len(folders) - 2)]
    assert (folders[0] / "x.engine").is_file()
    assert added.is_dir()


SNIPPETS = EnginePort("snippets", "uint8", (-1, 4, 32, 16, 3), (1, 8))
DESCRIPTOR = EnginePort("descriptor", "float32", (-1, 8))
MASK = EnginePort("mask_cosam4", "float32", (-1, 4, 4, 2))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([SNIPPETS], [DESCRIPTOR, MASK]),
        ([SNIPPETS], [MASK, DESCRIPTOR, EnginePort("cost_volume_cosam4", "float32", (-1, 4, 24, 4, 2))]),
        ([SNIPPETS], [DESCRIPTOR, replace(MASK, shape=(-1, 4, -1, -1))]),
        ([replace(SNIPPETS, batches=(1, 32))], [DESCRIPTOR, MASK]),
    ],
    ids=["as-wanted", "more-outputs", "open-sizes", "larger-batches"],
)
def test_an_engine_that_fits_the_manifest_is_taken(
    bundle: Bundle, inputs: list[EnginePort], outputs: list[EnginePort]
) -> None:
    check_ports(inputs, outputs, bundle.manifest, 8)


@pytest.mark.parametrize(
    ("inputs", "outputs", "problem"),
    [
        (
            [replace(SNIPPETS, name="images")],
            [DESCRIPTOR, MASK],
            "has no input snippets uint8 .*images uint8 .*too many",
        ),
        ([SNIPPETS, EnginePort("x", "int64", (1,))], [DESCRIPTOR, MASK], r"input x int64 \(1\) is one too many"),
        ([replace(SNIPPETS, type="float32")], [DESCRIPTOR, MASK], "snippets float32 .* should be snippets uint8"),
        ([replace(SNIPPETS, shape=(8, 4, 32, 16, 3))], [DESCRIPTOR, MASK], r"\(8, 4, .* should be .*\(batch, 4, 32"),
        ([replace(SNIPPETS, shape=(-1, 4, 3, 32, 16))], [DESCRIPTOR, MASK], r"\(batch, 4, 3, 32, 16\) should be"),
        ([replace(SNIPPETS, batches=(1, 4))], [DESCRIPTOR, MASK], "takes 1 to 4 snippets at a time instead of 1 to 8"),
        ([replace(SNIPPETS, batches=(2, 8))], [DESCRIPTOR, MASK], "takes 2 to 8 snippets"),
        ([SNIPPETS], [MASK], r"has no output descriptor float32 \(batch, 8\)"),
        ([SNIPPETS], [replace(DESCRIPTOR, type="float16"), MASK], "output descriptor float16 .* should be .*float32"),
        ([SNIPPETS], [replace(DESCRIPTOR, shape=(-1, 16)), MASK], r"\(batch, 16\) should be descriptor"),
        ([SNIPPETS], [DESCRIPTOR], "has no output mask_cosam4"),
        ([SNIPPETS], [DESCRIPTOR, replace(MASK, shape=(-1, 4, 8, 4))], r"\(batch, 4, 8, 4\) should be mask_cosam4"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_and_the_difference_named(
    bundle: Bundle, inputs: list[EnginePort], outputs: list[EnginePort], problem: str
) -> None:
    with pytest.raises(FailedPreconditionError, match=f"does not fit bundle.json: .*{problem}") as raised:
        check_ports(inputs, outputs, bundle.manifest, 8)
    assert raised.value.reason == "BACKEND_LOAD"


class EngineOfThree:
    """Answers as `tensorrt.ICudaEngine` does for an encoder with a mask."""

    num_io_tensors = 3
    _ports = (SNIPPETS, DESCRIPTOR, MASK)
    _kinds: ClassVar = {"uint8": "UINT8", "float32": "FLOAT"}

    def _port(self, name: str) -> EnginePort:
        return next(port for port in self._ports if port.name == name)

    def get_tensor_name(self, number: int) -> str:
        return self._ports[number].name

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=self._kinds[self._port(name).type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._port(name).shape

    def get_tensor_mode(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name="INPUT" if name == "snippets" else "OUTPUT")

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("snippets", 0)
        return [(rows, *SNIPPETS.shape[1:]) for rows in (1, 8, 8)]


def test_the_ports_of_an_engine_are_read() -> None:
    assert read_ports(EngineOfThree()) == ([SNIPPETS], [DESCRIPTOR, MASK])


def parity(runtime: str = "tensorrt", *, passed: bool = True) -> Parity:
    row = ParityRow(
        runtime=runtime,
        snippets=1,
        relative_l2=1e-6,
        cosine=1.0,
        max_relative_l2=1e-4,
        min_cosine=0.999,
        passed=passed,
    )
    return Parity(reference="by hand", rows=(row,), passed=passed)


def test_a_proof_holds_for_what_it_compared(tmp_path: Path) -> None:
    key = ProofKey(files=FILES, runtime="tensorrt", version="11.4.0", gpus=(H200,), engine="c" * 64)
    save_proof(tmp_path, key, parity())
    assert find_proof(tmp_path, key) is not None
    changes: list[dict[str, object]] = [
        {"files": {"encoder.onnx": "b" * 64}},
        {"version": "11.5.0"},
        {"gpus": (H200.model_copy(update={"driver": "580.1"}),)},
        {"engine": "d" * 64},
        {"cuda_graphs": True},
    ]
    for change in changes:
        other = key.model_copy(update=change)
        assert find_proof(tmp_path, other) is None
        shutil.copy(proof_path(tmp_path, key), proof_path(tmp_path, other))
        assert find_proof(tmp_path, other) is None
    proof_path(tmp_path, key).write_text("{")
    assert find_proof(tmp_path, key) is None


@pytest.mark.parametrize("report", [parity(passed=False), parity("openvino")], ids=["failed", "of-another-runtime"])
def test_what_proves_nothing_is_not_kept(tmp_path: Path, report: Parity) -> None:
    key = ProofKey(files=FILES, runtime="tensorrt", version="11.4.0", gpus=(H200,))
    with pytest.raises(ValueError, match="does not prove tensorrt"):
        save_proof(tmp_path, key, report)


def test_options_of_the_providers() -> None:
    ((name, cuda),) = providers("onnxruntime-cuda", INPUT, cuda_graphs=True, engines=Path("e"))
    assert (name, cuda["enable_cuda_graph"], cuda["use_tf32"]) == ("CUDAExecutionProvider", "1", "0")
    (name, tensorrt), (after, cuda) = providers("onnxruntime-tensorrt", INPUT, cuda_graphs=False, engines=Path("e"))
    assert (name, after) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert tensorrt["trt_profile_min_shapes"] == "snippets:1x4x32x16x3"
    assert tensorrt["trt_profile_max_shapes"] == "snippets:8x4x32x16x3"
    assert tensorrt["trt_engine_cache_path"] == "e"


@pytest.mark.parametrize(
    ("kind", "precision", "expected"),
    [
        ("auto", "auto", ["openvino", "onnxruntime"]),
        ("onnxruntime", "auto", ["onnxruntime"]),
        ("tensorrt", "auto", ["tensorrt", "onnxruntime-cuda", "openvino", "onnxruntime"]),
        ("onnxruntime-tensorrt", "auto", ["onnxruntime-tensorrt", "onnxruntime-cuda", "openvino", "onnxruntime"]),
        ("onnxruntime-cuda", "fp32", ["onnxruntime-cuda", "openvino", "onnxruntime"]),
    ],
)
def test_who_is_tried_after_whom(bundle: Bundle, kind: BackendKind, precision, expected: list[str]) -> None:
    assert [runtime for _, runtime in serving_order(bundle, kind, precision)] == expected
    assert [runtime for _, runtime in candidates(bundle, kind, precision)] == expected[: 2 if kind == "auto" else 1]


def test_a_gpu_gets_no_artefact_that_it_cannot_run(bundle: Bundle) -> None:
    first = bundle.manifest.artefacts[0]
    ir = {"precision": "int8", "format": "openvino", "files": ("encoder.int8.xml",)}
    artefacts = (
        *(first.model_copy(update={"precision": name}) for name in ("fp32", "w8")),
        first.model_copy(update=ir),
    )
    bundle.manifest = bundle.manifest.model_copy(update={"artefacts": artefacts})
    for runtime in GPU_RUNTIMES:
        assert [artefact.precision for artefact, _ in candidates(bundle, runtime, "auto")] == ["fp32", "w8"]
    with pytest.raises(
        FailedPreconditionError,
        match=r"has nothing for tensorrt: encoder\.int8\.xml \(int8\): a GPU runs ONNX artefacts",
    ):
        candidates(bundle, "tensorrt", "int8")


@pytest.mark.parametrize("runtime", GPU_RUNTIMES)
def test_without_a_gpu_the_error_says_what_is_missing(bundle: Bundle, tmp_path: Path, runtime: BackendName) -> None:
    artefact = bundle.manifest.artefacts[0]
    with pytest.raises(FailedPreconditionError) as raised:
        open_artefact(bundle, artefact, runtime)
    assert raised.value.reason == "CACHE_FOLDER"
    with pytest.raises(FailedPreconditionError) as raised:
        open_encoder(bundle.root / "encoder.onnx", "onnx", runtime)
    assert raised.value.reason == "BACKEND_FORMAT"
    if shutil.which("nvidia-smi"):
        pytest.skip("there is an NVIDIA driver here")
    with pytest.raises(FailedPreconditionError) as raised:
        open_artefact(bundle, artefact, runtime, Options(cache=tmp_path))
    assert raised.value.reason in ("GPU_MISSING", "BACKEND_MISSING")


def test_onnxruntime_without_its_gpu_build_is_named(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime's GPU build is installed")
    monkeypatch.setattr(opening_gpu, "find_gpus", lambda: (H200,))
    with pytest.raises(FailedPreconditionError, match=r"has no CUDAExecutionProvider: .*passerby\[server-gpu\]"):
        open_artefact(bundle, bundle.manifest.artefacts[0], "onnxruntime-cuda", Options(cache=tmp_path))


def test_what_is_not_proven_here_is_refused_and_the_command_named(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of a proof, with the encoder itself on the CPU: where it computes is no part of it."""
    plain = open_backend(bundle, "onnxruntime")
    monkeypatch.setattr(opening_gpu, "find_gpus", lambda: (H200,))
    monkeypatch.setattr(opening_gpu, "_onnxruntime", lambda *args, **kwargs: plain)
    artefact, options = bundle.manifest.artefacts[0], Options(cache=tmp_path)
    with pytest.raises(FailedPreconditionError, match=r"bundle verify .* --backend onnxruntime-cuda") as raised:
        open_artefact(bundle, artefact, "onnxruntime-cuda", options)
    assert raised.value.reason == "PROOF_MISSING"
    found = open_on_gpu(bundle, artefact, "onnxruntime-cuda", options, proven=False)
    save_proof(tmp_path, found.key, parity("onnxruntime-cuda"))
    assert open_artefact(bundle, artefact, "onnxruntime-cuda", options) is plain


def test_the_standby_makes_way_once_the_other_is_there(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now, better = open_backend(bundle, "onnxruntime"), open_backend(bundle, "openvino")
    standby = StandbyBackend(now, lambda: better)
    standby.join(10)
    assert (standby.name, standby.spec) == ("openvino", better.spec)
    assert "moves from onnxruntime to openvino" in caplog.text
    snippets = snippets_of(2)
    np.testing.assert_array_equal(standby.encode(snippets).descriptors, better.encode(snippets).descriptors)


@pytest.mark.parametrize("error", [FailedPreconditionError("no room on the GPU"), ValueError("no room on the GPU")])
def test_the_standby_stays_where_the_other_fails(
    bundle: Bundle, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fails():
        raise error

    standby = StandbyBackend(open_backend(bundle, "onnxruntime"), fails)
    standby.join(10)
    assert standby.name == "onnxruntime"
    assert standby.encode(snippets_of(1)).descriptors.shape == (1, 8)
    assert "stays on onnxruntime" in caplog.text
    assert "no room on the GPU" in caplog.text


def test_an_engine_of_another_encoder_is_not_run(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    active: list[bool] = []
    runner = SimpleNamespace(
        engine=EngineOfThree(), activate=lambda: active.append(True), deactivate=lambda: active.append(False)
    )
    monkeypatch.setattr("polygraphy.backend.trt.TrtRunner", lambda _engine: runner)
    key = engine_key(FILES, bundle.manifest.input, (H200,), "11.4.0")
    assert TensorRtBackend(b"plan", key, manifest=bundle.manifest).spec.descriptor_dim == 8
    other = bundle.manifest.model_copy(update={"descriptor_dim": 16})
    with pytest.raises(FailedPreconditionError, match=r"\(batch, 8\) should be descriptor float32 \(batch, 16\)"):
        TensorRtBackend(b"plan", key, manifest=other)
    assert active == [True, True, False]  # its memory is given back


@pytest.mark.parametrize("precision", ["fp32", "w8"])
def test_tensorrts_tools_take_what_they_are_given(bundle: Bundle, tmp_path: Path, precision: str) -> None:
    """Its own Python tool is pure Python, checks names of arguments, and asks for TensorRT as the last step."""
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed: the next test builds an engine")
    key = engine_key(FILES, bundle.manifest.input, (H200,), "11.4.0", precision)
    with pytest.raises(FailedPreconditionError, match=r"TensorRT cannot build .*encoder\.onnx: .*tensorrt") as raised:
        build_engine(bundle.root / "encoder.onnx", key, tmp_path)
    assert raised.value.reason == "BACKEND_LOAD"
    with pytest.raises(FailedPreconditionError, match="TensorRT cannot load its engine") as raised:
        TensorRtBackend(b"plan", key, manifest=bundle.manifest)
    assert raised.value.reason == "BACKEND_LOAD"
    assert load_engine(tmp_path, key) is None


def test_an_engine_is_built_and_run(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed (passerby[tensorrt])")
    try:
        find_gpus()
    except FailedPreconditionError as error:
        pytest.skip(error.message)
    options = Options(cache=tmp_path, build_engine=True)
    backend = open_on_gpu(bundle, bundle.manifest.artefacts[0], "tensorrt", options, proven=False).backend
    snippets = snippets_of(20)
    expected = [expected_descriptor(list(snippet)) for snippet in snippets]
    np.testing.assert_allclose(backend.encode(snippets).descriptors, expected, rtol=1e-4, atol=1e-4)
