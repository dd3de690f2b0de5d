"""The exported encoder: what is in the graph, what it computes, and that a wrong one gets no bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from passerby.errors import FailedPreconditionError, InvalidArgumentError
from passerby_export import artefacts
from passerby_export import export as stage
from passerby_export.artefacts import ONNX_RUNTIMES
from passerby_export.deployed import UnrolledLstm
from passerby_export.export import Options
from passerby_export.onnx_export import check_graph, ncc_nodes
from passerby_export.parity import Proof, make_trials, prove
from passerby_export.samples import sample_snippets
from passerby_export.storage import quantise, store_weights
from passerby_model import checkpoint as checkpoints
from passerby_model.backends import BackendName, open_backend
from passerby_model.bundle import Artefact, open_bundle
from passerby_model.encoder import Classifier, TrackletEncoder

from tests.export.networks import SMALL as ARCHITECTURE
from tests.export.networks import SMALL_INPUT as INPUT
from tests.export.networks import Network, random_encoder


@pytest.fixture
def encoder(network: Network) -> TrackletEncoder:
    return network.encoder


@pytest.fixture
def graph(network: Network) -> onnx.ModelProto:
    return network.graph


@pytest.fixture
def exporting(monkeypatch: pytest.MonkeyPatch, graph: onnx.ModelProto) -> None:
    """The graph of the fixture instead of tracing the same encoder again, which takes most of an export."""
    monkeypatch.setattr(stage, "to_onnx", lambda _encoder: graph)


def test_ports_have_the_contracts_names_and_an_open_batch(graph: onnx.ModelProto) -> None:
    ports = {
        port.name: (
            port.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in port.type.tensor_type.shape.dim],
        )
        for port in (*graph.graph.input, *graph.graph.output)
    }
    assert ports == {
        "snippets": (TensorProto.UINT8, ["batch", 3, 64, 32, 3]),
        "descriptor": (TensorProto.FLOAT, ["batch", 512]),
        "mask_cosam4": (TensorProto.FLOAT, ["batch", 3, 4, 2]),
        "mask_cosam5": (TensorProto.FLOAT, ["batch", 3, 4, 2]),
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16", "w8"])
def test_correlation_is_there_by_name_and_in_single_precision(graph: onnx.ModelProto, precision: str) -> None:
    stored = store_weights(graph, precision)  # type: ignore[arg-type]
    check_graph(stored, blocks=(4, 5))
    inferred = onnx.shape_inference.infer_shapes(stored, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    for block in (4, 5):
        nodes = ncc_nodes(stored, block)
        assert {"MatMul", "Sqrt", "Clip", "Pow"} <= {node.op_type for node in nodes}
        assert all(node.name.startswith(f"encoder/cosam.{block}/ncc/") for node in nodes)
        assert {types[node.output[0]] for node in nodes} == {TensorProto.FLOAT}


def test_neither_classifier_nor_batch_norm_nor_paths_of_this_machine(graph: onnx.ModelProto) -> None:
    assert not any("classifier" in tensor.name for tensor in graph.graph.initializer)
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}
    content = graph.SerializeToString()
    for trace in ("site-packages", "encoder.py", "stack_trace", str(Path(__file__).parents[2])):
        assert trace.encode() not in content


def test_graph_without_its_correlation_is_refused(graph: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    for node in ncc_nodes(broken, 5):
        node.name = node.op_type
    with pytest.raises(FailedPreconditionError, match="no correlation of COSAM_5"):
        check_graph(broken, blocks=(4, 5))


def test_w8_is_a_quarter_and_keeps_cosam(graph: onnx.ModelProto) -> None:
    full, half, quarter = (store_weights(graph, p).ByteSize() for p in ("fp32", "bf16", "w8"))
    assert half < 0.56 * full
    assert quarter < 0.36 * full
    names = {tensor.name: tensor.data_type for tensor in store_weights(graph, "w8").graph.initializer}
    kept = {name: kind for name, kind in names.items() if ".cosam." in name and name.endswith("weight")}
    assert kept
    assert set(kept.values()) == {TensorProto.FLOAT}


@pytest.mark.parametrize("axis", [0, 1])
def test_quantised_weights_are_within_half_a_step(axis: int) -> None:
    weight = np.random.default_rng(0).normal(size=(5, 7, 3, 3)).astype(np.float32)
    weight[2, :] = 0
    codes, scales = quantise(weight, axis)
    assert codes.dtype == np.int8
    assert scales.shape == tuple(size if i == axis else 1 for i, size in enumerate(weight.shape))
    assert (np.abs(codes * scales - weight) <= scales / 2 * (1 + 1e-5)).all()
    assert np.abs(codes).max() == 127


@pytest.mark.usefixtures("exporting")
def test_checkpoint_becomes_a_bundle(tmp_path: Path, encoder: TrackletEncoder) -> None:
    metadata = {"config": {"data": ["/home/me/street"]}, "identities": ["a", "b"], "best": {"mAP": 12.5}}
    saved = checkpoints.Checkpoint(ARCHITECTURE, 7, Classifier(encoder, 7).state_dict(), metadata)
    checkpoints.save(tmp_path / "best.pt", saved)
    manifest = stage.export(tmp_path / "best.pt", tmp_path / "bundle", Options(("w8",), name="mine"))
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest == manifest
    assert (manifest.name, manifest.architecture, manifest.precision) == ("mine", ARCHITECTURE.name, "w8")
    assert (manifest.input, manifest.descriptor_dim, manifest.metric) == (INPUT, 512, "squared_euclidean")
    assert [(mask.block, mask.height, mask.width) for mask in manifest.masks] == [(4, 4, 2), (5, 4, 2)]
    assert manifest.training["weights"] == saved.fingerprint
    assert manifest.training["config"] == {"data": ["street"]}
    assert manifest.training["identities"] == 2
    assert {"torch", "onnx", "openvino", "onnxruntime"} <= set(manifest.tools)
    assert manifest.parity is not None
    every, few = range(1, 11), (1, 2, 3, 10)  # 32 frames are ten snippets of three
    kinds = {"drawn": every, "noise": few, "smooth": few}
    assert {(row.runtime, row.snippets, row.frames) for row in manifest.parity.rows} == {
        (runtime, batch, kind) for runtime in ONNX_RUNTIMES for kind, batches in kinds.items() for batch in batches
    }
    black = open_backend(bundle, "onnxruntime").encode(np.zeros((2, 3, 64, 32, 3), np.uint8))
    assert np.isfinite(black.descriptors).all()
    assert all(((mask >= 0) & (mask <= 1)).all() for mask in black.masks.values())


@pytest.mark.usefixtures("exporting")
def test_another_networks_graph_gets_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefacts, "ONNX_RUNTIMES", ("onnxruntime",))
    other = random_encoder(ARCHITECTURE)
    with torch.no_grad():
        next(other.get_submodule("cosam.5.summary").parameters()).add_(0.5)
    with pytest.raises(FailedPreconditionError, match="masks") as caught:
        stage.export_encoder(other, tmp_path / "bundle")
    assert caught.value.reason == "PARITY_FAILED"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_changed_weight_fails_the_gate(
    tmp_path: Path, encoder: TrackletEncoder, graph: onnx.ModelProto, runtime: BackendName
) -> None:
    tampered = onnx.ModelProto()
    tampered.CopyFrom(graph)
    tensor = next(t for t in tampered.graph.initializer if "layer4" in t.name and t.name.endswith("conv2.weight"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.02), tensor.name))
    path = tmp_path / "encoder.onnx"
    onnx.save(tampered, path)
    artefact = Artefact(precision="fp32", format="onnx", files=(path.name,), runtimes=(runtime,))
    trials = make_trials(stage.torch_reference(encoder), {"noise": sample_snippets(2, INPUT, "noise")})
    report = prove(tmp_path, artefact, Proof("PyTorch", INPUT, trials)).parity
    assert report is not None
    assert not report.passed
    assert len(report.failures()) == 10
    assert report.failures()[0].startswith(f"{runtime}, batch 1 of noise: relative L2")


def test_unrolled_lstm_is_torchs() -> None:
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(6, 4, batch_first=True)
    sequence = torch.randn(3, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(UnrolledLstm(lstm, 5)(sequence)[0], lstm(sequence)[0])


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InvalidArgumentError, match=r"best\.pt"):
        stage.export(tmp_path / "best.pt", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_sample_snippets_are_the_same_every_time() -> None:
    for kind in ("noise", "smooth"):
        first = sample_snippets(3, INPUT, kind)
        assert first.shape == (3, 3, 64, 32, 3)
        assert first.dtype == np.uint8
        np.testing.assert_array_equal(first, sample_snippets(3, INPUT, kind))
        assert len({snippet.tobytes() for snippet in first}) == 3
    assert sample_snippets(2, INPUT, "smooth")[0].max() < 16
