"""A calibrated bundle: every hit carries the decision that its distance calls for; rates that it cannot keep are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as search_v1
from passerby_model.bundle import Calibration, CalibrationPoint, NoMatch

from tests.encoders import make_bundle
from tests.server.live import LiveServer, refused, running
from tests.server.pictures import crops, sequence

DISTANCES = 6
QUERY = sequence(crops(4, seed=0))


def calibration(thresholds: tuple[float, float], no_match: float | None) -> Calibration:
    return Calibration(
        metric="squared_euclidean",
        data=("street",),
        protocol="all-vs-all",
        clip_scheme="dense",
        genuine_pairs=500,
        impostor_pairs=2_000,
        points=(
            CalibrationPoint(fmr=0.01, threshold=thresholds[0], fnmr=0.4, errors=9),
            CalibrationPoint(fmr=0.1, threshold=thresholds[1], fnmr=0.1, errors=9),
        ),
        no_match=NoMatch(fnmr=0.01, threshold=no_match) if no_match is not None else None,
    )


@pytest.fixture(scope="module")
def distances(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Distances of the stored tracklets to the query, ascending, by a server without calibration."""
    with running(make_bundle(tmp_path_factory.mktemp("plain")), tmp_path_factory.mktemp("data")) as live:
        answer = search(live, filled(live))
        assert {hit.decision for hit in answer.hits} == {search_v1.DECISION_UNSPECIFIED}
        return [hit.distance for hit in answer.hits]


@pytest.fixture(scope="module")
def live(distances: list[float], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Thresholds lie on and between those distances; the encoder is the same."""
    block = calibration((distances[1], distances[3]), (distances[4] + distances[5]) / 2)
    bundle = make_bundle(tmp_path_factory.mktemp("calibrated"), calibration=block)
    with running(bundle, tmp_path_factory.mktemp("data")) as server:
        yield server


def filled(live: LiveServer) -> str:
    gallery = live.new_gallery()
    for seed in range(1, DISTANCES + 1):
        live.ingest(gallery, sequence(crops(4, seed=seed)))
    return gallery


def search(live: LiveServer, gallery: str, **options: object) -> search_v1.SearchTrackletsResponse:
    request = search_v1.SearchTrackletsRequest(parent=gallery, frames=QUERY, **options)  # type: ignore[arg-type]
    return live.search.SearchTracklets(request, timeout=20)


@pytest.mark.parametrize(
    ("rate", "matches"),
    [(0.01, 2), (0.05, 2), (0.1, 4), (0.9, 4), (None, 2)],
    ids=["lowest", "between", "highest", "above", "default-is-the-lowest"],
)
def test_decisions_follow_the_distance(live: LiveServer, rate: float | None, matches: int) -> None:
    options = {} if rate is None else {"false_match_rate": rate}
    found = [hit.decision for hit in search(live, filled(live), **options).hits]
    uncertain = DISTANCES - 1 - matches
    assert found == [search_v1.DECISION_MATCH] * matches + [search_v1.DECISION_UNCERTAIN] * uncertain + [
        search_v1.DECISION_NO_MATCH
    ]


def test_a_gallery_has_a_rate_of_its_own_where_a_search_names_none(live: LiveServer) -> None:
    gallery = filled(live)
    changes = gallery_v1.UpdateGalleryRequest(
        gallery=resources.Gallery(name=gallery, false_match_rate=0.1), update_mask=FieldMask(paths=["false_match_rate"])
    )
    live.galleries.UpdateGallery(changes, timeout=20)
    matches = [
        [hit.decision for hit in search(live, gallery, **options).hits].count(search_v1.DECISION_MATCH)
        for options in ({}, {"false_match_rate": 0.01})
    ]
    assert matches == [4, 2]
    changes.gallery.false_match_rate = 0.001
    live.galleries.UpdateGallery(changes, timeout=20)
    assert refused(lambda: search(live, gallery)).reason == "CALIBRATION_TOO_COARSE"
    changes.gallery.false_match_rate = 1.0
    assert refused(lambda: live.galleries.UpdateGallery(changes, timeout=20)).violations


def test_a_gallerys_rate_waits_for_a_calibration(tmp_path: Path) -> None:
    with running(make_bundle(tmp_path / "plain"), tmp_path / "data") as plain:
        request = gallery_v1.CreateGalleryRequest(gallery_id="g", gallery=resources.Gallery(false_match_rate=0.1))
        gallery = plain.galleries.CreateGallery(request, timeout=20).gallery.name
        plain.ingest(gallery, sequence(crops(4, seed=1)))
        assert [hit.decision for hit in search(plain, gallery).hits] == [search_v1.DECISION_UNSPECIFIED]


def test_reranked_hits_are_judged_by_their_distance(live: LiveServer, distances: list[float]) -> None:
    answer = search(live, filled(live), rerank=search_v1.RerankOptions())
    assert all((hit.decision == search_v1.DECISION_MATCH) == (hit.distance <= distances[1]) for hit in answer.hits)


def test_a_rate_below_the_calibration_is_refused(live: LiveServer) -> None:
    gallery = live.new_gallery()
    error = refused(lambda: search(live, gallery, false_match_rate=0.001))
    assert error.reason == "CALIBRATION_TOO_COARSE"
    assert "2,000 pairs" in error.message
    assert "ask for 0.01 or more" in error.message


def test_the_model_says_that_it_is_calibrated(live: LiveServer) -> None:
    assert live.model.GetModelInfo(model_v1.GetModelInfoRequest()).model_info.calibrated


def test_a_gallery_of_another_model_gets_no_decision(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(make_bundle(tmp_path / "one"), data) as first:
        gallery = filled(first)
        stored = search(first, gallery).hits[0].tracklet.name
    other = make_bundle(tmp_path / "two", seed=1, calibration=calibration((0.1, 0.2), None))
    with running(other, data) as second:
        request = search_v1.SearchTrackletsRequest(parent=gallery, tracklet=stored)
        answer = second.search.SearchTracklets(request, timeout=20)
        assert {hit.decision for hit in answer.hits} == {search_v1.DECISION_UNSPECIFIED}
        request.false_match_rate = 0.1
        assert refused(lambda: second.search.SearchTracklets(request)).reason == "NOT_CALIBRATED"
