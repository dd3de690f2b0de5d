"""The graph of float16: what is computed in it and what is not, and what its rounding costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference
from passerby.errors import FailedPreconditionError
from passerby_export import export as stage
from passerby_export.export import Options
from passerby_export.half import open_rounded, rounded, to_half
from passerby_export.inspection import inspect_encoder, not_in_tensorrt
from passerby_export.onnx_export import add_cost_volumes, check_graph
from passerby_export.parity import LIMITS, ROUNDED, Trial, compare
from passerby_export.samples import sample_snippets
from passerby_model.backends.base import NCC_SCOPE
from passerby_model.bundle import Bundle

from tests.export.networks import SMALL, SMALL_INPUT, Network

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.fixture(scope="module")
def half(network: Network) -> onnx.ModelProto:
    """The small network in half precision, which tests must not change."""
    return to_half(network.graph)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray], *outputs: str) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(list(outputs) or None, feed)
    return found


def shown(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """A copy of `model`, in float32, that also gives what is called so."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in names)
    return copy


def test_every_layer_of_the_backbone_is_half_and_what_is_delicate_is_not(half: onnx.ModelProto) -> None:
    check_graph(half, blocks=(4, 5))
    types = types_of(half)
    computed = {node.name: types[node.output[0]] for node in half.graph.node if node.op_type != "Cast"}
    layers = [
        node for node in half.graph.node if node.op_type in ("Conv", "Relu", "MaxPool") and "backbone" in node.name
    ]
    assert len(layers) > 30
    assert {kind for node in layers for kind in (types[name] for name in (*node.input, *node.output))} == {HALF}
    assert {computed[f"encoder/cosam.{block}/reduce/1/Conv"] for block in (4, 5)} == {HALF}
    for scope in (NCC_SCOPE, "/summary/", "/aggregation/"):
        kinds = {kind for name, kind in computed.items() if scope in f"/{name}"}
        assert kinds == {FLOAT}, scope
    assert {kind for name, kind in computed.items() if "Reduce" in name} == {FLOAT}
    assert {name: computed[name] for name in ("Transpose", "Mul", "Add")} == dict.fromkeys(
        ("Transpose", "Mul", "Add"), 1
    )


def test_inputs_and_outputs_stay_as_they_are(network: Network, half: onnx.ModelProto) -> None:
    ports = [
        [port.SerializeToString() for port in (*model.graph.input, *model.graph.output)]
        for model in (network.graph, half)
    ]
    assert ports[0] == ports[1]
    assert len(ports[0]) == 4


def test_sizes_of_the_correlation_are_told_by_the_batch(
    network: Network, half: onnx.ModelProto, tmp_path: Path
) -> None:
    """As `passerby export inspect` shows it for float32."""
    reports = []
    for number, model in enumerate((network.graph, half)):
        onnx.save(model, tmp_path / f"{number}.onnx")
        reports.append(inspect_encoder(tmp_path / f"{number}.onnx"))
    assert reports[1].correlation == reports[0].correlation
    assert any("batch" in str(port.shape[0]) for _, port in reports[1].correlation)
    assert reports[1].weights["float16"] > 10 * reports[1].weights["float32"]


def test_weights_take_half_the_room(network: Network, half: onnx.ModelProto) -> None:
    assert half.ByteSize() < 0.56 * network.graph.ByteSize()


def test_tensorrt_has_every_operator(network: Network, half: onnx.ModelProto) -> None:
    assert not_in_tensorrt(half) == []
    volumes = to_half(add_cost_volumes(network.graph, SMALL))
    assert not_in_tensorrt(volumes) == []
    check_graph(volumes, blocks=(4, 5))


def layer(*weights: float) -> onnx.ModelProto:
    """float32 (B, C, 1, 1) -> the weighted sum of its C channels, float32 (B, 1, 1, 1), after a ReLU."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["sum"], name="conv"),
        helper.make_node("Relu", ["sum"], ["positive"], name="relu"),
        helper.make_node("ReduceMean", ["positive"], ["y"], name="mean", keepdims=1),
    ]
    ports = [
        helper.make_tensor_value_info(name, FLOAT, ["b", channels, 1, 1])
        for name, channels in (("x", len(weights)), ("y", 1))
    ]
    values = numpy_helper.from_array(np.array(weights, np.float32).reshape(1, -1, 1, 1), "w")
    graph = helper.make_graph(nodes, "layer", [ports[0]], [ports[1]], [values])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_rounding_by_hand() -> None:
    """Between 2048 and 4096 float16 has even numbers only. Sums stay exact within an operator."""
    model = layer(2048, 1)
    half = to_half(model)
    assert [node.op_type for node in half.graph.node] == ["Cast", "Conv", "Relu", "Cast", "ReduceMean"]
    for x, exact, expected in (([1, 1], 2049, 2048), ([1, 3], 2051, 2052), ([1, 2], 2050, 2050)):
        feed = {"x": np.array(x, np.float32).reshape(1, 2, 1, 1)}
        assert run(model, feed)[0].item() == exact
        assert run(rounded(half), feed)[0].item() == expected


def test_what_is_half_is_rounded_and_nothing_else(half: onnx.ModelProto) -> None:
    emulated = rounded(half)
    assert HALF not in {tensor.data_type for tensor in emulated.graph.initializer}
    kinds = types_of(half)
    made = {node.name: node.output[0] for node in half.graph.node}
    names = [
        made[f"encoder/{name}"] for name in ("backbone.layer1/1/act2/Relu", "cosam.4/reduce/2/Relu", "cosam.5/Add")
    ]
    assert {kinds[name] for name in names} == {HALF}
    exact = [made[f"encoder/cosam.4/{name}"] for name in ("ncc/MatMul", "summary/2/Relu", "Sigmoid")]
    assert {kinds[name] for name in exact} == {FLOAT}
    feed = {"snippets": sample_snippets(2, SMALL_INPUT, "smooth")}
    found = run(shown(emulated, *names, *exact), feed, *names, *exact)
    for name, values in zip((*names, *exact), found, strict=True):
        assert values.dtype == np.float32
        same = np.array_equal(values, values.astype(np.float16).astype(np.float32))
        assert same == (name in names), name


def test_rounding_costs_little_but_not_nothing(half: onnx.ModelProto, network: Network) -> None:
    feed = {"snippets": sample_snippets(3, SMALL_INPUT, "smooth")}
    exact, plain, emulated = (run(model, feed)[0] for model in (network.graph, half, rounded(half)))
    lengths = np.linalg.norm(exact, axis=1)
    for found in (plain, emulated):
        error = np.linalg.norm(found - exact, axis=1) / lengths
        assert (error > 1e-5).all()
        assert (error < 1e-3).all()
    assert (np.linalg.norm(emulated - plain, axis=1) / lengths > 1e-5).all()  # a CPU leaves it out


def test_a_weight_beyond_float16_is_named() -> None:
    with pytest.raises(
        FailedPreconditionError, match=r"w has values up to 70000, .*\(65504\): leave fp16 out"
    ) as caught:
        to_half(layer(1, 7e4))
    assert caught.value.reason == "PRECISION_UNSUPPORTED"
    assert run(rounded(to_half(layer(65504))), {"x": np.ones((1, 1, 1, 1), np.float32)})[0].item() == 65504


def swollen(graph: onnx.ModelProto, block: str, factor: float) -> onnx.ModelProto:
    """The same function, with activations inside `block` that are `factor` times as large."""
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    tensors = {tensor.name: tensor for tensor in changed.graph.initializer}
    nodes = {node.name: node for node in changed.graph.node}
    first, second = nodes[f"{block}/bn1/Conv"], nodes[f"{block}/bn2/Conv"]
    for name, by in ((first.input[1], factor), (first.input[2], factor), (second.input[1], 1 / factor)):
        tensors[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensors[name]) * np.float32(by), name))
    return changed


def test_a_network_whose_activations_overflow_gets_no_fp16(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU it would pass: float32 holds them. The weights alone would do, too."""
    monkeypatch.setattr(stage, "to_onnx", lambda _encoder: swollen(network.graph, "encoder/backbone.layer2/1", 2.0**17))
    with pytest.raises(FailedPreconditionError, match=r"encoder\.fp16\.onnx cannot be computed in float16") as caught:
        stage.export_encoder(network.encoder, tmp_path / "bundle", Options(("fp16",)))
    assert caught.value.reason == "PARITY_FAILED"
    assert list(tmp_path.iterdir()) == []


def test_the_proof_has_rows_for_a_gpu(all_precisions: Bundle) -> None:
    for artefact in all_precisions.manifest.artefacts:
        assert artefact.parity is not None
        rows = [row for row in artefact.parity.rows if ROUNDED in row.frames]
        rankings = [row for row in artefact.parity.ranking if ROUNDED in row.data]
        if artefact.precision != "fp16":
            assert not rows + rankings
            continue
        assert {row.snippets for row in rows} == {1, 10}
        assert len({row.frames for row in rows}) == 4
        assert len(rankings) == 2
        assert min(row.relative_l2 for row in rows) > 1e-5


def test_a_fault_in_it_is_caught(network: Network, half: onnx.ModelProto, tmp_path: Path) -> None:
    snippets = sample_snippets(2, SMALL_INPUT, "noise")
    trial = Trial("noise", snippets, stage.torch_reference(network.encoder)(snippets))
    for name, passes in (("as-it-is", True), ("faulty", False)):
        model = onnx.ModelProto()
        model.CopyFrom(half)
        weight = next(t for t in model.graph.initializer if t.name == "encoder.backbone.layer3.0.conv1.weight/fp16")
        values = numpy_helper.to_array(weight) * np.float16(1 if passes else 1.1)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(model, tmp_path / f"{name}.onnx")
        rows = compare(open_rounded(tmp_path / f"{name}.onnx"), [trial], LIMITS["fp16"], [1, 2])
        assert [row.passed for row in rows] == [passes, passes]
