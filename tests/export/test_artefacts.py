"""One network in several number formats: what is written, what computes where, and that NCC stays in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from passerby.errors import FailedPreconditionError, InvalidArgumentError
from passerby_export import artefacts
from passerby_export import export as stage
from passerby_export.artefacts import check_possible, parse_precisions
from passerby_export.export import torch_reference
from passerby_export.inspection import inspect_encoder, not_in_tensorrt
from passerby_export.onnx_export import check_graph
from passerby_export.parity import LIMITS, ROUNDED, RankingTrial, Trial, compare, lost_rankings, make_ranking_trial
from passerby_export.quantise import (
    Describe,
    OnnxQuantiser,
    OpenVinoQuantiser,
    calibration_of,
    groups_of,
    keep_until_good,
)
from passerby_export.samples import Tracklets, read_tracklets, sample_snippets
from passerby_model.backends import open_artefact, open_backend, open_encoder
from passerby_model.backends.base import NCC_SCOPE, Encoded
from passerby_model.backends.choice import processor_has_bf16
from passerby_model.backends.openvino import OpenVinoBackend
from passerby_model.bundle import Bundle, Manifest

from tests.export.networks import PRECISIONS, SMALL_INPUT, Network

needs_bf16 = pytest.mark.skipif("bf16" not in PRECISIONS, reason="this processor does not compute in bf16")


@pytest.fixture
def bundle(all_precisions: Bundle) -> Bundle:
    return all_precisions


def test_a_bundle_holds_all_that_were_asked_for(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert [(a.precision, a.format, a.runtimes) for a in manifest.artefacts if a.precision != "bf16"] == [
        ("fp32", "onnx", ("onnxruntime", "openvino")),
        ("fp16", "onnx", ("onnxruntime", "openvino")),
        ("w8", "onnx", ("onnxruntime", "openvino")),
        ("int8", "openvino", ("openvino",)),
        ("int8", "onnx", ("onnxruntime",)),
    ]
    listed = {name for artefact in manifest.artefacts for name in artefact.files} | {manifest.reference}
    assert set(manifest.files) == listed
    sizes = {a.precision: sum(manifest.files[name].size for name in a.files) for a in manifest.artefacts}
    assert sizes["int8"] < 0.4 * sizes["fp32"]
    assert not manifest.unproven()


def test_every_proof_has_all_batches_and_rankings(bundle: Bundle) -> None:
    for artefact in bundle.manifest.artefacts:
        assert artefact.parity is not None
        for runtime in artefact.runtimes:
            rows = [row for row in artefact.parity.rows if row.runtime == runtime and ROUNDED not in row.frames]
            assert {row.snippets for row in rows} == set(range(1, 11))
            assert len({row.frames for row in rows}) == 4  # the street's people, drawn ones, noise, smooth
            rankings = [row for row in artefact.parity.ranking if row.runtime == runtime and ROUNDED not in row.data]
            assert [(row.gallery, row.queries) for row in rankings] == [("own", 6), ("network", 6)]


def test_calibration_and_ranking_share_no_person(street: Path, bundle: Bundle) -> None:
    seen, ranked = read_tracklets(street, SMALL_INPUT).halves()
    assert set(seen.identities) & set(ranked.identities) == set()
    assert (len(seen.identities), len(ranked.identities)) == (6, 6)
    record = bundle.manifest.artefacts[-1].quantisation
    assert record is not None
    # Twelve snippets, two of them judged on, every fourth of the others once more in the dark.
    assert (record["calibrated_on"], record["snippets"]) == (street.name, 13)


def test_more_precisions_do_not_change_the_fingerprint(network: Network, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "to_onnx", lambda _encoder: network.graph)
        alone: Manifest = stage.export_encoder(network.encoder, tmp_path / "alone")
    assert alone.fingerprint == bundle.fingerprint


@pytest.mark.parametrize("precision", PRECISIONS)
def test_correlation_is_computed_in_float32(bundle: Bundle, precision: str) -> None:
    """Read off the graph, and off what OpenVINO finally runs."""
    for artefact in (a for a in bundle.manifest.artefacts if a.precision == precision):
        report = inspect_encoder(bundle.root / artefact.file)
        assert len(report.correlation) >= 36
        assert {port.type for _, port in report.correlation} == {"float32"}
        if artefact.format == "onnx":
            check_graph(onnx.load(bundle.root / artefact.file), blocks=(4, 5))
        if "openvino" in artefact.runtimes:
            backend = open_artefact(bundle, artefact, "openvino")
            assert isinstance(backend, OpenVinoBackend)
            run = [op for op in backend.executed() if any(NCC_SCOPE in layer for layer in op.layers)]
            assert len(run) >= 20
            assert {(op.computed_in, op.result) for op in run} == {("f32", "f32")}


@needs_bf16
def test_bf16_computes_in_bf16_elsewhere(bundle: Bundle) -> None:
    backend = open_backend(bundle, precision="bf16")
    assert isinstance(backend, OpenVinoBackend)
    layers = [op for op in backend.executed() if any(name.endswith("/Conv") for name in op.layers)]
    assert {op.computed_in for op in layers} == {"bf16"}
    assert (backend.name, backend.precision) == ("openvino", "bf16")


@needs_bf16
def test_a_correlation_in_bf16_is_refused(bundle: Bundle) -> None:
    """The plain graph says nothing of the correlation, so OpenVINO would compute it in bf16, too."""
    with pytest.raises(FailedPreconditionError, match=r"would not compute the correlation .*/ncc/") as caught:
        open_encoder(bundle.root / "encoder.onnx", "onnx", "openvino", inference_precision="bf16")
    assert caught.value.reason == "NCC_PRECISION"


def test_int8_quantises_all_but_the_first_convolution_and_cosam(bundle: Bundle) -> None:
    graph = onnx.load(bundle.root / "encoder.int8.onnx").graph
    decoded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    inside = {node.name: decoded >= set(node.input[:2]) for node in graph.node if node.op_type in ("Conv", "Gemm")}
    assert all(inside[name] == ("/cosam." not in name and "backbone.stem" not in name) for name in inside)
    assert sum(inside.values()) == 19
    backend = open_backend(bundle, "openvino", precision="int8")
    assert isinstance(backend, OpenVinoBackend)
    layers = [op for op in backend.executed() if any("/Conv" in name for name in op.layers)]
    assert sum(op.computed_in in ("u8", "i8") for op in layers) == 19
    rest = {"bf16"} if processor_has_bf16() else {"f32"}
    assert {op.computed_in for op in layers} - {"u8", "i8"} == rest
    correlation = [op for op in backend.executed() if any(NCC_SCOPE in name for name in op.layers)]
    assert correlation
    assert {op.computed_in for op in correlation} == {"f32"}


def test_int8_for_onnx_is_for_tensorrt_too(bundle: Bundle) -> None:
    model = onnx.load(bundle.root / "encoder.int8.onnx")
    assert not_in_tensorrt(model) == []
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantisers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(quantisers) > 40
    assert not any(constants[node.input[2]].any() for node in quantisers)  # zero points


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_server_gets_what_it_asks_for(bundle: Bundle, network: Network, precision: str) -> None:
    snippets = sample_snippets(3, SMALL_INPUT, "noise")
    expected = stage.torch_reference(network.encoder)(snippets).descriptors
    backend = open_backend(bundle, precision=precision)  # type: ignore[arg-type]
    found = backend.encode(snippets).descriptors
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert backend.precision == precision
    assert error.max() < {"fp32": 1e-4, "fp16": 1e-2, "w8": 5e-2, "bf16": 1.5e-2, "int8": 0.15}[precision]
    if precision != "fp32":
        assert error.max() > 1e-5  # it is not float32 under another name


def outlier(graph: onnx.ModelProto, block: str) -> onnx.ModelProto:
    """The same function, with one channel inside `block` a thousand times as large: int8 has no room for the others."""
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    tensors = {tensor.name: tensor for tensor in changed.graph.initializer}
    nodes = {node.name: node for node in changed.graph.node}
    first, second = nodes[f"{block}/bn1/Conv"], nodes[f"{block}/bn2/Conv"]
    for name, axis, factor in ((first.input[1], 0, 1e3), (first.input[2], 0, 1e3), (second.input[1], 1, 1e-3)):
        values = numpy_helper.to_array(tensors[name]).copy()
        values[(slice(None),) * axis + (0,)] *= factor
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    return changed


def test_a_sensitive_block_is_found_and_kept(network: Network, tmp_path: Path) -> None:
    graph = outlier(network.graph, "encoder/backbone.layer2/1")
    path = tmp_path / "encoder.onnx"
    onnx.save(graph, path)
    calibration = calibration_of("noise", sample_snippets(6, SMALL_INPUT, "noise"))
    groups = groups_of(graph)
    assert not any("cosam" in name for names in groups.values() for name in names)
    few = [f"encoder/backbone.{name}" for name in ("layer1/0", "layer2/1", "layer3/0", "layer4/0")]
    quantiser = OpenVinoQuantiser(path, {name: groups[name] for name in few}, calibration)
    _, made = quantiser.write(tmp_path / "encoder.xml")
    assert quantiser.worst_first[0] == "encoder/backbone.layer2/1"
    assert made.kept[0] == "encoder/backbone.layer2/1"
    assert made.cosine >= 0.998
    backend = open_encoder(tmp_path / "encoder.xml", "openvino", precision="int8")
    assert isinstance(backend, OpenVinoBackend)
    kept = [op for op in backend.executed() if any(name.startswith(f"{made.kept[0]}/bn") for name in op.layers)]
    assert kept
    assert {op.computed_in for op in kept} <= {"f32", "bf16"}


def test_layers_are_kept_until_the_goal_is_reached() -> None:
    cosines = {(): 0.9, ("b",): 0.95, ("b", "a"): 0.999}
    made = keep_until_good(lambda kept: cosines[tuple(kept)], lambda: ["b", "a", "c", "d"])
    assert (made.kept, made.cosine) == (("b", "a"), 0.999)


def test_descriptors_that_are_not_numbers_are_not_good_enough() -> None:
    cosines = {(): np.nan, ("b",): 0.999}
    assert keep_until_good(lambda kept: cosines[tuple(kept)], lambda: ["b", "a", "c", "d"]).kept == ("b",)


def test_layers_are_kept_until_rankings_hold() -> None:
    asked: list[tuple[str, ...]] = []

    def lost(kept: Sequence[str]) -> str:
        asked.append(tuple(kept))
        return "" if "a" in kept else "rank-1"

    cosines = {(): 0.9, ("b",): 0.999, ("b", "a"): 0.9995}
    made = keep_until_good(lambda kept: cosines[tuple(kept)], lambda: ["b", "a", "c", "d"], lost=lost)
    assert made.kept == ("b", "a")
    assert asked == [("b",), ("b", "a")]  # not before the cosine is good: a ranking takes long


def test_what_rankings_lose_is_named() -> None:
    numbers = np.arange(8)  # four people before two cameras; a snippet's pixels are its number
    snippets = np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None, None], (8, 1, 2, 2, 3))
    tracklets = Tracklets("people", snippets, numbers, numbers // 2, numbers % 2)
    eye = np.eye(5, dtype=np.float32)
    trial = RankingTrial(tracklets, "squared_euclidean", eye[numbers // 2])
    assert lost_rankings(lambda found: eye[found[:, 0, 0, 0, 0] // 2], trial, LIMITS["int8"]) == ""
    problem = lost_rankings(lambda found: eye[(found[:, 0, 0, 0, 0] + 1) // 2], trial, LIMITS["int8"])
    assert "8 queries of people in a gallery of its own: rank-1" in problem
    assert "gallery of the network" in problem


def test_the_rankings_of_what_is_quantised_decide(network: Network, street: Path, tmp_path: Path) -> None:
    """Descriptors that the two tools' graphs give are ranked; as long as too much is lost, another block is kept."""
    path = tmp_path / "encoder.onnx"
    onnx.save(network.graph, path)
    tracklets = read_tracklets(street, SMALL_INPUT)
    trial = make_ranking_trial(torch_reference(network.encoder), tracklets, "squared_euclidean")
    answers: list[str] = []

    def lost(describe: Describe) -> str:
        real = lost_rankings(describe, trial, LIMITS["int8"])
        answers.append(real or ("" if len(answers) % 2 else "as if too much were lost"))
        return answers[-1]

    calibration = replace(calibration_of("street", tracklets.snippets[:6]), lost=lost)
    few = ("stem", "layer1/0", "layer2/0", "layer4/0")
    groups = {name: layers for name, layers in groups_of(network.graph).items() if any(part in name for part in few)}
    quantiser = OpenVinoQuantiser(path, groups, calibration)
    first = [name for name in groups if "stem" in name]
    for made in (
        quantiser.write(tmp_path / "encoder.xml")[1],
        OnnxQuantiser(path, groups, calibration, lambda: quantiser.worst_first).write(tmp_path / "encoder.int8.onnx"),
    ):
        assert made.kept[: len(first)] == tuple(first)
        assert len(made.kept) > len(first)
    assert answers == ["as if too much were lost", "", "as if too much were lost", ""]


def test_the_first_convolution_is_kept_whatever_the_cosine() -> None:
    made = keep_until_good(lambda kept: 0.9995, lambda: pytest.fail("not needed"), always=["stem"])
    assert made.kept == ("stem",)


def test_nothing_is_kept_and_nothing_ranked_when_it_is_good_at_once() -> None:
    made = keep_until_good(lambda _kept: 0.9995, lambda: pytest.fail("not needed"))
    assert made.kept == ()


def test_at_most_half_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    made = keep_until_good(lambda kept: 0.5 + 0.01 * len(kept), lambda: ["a", "b", "c", "d"])
    assert made.kept == ("a", "b")
    assert "int8 reaches cosine 0.52" in caplog.text


def test_precisions_are_read_in_order_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_precisions("int8, fp32") == ("fp32", "int8")
    with pytest.raises(InvalidArgumentError, match="'fp64'; there are fp32, fp16"):
        parse_precisions("fp32,fp64")
    with pytest.raises(InvalidArgumentError, match="--calibration"):
        check_possible(("int8",), calibrated=False)
    monkeypatch.setattr(artefacts, "processor_has_bf16", lambda: False)
    with pytest.raises(FailedPreconditionError, match="does not compute in bf16"):
        check_possible(("bf16",), calibrated=False)


@pytest.mark.parametrize("broken", [4, 5])
@pytest.mark.parametrize("what", ["masks", "cost_volumes"])
def test_a_mask_or_cost_volume_that_is_not_a_number_fails_in_whichever_block(what: str, broken: int) -> None:
    descriptors = np.ones((2, 8), np.float32)
    sound = {block: np.full((2, 4, 3, 2), 0.5, np.float32) for block in (4, 5)}
    expected = Encoded(descriptors, sound, sound)
    torn = {block: np.full_like(mask, np.nan) if block == broken else mask for block, mask in sound.items()}
    actual = Encoded(descriptors, torn if what == "masks" else sound, sound if what == "masks" else torn)

    class Torn:
        name = "onnxruntime"

        def encode(self, snippets: NDArray[np.uint8]) -> Encoded:
            return actual

    backend: Any = Torn()
    (row,) = compare(backend, [Trial("noise", np.zeros((2, 4, 8, 8, 3), np.uint8), expected)], LIMITS["fp32"], [2])
    assert not row.passed
