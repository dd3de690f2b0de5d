"""Open-set figures against their definitions, pair by pair and search by search."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from passerby.errors import InvalidArgumentError
from passerby_model import distances
from passerby_model.metrics import squared_euclidean
from passerby_model.openset import open_set


def _pairs(squared, ids, cameras, cross_camera_only, distractor):
    """(distance, genuine, item, item) of all pairs that count, by the definition."""
    for a, b in itertools.combinations(range(len(ids)), 2):
        if -1 in (ids[a], ids[b]) or (cross_camera_only and cameras[a] == cameras[b]):
            continue
        if ids[a] == ids[b] == distractor:
            continue
        yield float(squared[a, b]), bool(ids[a] == ids[b]), a, b


def _expected(rate, impostors, genuine):
    """(threshold, false-positive rate, false-negative rate): tries every impostor distance as a threshold."""
    best = None
    for threshold in sorted(set(impostors)):
        positives = sum(distance <= threshold for distance in impostors)
        if positives <= rate * len(impostors) * (1 + 1e-12):
            best = (
                threshold,
                positives / len(impostors),
                sum(distance > threshold for distance in genuine) / len(genuine),
            )
    return best or (None, None, None)


def _figures(point):
    return point.threshold, point.false_positive_rate, point.false_negative_rate


@st.composite
def _sets(draw):
    """Small whole numbers, mirrored: exact distances, many of them equal; junk (-1) and possible distractors (0)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    half = rng.integers(-3, 4, size=(draw(st.integers(2, 16)), draw(st.sampled_from([1, 3]))))
    descriptors = np.concatenate([half, -half]).astype(np.float32)
    return descriptors, rng.integers(-1, 5, size=len(descriptors)), rng.integers(3, size=len(descriptors))


@given(
    data=_sets(),
    cross=st.booleans(),
    distractor=st.sampled_from([None, 0]),
    rates=st.lists(st.sampled_from([0.5, 0.25, 0.1, 0.03, 1e-3]), min_size=1, max_size=3),
    block_rows=st.integers(1, 12),
)
def test_equals_the_definitions(data, cross, distractor, rates, block_rows):
    descriptors, ids, cameras = data
    squared = ((descriptors[:, None] - descriptors[None]) ** 2).sum(axis=2)
    # The mean is that of the items without junk; taking the junk's mirror images for junk keeps it at zero.
    ids = np.where(np.roll(ids, len(ids) // 2) == -1, -1, ids)
    pairs = list(_pairs(squared, ids, cameras, cross, distractor))
    genuine = [distance for distance, same, _, _ in pairs if same]
    impostors = [distance for distance, same, _, _ in pairs if not same]
    options = {"cross_camera_only": cross, "distractor_identity": distractor, "rates": rates, "block_rows": block_rows}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "TILE_ROWS", (8, 8))
        if not genuine or not impostors:
            with pytest.raises(InvalidArgumentError, match="both are needed"):
                open_set(descriptors, ids, cameras, **options)
            return
        result = open_set(descriptors, ids, cameras, **options)
    assert (result.genuine_pairs, result.impostor_pairs) == (len(genuine), len(impostors))
    for rate, point in zip(rates, result.verification, strict=True):
        assert _figures(point) == pytest.approx(_expected(rate, impostors, genuine))
        assert point.errors == round((point.false_positive_rate or 0) * len(impostors))
        assert point.target == rate
        assert point.supported == (point.threshold is not None)
    _check_histogram(result, genuine, impostors)
    _check_identification(result, rates, pairs, ids, distractor)


def _check_histogram(result, genuine, impostors):
    assert result.edges[0] == 0.0
    assert result.edges[-1] > max(genuine + impostors)
    for counts, values in ((result.genuine_counts, genuine), (result.impostor_counts, impostors)):
        np.testing.assert_array_equal(counts, np.histogram(values, result.edges)[0])


def _check_identification(result, rates, pairs, ids, distractor):
    nearest: dict[bool, dict[int, float]] = {True: {}, False: {}}
    for distance, same, *items in pairs:
        for probe in items:
            if ids[probe] != distractor:
                nearest[same][probe] = min(distance, nearest[same].get(probe, np.inf))
    strangers = list(nearest[False].values())
    found = [
        distance if distance < nearest[False].get(probe, np.inf) else np.inf  # somebody else is as near
        for probe, distance in nearest[True].items()
    ]
    assert (result.mated_searches, result.non_mated_searches) == (len(found), len(strangers))
    for rate, point in zip(rates, result.identification, strict=True):
        assert _figures(point) == pytest.approx(_expected(rate, strangers, found))


def _clusters(items=600, identities=40, width=16):
    rng = np.random.default_rng(3)
    ids = rng.integers(identities, size=items)
    descriptors = rng.normal(size=(identities, width))[ids] + 0.5 * rng.normal(size=(items, width))
    return descriptors.astype(np.float32), ids, rng.integers(5, size=items)


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
def test_the_threshold_keeps_the_promised_rate(metric):
    descriptors, ids, cameras = _clusters()
    points = open_set(descriptors, ids, cameras, metric=metric).verification
    assert [point.target for point in points] == [1e-2, 1e-3, 1e-4]
    assert all(point.supported for point in points)
    thresholds, rates, costs = np.array([_figures(point) for point in points], float).T
    assert (rates <= [1e-2, 1e-3, 1e-4]).all()
    assert (rates > [0.9e-2, 0.9e-3, 0.9e-4]).all()
    assert (np.diff(thresholds) < 0).all()
    assert (np.diff(costs) > 0).all()
    assert 0.0 < costs[0] < costs[-1] < 1.0


def test_neither_order_nor_blocks_matter(monkeypatch):
    descriptors, ids, cameras = _clusters()
    whole = open_set(descriptors, ids, cameras)
    order = np.random.default_rng(0).permutation(len(ids))
    monkeypatch.setattr(distances, "TILE_ROWS", (64, 64))
    other = open_set(descriptors[order], ids[order], cameras[order], block_rows=7)
    for one, same in zip(
        whole.verification + whole.identification, other.verification + other.identification, strict=True
    ):
        assert (one.errors, one.false_negative_rate) == (same.errors, same.false_negative_rate)
        assert (one.threshold is None) == (same.threshold is None)
        if one.threshold is not None:
            assert one.threshold == pytest.approx(same.threshold, rel=1e-5)
    assert (whole.genuine_pairs, whole.mated_searches) == (other.genuine_pairs, other.mated_searches)


def test_a_rate_that_the_pairs_do_not_support_is_not_invented():
    descriptors, ids, cameras = _clusters(items=60, identities=20)
    result = open_set(descriptors, ids, cameras, rates=(1e-2, 1e-4))
    assert 100 < result.impostor_pairs < 10_000
    assert [point.supported for point in result.verification] == [True, False]
    assert _figures(result.verification[1]) == (None, None, None)
    assert result.verification[1].errors == 0
    assert not any(point.supported for point in result.identification)  # 60 searches


def test_nor_one_that_ties_make_unreachable():
    """Half of all impostors at distance 0: any threshold lets half of them in."""
    descriptors = np.array([[0.0], [0.0], [0.0], [1.0]], np.float32)
    result = open_set(descriptors, np.array([1, 2, 3, 3]), np.array([0, 1, 2, 3]), rates=(0.25, 0.65))
    assert result.impostor_pairs == 5
    assert not result.verification[0].supported
    assert _figures(result.verification[1]) == (0.0, 0.6, 1.0)


def test_distances_of_one_camera_do_not_count_unless_asked():
    descriptors = np.array([[0.0], [0.1], [1.0], [5.0]], np.float32)
    ids, cameras = np.array([1, 1, 1, 2]), np.array([0, 0, 1, 1])
    across = open_set(descriptors, ids, cameras, rates=(0.5,))
    assert (across.genuine_pairs, across.impostor_pairs) == (2, 2)
    anywhere = open_set(descriptors, ids, cameras, rates=(0.5,), cross_camera_only=False)
    assert (anywhere.genuine_pairs, anywhere.impostor_pairs) == (3, 3)


def test_a_search_that_finds_somebody_else_as_near_has_missed():
    descriptors = np.array([[0.0], [1.0], [-1.0], [-9.0]], np.float32)
    result = open_set(descriptors, np.array([1, 1, 2, 2]), np.array([0, 1, 1, 0]), rates=(0.5,))
    # Nearest genuine and impostor of each: 1 and 1, 1 and 100, 64 and 1, 64 and 100.
    assert _figures(result.identification[0]) == (1.0, 0.5, 0.75)


def test_distractors_are_strangers_to_everybody_known_only():
    descriptors = np.array([[0.0], [1.0], [5.0], [5.5]], np.float32)
    ids, cameras = np.array([7, 7, 0, 0]), np.array([0, 1, 0, 1])
    result = open_set(descriptors, ids, cameras, distractor_identity=0, rates=(0.5,))
    assert (result.genuine_pairs, result.impostor_pairs) == (1, 2)
    assert (result.mated_searches, result.non_mated_searches) == (2, 2)


def test_no_distance_matrix_is_held(monkeypatch):
    monkeypatch.setattr(distances, "TILE_ROWS", (16, 64))
    monkeypatch.setattr(distances, "TILE_BYTES", 1 << 18)
    descriptors, ids, cameras = _clusters(items=3000, identities=600, width=4)
    tracemalloc.start()
    open_set(descriptors, ids, cameras)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20  # the matrix would be 36 MB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.zeros(3, int)}, "identities"),
        ({"descriptors": np.full((600, 16), np.nan, np.float32)}, "tracklet descriptor 0"),
        ({"ids": np.zeros(600, int)}, "0 of two people in different cameras"),
        ({"ids": np.arange(600)}, "0 pairs of one person"),
        ({"cameras": np.zeros(600, int)}, "0 pairs of one person and 0 of two people"),
        ({"rates": ()}, "rates"),
        ({"rates": (0.1, 1.0)}, "rates"),
        ({"metric": "manhattan"}, "manhattan"),
        ({"block_rows": 0}, "block_rows"),
    ],
    ids=["ids", "nan", "one-person", "all-strangers", "one-camera", "no-rates", "rate-of-one", "metric", "block-rows"],
)
def test_bad_input_is_refused(change, message):
    descriptors, ids, cameras = _clusters()
    arguments = {"descriptors": descriptors, "ids": ids, "cameras": cameras}
    with pytest.raises(InvalidArgumentError, match=message):
        open_set(**(arguments | change))


def test_thresholds_are_distances_of_the_metric():
    """What the threshold lets in is what a search with the same metric would let in."""
    descriptors, ids, cameras = _clusters()
    point = open_set(descriptors, ids, cameras).verification[0]
    squared = squared_euclidean(descriptors, descriptors)
    impostor = np.triu((ids[:, None] != ids[None]) & (cameras[:, None] != cameras[None]))
    accepted = int((squared[impostor] <= point.threshold).sum())
    assert abs(accepted - point.errors) <= 1  # the last bit of the very pair at the threshold
