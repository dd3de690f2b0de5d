"""The bundle in the repository: whole, small enough, and the same on both runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from passerby_export.half import open_rounded, to_half
from passerby_export.parity import LIMITS, Trial, compare
from passerby_export.samples import read_tracklets
from passerby_model import snippets
from passerby_model.backends import Backend, open_backend, open_encoder
from passerby_model.backends.decoding import decode_weights
from passerby_model.bundle import Bundle, open_bundle
from passerby_model.metrics import evaluate, squared_euclidean
from passerby_model.preprocess import resize
from passerby_model.street import StreetConfig, StreetTracklet, generate

ROOT = Path(__file__).resolve().parents[2] / "bundles/street-ward-cosam45"
# The demo's street: other people than the bundle was trained on.
STREET = StreetConfig(identities=6, cameras=2, frames=4, seed=2019)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(ROOT)


@pytest.fixture(scope="module")
def people() -> list[StreetTracklet]:
    return list(generate(STREET))


def descriptors(backend: Backend, people: list[StreetTracklet]) -> NDArray[np.float32]:
    small = [np.stack([resize(frame, 128, 64) for frame in tracklet.frames]) for tracklet in people]
    cuts = [frames[snippets.split(len(frames), 4)] for frames in small]
    return np.stack([snippets.mean_descriptor(backend.encode(cut).descriptors) for cut in cuts])


def test_is_the_network_of_the_paper_and_small_enough(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.architecture == "se_resnet50+cosam45+tp"
    assert (manifest.input.snippet_length, manifest.input.height, manifest.input.width) == (4, 128, 64)
    assert [mask.block for mask in manifest.masks] == [4, 5]
    assert sum(path.stat().st_size for path in ROOT.iterdir()) <= 40e6
    assert manifest.parity is not None
    assert {row.snippets for row in manifest.parity.rows} == set(range(1, 9))
    assert manifest.training


def test_both_backends_rank_alike(bundle: Bundle, people: list[StreetTracklet]) -> None:
    a, b = (descriptors(open_backend(bundle, kind), people) for kind in ("openvino", "onnxruntime"))
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() >= 0.999
    ranks = [np.argsort(squared_euclidean(d, d), axis=1, kind="stable") for d in (a, b)]
    assert np.array_equal(ranks[0], ranks[1])


def test_finds_people_that_it_has_not_seen(bundle: Bundle, people: list[StreetTracklet]) -> None:
    found = descriptors(open_backend(bundle), people)
    identities, cameras = (np.array([getattr(t, key) for t in people]) for key in ("identity", "camera"))
    query = cameras == "c1"
    distances = squared_euclidean(found[query], found[~query])
    result = evaluate(distances, identities[query], identities[~query], cameras[query], cameras[~query])
    # One right answer among six: mAP 0.41 by chance. What it reaches on more people is in the README.
    assert result.mean_average_precision > 0.5


def test_half_precision_costs_little_on_real_tracklets(bundle: Bundle, shared: Path, tmp_path: Path) -> None:
    """As a GPU computes it: every value that is float16 there is rounded to float16."""
    identities = ("0001", "0002", "0003", "0004")  # WARD's, of the test half
    tracklets = read_tracklets(shared / "data/real_tracklets/ward", bundle.manifest.input, identities)
    graph = onnx.load_from_string(decode_weights(bundle.encoder_path))
    for name, model in (("exact", graph), ("half", to_half(graph))):
        onnx.save(model, tmp_path / f"{name}.onnx")
    exact, half = open_encoder(tmp_path / "exact.onnx", "onnx", "onnxruntime"), open_rounded(tmp_path / "half.onnx")
    chosen = tracklets.snippets[::2]
    assert len(chosen) == 12
    (row,) = compare(half, [Trial("WARD", chosen, exact.encode(chosen))], LIMITS["fp16"], [12])
    assert row.passed
    assert 1e-4 < row.relative_l2 < 2e-3
    assert row.cosine > 0.999998
    assert row.mask_error is not None
    assert row.mask_error < 2e-3
