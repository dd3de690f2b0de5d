"""Small foreign models, and one exported COSAM encoder for all tests of the export room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from passerby_export import export as stage
from passerby_export.export import Options
from passerby_export.onnx_export import to_onnx
from passerby_model.bundle import Bundle, open_bundle
from passerby_model.street import StreetConfig
from passerby_model.street import write as write_street

from tests.export.networks import PRECISIONS, SMALL, Network, random_encoder

HEIGHT, WIDTH, VALUES = 32, 16, 6


def foreign_onnx(
    path: Path,
    *,
    layout: str = "NCHW",
    batch: int | str = 1,
    opset: int = 17,
    reshape: tuple[int, ...] | None = None,
    second_output: bool = False,
    channels_first: bool = False,
) -> Path:
    """A per-frame model: strided convolution, ReLU, global average pool, Reshape to `reshape`, MatMul.

    Channels count (weights are random), so that wrong colours, layout or normalisation change the descriptor.
    """
    random = np.random.default_rng(3)
    channels = 8
    fixed = batch if isinstance(batch, int) else -1
    constants: dict[str, np.ndarray] = {
        "w": random.normal(size=(channels, 3, 4, 4)).astype(np.float32),
        "b": random.normal(size=channels).astype(np.float32),
        "shape": np.array(reshape or (fixed, channels), np.int64),
        "fc": random.normal(size=(channels, VALUES)).astype(np.float32),
    }
    flatten = [helper.make_node("Reshape", ["p", "shape"], ["f"])]
    if channels_first:  # right for one frame only, with the batch nowhere in it
        constants["shape"] = np.array([channels, 1], np.int64)
        flatten = [
            helper.make_node("Reshape", ["p", "shape"], ["column"]),
            helper.make_node("Transpose", ["column"], ["f"], perm=[1, 0]),
        ]
    nodes = [helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2])] if layout == "NHWC" else []
    nodes += [
        helper.make_node("Conv", ["nchw" if nodes else "image", "w", "b"], ["c"], strides=[4, 4]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        *flatten,
        helper.make_node("MatMul", ["f", "fc"], ["feature"]),
    ]
    sizes = [batch, 3, HEIGHT, WIDTH] if layout == "NCHW" else [batch, HEIGHT, WIDTH, 3]
    outputs = [helper.make_tensor_value_info("feature", TensorProto.FLOAT, [batch, VALUES])]
    if second_output:
        outputs.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, [batch, channels, 1, 1]))
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, sizes)],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def by_hand(frames: np.ndarray, path: Path, *, prepare) -> np.ndarray:
    """What the model of `foreign_onnx` gives for uint8 (B, H, W, 3) RGB frames, in numpy alone: (B, VALUES).

    `prepare`: uint8 (B, H, W, 3) RGB -> float (B, H, W, 3) as the model wants it.
    """
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    x = prepare(frames).astype(np.float64)
    blocks = x.reshape(len(x), HEIGHT // 4, 4, WIDTH // 4, 4, 3)
    maps = np.einsum("bhiwjc,ocij->bohw", blocks, weights["w"]) + weights["b"][:, None, None]
    expected: np.ndarray = np.maximum(maps, 0).mean(axis=(2, 3)) @ weights["fc"]
    return expected


@pytest.fixture
def frames() -> np.ndarray:
    """uint8 (5, H, W, 3): five frames for the small foreign models."""
    return np.random.default_rng(0).integers(0, 256, (5, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def network() -> Network:
    """A small COSAM encoder, traced once for all tests."""
    encoder = random_encoder(SMALL)
    return Network(encoder, to_onnx(encoder))


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn people before two cameras."""
    folder = tmp_path_factory.mktemp("street")
    write_street(StreetConfig(6, 2, frames=6, height=64, width=32, seed=3), folder)
    return folder


@pytest.fixture(scope="session")
def all_precisions(network: Network, street: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small network in all precisions, which tests must not change."""
    target = tmp_path_factory.mktemp("bundles") / "all"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "to_onnx", lambda _encoder: network.graph)
        stage.export_encoder(network.encoder, target, Options(PRECISIONS, calibration=street))
    return open_bundle(target)
