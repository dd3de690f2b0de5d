"""Attention against silhouettes: figures by hand, the reference's pictures, properties, and a whole street."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_model import datasets
from passerby_model.attention import (
    BINS,
    MaskMeter,
    centre_prior,
    evaluate_street,
    mask_quality,
    min_max,
    tracklet_masks,
    upsampled,
)
from passerby_model.street import StreetConfig, generate, write
from passerby_model.street.canvas import ACCESSORIES
from passerby_model.street_labels import Street
from PIL import Image

CONFIG = StreetConfig(identities=4, cameras=2, frames=(3, 6), height=64, width=32, seed=5)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attention") / "street"
    write(CONFIG, folder, masks=True)
    return folder


def mask(*rows: list[float]) -> NDArray[np.float32]:
    """One frame's mask, (1, h, w)."""
    return np.array([rows], np.float32)


def exact_auc(inside: NDArray[np.float32], outside: NDArray[np.float32]) -> float:
    """By its definition: over all pairs, ties half."""
    difference = np.sign(inside.astype(np.float64)[:, None] - outside.astype(np.float64)[None, :])
    return float((difference + 1).mean() / 2)


# Upsampling


@pytest.mark.parametrize("case", ["A", "B"])
@pytest.mark.parametrize("block", [4, 5])
def test_upsampling_is_that_of_the_reference(shared: Path, case: str, block: int) -> None:
    golden = np.load(shared / "golden/model_se_resnet50_cosam45_tp.npz")
    large = upsampled(golden[f"{case}_cosam{block}_spatial_mask"], 256, 128)
    assert large.shape == (8, 256, 128)
    shown = min_max(large)
    np.testing.assert_allclose(shown[1], golden[f"{case}_cosam{block}_viz_frame1"], atol=1e-5)


def test_upsampling_by_hand() -> None:
    # Corners not aligned: outputs lie at -0.25, 0.25, 0.75, 1.25 of the input; outside, the edge goes on.
    np.testing.assert_allclose(upsampled(mask([0.0, 1.0]), 1, 4), [[[0, 0.25, 0.75, 1]]], atol=1e-7)
    np.testing.assert_array_equal(upsampled(mask([0.25, 1.0]), 3, 2), [[[0.25, 1.0]] * 3])


def test_min_max_scales_each_frame_on_its_own() -> None:
    masks = np.concatenate([mask([0.2, 0.4, 0.3]), mask([0.7, 0.7, 0.7])])
    wanted = np.array([[[0, 1, 0.5]], [[0, 0, 0]]])
    np.testing.assert_allclose(min_max(masks), wanted, atol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (0, 3), (2, 3, 0)])
def test_upsampling_refuses_what_is_no_mask(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot bring masks"):
        upsampled(np.zeros(shape, np.float32), 4, 4)


# Quality


def test_quality_by_hand() -> None:
    masks = mask([0.1, 0.4, 0.35, 0.8])
    found = mask_quality(masks, np.array([[[False, False, True, True]]]))
    # Pairs: 0.35 beats 0.1 and loses to 0.4; 0.8 beats both.
    assert found.auc == found.frame_auc == 0.75
    # From 0.35 upwards: two hits and one false.
    assert found.iou == found.frame_iou == pytest.approx(2 / 3)
    assert 0.1 < found.threshold <= 0.35
    assert found.coverage == 0.5
    assert found.auc_error == 0
    assert set(found.regions) == {"background", "person"}
    assert found.regions["person"].mean == pytest.approx(0.575, abs=1e-5)
    assert found.regions["person"].recall == 1
    assert found.regions["background"].mean == pytest.approx(0.25, abs=1e-5)
    assert found.regions["background"].recall == 0.5


def test_accessories_are_told_from_the_background_each_on_its_own() -> None:
    labels = np.array([[[0, 0, 1, 1, 2, 3]]], np.uint8)
    found = mask_quality(mask([0.2, 0.4, 0.9, 0.9, 0.3, 0.1]), labels, {"hat": 2, "handbag": 3, "umbrella": 4})
    assert set(found.regions) == {"background", "person", "hat", "handbag"}  # no umbrella is seen
    assert [found.regions[name].auc for name in ("person", "hat", "handbag")] == [1, 0.5, 0]
    assert found.auc == pytest.approx((2 + 2 + 1 + 0) / 8)
    assert found.regions["hat"].pixels == 1


def test_one_threshold_for_all_frames_and_one_for_each() -> None:
    # Each frame is perfect on its own; together, the second's background lies above the first's person.
    masks = np.concatenate([mask([0.1, 0.3]), mask([0.6, 0.9])])
    found = mask_quality(masks, np.array([[[0, 1]], [[0, 1]]], bool))
    assert found.frame_auc == found.frame_iou == 1
    assert found.auc == 0.75
    assert found.iou == pytest.approx(2 / 3)  # at 0.3: two hits, one false; at 0.9: one of two


@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 1.0])
def test_a_constant_mask_tells_nothing(value: float) -> None:
    rng = np.random.default_rng(0)
    found = mask_quality(np.full((3, 7, 3), value, np.float32), rng.random((3, 61, 37)) < 0.3)
    assert found.auc == found.frame_auc == 0.5
    assert found.iou == found.coverage


def test_an_inverted_mask_is_bad_and_not_good() -> None:
    person = np.zeros((2, 16, 8), bool)
    person[:, 4:12, 2:6] = True
    right = mask_quality(person.astype(np.float32), person)
    wrong = mask_quality(1 - person.astype(np.float32), person)
    assert (right.auc, right.frame_auc, right.iou, right.frame_iou) == (1, 1, 1, 1)
    assert (wrong.auc, wrong.frame_auc) == (0, 0)
    assert wrong.iou == wrong.coverage


def test_frames_without_a_person_count_in_the_pool_alone() -> None:
    masks = np.concatenate([mask([0.1, 0.9]), mask([0.95, 0.05])])
    found = mask_quality(masks, np.array([[[0, 1]], [[0, 0]]], bool))
    assert (found.frames, found.empty_frames) == (2, 1)
    assert found.frame_auc == 1
    assert found.auc == pytest.approx(2 / 3)


_MASKS = hnp.arrays(np.float32, (2, 4, 3), elements=st.floats(0, 1, width=32))
_LABELS = hnp.arrays(np.uint8, (2, 8, 6), elements=st.integers(0, 2)).filter(lambda a: (a > 0).any() and (a == 0).any())


@settings(max_examples=30)
@given(_MASKS, _LABELS)
def test_auc_is_that_of_all_pairs_within_the_stated_error(
    masks: NDArray[np.float32], labels: NDArray[np.uint8]
) -> None:
    found = mask_quality(masks, labels, {"hat": 2})
    large = upsampled(masks, 8, 6)
    assert found.auc == pytest.approx(exact_auc(large[labels > 0], large[labels == 0]), abs=found.auc_error + 1e-9)
    inverse = mask_quality(1 - masks, labels, {"hat": 2})
    assert inverse.auc == pytest.approx(1 - found.auc, abs=found.auc_error + inverse.auc_error + 1e-6)


@settings(max_examples=30)
@given(_MASKS, _LABELS)
def test_no_threshold_gives_a_larger_iou(masks: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
    found, large = mask_quality(masks, labels, {"hat": 2}), upsampled(masks, 8, 6)
    person = labels > 0

    def iou(threshold: float) -> float:
        called = np.floor(large.astype(np.float64) * BINS) >= round(threshold * BINS)
        return float((called & person).sum() / (called | person).sum())

    assert found.iou == pytest.approx(iou(found.threshold))
    assert found.iou >= max(iou(float(value)) for value in np.linspace(0, 0.99, 12)) - 1e-9
    assert found.coverage <= found.iou


@settings(max_examples=30)
@given(_MASKS, _LABELS, st.permutations(range(2)))
def test_frame_by_frame_is_all_at_once(masks: NDArray[np.float32], labels: NDArray[np.uint8], order: list[int]) -> None:
    meter = MaskMeter({"hat": 2})
    for frame in order:
        meter.add(masks[[frame]], labels[[frame]])
    found, wanted = meter.quality(), mask_quality(masks, labels, {"hat": 2})
    assert replace(found, frame_auc=0, frame_iou=0) == replace(wanted, frame_auc=0, frame_iou=0)
    np.testing.assert_allclose([found.frame_auc, found.frame_iou], [wanted.frame_auc, wanted.frame_iou])


@pytest.mark.parametrize(
    ("masks", "labels", "message"),
    [
        pytest.param(mask([0.5, 1.5]), [[[0, 1]]], r"\[0, 1\]", id="above one"),
        pytest.param(mask([0.5, np.nan]), [[[0, 1]]], r"\[0, 1\]", id="not a number"),
        pytest.param(mask([0.5, 0.6]), [[[0, 7]]], "label 7", id="unknown label"),
        pytest.param(mask([0.5, 0.6]), [[[0, 1]], [[0, 1]]], "same frames", id="another number of frames"),
        pytest.param(mask([0.5, 0.6]), [[[0, 0]]], "no person", id="nobody"),
        pytest.param(mask([0.5, 0.6]), [[[1, 1]]], "nothing else", id="nothing but the person"),
    ],
)
def test_bad_input_is_explained(masks: NDArray[np.float32], labels: list[list[list[int]]], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        mask_quality(masks, np.array(labels, np.uint8))


# Centre prior


def test_no_fixed_map_has_a_larger_auc_than_the_centre_prior() -> None:
    labels = np.stack([labels for tracklet in generate(CONFIG) for labels in tracklet.labels])
    prior = centre_prior(lambda: [labels[:5], labels[5:]], ACCESSORIES)
    assert prior.frames == len(labels)
    assert 0.75 < prior.auc < 1
    rng = np.random.default_rng(1)
    mean = (labels > 0).mean(axis=0)
    for noise in (0.05, 0.5, 5.0):
        rival = np.clip((mean + noise * rng.random(mean.shape)) / (1 + noise), 0, 1).astype(np.float32)
        judged = mask_quality(np.broadcast_to(rival, labels.shape), labels, ACCESSORIES)
        assert judged.auc < prior.auc


# A street


class Seer:
    """Stands for an encoder: knows the true labels by the picture; block 5 is the opposite of block 4."""

    def __init__(self, street: Path) -> None:
        self.known = {}
        loaded = Street.open(street)
        for tracklet in loaded.tracklets:
            for path, labels in zip(tracklet.frames, loaded.labels_of(tracklet), strict=True):
                self.known[np.asarray(Image.open(path)).tobytes()] = (labels > 0).astype(np.float32)
        self.frames = 0

    def __call__(self, batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], dict[int, NDArray[np.float32]]]:
        assert batch.dtype == np.uint8
        assert batch.shape[1:] == (4, 64, 32, 3)
        self.frames += batch.shape[0] * 4
        masks = np.stack([[self.known[frame.tobytes()] for frame in snippet] for snippet in batch])
        return np.zeros((len(batch), 8), np.float32), {5: 1 - masks, 4: masks}


def test_a_street_is_judged_by_its_own_labels(street: Path) -> None:
    encode = Seer(street)
    found = evaluate_street(encode, street, 4, (64, 32))
    frames = datasets.read(street).frame_count
    assert (found.tracklets, found.frames) == (8, frames)
    assert encode.frames > frames  # tails are filled up, and the fillers are not counted
    assert list(found.blocks) == [4, 5]
    assert found.blocks[4].frames == found.centre_prior.frames == frames
    assert (found.blocks[4].auc, found.blocks[4].iou, found.blocks[4].frame_iou) == (1, 1, 1)
    assert (found.blocks[5].auc, found.blocks[5].iou) == (0, found.blocks[5].coverage)
    carried = {name for tracklet in generate(CONFIG) for name in tracklet.masks} - {"silhouette", "person"}
    assert set(found.blocks[4].regions) == {"background", "person"} | carried
    assert carried
    assert json.loads(json.dumps(found.to_dict()))["cosam4"]["auc"] == 1


def test_masks_come_back_in_the_order_of_the_frames(street: Path) -> None:
    loaded = Street.open(street)
    tracklet = next(t for t in loaded.tracklets if len(t.frames) in (5, 6))
    masks = tracklet_masks(Seer(street), tracklet, 4, (64, 32))
    np.testing.assert_array_equal(masks[4], loaded.labels_of(tracklet) > 0)


def test_a_limit_draws_the_same_tracklets_every_time(street: Path) -> None:
    loaded = Street.open(street)
    few = loaded.sample(3)
    assert len(few) == 3
    assert few == loaded.sample(3)
    assert loaded.sample(100) == loaded.sample(None) == loaded.tracklets
    assert evaluate_street(Seer(street), street, 4, (64, 32), limit=3).tracklets == 3
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        loaded.sample(0)


def test_masks_may_lie_elsewhere(street: Path, tmp_path: Path) -> None:
    (tmp_path / "truth").symlink_to(street.with_name("street-masks"))
    (tmp_path / "street").symlink_to(street)
    with pytest.raises(NotFoundError, match="--masks"):
        Street.open(tmp_path / "street")
    assert len(Street.open(tmp_path / "street", tmp_path / "truth").tracklets) == 8


def test_an_encoder_without_masks_is_refused(street: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no COSAM"):
        evaluate_street(lambda batch: (np.zeros((len(batch), 8), np.float32), {}), street, 4, (64, 32))


def test_a_folder_that_is_no_street_is_refused(street: Path, tmp_path: Path) -> None:
    picture = next(street.rglob("*.jpg"))
    folder = tmp_path / "ann/entrance/1"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(picture.read_bytes())
    with pytest.raises(NotFoundError, match=r"no street\.json"):
        Street.open(tmp_path)
    truth = tmp_path.with_name("truth")
    truth.mkdir(exist_ok=True)
    for labels in ('{"hat": 4000}', '{"hat": "four"}', "[]"):
        (tmp_path / "street.json").write_text(f'{{"tracklets": [], "labels": {labels}}}')
        with pytest.raises(InvalidArgumentError, match=r"street\.json: names no labels"):
            Street.open(tmp_path, truth)
    (tmp_path / "street.json").write_text('{"tracklets": [], "labels": {"background": 0, "person": 1, "hat": 4}}')
    loaded = Street.open(tmp_path, truth)
    with pytest.raises(NotFoundError, match=r"1\.png is missing"):
        loaded.labels_of(loaded.tracklets[0])
    (truth / "ann/entrance/1").mkdir(parents=True)
    (truth / "ann/entrance/1/1.png").write_bytes(b"not a picture")
    with pytest.raises(InvalidArgumentError, match=r"1\.png: cannot be read"):
        loaded.labels_of(loaded.tracklets[0])


def test_neither_torch_nor_opencv_is_needed() -> None:
    modules = [f"passerby_model.{name}" for name in ("attention", "attention_sheet", "attention_cli", "street_labels")]
    program = f"import sys; sys.modules['torch'] = sys.modules['cv2'] = None; import {', '.join(modules)}"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_long_tracklet_comes_in_order_over_many_calls(street: Path) -> None:
    path = next(street.rglob("*.jpg"))
    tracklet = datasets.Tracklet("a", "b", "c", tuple([path] * 70))
    calls: list[int] = []

    def encode(batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], dict[int, NDArray[np.float32]]]:
        first = sum(calls) * 4
        calls.append(len(batch))
        numbers = ((first + np.arange(len(batch) * 4)) / 100).astype(np.float32)
        return np.zeros((len(batch), 1), np.float32), {4: numbers.reshape(-1, 4, 1, 1)}

    masks = tracklet_masks(encode, tracklet, 4, (64, 32))
    assert len(calls) > 1
    np.testing.assert_allclose(masks[4][:, 0, 0], np.arange(70) / 100, rtol=1e-6)
