"""Protocols of evaluation: who is searched for among whom, and what a result is called (no torch).

Names of the protocols: A and B are the two readings of MARS (Zheng et al., ECCV 2016). A leaves the query tracklets out
of the gallery (the COSAM authors' code, torchreid); B keeps them, as the official code does (liangzheng06/
MARS-evaluation). all-vs-all and by-camera serve sets that name no queries.

In every protocol, gallery items of the query's identity *and* camera do not count, nor does junk; distractors stay and
never match; a query that no other camera of the gallery has seen is skipped and counted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError

from passerby_model.datasets import DISTRACTOR_IDENTITY, JUNK_IDENTITY, EvaluationSplit, KnownFormat, Tracklet
from passerby_model.distances import Metric
from passerby_model.metrics import JUNK_IDENTITY as JUNK
from passerby_model.metrics import AveragePrecision

ProtocolName = Literal["A", "B", "all-vs-all", "by-camera"]
PROTOCOLS: Mapping[ProtocolName, str] = {
    "A": "the data's queries, among a gallery without them",
    "B": "the data's queries, among a gallery that holds them too (official MARS)",
    "all-vs-all": "every tracklet of a person, among all tracklets",
    "by-camera": "the tracklets of one camera, among those of all others",
}
DISTRACTOR = 0
"""Identity number of distractors: no query has it. People count from 1."""
RANKS = (1, 5, 10, 20)
"""Ranks at which a CMC is usually quoted."""


@dataclass(frozen=True, slots=True)
class Rerank:
    """k-reciprocal re-ranking of all queries and the gallery jointly (Zhong et al., CVPR 2017)."""

    k1: int = 20
    k2: int = 6
    original_weight: float = 0.3

    def __str__(self) -> str:
        return f"re-ranked (k1 {self.k1}, k2 {self.k2}, weight {self.original_weight:g})"


@dataclass(frozen=True)
class Trial:
    """What one ranking is made of.

    split: name of the split of the data.
    protocol, query_camera: how queries and gallery were chosen; the camera only with `by-camera`.
    query, gallery: tracklets; a tracklet of both is in both.
    has_nobody: JUNK_IDENTITY and DISTRACTOR_IDENTITY are nobody (MARS), not people who happen to be called so.
    """

    split: str
    protocol: ProtocolName
    query_camera: str
    query: tuple[Tracklet, ...]
    gallery: tuple[Tracklet, ...]
    has_nobody: bool

    @property
    def tracklets(self) -> tuple[Tracklet, ...]:
        """All of them, each once: gallery first."""
        return _each_once((*self.gallery, *self.query))

    def labels(self, tracklets: Sequence[Tracklet]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Identity and camera numbers, int64 (T,) each, of `tracklets` of this trial: the same whatever is asked for.

        Junk is -1, distractors are 0, people count from 1.
        """
        everyone = self.tracklets
        numbers = {name: number for number, name in enumerate(sorted({t.identity for t in everyone}), start=1)}
        if self.has_nobody:
            numbers |= {JUNK_IDENTITY: JUNK, DISTRACTOR_IDENTITY: DISTRACTOR}
        cameras = {name: number for number, name in enumerate(sorted({t.camera for t in everyone}))}
        return (
            np.array([numbers[t.identity] for t in tracklets], np.int64),
            np.array([cameras[t.camera] for t in tracklets], np.int64),
        )


def trial(
    split: EvaluationSplit,
    format: KnownFormat,
    protocol: ProtocolName | None = None,
    *,
    query_camera: str | None = None,
    identities: Collection[str] | None = None,
) -> Trial:
    """Queries and gallery of a split under a protocol.

    Args:
        split: of the data.
        format: of the data; only MARS has junk and distractors.
        protocol: by default A where the data names queries, else all-vs-all.
        query_camera: for by-camera; by default the first that has seen a person.
        identities: look at these people only (junk and distractors are left out, too); all must be there.

    Raises:
        InvalidArgumentError: the data names no queries but the protocol needs them, there is no such camera, nothing is
            left to search for or among, or an identity is not there.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise InvalidArgumentError(f"unknown protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    split = _only(split, identities)
    has_nobody = format == "mars"
    chosen: ProtocolName = protocol or ("all-vs-all" if split.all_against_all else "A")
    if query_camera is not None and chosen != "by-camera":
        raise InvalidArgumentError(f"a query camera belongs to the protocol by-camera, not to {chosen}")
    if chosen in ("A", "B") and split.all_against_all:
        raise InvalidArgumentError(
            f"the data does not name queries, so protocol {chosen} has none: take all-vs-all or by-camera"
        )
    camera = ""
    query, gallery = split.query, split.gallery
    if chosen == "B":
        gallery = _each_once((*gallery, *query))
    elif chosen != "A":
        gallery = _each_once((*gallery, *query))
        query = tuple(t for t in gallery if not (has_nobody and t.identity in (JUNK_IDENTITY, DISTRACTOR_IDENTITY)))
    if chosen == "by-camera":
        camera = _query_camera(query, query_camera)
        query = tuple(t for t in query if t.camera == camera)
        gallery = tuple(t for t in gallery if t.camera != camera)
    if not query or not gallery:
        raise InvalidArgumentError(
            f"{split.name}, protocol {chosen}: {len(query)} queries and {len(gallery)} gallery tracklets; "
            "both are needed" + (": the data has a single camera" if chosen == "by-camera" and not gallery else "")
        )
    return Trial(split.name, chosen, camera, query, gallery, has_nobody)


@dataclass(frozen=True)
class AttributeResult:
    """The queries of people with one attribute, searched in the whole gallery.

    queries: how many had that value; valid_queries of them counted. Figures in [0, 1], None without a valid query.
    """

    attribute: str
    value: str
    queries: int
    valid_queries: int
    mean_average_precision: float | None
    rank1: float | None


@dataclass(frozen=True)
class EvaluationResult:
    """Figures of one ranking, and everything that has to be said for them to be comparable.

    data, format, split: what was ranked. protocol, query_camera: see `Trial`.
    average_precision, metric, rerank: how; `metric` before any re-ranking.
    clip_scheme: which frames made a descriptor.
    queries: in all; valid_queries of them had a match in another camera, the others were skipped.
    gallery: tracklets, of which `junk` were ignored and `distractors` could never match.
    identities, cameras: of queries and gallery together, nobody aside.
    model: fingerprint of the model.
    cmc: share of valid queries with a match among the first r, from r = 1, each in [0, 1].
    mean_average_precision: in [0, 1].
    attributes: the same for the queries of one attribute each.
    """

    data: str
    format: str
    split: str
    protocol: ProtocolName
    query_camera: str
    average_precision: AveragePrecision
    metric: Metric
    rerank: Rerank | None
    clip_scheme: str
    queries: int
    valid_queries: int
    gallery: int
    junk: int
    distractors: int
    identities: int
    cameras: int
    model: str
    mean_average_precision: float
    cmc: tuple[float, ...]
    attributes: tuple[AttributeResult, ...] = ()

    @property
    def skipped_queries(self) -> int:
        """Queries without a match in another camera."""
        return self.queries - self.valid_queries

    def rank(self, rank: int) -> float:
        """Share of valid queries with a match among the first `rank` >= 1; beyond the CMC, its last value."""
        return self.cmc[min(rank, len(self.cmc)) - 1]

    @property
    def protocol_name(self) -> str:
        """What the figures are called: protocol, AP type, distance, clip scheme."""
        camera = f" {self.query_camera}" if self.query_camera else ""
        parts = [f"{self.protocol}{camera}", f"{self.average_precision} AP", f"{metric_name(self.metric)} distance"]
        return ", ".join([*parts, *([str(self.rerank)] if self.rerank else []), self.clip_scheme])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "skipped_queries": self.skipped_queries, "name": self.protocol_name}


@dataclass(frozen=True)
class SplitAverage:
    """Mean over several splits of one data set, and the standard deviation (n - 1) between them.

    `cmc` and `cmc_deviation` have one value a rank, as `EvaluationResult.cmc`.
    """

    data: str
    protocol_name: str
    splits: int
    mean_average_precision: float
    mean_average_precision_deviation: float
    cmc: tuple[float, ...]
    cmc_deviation: tuple[float, ...]


def average(results: Sequence[EvaluationResult]) -> SplitAverage:
    """The mean of results that differ in the split alone.

    Raises:
        InvalidArgumentError: fewer than two, or results of different protocols or data.
    """
    names = {(result.data, result.protocol_name, len(result.cmc)) for result in results}
    if len(results) < 2 or len(names) != 1:
        raise InvalidArgumentError(f"cannot average {len(results)} results of {len(names)} kinds")
    precision = np.array([result.mean_average_precision for result in results])
    curves = np.array([result.cmc for result in results])
    return SplitAverage(
        data=results[0].data,
        protocol_name=results[0].protocol_name,
        splits=len(results),
        mean_average_precision=float(precision.mean()),
        mean_average_precision_deviation=float(precision.std(ddof=1)),
        cmc=tuple(curves.mean(axis=0).tolist()),
        cmc_deviation=tuple(curves.std(axis=0, ddof=1).tolist()),
    )


def metric_name(metric: Metric) -> str:
    """The metric in words."""
    return metric.replace("squared_euclidean", "squared Euclidean")


def parse_protocol(text: str | None) -> ProtocolName | None:
    """The protocol called `text`, capital or small. Raises InvalidArgumentError for an unknown one."""
    if text is None:
        return None
    for name in get_args(ProtocolName):
        if text.lower() == name.lower():
            found: ProtocolName = name
            return found
    raise InvalidArgumentError(f"unknown protocol {text!r}; there are {', '.join(PROTOCOLS)}")


def _only(split: EvaluationSplit, identities: Collection[str] | None) -> EvaluationSplit:
    if identities is None:
        return split
    wanted = frozenset(identities)
    absent = sorted(wanted - {tracklet.identity for tracklet in (*split.query, *split.gallery)})
    if absent:
        raise InvalidArgumentError(
            f"{split.name}: {len(absent)} of the identities asked for are not in it: {', '.join(absent[:5])}"
        )
    return EvaluationSplit(
        split.name,
        split.train,
        tuple(tracklet for tracklet in split.query if tracklet.identity in wanted),
        tuple(tracklet for tracklet in split.gallery if tracklet.identity in wanted),
    )


def _query_camera(people: Sequence[Tracklet], wanted: str | None) -> str:
    cameras = sorted({tracklet.camera for tracklet in people})
    if wanted is None and cameras:
        return cameras[0]
    if wanted not in cameras:
        raise InvalidArgumentError(f"no person was seen by a camera {wanted!r}; there are {', '.join(cameras)}")
    return str(wanted)


def _each_once(tracklets: Sequence[Tracklet]) -> tuple[Tracklet, ...]:
    return tuple({tracklet.key: tracklet for tracklet in tracklets}.values())
