"""Distances of descriptors: against float64, by tiles, and pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from passerby.errors import InvalidArgumentError
from passerby_model import distances
from passerby_model.distances import DistancesTo, check_finite, cosine_distance, squared_euclidean, tiles, unit_rows

METRICS = {"squared_euclidean": squared_euclidean, "cosine": cosine_distance}


def _exact(a, b):
    return ((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(axis=2)


def test_squared_euclidean_keeps_precision_far_from_the_origin():
    rng = np.random.default_rng(0)
    a = (100.0 + rng.normal(size=(5, 2048))).astype(np.float32)
    b = (100.0 + rng.normal(size=(7, 2048))).astype(np.float32)
    np.testing.assert_allclose(squared_euclidean(a, b), _exact(a, b), rtol=1e-5)


_ROWS = hnp.arrays(np.float32, (6, 4), elements=st.floats(-100, 100, width=32))


@given(a=_ROWS, b=_ROWS)
def test_distances_are_in_range(a, b):
    squared = squared_euclidean(a, b)
    np.testing.assert_allclose(squared, _exact(a, b), rtol=1e-4, atol=0.1)
    cosine = cosine_distance(a, b)
    assert squared.min() >= 0.0
    assert 0.0 <= cosine.min() <= cosine.max() <= 2.0


def test_cosine_distance_by_hand():
    a = np.array([[2.0, 0.0], [0.0, 0.0]], np.float32)
    b = np.array([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], np.float32)
    np.testing.assert_allclose(cosine_distance(a, b), [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]], atol=1e-7)


@pytest.mark.parametrize("distance", METRICS.values())
def test_empty_and_mismatched(distance):
    assert distance(np.ones((2, 3), np.float32), np.ones((0, 3), np.float32)).shape == (2, 0)
    assert distance(np.ones((0, 3), np.float32), np.ones((2, 3), np.float32)).shape == (0, 2)
    with pytest.raises(InvalidArgumentError, match=r"\(2, 3\)"):
        distance(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))


@pytest.mark.parametrize("metric", METRICS)
def test_parts_are_the_numbers_of_the_whole(metric, monkeypatch):
    """Bit by bit where a tile is asked for as the whole is cut; to rounding for pairs and for parts of a set."""
    monkeypatch.setattr(distances, "TILE_ROWS", (8, 8))
    rng = np.random.default_rng(1)
    a = rng.normal(size=(50, 32)).astype(np.float32)
    b = rng.normal(size=(37, 32)).astype(np.float32)
    whole, to_b = METRICS[metric](a, b), DistancesTo(b, metric)
    assert [len(whole[rows]) for rows in tiles(50, 37)] == [8] * 6 + [2]
    for rows in tiles(50, 37):
        np.testing.assert_array_equal(to_b.of(a[rows]), whole[rows])
    own = METRICS[metric](b, b.copy())
    np.testing.assert_allclose(to_b.among(slice(5, 20), first=11), own[5:20, 11:], atol=1e-5)
    one, other = rng.integers(37, size=600), rng.integers(37, size=600)  # more than compared at a time
    np.testing.assert_allclose(to_b.pairs(one, other), own[one, other], atol=1e-4)
    assert own.max() <= to_b.bound()


def test_tiles_stay_within_their_bytes():
    assert [rows.stop - rows.start for rows in tiles(1980, 11310)] == [512, 512, 512, 444]
    assert {rows.stop - rows.start for rows in tiles(1280, 100_000)} == {128}  # 128 x 100,000 x 4 bytes < 64 MiB
    assert next(tiles(1000, 10_000_000)) == slice(0, 64)
    assert list(tiles(0, 5)) == []


def test_an_unknown_metric_is_refused():
    with pytest.raises(InvalidArgumentError, match="manhattan"):
        DistancesTo(np.ones((2, 3), np.float32), "manhattan")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"\(3,\)"):
        DistancesTo(np.ones(3, np.float32), "cosine")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e19], ids=str)
def test_what_has_no_distance_is_refused_by_its_row(value):
    rows = np.zeros((4, 3), np.float32)
    check_finite(rows, "gallery")
    check_finite(rows[:0], "gallery")
    rows[2, 1] = value
    with pytest.raises(InvalidArgumentError, match="gallery descriptor 2"):
        check_finite(rows, "gallery")


def test_unit_rows_scale_and_keep_zeros():
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0]], atol=1e-7)


def test_cosine_and_euclidean_agree_on_unit_vectors():
    rows = unit_rows(np.random.default_rng(2).normal(size=(20, 6)).astype(np.float32))
    np.testing.assert_allclose(squared_euclidean(rows, rows), 2 * cosine_distance(rows, rows), atol=1e-5)
