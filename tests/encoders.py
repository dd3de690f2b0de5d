"""Tiny real encoders for tests: ONNX graphs of a few operators that both backends run in well under a millisecond.

The descriptor of a snippet is a fixed linear map of its mean colours, so tests compute it themselves with numpy
(`expected_descriptor`), and any mix-up of frames, snippets or requests changes it.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from passerby_model.bundle import (
    MANIFEST_NAME,
    Artefact,
    Calibration,
    Input,
    Manifest,
    MaskOutput,
    Metric,
    Parity,
    ParityRow,
    describe_file,
    fingerprint_of,
)
from passerby_model.preprocess import resize
from passerby_model.snippets import mean_descriptor, split

MASK_HEIGHT, MASK_WIDTH = 4, 2


def projection(frames: int, dim: int, seed: int) -> NDArray[np.float32]:
    """The weights of the linear map, float32 (frames * 3, dim)."""
    return np.random.default_rng(seed).normal(size=(frames * 3, dim)).astype(np.float32)


def write_encoder(
    path: Path,
    *,
    snippet_length: int = 4,
    height: int = 32,
    width: int = 16,
    dim: int = 8,
    masks: tuple[int, ...] = (),
    seed: int = 0,
    slow: int = 0,
) -> None:
    """An encoder as ONNX: snippet -> mean colour of each frame in [0, 1] -> (N * 3) x projection -> descriptor.

    Mask of block b: the frame's brightness in a grid of 4 x 2 cells, to the power of b.
    `slow`: so many extra matrix products of 256 x 256 (no effect on the result), to make a batch take long.
    """
    weights = projection(snippet_length, dim, seed)
    constants: dict[str, NDArray[Any]] = {
        "scale": np.array(1 / 255, dtype=np.float32),
        "flat": np.array([0, snippet_length * 3], dtype=np.int64),
        "axes": np.array([2, 3], dtype=np.int64),
        "weights": weights,
    }
    nodes = [
        helper.make_node("Cast", ["snippets"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["unit"]),
        helper.make_node("ReduceMean", ["unit", "axes"], ["colour"], keepdims=0),
        helper.make_node("Reshape", ["colour", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["product" if slow else "descriptor"]),
    ]
    if slow:
        constants |= {"noise": np.eye(256, dtype=np.float32), "nothing": np.array(0, dtype=np.float32)}
        constants |= {"all": np.array([0, 1], dtype=np.int64), "first": np.array([0, 1, 2, 3, 4], dtype=np.int64)}
        nodes += [
            helper.make_node("ReduceMean", ["unit", "first"], ["level"], keepdims=0),
            helper.make_node("Mul", ["noise", "level"], ["work0"]),
            *(helper.make_node("MatMul", [f"work{i}", "noise"], [f"work{i + 1}"]) for i in range(slow)),
            helper.make_node("ReduceMean", [f"work{slow}", "all"], ["rest"], keepdims=0),
            helper.make_node("Mul", ["rest", "nothing"], ["zero"]),
            helper.make_node("Add", ["product", "zero"], ["descriptor"]),
        ]
    outputs = [helper.make_tensor_value_info("descriptor", TensorProto.FLOAT, ["B", dim])]
    if masks:
        grid = [0, snippet_length, MASK_HEIGHT, height // MASK_HEIGHT, MASK_WIDTH, width // MASK_WIDTH * 3]
        constants |= {"grid": np.array(grid, dtype=np.int64), "cells": np.array([3, 5], dtype=np.int64)}
        nodes += [
            helper.make_node("Reshape", ["unit", "grid"], ["gridded"]),
            helper.make_node("ReduceMean", ["gridded", "cells"], ["light"], keepdims=0),
        ]
    for block in masks:
        constants[f"power{block}"] = np.array(block, dtype=np.float32)
        nodes.append(helper.make_node("Pow", ["light", f"power{block}"], [f"mask_cosam{block}"]))
        shape: list[str | int | None] = ["B", snippet_length, MASK_HEIGHT, MASK_WIDTH]
        outputs.append(helper.make_tensor_value_info(f"mask_cosam{block}", TensorProto.FLOAT, shape))
    snippets = helper.make_tensor_value_info("snippets", TensorProto.UINT8, ["B", snippet_length, height, width, 3])
    graph = helper.make_graph(
        nodes, "tiny", [snippets], outputs, [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def expected_descriptor(
    frames: list[NDArray[np.uint8]],
    *,
    snippet_length: int = 4,
    height: int = 32,
    width: int = 16,
    dim: int = 8,
    seed: int = 0,
) -> NDArray[np.float32]:
    """What the encoder and the mean over snippets must give for `frames` (uint8 (h, w, 3) each): float32 (dim,)."""
    small = np.stack([resize(frame, height, width) for frame in frames])
    colours = (small.astype(np.float64) / 255).mean(axis=(1, 2))
    rows = colours[split(len(frames), snippet_length)].reshape(-1, snippet_length * 3)
    return mean_descriptor((rows @ projection(snippet_length, dim, seed).astype(np.float64)).astype(np.float32))


def make_bundle(
    root: Path,
    *,
    snippet_length: int = 4,
    height: int = 32,
    width: int = 16,
    dim: int = 8,
    masks: tuple[int, ...] = (),
    metric: Metric = "squared_euclidean",
    seed: int = 0,
    slow: int = 0,
    parity_passed: bool | None = True,
    calibration: Calibration | None = None,
) -> Path:
    """Writes a bundle of a tiny encoder that `open_bundle` accepts; `parity_passed` None leaves the report out."""
    root.mkdir(parents=True, exist_ok=True)
    encoder = root / "encoder.onnx"
    write_encoder(
        encoder, snippet_length=snippet_length, height=height, width=width, dim=dim, masks=masks, seed=seed, slow=slow
    )
    files = {encoder.name: describe_file(encoder)}
    size = Input(snippet_length=snippet_length, height=height, width=width)
    rows = tuple(
        ParityRow(
            runtime=runtime,
            snippets=1,
            relative_l2=0.0,
            cosine=1.0,
            max_relative_l2=1e-4,
            min_cosine=0.999,
            passed=bool(parity_passed),
        )
        for runtime in ("onnxruntime", "openvino")
    )
    artefact = Artefact(
        precision="fp32",
        format="onnx",
        files=(encoder.name,),
        runtimes=("onnxruntime", "openvino"),
        parity=None if parity_passed is None else Parity(reference="computed by hand", rows=rows, passed=parity_passed),
    )
    fingerprint = fingerprint_of(files=files, input=size, descriptor_dim=dim, metric=metric, architecture="mean-colour")
    manifest = Manifest(
        name="tiny",
        architecture="mean-colour",
        artefacts=(artefact,),
        input=size,
        descriptor_dim=dim,
        metric=metric,
        masks=tuple(
            MaskOutput(name=f"mask_cosam{block}", block=block, height=MASK_HEIGHT, width=MASK_WIDTH) for block in masks
        ),
        files=files,
        fingerprint=fingerprint,
        calibration=calibration.sealed(fingerprint) if calibration else None,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    (root / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2))
    return root
