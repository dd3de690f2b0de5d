"""k-reciprocal re-ranking against the reference's golden output, and the online form against the joint one."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passerby.errors import InvalidArgumentError
from passerby_model import distances, rerank
from passerby_model.metrics import evaluate, squared_euclidean, unit_rows


@pytest.fixture(scope="module")
def golden(shared: Path):
    with np.load(shared / "golden" / "eval_random.npz") as file:
        return dict(file)


def _euclidean(a, b):
    """Euclidean distances in float64, as the golden was made to the last bits that matter."""
    return np.sqrt(((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(axis=2)).astype(np.float32)


def _joint(queries, gallery, **options):
    return rerank.k_reciprocal(
        _euclidean(queries, gallery), _euclidean(queries, queries), _euclidean(gallery, gallery), **options
    )


def test_joint_equals_reference(golden):
    found = _joint(golden["q_feat"], golden["g_feat"])
    np.testing.assert_allclose(found, golden["rerank_ranklist_dist"], rtol=0, atol=1e-5)
    result = evaluate(found, golden["q_pids"], golden["g_pids"], golden["q_camids"], golden["g_camids"])
    assert result.mean_average_precision == pytest.approx(float(golden["rerank_ranklist_mAP"]), abs=1e-6)
    np.testing.assert_allclose(result.cmc, golden["rerank_ranklist_cmc"], atol=1e-6)


def test_blocks_do_not_change_the_result(golden, monkeypatch):
    monkeypatch.setattr(rerank, "BLOCK_ELEMENTS", 7 * 240)  # 7 rows of 240 items a block, the last one short
    found = _joint(golden["q_feat"], golden["g_feat"])
    np.testing.assert_allclose(found, golden["rerank_ranklist_dist"], rtol=0, atol=1e-5)


def test_shortlist_of_everything_equals_joint_with_one_query(golden):
    for query in golden["q_feat"][:8]:
        online = rerank.shortlist_rerank(query, golden["g_feat"])
        np.testing.assert_allclose(online, _joint(query[None], golden["g_feat"])[0], rtol=0, atol=1e-5)


def test_cosine_shortlist_equals_joint_on_unit_vectors(golden):
    query, gallery = golden["q_feat"][:1], golden["g_feat"]
    online = rerank.shortlist_rerank(query[0] * 3.0, gallery, "cosine")
    np.testing.assert_allclose(online, _joint(unit_rows(query), unit_rows(gallery))[0], rtol=0, atol=1e-5)


def _literal(squared, query_count, k1, k2, weight):
    """The method written down item by item with sets, in float64: slow and plain."""
    items = len(squared)
    distance = squared / squared.max(axis=1, keepdims=True)
    rank = np.argsort(distance, axis=1, kind="stable")

    def reciprocal(i, k):
        return {int(j) for j in rank[i, : k + 1] if i in rank[j, : k + 1]}

    encoding = np.zeros((items, items))
    for i in range(items):
        own = reciprocal(i, k1)
        expanded = set(own)
        for j in own:
            other = reciprocal(j, round(k1 / 2))
            if len(other & own) > 2 / 3 * len(other):
                expanded |= other
        members = sorted(expanded)
        encoding[i, members] = np.exp(-distance[i, members])
        encoding[i] /= encoding[i].sum()
    if k2 > 1:
        encoding = np.stack([encoding[rank[i, :k2]].mean(axis=0) for i in range(items)])
    minima = np.minimum(encoding[:query_count, None], encoding[None]).sum(axis=2)
    maxima = np.maximum(encoding[:query_count, None], encoding[None]).sum(axis=2)
    return ((1 - minima / maxima) * (1 - weight) + distance[:query_count] * weight)[:, query_count:]


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (5, 1, 0.0), (1, 1, 0.5), (7, 7, 1.0), (200, 3, 0.1)])
def test_equals_the_method_written_down_literally(k1, k2, weight, queries):
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(9, 16))
    items = (centres[rng.integers(9, size=63)] + 0.4 * rng.normal(size=(63, 16))).astype(np.float32)
    squared = squared_euclidean(items, items)
    np.fill_diagonal(squared, 0.0)
    expected = _literal(squared.astype(np.float64), queries, k1, k2, weight)
    np.testing.assert_allclose(rerank.rerank_squared(squared, queries, k1, k2, weight), expected, rtol=0, atol=2e-6)


def test_brings_a_far_member_of_the_cluster_forward():
    """A stranger is a little nearer than the query's third shot, but shares no neighbours with the query."""
    rng = np.random.default_rng(0)
    person = np.linspace(0.0, 2.0, 8)[:, None] * np.array([1.0, 0.0]) + 0.01 * rng.normal(size=(8, 2))
    stranger = np.array([[-1.8, 0.0]]) + 0.01 * rng.normal(size=(8, 2))
    gallery = np.concatenate([person, stranger]).astype(np.float32)
    query = np.zeros(2, np.float32)
    assert squared_euclidean(query[None], gallery)[0].argsort()[7] >= 8
    assert set(rerank.shortlist_rerank(query, gallery, k1=8, k2=3).argsort()[:8].tolist()) == set(range(8))


@pytest.fixture
def tiles_of_eight(monkeypatch):
    """Tiles so small that a test's few items make many."""
    monkeypatch.setattr(distances, "TILE_ROWS", (8, 8))


@pytest.mark.parametrize("block_rows", [None, 1, 5])
def test_descriptors_equal_reference(golden, tiles_of_eight, block_rows):
    found = rerank.k_reciprocal_descriptors(golden["q_feat"], golden["g_feat"], block_rows=block_rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, golden["rerank_ranklist_dist"], rtol=0, atol=1e-5)


def test_blocks_come_in_order_and_make_up_the_whole(golden, tiles_of_eight):
    blocks = list(rerank.k_reciprocal_blocks(golden["q_feat"], golden["g_feat"], block_rows=3))
    assert [rows.start for rows, _ in blocks[:4]] == [0, 3, 6, 8]  # a tile ends at 8
    assert blocks[-1][0].stop == len(golden["q_feat"])
    whole = rerank.k_reciprocal_descriptors(golden["q_feat"], golden["g_feat"])
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), whole)


def _clusters(seed, items, width=16, spread=0.4):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(9, width))
    return (centres[rng.integers(9, size=items)] + spread * rng.normal(size=(items, width))).astype(np.float32)


@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (5, 1, 0.0), (1, 1, 0.5), (7, 7, 1.0), (200, 3, 0.1)])
def test_descriptors_equal_the_method_written_down_literally(tiles_of_eight, k1, k2, weight):
    items = _clusters(4, 63)
    expected = _literal(_euclidean(items, items).astype(np.float64) ** 2, 5, k1, k2, weight)
    found = rerank.k_reciprocal_descriptors(items[:5], items[5:], k1=k1, k2=k2, original_weight=weight)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_cosine_descriptors_equal_euclidean_ones_of_unit_vectors(golden, tiles_of_eight):
    query, gallery = golden["q_feat"], golden["g_feat"]
    cosine = rerank.k_reciprocal_descriptors(query * 3.0, gallery, metric="cosine")
    unit = rerank.k_reciprocal_descriptors(unit_rows(query), unit_rows(gallery))
    np.testing.assert_allclose(cosine, unit, rtol=0, atol=1e-5)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 6),
    gallery=st.integers(1, 40),
    k1=st.integers(1, 60),
    copies=st.integers(1, 3),
)
def test_descriptors_equal_the_distance_matrix_form(seed, queries, gallery, k1, copies):
    """Whatever the sizes (fewer items than neighbours too), and with duplicates, whose ties go by item order.

    Descriptors are small whole numbers, mirrored so that their mean is zero: all distances are exact.
    """
    half = np.random.default_rng(seed).integers(-2, 3, size=(queries + gallery, 3)).repeat(copies, axis=0)
    items = np.concatenate([half, -half]).astype(np.float32)
    squared = ((items[:, None] - items[None]) ** 2).sum(axis=2)
    k2 = min(6, k1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "TILE_ROWS", (8, 8))
        found = rerank.k_reciprocal_descriptors(items[:queries], items[queries:], k1=k1, k2=k2)
    np.testing.assert_allclose(found, rerank.rerank_squared(squared, queries, k1, k2), rtol=0, atol=1e-6)


def test_the_order_of_the_gallery_does_not_matter(tiles_of_eight):
    items = _clusters(5, 90)
    order = np.random.default_rng(0).permutation(80)
    one = rerank.k_reciprocal_descriptors(items[:10], items[10:])
    other = rerank.k_reciprocal_descriptors(items[:10], items[10:][order])
    np.testing.assert_allclose(one[:, order], other, rtol=0, atol=2e-6)


def test_no_matrix_of_all_items_is_held(monkeypatch):
    monkeypatch.setattr(distances, "TILE_ROWS", (16, 64))
    monkeypatch.setattr(distances, "TILE_BYTES", 1 << 18)
    monkeypatch.setattr(rerank, "BLOCK_ELEMENTS", 1 << 17)
    items = _clusters(6, 4000, width=8)
    tracemalloc.start()
    for _rows, _block in rerank.k_reciprocal_blocks(items[:100], items[100:]):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20  # one matrix of distances would be 64 MB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": np.zeros((2, 5), np.float32)}, "shapes"),
        ({"gallery": np.full((3, 4), np.nan, np.float32)}, "gallery descriptor 0"),
        ({"query": np.full((2, 4), np.inf, np.float32)}, "query descriptor 0"),
        ({"metric": "manhattan"}, "manhattan"),
        ({"k1": 0}, "k1"),
        ({"k2": 30}, "k2"),
        ({"original_weight": -0.1}, "original_weight"),
        ({"block_rows": 0}, "block_rows"),
    ],
    ids=["width", "nan", "infinity", "metric", "k1", "k2", "weight", "block-rows"],
)
def test_bad_descriptors_and_options_are_refused(change, message):
    arguments = {"query": np.zeros((2, 4), np.float32), "gallery": np.zeros((3, 4), np.float32)}
    with pytest.raises(InvalidArgumentError, match=message):
        rerank.k_reciprocal_descriptors(**(arguments | change))


@pytest.mark.parametrize(("queries", "gallery"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_rank(queries, gallery):
    found = rerank.k_reciprocal_descriptors(np.ones((queries, 4), np.float32), np.ones((gallery, 4), np.float32))
    assert found.shape == (queries, gallery)


def test_ties_and_duplicates_are_stable():
    gallery = np.repeat(np.eye(5, dtype=np.float32), 10, axis=0)
    distances = rerank.shortlist_rerank(gallery[0], gallery)
    assert np.isfinite(distances).all()
    assert distances[:10].max() < distances[10:].min()
    assert np.ptp(distances[:10]) < 1e-6


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_fewer_candidates_than_neighbours(metric, count):
    rng = np.random.default_rng(1)
    distances = rerank.shortlist_rerank(
        rng.normal(size=8).astype(np.float32), rng.normal(size=(count, 8)).astype(np.float32), metric
    )
    assert distances.shape == (count,)
    assert distances.dtype == np.float32
    assert ((distances >= 0.0) & (distances <= 1.0 + 1e-6)).all()


def test_all_candidates_identical_to_the_query():
    distances = rerank.shortlist_rerank(np.ones(4, np.float32), np.ones((30, 4), np.float32))
    np.testing.assert_allclose(distances, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k1": 0}, "k1"),
        ({"k2": 0}, "k2"),
        ({"k1": 3, "k2": 4}, "k2"),
        ({"original_weight": 1.5}, "original_weight"),
        ({"original_weight": float("nan")}, "original_weight"),
        ({"metric": "manhattan"}, "manhattan"),
    ],
    ids=["k1", "k2", "k2-above-k1", "weight", "weight-nan", "metric"],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        rerank.shortlist_rerank(np.ones(4, np.float32), np.ones((3, 4), np.float32), **options)


def test_mismatched_shapes_are_refused():
    with pytest.raises(InvalidArgumentError, match="got"):
        rerank.shortlist_rerank(np.ones(4, np.float32), np.ones((3, 5), np.float32))
    with pytest.raises(InvalidArgumentError, match="got"):
        rerank.k_reciprocal(np.ones((2, 3), np.float32), np.ones((3, 3), np.float32), np.ones((3, 3), np.float32))
