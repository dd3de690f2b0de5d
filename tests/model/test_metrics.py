"""Distances and ranking figures against the reference's golden output and hand-computed examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from passerby.errors import InvalidArgumentError
from passerby_model import metrics


@pytest.fixture(scope="module")
def golden(shared: Path):
    with np.load(shared / "golden" / "eval_random.npz") as file:
        return dict(file)


def _evaluate(golden, **options):
    return metrics.evaluate(
        golden["distmat_sq"], golden["q_pids"], golden["g_pids"], golden["q_camids"], golden["g_camids"], **options
    )


def test_evaluate_equals_reference(golden):
    result = _evaluate(golden)
    np.testing.assert_array_equal(result.cmc.astype(np.float32), golden["ref_cmc"])
    np.testing.assert_allclose(result.average_precision, golden["ref_AP_per_query"], rtol=0, atol=1e-15)
    assert result.mean_average_precision == pytest.approx(float(golden["ref_mAP"]), abs=1e-15)
    assert result.valid_queries == golden["valid_query"].sum()
    within = np.where(result.first_match < 50, result.first_match, 50)
    np.testing.assert_array_equal(within, golden["ref_first_match_rank0"])


def test_trapezoid_average_precision_equals_official_mars(golden):
    result = _evaluate(golden, average_precision="trapezoid")
    np.testing.assert_allclose(
        result.average_precision[golden["valid_query"]], golden["tkp_AP_per_valid_query"], rtol=0, atol=1e-12
    )


def test_distances_from_features_give_the_reference_ranking(golden):
    distances = metrics.squared_euclidean(golden["q_feat"], golden["g_feat"])
    np.testing.assert_allclose(distances, golden["distmat_sq"], rtol=1e-5)
    result = metrics.evaluate(distances, golden["q_pids"], golden["g_pids"], golden["q_camids"], golden["g_camids"])
    assert result.mean_average_precision == pytest.approx(float(golden["ref_mAP"]), abs=1e-12)


@pytest.mark.parametrize(("kind", "expected"), [("plain", 0.5), ("trapezoid", 0.25)], ids=["plain", "trapezoid"])
def test_single_match_at_rank_two(kind, expected):
    result = metrics.evaluate(
        np.array([[0.1, 0.2]], np.float32),
        np.array([7]),
        np.array([8, 7]),
        np.array([0]),
        np.array([1, 1]),
        max_rank=5,
        average_precision=kind,
    )
    assert result.average_precision.tolist() == [expected]
    assert result.cmc.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]  # a gallery of two continues with its last value


def test_same_camera_and_junk_are_left_out_distractors_stay():
    result = metrics.evaluate(
        np.array([[0.0, 0.1, 0.2, 0.3]], np.float32),
        np.array([7]),
        np.array([7, -1, 0, 7]),  # own camera, junk, distractor, match
        np.array([0]),
        np.array([0, 1, 1, 1]),
    )
    assert result.first_match.tolist() == [1]
    assert result.average_precision.tolist() == [0.5]


def test_query_without_match_is_skipped_and_counted():
    result = metrics.evaluate(
        np.zeros((3, 2), np.float32), np.array([1, 2, -1]), np.array([1, -1]), np.zeros(3, int), np.ones(2, int)
    )
    assert result.valid_queries == 1
    assert np.isnan(result.average_precision).tolist() == [False, True, True]


def test_ties_are_ranked_in_gallery_order():
    ids = np.arange(100)
    result = metrics.evaluate(
        np.zeros((100, 100), np.float32), ids, ids, np.zeros(100, int), np.ones(100, int), max_rank=100
    )
    np.testing.assert_array_equal(result.first_match, ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_ids": np.array([1, 2])}, "query identities"),
        ({"gallery_cameras": np.array([1])}, "gallery cameras"),
        ({"max_rank": 0}, "max_rank"),
        ({"distances": np.array([[np.nan, 0.0]], np.float32)}, "NaN"),
        ({"query_ids": np.array([5])}, "no query has a match"),
    ],
    ids=["queries", "cameras", "max-rank", "nan", "no-match"],
)
def test_bad_input_is_refused(change, message):
    arguments = {
        "distances": np.zeros((1, 2), np.float32),
        "query_ids": np.array([1]),
        "gallery_ids": np.array([1, 2]),
        "query_cameras": np.array([0]),
        "gallery_cameras": np.array([1, 1]),
    }
    with pytest.raises(InvalidArgumentError, match=message):
        metrics.evaluate(**(arguments | change))


def test_squared_euclidean_keeps_precision_far_from_the_origin():
    rng = np.random.default_rng(0)
    a = (100.0 + rng.normal(size=(5, 2048))).astype(np.float32)
    b = (100.0 + rng.normal(size=(7, 2048))).astype(np.float32)
    exact = ((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(axis=2)
    np.testing.assert_allclose(metrics.squared_euclidean(a, b), exact, rtol=1e-5)


_ROWS = hnp.arrays(np.float32, (6, 4), elements=st.floats(-100, 100, width=32))


@given(a=_ROWS, b=_ROWS)
def test_distances_are_in_range(a, b):
    squared = metrics.squared_euclidean(a, b)
    exact = ((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(axis=2)
    np.testing.assert_allclose(squared, exact, rtol=1e-4, atol=0.1)
    cosine = metrics.cosine_distance(a, b)
    assert squared.min() >= 0.0
    assert 0.0 <= cosine.min() <= cosine.max() <= 2.0


def test_cosine_distance_by_hand():
    a = np.array([[2.0, 0.0], [0.0, 0.0]], np.float32)
    b = np.array([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], np.float32)
    np.testing.assert_allclose(metrics.cosine_distance(a, b), [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]], atol=1e-7)


@pytest.mark.parametrize("distance", [metrics.squared_euclidean, metrics.cosine_distance])
def test_empty_and_mismatched(distance):
    assert distance(np.ones((2, 3), np.float32), np.ones((0, 3), np.float32)).shape == (2, 0)
    with pytest.raises(InvalidArgumentError, match=r"\(2, 3\)"):
        distance(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))
