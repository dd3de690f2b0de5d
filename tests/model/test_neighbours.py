"""Exact neighbours by tiles against a stable sort of the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from passerby_model import distances
from passerby_model.distances import DistancesTo
from passerby_model.neighbours import nearest_among, nearest_columns


def _on_a_grid(seed: int, items: int, span: int):
    """Descriptors of small whole numbers: their float32 distances are exact, and often equal."""
    return np.random.default_rng(seed).integers(-span, span + 1, size=(items, 3)).astype(np.float32)


@given(seed=st.integers(0, 999), items=st.integers(1, 60), count=st.integers(1, 70), span=st.sampled_from([0, 1, 9]))
def test_nearest_columns_are_those_of_a_stable_sort(seed, items, count, span):
    rows = np.random.default_rng(seed).integers(0, span + 1, size=(4, items)).astype(np.float32)
    rows[0] *= -0.0  # a rounded product may be -0.0, which is no farther than 0.0
    expected = np.argsort(rows, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(nearest_columns(rows, count), expected)


@pytest.mark.parametrize("items", [1, 2, 7, 8, 9, 40, 70])
@pytest.mark.parametrize("span", [0, 1, 20], ids=["all-equal", "ties", "spread"])
@pytest.mark.parametrize("count", [1, 3, 21, 100])
def test_nearest_among_are_those_of_a_stable_sort(items, span, count, monkeypatch):
    monkeypatch.setattr(distances, "TILE_ROWS", (8, 8))
    descriptors = _on_a_grid(items, items, span)
    mirrored = np.concatenate([descriptors, -descriptors])  # their mean is zero: moving them by it keeps them whole
    squared = ((mirrored[:, None] - mirrored[None]) ** 2).sum(axis=2)
    found = nearest_among(DistancesTo(mirrored, "squared_euclidean"), count)
    order = np.argsort(squared, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(found.items, order)
    np.testing.assert_array_equal(found.distances, np.take_along_axis(squared, order, axis=1))
    np.testing.assert_array_equal(found.farthest, squared.max(axis=1))


def test_distances_of_pairs_are_known_or_computed(monkeypatch):
    monkeypatch.setattr(distances, "TILE_ROWS", (8, 8))
    descriptors = np.random.default_rng(0).normal(size=(30, 16)).astype(np.float32)
    among = DistancesTo(descriptors, "squared_euclidean")
    found = nearest_among(among, 5)
    rows, columns = np.divmod(np.arange(7 * 30, 19 * 30), 30)  # rows 7 to 18, all columns
    exact = ((descriptors[rows] - descriptors[columns]) ** 2).sum(axis=1)
    np.testing.assert_allclose(found.pairs(among, rows, columns), exact, rtol=1e-5, atol=1e-5)
    assert found.pairs(among, rows[:0], columns[:0]).shape == (0,)
