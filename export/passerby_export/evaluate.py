"""The stage `evaluate`: a model and labelled tracklets in, named figures out. `passerby evaluate`.

    MODEL (checkpoint, bundle or server) -> descriptors -> ranking under a protocol -> table, JSON, pictures
                                                        -> open-set figures         -> calibration of the bundle

python -m passerby_export.evaluate BUNDLE --data FOLDER
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from passerby.errors import InvalidArgumentError
from passerby_model.datasets import Format
from passerby_model.descriptors import ClipScheme, Progress
from passerby_model.evaluation import DescriptorTable, Ranking, check, measure, measure_open_set
from passerby_model.metrics import AveragePrecision
from passerby_model.protocol import ProtocolName, Rerank, SplitAverage, average
from passerby_model.rerank import check_options

from .bundle import tool_versions
from .calibrate import CALIBRATION_RATES, calibration_of, write_calibration
from .evaluate_cache import embed_cached
from .evaluate_data import Subject, read_subject, subject_names
from .evaluate_models import EvaluatedModel
from .evaluate_report import OPEN_SET_PROTOCOL, OpenSet, Report

if TYPE_CHECKING:
    from passerby_model.attention import StreetAttention
    from passerby_model.bundle import Calibration

LISTS = 4
"""Best and worst queries that a report shows."""


@dataclass(frozen=True)
class Options:
    """How to evaluate; each is a flag of `passerby evaluate`, see there.

    rerank: results come twice then, without and with it. attributes: names, or ("all",).
    silhouettes: label maps of a street, to judge COSAM's masks by.

    Raises:
        InvalidArgumentError: a value out of range.
    """

    format: Format = "auto"
    protocol: ProtocolName | None = None
    query_camera: str | None = None
    average_precision: AveragePrecision = "plain"
    rerank: Rerank | None = None
    max_rank: int = 50
    max_frames: int | None = None
    max_snippets: int | None = None
    splits: str | None = None
    identities: Collection[str] | None = None
    open_set: bool = False
    attributes: tuple[str, ...] = ()
    attribute_labels: Mapping[str, Mapping[str, str]] | None = None
    silhouettes: Path | None = None

    def __post_init__(self) -> None:
        if self.average_precision not in get_args(AveragePrecision):
            raise InvalidArgumentError(
                f"average precision is {' or '.join(get_args(AveragePrecision))}, not {self.average_precision!r}"
            )
        if self.max_rank < 1:
            raise InvalidArgumentError(f"max_rank must be at least 1, not {self.max_rank}")
        if self.rerank is not None:
            check_options(self.rerank.k1, self.rerank.k2, self.rerank.original_weight)


def evaluate(
    model: EvaluatedModel,
    data: Sequence[Path],
    options: Options | None = None,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Rank every data set of `data` with `model`.

    Args:
        model: see `open_model`.
        data: roots of data sets, or manifests; at least one. With several, the same options hold for each.
        options: how; the defaults when not given.
        cache: folder that keeps descriptors.
        progress: called with (tracklets embedded, tracklets in all) of each data set in turn.

    Raises:
        PasserbyError: data, options or model are not what they should be; before anything is embedded where it can
            be known.
    """
    options = options or Options()
    if not data:
        raise InvalidArgumentError("there is no data to evaluate on: name a folder with --data")
    scheme = ClipScheme(model.description.snippet_length, options.max_frames, options.max_snippets)
    subjects = [
        read_subject(
            path,
            name,
            format=options.format,
            protocol=options.protocol,
            query_camera=options.query_camera,
            identities=options.identities,
            splits=options.splits,
        )
        for path, name in zip(data, subject_names(data), strict=True)
    ]
    for subject in subjects:
        _check(model, subject, options)
    rankings: list[Ranking] = []
    averages: list[SplitAverage] = []
    open_sets: list[OpenSet] = []
    attention = {}
    for subject in subjects:
        table = _table(model, subject, scheme, cache, progress)
        for reranking in dict.fromkeys((None, options.rerank)):
            found = [_measure(subject, number, table, options, reranking) for number in range(len(subject.trials))]
            rankings += found
            averages += [average([ranking.result for ranking in found])] if len(found) > 1 else []
        if options.open_set:
            open_sets += _open_sets(subject, table)
        if options.silhouettes is not None:
            attention[subject.name] = _attention(model, subject, options.silhouettes)
    return Report(
        model=model.description,
        rankings=tuple(rankings),
        averages=tuple(averages),
        open_set=tuple(open_sets),
        attention=attention,
        versions={"python": platform.python_version(), **tool_versions()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def calibrate(report: Report, bundle: Path) -> Calibration:
    """Write what the report's open-set figures say into the bundle that it is about.

    Raises:
        InvalidArgumentError: the report has not exactly one open-set result, or is about another model.
        FailedPreconditionError: too few pairs, or the bundle cannot be written.
    """
    if len(report.open_set) != 1:
        raise InvalidArgumentError(
            f"a bundle is calibrated on one data set and one split, not on {len(report.open_set)}: "
            "name one with --data (and --splits)"
        )
    found = report.open_set[0]
    block = calibration_of(
        found.figures,
        metric=report.model.metric,
        data=(found.data,),
        protocol=OPEN_SET_PROTOCOL,
        clip_scheme=found.clip_scheme,
    )
    return _calibrated(bundle, block, report.model.fingerprint)


def _calibrated(bundle: Path, block: Calibration, fingerprint: str) -> Calibration:
    from passerby_model.bundle import read_manifest

    if read_manifest(bundle).fingerprint != fingerprint:
        raise InvalidArgumentError(f"{bundle} is not the model that was evaluated: its fingerprint is another one")
    written = write_calibration(bundle, block).calibration
    return written if written is not None else block


def _check(model: EvaluatedModel, subject: Subject, options: Options) -> None:
    """Everything that can be wrong with a data set and that need not be embedded to be seen."""
    for trial in subject.trials:
        check(trial, subject.name, options.attributes, options.attribute_labels)
    if options.silhouettes is not None:
        from passerby_model.street_labels import Street

        Street.open(subject.path, options.silhouettes)
        shape = (1, model.description.snippet_length, model.description.height, model.description.width, 3)
        if not model.encode(np.zeros(shape, np.uint8))[1]:
            raise InvalidArgumentError(
                f"{model.description.architecture} has no COSAM, so there are no masks to judge: leave --silhouettes out",
                reason="NO_MASKS",
            )


def _table(
    model: EvaluatedModel, subject: Subject, scheme: ClipScheme, cache: Path | None, progress: Progress | None
) -> DescriptorTable:
    tracklets = subject.tracklets
    return DescriptorTable.of(
        tracklets,
        embed_cached(model, tracklets, scheme, cache, progress),
        metric=model.description.metric,
        fingerprint=model.description.fingerprint,
        clip_scheme=str(scheme),
    )


def _measure(
    subject: Subject, number: int, table: DescriptorTable, options: Options, reranking: Rerank | None
) -> Ranking:
    return measure(
        subject.trials[number],
        table,
        data=subject.name,
        format=subject.format,
        average_precision=options.average_precision,
        reranking=reranking,
        max_rank=options.max_rank,
        attributes=options.attributes,
        labels=options.attribute_labels,
        lists=LISTS if number == 0 else 0,
    )


def _open_sets(subject: Subject, table: DescriptorTable) -> list[OpenSet]:
    found = []
    for trial in subject.trials:
        try:
            figures = measure_open_set(trial, table, CALIBRATION_RATES)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{subject.name}, {trial.split}, open set: {error.message}") from error
        found.append(OpenSet(subject.name, trial.split, table.metric, table.clip_scheme, figures))
    return found


def _attention(model: EvaluatedModel, subject: Subject, silhouettes: Path) -> StreetAttention:
    from passerby_model.attention import evaluate_street

    size = (model.description.height, model.description.width)
    return evaluate_street(model.encode, subject.path, model.description.snippet_length, size, masks=silhouettes)


if __name__ == "__main__":
    from .evaluate_cli import main

    main()
