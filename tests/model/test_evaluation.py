"""From descriptors to a named result: figures equal the plain definition, attributes only regroup the queries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from passerby.errors import InvalidArgumentError
from passerby_model import metrics
from passerby_model.datasets import EvaluationSplit, Tracklet
from passerby_model.evaluation import DescriptorTable, attribute_results, measure, measure_open_set
from passerby_model.protocol import Rerank, Trial, trial

PEOPLE, CAMERAS = 12, 3


def people(hats: bool = True) -> tuple[Tracklet, ...]:
    return tuple(
        Tracklet(
            f"p{person:02d}",
            f"c{camera}",
            "t1",
            (Path(f"{person}-{camera}.jpg"),),
            {"hat": "yes" if person % 3 == 0 else "no", "height": f"{150 + person} cm"} if hats else {},
        )
        for person in range(PEOPLE)
        for camera in range(CAMERAS)
    )


def table(tracklets: tuple[Tracklet, ...], noise: float = 2.0) -> DescriptorTable:
    random = np.random.default_rng(0)
    centres = random.normal(size=(PEOPLE, 16))
    values = [centres[int(t.identity[1:]) % PEOPLE] + noise * random.normal(size=16) for t in tracklets]
    return DescriptorTable.of(
        tracklets,
        np.array(values, np.float32),
        metric="squared_euclidean",
        fingerprint="f" * 64,
        clip_scheme="dense, snippets of 4",
    )


def everyone(**options: object) -> Trial:
    tracklets = people()
    return trial(EvaluationSplit("all", (), tracklets, tracklets), "street", **options)  # type: ignore[arg-type]


def by_definition(found: Trial, descriptors: DescriptorTable, distances: np.ndarray | None = None) -> list[float]:
    """Average precision of each query, one after another."""
    if distances is None:
        a, b = descriptors.take(found.query).astype(float), descriptors.take(found.gallery).astype(float)
        distances = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    precisions = []
    for query, row in zip(found.query, distances, strict=True):
        ranked = [
            t.identity == query.identity
            for _, t in sorted(zip(row, found.gallery, strict=True), key=lambda pair: pair[0])
            if not (t.identity == query.identity and t.camera == query.camera)
        ]
        hits = np.flatnonzero(ranked)
        precisions.append(float(np.mean((np.arange(len(hits)) + 1) / (hits + 1))))
    return precisions


@pytest.mark.parametrize("protocol", ["all-vs-all", "by-camera"])
def test_figures_are_those_of_the_definition(protocol: str) -> None:
    found = everyone(protocol=protocol)
    descriptors = table(found.tracklets)
    result = measure(found, descriptors, data="street", format="street").result
    precisions = by_definition(found, descriptors)
    assert result.mean_average_precision == pytest.approx(np.mean(precisions))
    assert 0.1 < result.mean_average_precision < 0.95
    assert (result.queries, result.valid_queries, result.identities, result.cameras) == (
        len(found.query),
        len(found.query),
        PEOPLE,
        CAMERAS,
    )
    assert (result.gallery, result.junk, result.distractors) == (len(found.gallery), 0, 0)


def test_reranked_figures_come_from_reranked_distances() -> None:
    found = everyone(protocol="by-camera")
    descriptors = table(found.tracklets)
    options = Rerank(k1=6, k2=3, original_weight=0.4)
    ranking = measure(found, descriptors, data="street", format="street", reranking=options, lists=2)
    plain = measure(found, descriptors, data="street", format="street", lists=2)
    assert ranking.result.rerank == options
    assert ranking.result.mean_average_precision != plain.result.mean_average_precision
    assert max(distance for one in ranking.best for _, distance, _ in one.hits) <= 1.0 < plain.best[0].hits[0][1]


def test_lists_show_the_best_and_the_worst() -> None:
    found = everyone()
    descriptors = table(found.tracklets)
    ranking = measure(found, descriptors, data="street", format="street", lists=3, hits=5)
    precisions = by_definition(found, descriptors)
    assert [one.average_precision for one in ranking.best] == pytest.approx(sorted(precisions)[::-1][:3])
    assert [one.average_precision for one in ranking.worst] == pytest.approx(sorted(precisions)[:3])
    for one in (*ranking.best, *ranking.worst):
        distances = [distance for _, distance, _ in one.hits]
        assert len(distances) == 5
        assert distances == sorted(distances)
        assert all(right == (hit.identity == one.query.identity) for hit, _, right in one.hits)
        assert not any((hit.identity, hit.camera) == (one.query.identity, one.query.camera) for hit, _, _ in one.hits)


def test_attributes_regroup_the_queries() -> None:
    found = everyone()
    descriptors = table(found.tracklets)
    result = measure(found, descriptors, data="street", format="street", attributes=["hat"]).result
    precisions = np.array(by_definition(found, descriptors))
    hats = np.array([t.attributes["hat"] == "yes" for t in found.query])
    no, yes = result.attributes
    assert (no.value, yes.value) == ("no", "yes")
    assert (no.queries, yes.queries) == (int((~hats).sum()), int(hats.sum()))
    assert yes.mean_average_precision == pytest.approx(precisions[hats].mean())
    assert no.mean_average_precision == pytest.approx(precisions[~hats].mean())
    everything = measure(found, descriptors, data="street", format="street", attributes=["all"]).result.attributes
    assert {row.attribute for row in everything} == {"hat", "height"}  # 12 heights still group


def test_attributes_from_a_table_leave_others_out() -> None:
    found = everyone()
    labels = {"p00": {"bag": "red"}, "p01": {"bag": "blue"}, "p99": {"bag": "green"}}
    rows = measure(
        found, table(found.tracklets), data="street", format="street", attributes=["bag"], labels=labels
    ).result.attributes
    assert [(row.value, row.queries) for row in rows] == [("blue", CAMERAS), ("red", CAMERAS)]


def test_attributes_without_labels_are_refused() -> None:
    found = everyone()
    with pytest.raises(InvalidArgumentError, match="no query has a label for the attribute 'wig'; there are hat"):
        measure(found, table(found.tracklets), data="street", format="street", attributes=["wig"])
    ids, cameras = np.array([1, 2]), np.array([0, 0])
    details = metrics.evaluate(np.array([[0.0, 1.0]], np.float32), ids[:1], ids, cameras[:1] + 1, cameras)
    with pytest.raises(InvalidArgumentError, match="no query has an attribute"):
        attribute_results(people(hats=False)[:1], details, ["hat"])


def test_values_whose_queries_were_all_skipped_have_no_figures() -> None:
    tracklets = (*people(), Tracklet("p00", "c9", "lonely", (Path("x"),), {"hat": "crown"}))
    lonely = replace(tracklets[-1], identity="p98")
    tracklets = (*tracklets[:-1], lonely)
    found = trial(EvaluationSplit("all", (), tracklets, tracklets), "street")
    result = measure(found, table(tracklets), data="street", format="street", attributes=["hat"]).result
    assert result.skipped_queries == 1
    crown = next(row for row in result.attributes if row.value == "crown")
    assert (crown.queries, crown.valid_queries, crown.rank1, crown.mean_average_precision) == (1, 0, None, None)


def test_what_says_nothing_is_refused() -> None:
    def run(tracklets: tuple[Tracklet, ...]) -> None:
        found = trial(EvaluationSplit("all", (), tracklets, tracklets), "street")
        measure(found, table(tracklets), data="street", format="street")

    with pytest.raises(InvalidArgumentError, match="street, all: there is a single identity"):
        run(people()[:CAMERAS])
    with pytest.raises(InvalidArgumentError, match=r"none of the 12 queries has a match.*seen by camera c0"):
        run(tuple(t for t in people() if t.camera == "c0"))


def test_open_set_counts_each_pair_of_two_cameras_once() -> None:
    found = everyone(protocol="by-camera")  # whatever the protocol
    result = measure_open_set(found, table(found.tracklets), (0.1,))
    pairs = CAMERAS * (CAMERAS - 1) // 2
    assert result.genuine_pairs == PEOPLE * pairs
    assert result.impostor_pairs == PEOPLE * (PEOPLE - 1) * pairs


def test_distractors_are_no_friends_of_each_other() -> None:
    nobody = tuple(Tracklet("0000", f"c{i % 3}", f"t{i}", (Path(f"n{i}"),)) for i in range(6))
    junk = (Tracklet("00-1", "c1", "t1", (Path("j"),)),)
    tracklets = people()
    rest = (*(t for t in tracklets if t.camera != "c0"), *nobody, *junk)
    found = trial(EvaluationSplit("test", (), tracklets[::CAMERAS], rest), "mars", "A")
    random = np.random.default_rng(1)
    values = random.normal(size=(len(found.tracklets), 4)).astype(np.float32)
    descriptors = DescriptorTable.of(found.tracklets, values, metric="cosine", fingerprint="f", clip_scheme="dense")
    assert measure_open_set(found, descriptors, (0.1,)).genuine_pairs == PEOPLE * 3
    result = measure(found, descriptors, data="mars", format="mars").result
    assert (result.junk, result.distractors, result.identities) == (1, 6, PEOPLE)
