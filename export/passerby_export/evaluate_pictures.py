"""A report as a folder: report.json, report.html with everything in one page, and its pictures as PNG."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from passerby.errors import FailedPreconditionError
from passerby_model import figures
from passerby_model.evaluation import RankedQuery, Ranking
from passerby_model.figures import RankedCrop, RankedList
from passerby_model.protocol import metric_name
from passerby_model.report_page import Picture, Section, write_page

from .evaluate_report import (
    SHOWN_RATES,
    OpenSet,
    Report,
    attributes_table,
    open_set_table,
    protocol_lines,
    results_table,
)

if TYPE_CHECKING:
    from rich.table import Table

TABLE_WIDTH = 150
"""Characters of a line of a table in the page; longer cells wrap."""


def write_report(report: Report, folder: Path, sheets: Mapping[str, Path] | None = None) -> Path:
    """Write the report into `folder`, over an older one; gives back the page's path.

    Args:
        report: of `evaluate`.
        folder: made if need be.
        sheets: attention sheets (PNG) by data set, drawn before.

    Raises:
        FailedPreconditionError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
        sections = [
            _model(report),
            _results(report, folder),
            *_attributes(report),
            *(_open_set(report, folder)),
            *(
                section
                for number, ranking in enumerate(report.rankings, start=1)
                for section in _lists(ranking, number, folder)
            ),
            *_attention(report, sheets or {}),
            Section("Versions", table=[("created", report.created), *report.versions.items()]),
        ]
        return write_page(folder / "report.html", f"Evaluation of {report.model.name}", sections)
    except OSError as error:
        raise FailedPreconditionError(
            f"{folder}: the report cannot be written: {error.strerror or error}", reason="TARGET_NOT_WRITABLE"
        ) from error


def _model(report: Report) -> Section:
    values = asdict(report.model)
    values["trained_on"] = ", ".join(values["trained_on"]) or "not recorded"
    values["metric"] = metric_name(report.model.metric)
    return Section("Model", table=[(name.replace("_", " "), str(value)) for name, value in values.items()])


def _results(report: Report, folder: Path) -> Section:
    results = report.results
    curves = {
        f"{mean.data}, mean of {mean.splits}{', re-ranked' if 're-ranked' in mean.protocol_name else ''}": mean.cmc
        for mean in report.averages
    } or {
        f"{r.data}, {r.protocol}{' ' + r.query_camera if r.query_camera else ''}{', re-ranked' if r.rerank else ''}": r.cmc
        for r in results
    }
    picture = figures.cmc_figure(
        folder / "cmc.png",
        {name: np.array(curve) for name, curve in curves.items()},
        title="CMC",
        max_rank=min(20, max(len(curve) for curve in curves.values())),
    )
    return Section(
        "Ranking",
        text="Per cent. Protocols: " + "; ".join(protocol_lines(report)) + ".",
        code=_text(results_table(report)),
        pictures=[Picture(picture, "CMC curves")],
    )


def _attributes(report: Report) -> list[Section]:
    table = attributes_table(report)
    if table is None:
        return []
    text = "Queries of people with each attribute, searched in the whole gallery. Per cent."
    return [Section("By attribute", text=text, code=_text(table))]


def _open_set(report: Report, folder: Path) -> list[Section]:
    table = open_set_table(report)
    if table is None:
        return []
    pictures = []
    for number, found in enumerate(report.open_set, start=1):
        name = f"{_file_name(found.data)}-{number}"
        pictures.append(Picture(_histogram(found, folder / f"distances-{name}.png"), "distances of pairs"))
        points = [p for p in found.figures.verification if p.false_negative_rate is not None]
        if points:
            path = figures.curves_figure(
                folder / f"fnmr-{name}.png",
                {
                    f"{found.data}, {found.split}": (
                        [p.target for p in points],
                        [_share(p.false_negative_rate) for p in points],
                    )
                },
                title="False non-matches at a false-match rate",
                x="FMR",
                y="FNMR, %",
                log_x=True,
            )
            pictures.append(Picture(path, "FNMR over FMR"))
    text = (
        "Every pair of tracklets of two cameras, once, by plain distance. A rate is supported where the pairs allow for "
        "at least one error; with fewer than 30 errors it is a rough one."
    )
    return [Section("Open set", text=text, code=_text(table), pictures=pictures)]


def _histogram(found: OpenSet, path: Path) -> Path:
    thresholds = {
        f"FMR {point.target:g}": point.threshold
        for point in found.figures.verification
        if point.threshold is not None and point.target in SHOWN_RATES
    }
    return figures.histogram_figure(
        path,
        found.figures.edges,
        found.figures.genuine_counts,
        found.figures.impostor_counts,
        title=f"{found.data}, {found.split}",
        distance=f"{metric_name(found.metric)} distance",
        thresholds=thresholds,
    )


def _lists(ranking: Ranking, number: int, folder: Path) -> list[Section]:
    result = ranking.result
    pictures = []
    for kind, queries in (("best", ranking.best), ("worst", ranking.worst)):
        if queries:
            name = f"ranked-{_file_name(result.data)}-{number}-{kind}.png"
            title = f"{result.data}: the {kind} queries{', re-ranked' if result.rerank else ''}"
            path = figures.ranked_lists_sheet(folder / name, [_list(query) for query in queries], title=title)
            pictures.append(Picture(path, title))
    if not pictures:
        return []
    heading = f"Ranked lists: {result.data}, {result.split}{', re-ranked' if result.rerank else ''}"
    text = "Query on the left (blue), then its hits, nearest first: green the same person, red another one."
    return [Section(heading, text=text, pictures=pictures)]


def _list(ranked: RankedQuery) -> RankedList:
    query = ranked.query
    hits = tuple(
        RankedCrop(tracklet.frames[len(tracklet.frames) // 2], "same" if right else "other", f"{distance:.4g}")
        for tracklet, distance, right in ranked.hits
    )
    label = f"{query.identity}, camera {query.camera}, AP {100 * ranked.average_precision:.1f}"
    return RankedList(query.frames[len(query.frames) // 2], label, hits)


def _attention(report: Report, sheets: Mapping[str, Path]) -> list[Section]:
    from passerby_model.attention_cli import table

    return [
        Section(
            f"Where COSAM looks: {data}",
            text="Masks against the street's known silhouettes; what the figures mean is in `passerby attention --help`.",
            code=table(found),
            pictures=[Picture(sheets[data], "frames with their masks")] if data in sheets else [],
        )
        for data, found in report.attention.items()
    ]


def _text(table: Table) -> str:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=TABLE_WIDTH).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _file_name(data: str) -> str:
    return re.sub(r"[^\w.-]+", "-", data).strip(".-") or "data"


def _share(value: float | None) -> float:
    return float("nan") if value is None else 100 * value
