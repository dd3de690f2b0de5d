"""Descriptors of a trial -> figures with their name, attribute-wise figures, ranked lists (no torch).

trial + descriptors -> ranking (block-wise, re-ranked or not) -> EvaluationResult
                                                              -> per attribute: the same queries, grouped
                                                              -> ranked lists of chosen queries, for pictures
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError

from passerby_model import metrics, openset, protocol, rerank
from passerby_model.datasets import Tracklet
from passerby_model.distances import DistancesTo, Metric
from passerby_model.metrics import AveragePrecision, RankingResult
from passerby_model.protocol import AttributeResult, EvaluationResult, Rerank, Trial

MAX_ATTRIBUTE_VALUES = 12
"""An attribute with more values (a name, a height) groups nobody; "all" passes it over."""


@dataclass(frozen=True)
class DescriptorTable:
    """The descriptors of many tracklets, and the space that they live in.

    rows: tracklet key -> row of `values`, float32 (T, D). fingerprint: of the model. clip_scheme: see `ClipScheme`.
    """

    rows: Mapping[str, int]
    values: NDArray[np.float32]
    metric: Metric
    fingerprint: str
    clip_scheme: str

    @classmethod
    def of(
        cls,
        tracklets: Sequence[Tracklet],
        values: NDArray[np.float32],
        *,
        metric: Metric,
        fingerprint: str,
        clip_scheme: str,
    ) -> DescriptorTable:
        """A table of `values`, float32 (T, D), row t for tracklet t."""
        if len(tracklets) != len(values):
            raise InvalidArgumentError(f"{len(tracklets)} tracklets and {len(values)} descriptors")
        rows = {tracklet.key: row for row, tracklet in enumerate(tracklets)}
        return cls(rows, values, metric, fingerprint, clip_scheme)

    def take(self, tracklets: Sequence[Tracklet]) -> NDArray[np.float32]:
        """Descriptors of `tracklets`, float32 (len(tracklets), D). KeyError for one that is not in the table."""
        return self.values[[self.rows[tracklet.key] for tracklet in tracklets]]


@dataclass(frozen=True)
class RankedQuery:
    """A query, its average precision in [0, 1], and its best hits, nearest first: (tracklet, distance, right)."""

    query: Tracklet
    average_precision: float
    hits: tuple[tuple[Tracklet, float, bool], ...]


@dataclass(frozen=True)
class Ranking:
    """A result with what stands behind it: figures of each query, and the ranked lists of the best and worst."""

    result: EvaluationResult
    details: RankingResult
    best: tuple[RankedQuery, ...] = ()
    worst: tuple[RankedQuery, ...] = ()


def measure(
    trial: Trial,
    table: DescriptorTable,
    *,
    data: str,
    format: str,
    average_precision: AveragePrecision = "plain",
    reranking: Rerank | None = None,
    max_rank: int = 50,
    attributes: Sequence[str] = (),
    labels: Mapping[str, Mapping[str, str]] | None = None,
    lists: int = 0,
    hits: int = 8,
) -> Ranking:
    """Rank the trial's queries in its gallery.

    Args:
        trial: who is searched for among whom.
        table: descriptors of all of them.
        data, format: what the result says of the data.
        average_precision: "plain" (reference) or "trapezoid" (official MARS).
        reranking: joint k-reciprocal re-ranking; None for the distances themselves.
        max_rank: length of the CMC, >= 1; a gallery with fewer continues it with the last value.
        attributes: names of attributes to group the queries by; ("all",) for every one that groups them.
        labels: identity -> attribute -> value, instead of what the data says of each tracklet.
        lists: how many best and worst queries to keep with their ranked lists, each with `hits` hits.

    Raises:
        InvalidArgumentError: no query has a match in another camera, there is a single identity, an option is out of
            range, or an attribute that no query has a label for. Messages name data and split.
    """
    check(trial, data, attributes, labels)
    numbers = _numbers(trial)
    details, distances = _rank(trial, table, numbers, average_precision, reranking, max_rank)
    named = trial.labels(trial.tracklets)
    result = EvaluationResult(
        data=data,
        format=format,
        split=trial.split,
        protocol=trial.protocol,
        query_camera=trial.query_camera,
        average_precision=average_precision,
        metric=table.metric,
        rerank=reranking,
        clip_scheme=table.clip_scheme,
        queries=len(trial.query),
        valid_queries=details.valid_queries,
        gallery=len(trial.gallery),
        junk=int((numbers.gallery_ids == metrics.JUNK_IDENTITY).sum()),
        distractors=int((numbers.gallery_ids == protocol.DISTRACTOR).sum()),
        identities=len({number for number in named[0].tolist() if number > protocol.DISTRACTOR}),
        cameras=len(set(named[1].tolist())),
        model=table.fingerprint,
        mean_average_precision=details.mean_average_precision,
        cmc=tuple(details.cmc.tolist()),
        attributes=attribute_results(trial.query, details, attributes, labels, data=data) if attributes else (),
    )
    order = _by_precision(details)
    best, worst = (
        _ranked_queries(trial, table, distances, details, numbers, chosen[:lists], hits)
        for chosen in (order, order[::-1])
    )
    return Ranking(result, details, best, worst)


def measure_open_set(trial: Trial, table: DescriptorTable, rates: Sequence[float]) -> openset.OpenSetResult:
    """Open-set figures over all tracklets of a trial: every pair of two cameras once, whatever the protocol.

    Raises:
        InvalidArgumentError: no genuine or no impostor pair in different cameras; see `openset.open_set`.
    """
    ids, cameras = trial.labels(trial.tracklets)
    return openset.open_set(
        table.take(trial.tracklets),
        ids,
        cameras,
        metric=table.metric,
        rates=rates,
        distractor_identity=protocol.DISTRACTOR if trial.has_nobody else None,
    )


def attribute_results(
    queries: Sequence[Tracklet],
    details: RankingResult,
    attributes: Sequence[str],
    labels: Mapping[str, Mapping[str, str]] | None = None,
    *,
    data: str = "the data",
) -> tuple[AttributeResult, ...]:
    """Figures of the queries with each value of each attribute, as the COSAM paper's table 7 groups them.

    The gallery stays whole: only who is searched for changes. Queries without a label count nowhere.

    Args:
        queries: Q of them, with `details` of their ranking.
        attributes: names, or ("all",) for those with 2 to 12 values among the queries.
        labels: identity -> attribute -> value; None takes each tracklet's own.

    Raises:
        InvalidArgumentError: no query has a label for an attribute.
    """
    own, known = _own_labels(queries, labels)
    names = _attribute_names(known, attributes, data)
    return tuple(
        _of_value(name, value, np.array([values.get(name) == value for values in own]), details)
        for name in names
        for value in sorted(known[name])
    )


def check(
    trial: Trial,
    data: str,
    attributes: Sequence[str] = (),
    labels: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Refuse what `measure` would refuse of a trial, before anything is embedded.

    Raises:
        InvalidArgumentError: no query has a match in another camera, there is a single identity, or no query has a
            label for one of `attributes`.
    """
    _check_can_rank(trial, _numbers(trial), data)
    if attributes:
        _attribute_names(_own_labels(trial.query, labels)[1], attributes, data)


def _own_labels(
    queries: Sequence[Tracklet], labels: Mapping[str, Mapping[str, str]] | None
) -> tuple[list[Mapping[str, str]], dict[str, set[str]]]:
    """Labels of each query, and the values of each attribute among them."""
    own = [query.attributes if labels is None else labels.get(query.identity, {}) for query in queries]
    known: dict[str, set[str]] = {}
    for values in own:
        for name, value in values.items():
            known.setdefault(name, set()).add(value)
    return own, known


def _attribute_names(known: Mapping[str, set[str]], wanted: Sequence[str], data: str) -> list[str]:
    if not known:
        raise InvalidArgumentError(
            f"{data}: no query has an attribute: give a table of them with --attribute-labels, or leave --attributes out"
        )
    if list(wanted) == ["all"]:
        return sorted(name for name, values in known.items() if 2 <= len(values) <= MAX_ATTRIBUTE_VALUES)
    for name in wanted:
        if name not in known:
            raise InvalidArgumentError(
                f"{data}: no query has a label for the attribute {name!r}; there are {', '.join(sorted(known))}"
            )
    return list(wanted)


def _of_value(name: str, value: str, chosen: NDArray[np.bool_], details: RankingResult) -> AttributeResult:
    valid = chosen & (details.first_match >= 0)
    count = int(valid.sum())
    return AttributeResult(
        attribute=name,
        value=value,
        queries=int(chosen.sum()),
        valid_queries=count,
        mean_average_precision=float(details.average_precision[valid].mean()) if count else None,
        rank1=float((details.first_match[valid] == 0).mean()) if count else None,
    )


@dataclass(frozen=True)
class _Numbers:
    """Identity and camera numbers of queries (Q,) and gallery (G,), int64, in the order in which metrics takes them."""

    query_ids: NDArray[np.int64]
    gallery_ids: NDArray[np.int64]
    query_cameras: NDArray[np.int64]
    gallery_cameras: NDArray[np.int64]


def _numbers(trial: Trial) -> _Numbers:
    query_ids, query_cameras = trial.labels(trial.query)
    gallery_ids, gallery_cameras = trial.labels(trial.gallery)
    return _Numbers(query_ids, gallery_ids, query_cameras, gallery_cameras)


def _rank(
    trial: Trial,
    table: DescriptorTable,
    numbers: _Numbers,
    average_precision: AveragePrecision,
    reranking: Rerank | None,
    max_rank: int,
) -> tuple[RankingResult, NDArray[np.float32] | None]:
    """Figures of each query, and the re-ranked distances (Q, G) where there are any."""
    query, gallery = table.take(trial.query), table.take(trial.gallery)
    labels = (numbers.query_ids, numbers.gallery_ids, numbers.query_cameras, numbers.gallery_cameras)
    if reranking is None:
        details = metrics.evaluate_descriptors(
            query, gallery, *labels, metric=table.metric, max_rank=max_rank, average_precision=average_precision
        )
        return details, None
    distances = rerank.k_reciprocal_descriptors(
        query,
        gallery,
        metric=table.metric,
        k1=reranking.k1,
        k2=reranking.k2,
        original_weight=reranking.original_weight,
    )
    details = metrics.evaluate(distances, *labels, max_rank=max_rank, average_precision=average_precision)
    return details, distances


def _check_can_rank(trial: Trial, numbers: _Numbers, data: str) -> None:
    people = {*numbers.query_ids.tolist(), *numbers.gallery_ids.tolist()} - {metrics.JUNK_IDENTITY}
    if len(people) < 2:
        raise InvalidArgumentError(
            f"{data}, {trial.split}: there is a single identity, so every ranking is right and says nothing"
        )
    seen: dict[int, set[int]] = {}
    for identity, camera in zip(numbers.gallery_ids.tolist(), numbers.gallery_cameras.tolist(), strict=True):
        seen.setdefault(identity, set()).add(camera)
    queries = zip(numbers.query_ids.tolist(), numbers.query_cameras.tolist(), strict=True)
    if not any(seen.get(identity, set()) - {camera} for identity, camera in queries):
        cameras = sorted({tracklet.camera for tracklet in trial.tracklets})
        why = f": all were seen by camera {cameras[0]}" if len(cameras) == 1 else ""
        raise InvalidArgumentError(
            f"{data}, {trial.split}, protocol {trial.protocol}: none of the {len(trial.query)} queries has a match from "
            f"another camera in the gallery, so there is nothing to measure{why}"
        )


def _by_precision(details: RankingResult) -> NDArray[np.int64]:
    """Valid queries, best first; equal ones in their own order."""
    valid = np.flatnonzero(details.first_match >= 0)
    return valid[np.argsort(-details.average_precision[valid], kind="stable")]


def _ranked_queries(
    trial: Trial,
    table: DescriptorTable,
    distances: NDArray[np.float32] | None,
    details: RankingResult,
    numbers: _Numbers,
    chosen: NDArray[np.int64],
    hits: int,
) -> tuple[RankedQuery, ...]:
    """The lists of the `chosen` queries; `distances` (Q, G) as `_rank` gives them."""
    if not len(chosen):
        return ()
    if distances is None:
        to_gallery = DistancesTo(table.take(trial.gallery), table.metric)
        near = to_gallery.of(table.take([trial.query[number] for number in chosen]))
    else:
        near = distances[chosen]
    found = []
    for number, row in zip(chosen.tolist(), near, strict=True):
        same = numbers.gallery_ids == numbers.query_ids[number]
        dropped = same & (numbers.gallery_cameras == numbers.query_cameras[number])
        counts = ~dropped & (numbers.gallery_ids != metrics.JUNK_IDENTITY)
        order = np.argsort(np.where(counts, row, np.inf), kind="stable")[: min(hits, int(counts.sum()))]
        ranked = tuple((trial.gallery[i], float(row[i]), bool(same[i])) for i in order)
        found.append(RankedQuery(trial.query[number], float(details.average_precision[number]), ranked))
    return tuple(found)
