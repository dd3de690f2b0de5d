"""Protocols choose queries and gallery as they say; results carry their name; averages are averages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from passerby.errors import InvalidArgumentError
from passerby_model.datasets import EvaluationSplit, Tracklet
from passerby_model.protocol import EvaluationResult, Rerank, average, parse_protocol, trial


def seen(identity: str, camera: str, name: str = "t1") -> Tracklet:
    return Tracklet(identity, camera, name, (Path(f"{identity}{camera}{name}.jpg"),))


QUERY = (seen("0001", "1"), seen("0002", "2"))
GALLERY = (
    seen("0001", "1", "t2"),
    seen("0001", "2"),
    seen("0002", "1"),
    seen("0000", "3"),
    seen("00-1", "1"),
)
MARS = EvaluationSplit("test", (), QUERY, GALLERY)
PLAIN = EvaluationSplit("all", (), GALLERY, GALLERY)


def keys(tracklets: tuple[Tracklet, ...]) -> set[str]:
    return {tracklet.key for tracklet in tracklets}


def test_a_and_b_differ_in_the_queries_of_the_gallery() -> None:
    a, b = trial(MARS, "mars", "A"), trial(MARS, "mars", "B")
    assert (a.query, a.gallery) == (QUERY, GALLERY)
    assert b.query == QUERY
    assert keys(b.gallery) == keys(GALLERY) | keys(QUERY)
    assert len(b.gallery) == 7
    assert trial(MARS, "mars") == a  # the default where the data names queries


def test_nobody_is_searched_for_but_all_are_searched() -> None:
    found = trial(MARS, "mars", "all-vs-all")
    assert keys(found.query) == {t.key for t in (*QUERY, *GALLERY[:3])}
    assert keys(found.gallery) == keys(QUERY) | keys(GALLERY)
    ids, cameras = found.labels(found.gallery)
    by_key = {t.key: int(number) for t, number in zip(found.gallery, ids, strict=True)}
    assert by_key["0000/3/t1"] == 0
    assert by_key["00-1/1/t1"] == -1
    assert by_key["0001/1/t1"] == by_key["0001/2/t1"] > 0
    assert by_key["0001/1/t1"] != by_key["0002/1/t1"] > 0
    assert len(set(cameras.tolist())) == 3


def test_elsewhere_those_names_are_people() -> None:
    found = trial(PLAIN, "street")
    assert found.protocol == "all-vs-all"
    assert keys(found.query) == keys(GALLERY)
    assert found.labels(found.query)[0].min() > 0


def test_by_camera() -> None:
    found = trial(MARS, "mars", "by-camera")
    assert (found.query_camera, keys(found.query)) == ("1", {"0001/1/t1", "0001/1/t2", "0002/1/t1"})
    assert keys(found.gallery) == {"0001/2/t1", "0002/2/t1", "0000/3/t1"}
    assert trial(MARS, "mars", "by-camera", query_camera="2").query_camera == "2"


def test_allow_list() -> None:
    found = trial(MARS, "mars", "A", identities=["0001"])
    assert keys(found.query) | keys(found.gallery) == {"0001/1/t1", "0001/1/t2", "0001/2/t1"}


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        (PLAIN, {"protocol": "A"}, "does not name queries"),
        (PLAIN, {"protocol": "B"}, "all-vs-all or by-camera"),
        (MARS, {"protocol": "C"}, "unknown protocol 'C'; there are A, B"),
        (MARS, {"protocol": "A", "query_camera": "1"}, "belongs to the protocol by-camera"),
        (MARS, {"protocol": "by-camera", "query_camera": "9"}, "no person was seen by a camera '9'; there are 1, 2"),
        (MARS, {"protocol": "A", "identities": ["0001", "7"]}, "not in it: 7"),
        (EvaluationSplit("all", (), GALLERY[:1], GALLERY[:1]), {"protocol": "by-camera"}, "a single camera"),
    ],
)
def test_what_cannot_be_ranked(split: EvaluationSplit, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        trial(split, "mars", **options)


def test_official_mars_counts(shared: Path) -> None:
    """From the tables alone: the names of a million frames say nothing here."""
    from scipy.io import loadmat

    tables = shared / "data/meta/mars"
    rows = loadmat(tables / "tracks_test_info.mat")["track_test_info"].astype(int)
    asked = set((loadmat(tables / "query_IDX.mat")["query_IDX"].astype(int).ravel() - 1).tolist())
    names = {-1: "00-1", 0: "0000"}
    tracklets = [
        Tracklet(names.get(identity, f"{identity:04d}"), str(camera), str(number), (Path(str(number)),))
        for number, (_, _, identity, camera) in enumerate(rows.tolist())
    ]
    query = tuple(tracklet for number, tracklet in enumerate(tracklets) if number in asked)
    gallery = tuple(tracklet for number, tracklet in enumerate(tracklets) if number not in asked)
    split = EvaluationSplit("test", (), query, gallery)
    a, b = trial(split, "mars", "A"), trial(split, "mars", "B")
    for found, valid in ((a, 1840), (b, 1980)):
        ids, cameras = found.labels(found.gallery)
        seen = {(int(identity), int(camera)) for identity, camera in zip(ids, cameras, strict=True)}
        by_identity: dict[int, set[int]] = {}
        for identity, camera in seen:
            by_identity.setdefault(identity, set()).add(camera)
        queries = zip(*(numbers.tolist() for numbers in found.labels(found.query)), strict=True)
        assert sum(bool(by_identity.get(i, set()) - {c}) for i, c in queries) == valid
    ids, cameras = a.labels(a.gallery)
    assert (len(a.query), int((ids != -1).sum()), len(b.gallery)) == (1980, 9330, 12180)
    assert len(set(cameras.tolist())) == 6


RESULT = EvaluationResult(
    data="mars",
    format="mars",
    split="test",
    protocol="A",
    query_camera="",
    average_precision="plain",
    metric="squared_euclidean",
    rerank=None,
    clip_scheme="dense, snippets of 4",
    queries=10,
    valid_queries=8,
    gallery=50,
    junk=1,
    distractors=2,
    identities=5,
    cameras=2,
    model="f" * 64,
    mean_average_precision=0.5,
    cmc=(0.4, 0.6, 1.0),
)


def test_a_result_names_its_protocol() -> None:
    assert RESULT.protocol_name == "A, plain AP, squared Euclidean distance, dense, snippets of 4"
    other = replace(RESULT, protocol="by-camera", query_camera="c1", average_precision="trapezoid", rerank=Rerank())
    assert other.protocol_name == (
        "by-camera c1, trapezoid AP, squared Euclidean distance, re-ranked (k1 20, k2 6, weight 0.3), dense, snippets of 4"
    )
    written = json.loads(json.dumps(RESULT.to_dict()))
    assert written["name"] == RESULT.protocol_name
    assert written["skipped_queries"] == 2
    assert [RESULT.rank(r) for r in (1, 3, 20)] == [0.4, 1.0, 1.0]


def test_average_of_splits() -> None:
    results = [replace(RESULT, split="1"), replace(RESULT, split="2", mean_average_precision=0.7, cmc=(0.6, 0.8, 1.0))]
    found = average(results)
    assert found.splits == 2
    assert found.mean_average_precision == pytest.approx(0.6)
    assert found.mean_average_precision_deviation == pytest.approx(0.1 * 2**0.5)
    assert found.cmc == pytest.approx((0.5, 0.7, 1.0))
    assert found.cmc_deviation == pytest.approx((0.1 * 2**0.5, 0.1 * 2**0.5, 0.0))
    with pytest.raises(InvalidArgumentError, match="1 results"):
        average(results[:1])
    with pytest.raises(InvalidArgumentError, match="2 kinds"):
        average([RESULT, replace(RESULT, average_precision="trapezoid")])


def test_protocols_are_found_whatever_the_case() -> None:
    assert [parse_protocol(text) for text in ("a", "B", "ALL-vs-all", None)] == ["A", "B", "all-vs-all", None]
    with pytest.raises(InvalidArgumentError, match="there are A, B, all-vs-all, by-camera"):
        parse_protocol("everyone")
