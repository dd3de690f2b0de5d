"""What the exported graph consists of, and what `passerby export inspect` says of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch
from onnx import TensorProto
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_export.cli import export
from passerby_export.deployed import PlainCorrelation
from passerby_export.inspection import inspect_encoder, inspect_onnx, not_in_tensorrt
from passerby_export.onnx_export import add_cost_volumes
from passerby_export.samples import sample_snippets
from passerby_model.backends import open_encoder
from passerby_model.backends.base import BackendName
from passerby_model.backends.openvino_package import openvino_core
from passerby_model.cosam import NormalisedCrossCorrelation
from passerby_model.preprocess import normalise
from typer.testing import CliRunner

from tests.export.networks import SMALL, SMALL_INPUT, Network


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def test_versions_are_those_of_the_oldest_runtimes(network: Network) -> None:
    report = inspect_onnx(network.graph)
    assert report.versions["opset"] == "18"
    assert report.versions["IR"] == "10"


def test_tensorrt_has_every_operator(network: Network) -> None:
    assert not_in_tensorrt(network.graph) == []
    assert not_in_tensorrt(add_cost_volumes(network.graph, SMALL)) == []


def test_what_tensorrt_lacks_is_named(network: Network) -> None:
    changed = copy_of(network.graph)
    nodes = {node.name: node for node in changed.graph.node}
    nodes["encoder/cosam.4/Sigmoid"].op_type = "Det"
    changed.opset_import[0].version = 23
    cast = next(node for node in changed.graph.node if node.op_type == "Cast")
    cast.op_type = "Identity"  # uint8 into an operator that takes floats
    del cast.attribute[:]
    assert {"Det", "opset 23", "Identity of UINT8"} <= set(not_in_tensorrt(changed))


def test_correlation_is_listed_with_shapes_and_precision(network: Network) -> None:
    found = inspect_onnx(network.graph).correlation
    products = [port for operator, port in found if operator == "MatMul"]
    assert [port.name for port in products] == [f"encoder/cosam.{block}/ncc/MatMul" for block in (4, 5)]
    # 4 x 2 places, two other frames: 16 rows a place.
    assert [port.shape[1:] for port in products] == [(16, 8), (16, 8)]
    assert {port.type for _, port in found} == {"float32"}


def test_plain_correlation_is_the_original() -> None:
    torch.manual_seed(0)
    original = NormalisedCrossCorrelation(3)
    reduced = torch.randn(6, 8, 4, 2).relu()
    reduced[2, :, 1, 1] = 0.0  # a place without any activation
    torch.testing.assert_close(PlainCorrelation(original)(reduced), original(reduced), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["c12_t3", "c12_t3_smallvar", "c12_t3_dead"])
def test_plain_correlation_is_the_references(shared: Path, case: str) -> None:
    file = np.load(shared / f"golden/unit_cosam_{case}.npz")
    plain = PlainCorrelation(NormalisedCrossCorrelation(int(file["t"])))
    np.testing.assert_allclose(plain(torch.from_numpy(file["reduced"])), file["cost_volume"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_cost_volume_on_demand_is_pytorchs(tmp_path: Path, network: Network, runtime: BackendName) -> None:
    onnx.save(add_cost_volumes(network.graph, SMALL), tmp_path / "encoder.onnx")
    snippets = sample_snippets(2, SMALL_INPUT, "noise")
    expected: list[torch.Tensor] = []
    hooks = [
        cosam.get_submodule("ncc").register_forward_hook(lambda _module, _inputs, volume: expected.append(volume))
        for cosam in network.encoder.cosam.values()
    ]
    with torch.inference_mode():
        network.encoder(torch.from_numpy(normalise(snippets)))
    for hook in hooks:
        hook.remove()
    encoded = open_encoder(tmp_path / "encoder.onnx", "onnx", runtime).encode(snippets)
    assert list(encoded.cost_volumes) == [4, 5]
    for volume, wanted in zip(encoded.cost_volumes.values(), expected, strict=True):
        assert volume.shape == (2, 3, 16, 4, 2)
        np.testing.assert_allclose(volume.reshape(wanted.shape), wanted, rtol=0, atol=1e-4)
        assert np.abs(volume).max() > 0.1


def test_cost_volume_is_not_given_unasked(tmp_path: Path, network: Network) -> None:
    onnx.save(network.graph, tmp_path / "encoder.onnx")
    backend = open_encoder(tmp_path / "encoder.onnx", "onnx", "onnxruntime")
    assert backend.encode(sample_snippets(1, SMALL_INPUT, "noise")).cost_volumes == {}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(export, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


def test_inspect_prints_it_for_both_formats(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "encoder.onnx"
    onnx.save(network.graph, path)
    openvino.save_model(openvino_core().read_model(path), tmp_path / "encoder.xml", compress_to_fp16=False)
    shown = run("inspect", path)
    assert "encoder.onnx: onnx, opset 18, IR 10, by pytorch" in shown
    assert "input   snippets uint8 (batch, 3, 64, 32, 3)" in shown
    assert "output  mask_cosam5 float32 (batch, 3, 4, 2)" in shown
    assert "TensorRT 10.6: has them all" in shown
    assert shown.count("/ncc/MatMul float32") == 2
    ir = run("inspect", tmp_path / "encoder.xml")
    assert "encoder.xml: openvino" in ir
    assert "input   snippets uint8 (?, 3, 64, 32, 3)" in ir
    assert ir.count("/ncc/MatMul float32") == 2
    onnx_report, ir_report = (json.loads(run("inspect", p, "--json"))[0] for p in (path, tmp_path / "encoder.xml"))
    assert onnx_report["weights"]["float32"] == pytest.approx(ir_report["weights"]["f32"], rel=0.01)
    assert onnx_report["operators"]["MatMul"] == ir_report["operators"]["MatMul"] - 4  # and the four of the MLPs


def test_inspect_refuses_what_is_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"nonsense")
    (tmp_path / "encoder.xml").write_bytes(b"<nonsense/>")
    for name in ("encoder.onnx", "encoder.xml"):
        with pytest.raises(InvalidArgumentError, match=name):
            inspect_encoder(tmp_path / name)
    with pytest.raises(NotFoundError):
        inspect_encoder(tmp_path / "absent.onnx")


def test_a_checkpoint_needs_no_subcommand(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"best\.pt"):
        run(tmp_path / "best.pt", tmp_path / "bundle")
    with pytest.raises(NotFoundError, match=r"best\.pt"):
        run("checkpoint", tmp_path / "best.pt", tmp_path / "bundle")


def test_constants_are_counted_by_number_format(network: Network) -> None:
    changed = copy_of(network.graph)
    before = inspect_onnx(changed).weights
    extra = onnx.numpy_helper.from_array(np.zeros(1000, np.float16), "extra")
    changed.graph.initializer.append(extra)
    assert extra.data_type == TensorProto.FLOAT16
    assert inspect_onnx(changed).weights == before | {"float16": 2000}
