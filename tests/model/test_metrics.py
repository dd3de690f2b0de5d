"""Ranking figures against the reference's golden output and hand-computed examples."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from passerby.errors import InvalidArgumentError
from passerby_model import distances, metrics


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


def test_descriptors_give_the_reference_ranking(golden):
    squared = metrics.squared_euclidean(golden["q_feat"], golden["g_feat"])
    np.testing.assert_allclose(squared, golden["distmat_sq"], rtol=1e-5)
    names = ("q_feat", "g_feat", "q_pids", "g_pids", "q_camids", "g_camids")
    result = metrics.evaluate_descriptors(*(golden[name] for name in names))
    np.testing.assert_allclose(result.average_precision, golden["ref_AP_per_query"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(result.cmc.astype(np.float32), golden["ref_cmc"])


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


def _literal(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, kind):
    """The protocol written down item by item: average precision (NaN: no match) and 0-based first match (-1)."""
    precisions, first_match = [], []
    for row, identity, camera in zip(distances.tolist(), query_ids, query_cameras, strict=True):
        counted = [
            (distance, item)
            for item, distance in enumerate(row)
            if gallery_ids[item] != -1 and not (gallery_ids[item] == identity and gallery_cameras[item] == camera)
        ]
        right = [gallery_ids[item] == identity for _, item in sorted(counted)]
        total, found = 0.0, 0
        for rank, hit in enumerate(right):
            if hit:
                before = found / rank if rank else 1.0
                found += 1
                total += found / (rank + 1) if kind == "plain" else (before + found / (rank + 1)) / 2
        precisions.append(total / found if found else np.nan)
        first_match.append(right.index(True) if found else -1)
    return np.array(precisions), np.array(first_match)


@st.composite
def _sets(draw):
    """Descriptors on a grid (exact distances, many ties) with junk (-1), distractors (0), queries without a match."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, gallery, span = draw(st.integers(1, 9)), draw(st.integers(1, 25)), draw(st.sampled_from([0, 1, 5]))
    mirrored = rng.integers(-span, span + 1, size=(gallery, 3))
    return {
        "query": rng.integers(-span, span + 1, size=(queries, 3)).astype(np.float32),
        # Mirrored, so that the mean is zero and distances stay exact.
        "gallery": np.concatenate([mirrored, -mirrored]).astype(np.float32),
        "query_ids": rng.integers(-1, 4, size=queries),
        "gallery_ids": rng.integers(-1, 4, size=2 * gallery),
        "query_cameras": rng.integers(3, size=queries),
        "gallery_cameras": rng.integers(3, size=2 * gallery),
    }


@given(
    data=_sets(),
    block_rows=st.integers(1, 10),
    kind=st.sampled_from(["plain", "trapezoid"]),
    few=st.sampled_from([0, 2, 40]),
)
def test_evaluate_descriptors_equals_the_protocol_written_down_literally(data, block_rows, kind, few):
    labels = {name: rows for name, rows in data.items() if name not in ("query", "gallery")}
    squared = ((data["query"][:, None] - data["gallery"][None]) ** 2).sum(axis=2)
    expected, first_match = _literal(squared, **labels, kind=kind)
    valid = first_match >= 0
    if not valid.any():
        with pytest.raises(InvalidArgumentError, match="no query has a match"):
            metrics.evaluate_descriptors(**data)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "FEW_MATCHES", few)  # counted or sorted: the same
        result = metrics.evaluate_descriptors(**data, block_rows=block_rows, average_precision=kind, max_rank=7)
    np.testing.assert_allclose(result.average_precision, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(result.first_match, first_match)
    assert result.valid_queries == valid.sum()
    assert result.mean_average_precision == pytest.approx(expected[valid].mean(), abs=1e-12)
    np.testing.assert_allclose(result.cmc, [(first_match[valid] <= rank).mean() for rank in range(7)], atol=1e-12)


def _random_set(queries=70, gallery=90, width=24):
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(12, width))
    query_ids, gallery_ids = rng.integers(12, size=queries), rng.integers(-1, 12, size=gallery)
    return {
        "query": (centres[query_ids] + 1.5 * rng.normal(size=(queries, width))).astype(np.float32),
        "gallery": (centres[gallery_ids] + 1.5 * rng.normal(size=(gallery, width))).astype(np.float32),
        "query_ids": query_ids,
        "gallery_ids": gallery_ids,
        "query_cameras": rng.integers(4, size=queries),
        "gallery_cameras": rng.integers(4, size=gallery),
    }


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
@pytest.mark.parametrize("block_rows", [1, 5, 1000])
def test_blocks_give_the_very_result_of_the_whole_matrix(metric, block_rows, monkeypatch):
    monkeypatch.setattr(distances, "TILE_ROWS", (16, 16))
    data = _random_set()
    found = metrics.evaluate_descriptors(**data, metric=metric, block_rows=block_rows)
    distance = metrics.squared_euclidean if metric == "squared_euclidean" else metrics.cosine_distance
    whole = distance(data.pop("query"), data.pop("gallery"))
    untouched = whole.copy()
    expected = metrics.evaluate(whole, **data)
    np.testing.assert_array_equal(whole, untouched)
    assert 0.1 < found.mean_average_precision < 0.9
    for name in ("cmc", "average_precision", "first_match", "mean_average_precision", "valid_queries"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_the_order_of_queries_and_gallery_does_not_matter():
    data = _random_set()
    rng = np.random.default_rng(6)
    queries, gallery = rng.permutation(70), rng.permutation(90)
    shuffled = {name: rows[queries if name.startswith("query") else gallery] for name, rows in data.items()}
    one, other = metrics.evaluate_descriptors(**data), metrics.evaluate_descriptors(**shuffled)
    np.testing.assert_array_equal(one.average_precision[queries], other.average_precision)
    np.testing.assert_array_equal(one.first_match[queries], other.first_match)
    np.testing.assert_array_equal(one.cmc, other.cmc)


def test_no_distance_matrix_is_held(monkeypatch):
    monkeypatch.setattr(distances, "TILE_ROWS", (16, 64))
    monkeypatch.setattr(distances, "TILE_BYTES", 1 << 18)
    data = _random_set(queries=2000, gallery=3000)
    tracemalloc.start()
    metrics.evaluate_descriptors(**data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20  # the matrix would be 24 MB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_ids": np.zeros(3, int)}, "query identities"),
        ({"gallery": np.zeros((90, 5), np.float32)}, "shapes"),
        ({"query": np.full((70, 24), np.nan, np.float32)}, "query descriptor 0"),
        ({"gallery": np.full((90, 24), np.inf, np.float32)}, "gallery descriptor 0"),
        ({"metric": "manhattan"}, "manhattan"),
        ({"max_rank": 0}, "max_rank"),
        ({"block_rows": 0}, "block_rows"),
        ({"average_precision": "best"}, "best"),
    ],
    ids=["queries", "width", "nan", "infinity", "metric", "max-rank", "block-rows", "average-precision"],
)
def test_bad_descriptors_and_options_are_refused(change, message):
    with pytest.raises(InvalidArgumentError, match=message):
        metrics.evaluate_descriptors(**(_random_set() | change))


def test_infinite_distances_rank_last():
    """A caller's way to leave an item out (benchmarks do): no NaN, and behind all others even where dropped ones are."""
    result = metrics.evaluate(
        np.array([[np.inf, 0.5, np.inf, np.inf]], np.float32),
        np.array([7]),
        np.array([7, 8, 9, 7]),
        np.array([0]),
        np.array([0, 1, 1, 1]),  # the first is dropped: own camera
    )
    assert result.first_match.tolist() == [2]  # behind the stranger at 0.5, and in gallery order behind the other
