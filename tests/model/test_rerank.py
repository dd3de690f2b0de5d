"""k-reciprocal re-ranking against the reference's golden output, and the online form against the joint one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from passerby.errors import InvalidArgumentError
from passerby_model import rerank
from passerby_model.metrics import cosine_distance, evaluate, squared_euclidean, unit_rows


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
    distances = _joint(golden["q_feat"], golden["g_feat"])
    np.testing.assert_allclose(distances, golden["rerank_ranklist_dist"], rtol=0, atol=1e-5)
    result = evaluate(distances, golden["q_pids"], golden["g_pids"], golden["q_camids"], golden["g_camids"])
    assert result.mean_average_precision == pytest.approx(float(golden["rerank_ranklist_mAP"]), abs=1e-6)
    np.testing.assert_allclose(result.cmc, golden["rerank_ranklist_cmc"], atol=1e-6)


def test_blocks_do_not_change_the_result(golden, monkeypatch):
    monkeypatch.setattr(rerank, "BLOCK_ELEMENTS", 7 * 240)  # 7 rows of 240 items a block, the last one short
    distances = _joint(golden["q_feat"], golden["g_feat"])
    np.testing.assert_allclose(distances, golden["rerank_ranklist_dist"], rtol=0, atol=1e-5)


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


@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (5, 1, 0.0), (1, 1, 0.5), (7, 7, 1.0), (200, 3, 0.1)])
def test_equals_the_method_written_down_literally(k1, k2, weight):
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(9, 16))
    items = (centres[rng.integers(9, size=63)] + 0.4 * rng.normal(size=(63, 16))).astype(np.float32)
    squared = squared_euclidean(items, items)
    np.fill_diagonal(squared, 0.0)
    expected = _literal(squared.astype(np.float64), 3, k1, k2, weight)
    np.testing.assert_allclose(rerank.rerank_squared(squared, 3, k1, k2, weight), expected, rtol=0, atol=2e-6)


def test_brings_a_far_member_of_the_cluster_forward():
    """A stranger is a little nearer than the query's third shot, but shares no neighbours with the query."""
    rng = np.random.default_rng(0)
    person = np.linspace(0.0, 2.0, 8)[:, None] * np.array([1.0, 0.0]) + 0.01 * rng.normal(size=(8, 2))
    stranger = np.array([[-1.8, 0.0]]) + 0.01 * rng.normal(size=(8, 2))
    gallery = np.concatenate([person, stranger]).astype(np.float32)
    query = np.zeros(2, np.float32)
    assert squared_euclidean(query[None], gallery)[0].argsort()[7] >= 8
    assert set(rerank.shortlist_rerank(query, gallery, k1=8, k2=3).argsort()[:8].tolist()) == set(range(8))


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


def test_cosine_and_euclidean_agree_on_unit_vectors():
    rows = unit_rows(np.random.default_rng(2).normal(size=(20, 6)).astype(np.float32))
    np.testing.assert_allclose(squared_euclidean(rows, rows), 2 * cosine_distance(rows, rows), atol=1e-5)
