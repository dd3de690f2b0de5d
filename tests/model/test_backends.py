"""Both backends on tiny real encoders: the same numbers as numpy's, the contract checked, errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from passerby.errors import FailedPreconditionError, InternalError, InvalidArgumentError, NotFoundError
from passerby_model.backends import Encoded, EncoderSpec, choice, open_backend, open_encoder
from passerby_model.backends.base import BackendName, check_encoded
from passerby_model.backends.choice import candidates
from passerby_model.backends.openvino_package import import_openvino
from passerby_model.bundle import Bundle, open_bundle

from tests.encoders import expected_descriptor, make_bundle, write_encoder

openvino = import_openvino()
BOTH: list[BackendName] = ["openvino", "onnxruntime"]


def random_snippets(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(batch, 4, 32, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_descriptor_is_numpys_at_every_batch_size(tmp_path: Path, kind: BackendName, batch: int) -> None:
    backend = open_backend(open_bundle(make_bundle(tmp_path)), kind)
    snippets = random_snippets(batch)
    encoded = backend.encode(snippets)
    expected = [expected_descriptor(list(snippet)) for snippet in snippets]
    np.testing.assert_allclose(encoded.descriptors, expected, rtol=1e-5, atol=1e-5)
    assert encoded.descriptors.dtype == np.float32
    assert encoded.masks == {}
    assert (backend.name, backend.precision) == (kind, "fp32")


@pytest.mark.parametrize("kind", BOTH)
def test_masks_are_keyed_by_block(tmp_path: Path, kind: BackendName) -> None:
    backend = open_backend(open_bundle(make_bundle(tmp_path, masks=(4, 5))), kind)
    snippets = random_snippets(3)
    masks = backend.encode(snippets).masks
    light = (snippets.astype(np.float64) / 255).reshape(3, 4, 4, 8, 2, 8, 3).mean(axis=(3, 5, 6))
    assert set(masks) == {4, 5}
    for block in (4, 5):
        np.testing.assert_allclose(masks[block], light**block, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", BOTH)
def test_many_threads_each_get_their_own_rows(tmp_path: Path, kind: BackendName) -> None:
    backend = open_backend(open_bundle(make_bundle(tmp_path)), kind, streams=2)
    batches = [random_snippets(1 + seed % 5, seed) for seed in range(60)]
    alone = [backend.encode(batch).descriptors for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = [encoded.descriptors for encoded in pool.map(backend.encode, batches)]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "snippets",
    [
        pytest.param(np.zeros((1, 4, 32, 16, 3), dtype=np.float32), id="floats"),
        pytest.param(np.zeros((4, 32, 16, 3), dtype=np.uint8), id="no-batch"),
        pytest.param(np.zeros((0, 4, 32, 16, 3), dtype=np.uint8), id="empty-batch"),
        pytest.param(np.zeros((1, 5, 32, 16, 3), dtype=np.uint8), id="five-frames"),
        pytest.param(np.zeros((1, 4, 16, 32, 3), dtype=np.uint8), id="turned"),
        pytest.param(np.zeros((1, 4, 32, 16, 4), dtype=np.uint8), id="alpha"),
    ],
)
def test_other_input_is_refused_before_the_runtime(tmp_path: Path, kind: BackendName, snippets: np.ndarray) -> None:
    backend = open_backend(open_bundle(make_bundle(tmp_path)), kind)
    with pytest.raises(InvalidArgumentError, match=r"uint8 \(B, 4, 32, 16, 3\)"):
        backend.encode(snippets)


def test_auto_takes_openvino(tmp_path: Path) -> None:
    assert open_backend(open_bundle(make_bundle(tmp_path))).name == "openvino"


def test_openvino_tells_nobody(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.onnx")
    script = (
        "import os, sys\n"
        "def refuse(): raise SystemExit('a process was forked')\n"
        "os.fork = refuse\n"
        "from passerby_model.backends import open_encoder\n"
        "assert open_encoder(sys.argv[1], 'onnx', 'openvino').name == 'openvino'\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "encoder.onnx"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_signals_are_survived_when_encoders_come_and_go(tmp_path: Path) -> None:
    """OpenVINO lends the thread a stack for signals: with a `Core` an encoder, SIGTERM met one that was freed."""
    write_encoder(tmp_path / "encoder.onnx")
    program = (
        "import faulthandler, signal, sys\n"
        "faulthandler.enable()\n"  # gives the thread such a stack, too
        "from passerby_model.backends import open_encoder\n"
        "kept = [open_encoder(sys.argv[1], 'onnx', 'openvino') for _ in range(3)]\n"
        "for _ in range(3):\n"
        "    del kept[0]\n"
        "    kept += [open_encoder(sys.argv[1], 'onnx', 'openvino')]\n"
        "    del kept[0]\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('asked to end'))\n"
        "signal.raise_signal(signal.SIGTERM)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "encoder.onnx")], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, "asked to end\n"), run.stderr


def test_openvino_ir_runs_on_openvino_only(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.onnx", masks=(4,))
    path = tmp_path / "encoder.xml"
    openvino.save_model(openvino.convert_model(tmp_path / "encoder.onnx"), path, compress_to_fp16=False)
    snippets = random_snippets(2)
    ir, graph = open_encoder(path, "openvino"), open_encoder(tmp_path / "encoder.onnx", "onnx", "onnxruntime")
    assert ir.spec == graph.spec == EncoderSpec(4, 32, 16, 8, (4,))
    np.testing.assert_allclose(ir.encode(snippets).descriptors, graph.encode(snippets).descriptors, atol=1e-5)
    with pytest.raises(FailedPreconditionError, match="use the OpenVINO backend") as raised:
        open_encoder(path, "openvino", "onnxruntime")
    assert raised.value.reason == "BACKEND_FORMAT"


@pytest.mark.parametrize("kind", BOTH)
def test_broken_file_is_a_plain_error(tmp_path: Path, kind: BackendName) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(FailedPreconditionError, match="cannot load") as raised:
        open_encoder(path, "onnx", kind)
    assert raised.value.reason == "BACKEND_LOAD"
    with pytest.raises(NotFoundError):
        open_encoder(tmp_path / "absent.onnx", "onnx", kind)


@pytest.mark.parametrize("kind", [*BOTH, "auto"])
@pytest.mark.parametrize(
    ("names", "shape", "problem"),
    [
        (("images", "descriptor"), ["B", 4, 32, 16, 3], "its one input must be `snippets`"),
        (("snippets", "features"), ["B", 4, 32, 16, 3], "it must have an output `descriptor`"),
        (("snippets", "descriptor"), [1, 4, 32, 16, 3], "its batch is fixed to 1"),
    ],
    ids=["input-name", "output-name", "fixed-batch"],
)
def test_other_graphs_are_no_encoders(tmp_path: Path, kind, names, shape, problem) -> None:
    source = helper.make_tensor_value_info(names[0], TensorProto.UINT8, shape)
    target = helper.make_tensor_value_info(names[1], TensorProto.FLOAT, [shape[0], None])
    nodes = [
        helper.make_node("Cast", [names[0]], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], [names[1]]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "other", [source], [target]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(FailedPreconditionError, match=problem) as raised:
        open_encoder(tmp_path / "other.onnx", "onnx", kind)
    assert raised.value.reason == "ENCODER_CONTRACT"


def test_manifest_and_graph_must_agree(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path, masks=(4,)))
    bundle.manifest = bundle.manifest.model_copy(update={"descriptor_dim": 2048})
    with pytest.raises(FailedPreconditionError, match=r"descriptor size is 8, bundle.json says 2048"):
        open_backend(bundle)


@pytest.mark.parametrize(
    ("encoded", "problem"),
    [
        (Encoded(np.zeros((2, 8), dtype=np.float32)), "for 3 snippets"),
        (Encoded(np.zeros((3, 9), dtype=np.float32)), "9 values"),
        (Encoded(np.full((3, 8), np.nan, dtype=np.float32)), "not finite"),
        (Encoded(np.zeros((3, 8), dtype=np.float32), {4: np.zeros((2, 4, 4, 2), dtype=np.float32)}), "block 4"),
    ],
    ids=["rows", "size", "nan", "mask-rows"],
)
def test_a_batch_that_comes_back_otherwise_is_an_internal_error(encoded: Encoded, problem: str) -> None:
    with pytest.raises(InternalError, match=problem):
        check_encoded(encoded, 3, EncoderSpec(4, 32, 16, 8, ()))


def with_artefacts(bundle: Bundle, *precisions: str, **changes: Any) -> Bundle:
    """The bundle with its one file listed under several precisions."""
    first = bundle.manifest.artefacts[0]
    artefacts = tuple(first.model_copy(update={"precision": precision, **changes}) for precision in precisions)
    bundle.manifest = bundle.manifest.model_copy(update={"artefacts": artefacts})
    return bundle


@pytest.mark.parametrize(
    ("precisions", "bf16", "auto"),
    [
        (("fp32", "bf16", "int8"), True, "bf16"),
        (("fp32", "bf16", "int8"), False, "fp32"),
        (("fp32", "w8", "int8"), True, "fp32"),
        (("int8",), True, "int8"),
        (("bf16",), True, "bf16"),
    ],
)
def test_auto_is_the_fastest_that_ranks_like_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precisions: tuple[str, ...], bf16: bool, auto: str
) -> None:
    monkeypatch.setattr(choice, "processor_has_bf16", lambda: bf16)
    bundle = with_artefacts(open_bundle(make_bundle(tmp_path)), *precisions)
    artefact, runtime = candidates(bundle, "auto", "auto")[0]
    assert (artefact.precision, runtime) == (auto, "openvino")


def test_the_precision_asked_for_runs_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = with_artefacts(open_bundle(make_bundle(tmp_path)), "fp32", "bf16")
    assert open_backend(bundle, "onnxruntime", precision="fp32").precision == "fp32"
    with pytest.raises(FailedPreconditionError, match=r"no int8 artefact, it has fp32, bf16: .*fp32,bf16,int8") as none:
        open_backend(bundle, precision="int8")
    assert none.value.reason == "PRECISION_MISSING"
    monkeypatch.setattr(choice, "processor_has_bf16", lambda: False)
    with pytest.raises(FailedPreconditionError, match="does not compute in bf16") as slow:
        open_backend(bundle, precision="bf16")
    assert slow.value.reason == "PRECISION_UNSUPPORTED"


def test_a_runtime_that_the_artefact_is_not_for_is_refused(tmp_path: Path) -> None:
    bundle = with_artefacts(open_bundle(make_bundle(tmp_path)), "fp32", runtimes=("onnxruntime",))
    assert open_backend(bundle).name == "onnxruntime"
    with pytest.raises(FailedPreconditionError, match=r"nothing for openvino: encoder\.onnx is for onnxruntime"):
        open_backend(bundle, "openvino")


def test_unproven_is_refused_naming_the_row_or_said_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = open_bundle(make_bundle(tmp_path, parity_passed=False), allow_unverified=True)
    assert open_backend(bundle).name == "openvino"
    assert "UNVERIFIED, descriptors may be wrong: encoder.onnx (fp32) failed its parity check: openvino" in caplog.text
    bundle.allow_unverified = False
    with pytest.raises(FailedPreconditionError, match="failed its parity check: openvino, batch 1 of frames") as raised:
        open_backend(bundle)
    assert raised.value.reason == "BUNDLE_UNVERIFIED"
