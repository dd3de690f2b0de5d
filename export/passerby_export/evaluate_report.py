"""What one evaluation found: plain values for JSON, and tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from passerby_client.commands.common import new_table
from passerby_model.distances import Metric
from passerby_model.evaluation import Ranking
from passerby_model.openset import OpenSetResult, OperatingPoint
from passerby_model.protocol import RANKS, EvaluationResult, SplitAverage

from .evaluate_models import ModelDescription

if TYPE_CHECKING:
    from passerby_model.attention import StreetAttention
    from passerby_model.bundle import Calibration
    from rich.table import Table

REPORT_VERSION = 1
OPEN_SET_PROTOCOL = "every pair of tracklets of two cameras, once"
SHOWN_RATES = (1e-2, 1e-3, 1e-4)
"""False-match rates of the table; JSON has more."""


@dataclass(frozen=True)
class OpenSet:
    """Open-set figures of one trial, with what they were measured on."""

    data: str
    split: str
    metric: Metric
    clip_scheme: str
    figures: OpenSetResult

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = self.figures
        return {
            "data": self.data,
            "split": self.split,
            "pairs": OPEN_SET_PROTOCOL,
            "metric": self.metric,
            "clip_scheme": self.clip_scheme,
            "genuine_pairs": found.genuine_pairs,
            "impostor_pairs": found.impostor_pairs,
            "mated_searches": found.mated_searches,
            "non_mated_searches": found.non_mated_searches,
            "verification": [asdict(point) for point in found.verification],
            "identification": [asdict(point) for point in found.identification],
        }


@dataclass(frozen=True)
class Report:
    """Everything that one evaluation found.

    rankings: results with their ranked lists, by data set, split, and re-ranking. averages: of several splits.
    attention: by data set, where silhouettes were given. versions: of the tools. created: UTC, ISO 8601.
    """

    model: ModelDescription
    rankings: tuple[Ranking, ...]
    averages: tuple[SplitAverage, ...] = ()
    open_set: tuple[OpenSet, ...] = ()
    attention: Mapping[str, StreetAttention] = field(default_factory=dict)
    calibration: Calibration | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""

    @property
    def results(self) -> tuple[EvaluationResult, ...]:
        return tuple(ranking.result for ranking in self.rankings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "version": REPORT_VERSION,
            "created": self.created,
            "model": asdict(self.model),
            "results": [result.to_dict() for result in self.results],
            "averages": [asdict(found) for found in self.averages],
            "open_set": [found.to_dict() for found in self.open_set],
            "attention": {data: found.to_dict() for data, found in self.attention.items()},
            "calibration": self.calibration.model_dump(mode="json") if self.calibration else None,
            "versions": dict(self.versions),
        }


def results_table(report: Report) -> Table:
    """Every result on a line, then the averages; figures in per cent."""
    ranks = [f"rank-{rank}" for rank in RANKS]
    table = new_table(
        "data", "split", "protocol", "queries", "gallery", "mAP", *ranks, right=("gallery", "mAP", *ranks)
    )
    for result in report.results:
        count = str(result.valid_queries)
        if result.skipped_queries:
            count += f" of {result.queries}"
        figures = [_percent(result.mean_average_precision), *(_percent(result.rank(rank)) for rank in RANKS)]
        table.add_row(result.data, result.split, _short(result), count, str(result.gallery), *figures)
    short = {result.protocol_name: _short(result) for result in report.results}
    for mean in report.averages:
        spread = [
            _percent(mean.mean_average_precision, mean.mean_average_precision_deviation),
            *(_percent(mean.cmc[at], mean.cmc_deviation[at]) for at in (min(r, len(mean.cmc)) - 1 for r in RANKS)),
        ]
        table.add_row(mean.data, f"mean of {mean.splits}", short[mean.protocol_name], "", "", *spread)
    return table


def protocol_lines(report: Report) -> list[str]:
    """What the protocols of the table are called in full, each once."""
    return list(dict.fromkeys(result.protocol_name for result in report.results))


def attributes_table(report: Report) -> Table | None:
    """Queries by attribute, plain and re-ranked results below each other; None where nothing was grouped."""
    table = new_table(
        "data", "split", "ranking", "attribute", "value", "queries", "mAP", "rank-1", right=("queries", "mAP", "rank-1")
    )
    for result in report.results:
        for row in result.attributes:
            how = "re-ranked" if result.rerank else "distance"
            figures = [_percent(row.mean_average_precision), _percent(row.rank1)]
            table.add_row(result.data, result.split, how, row.attribute, row.value, str(row.valid_queries), *figures)
    return table if table.rows else None


def open_set_table(report: Report) -> Table | None:
    """Misses and thresholds at the usual rates, and how far the counts carry; None without open-set figures."""
    table = new_table(
        "data", "split", "measure", "rate", "threshold", "missed", "errors", right=("threshold", "missed", "errors")
    )
    for found in report.open_set:
        figures = found.figures
        for measure, points, count in (
            ("FMR: FNMR", figures.verification, f"{figures.impostor_pairs:,} impostor pairs"),
            ("FPIR: FNIR", figures.identification, f"{figures.non_mated_searches:,} non-mated searches"),
        ):
            for point in points:
                if point.target in SHOWN_RATES:
                    table.add_row(found.data, found.split, measure, f"{point.target:g}", *_point(point, count))
    return table if table.rows else None


def _short(result: EvaluationResult) -> str:
    camera = f" {result.query_camera}" if result.query_camera else ""
    return f"{result.protocol}{camera}{', re-ranked' if result.rerank else ''}"


def _point(point: OperatingPoint, count: str) -> tuple[str, str, str]:
    if point.threshold is None or point.false_negative_rate is None:
        return "not supported", "", f"too few: {count}"
    return f"{point.threshold:.6g}", _percent(point.false_negative_rate) + " %", f"{point.errors:,} of {count}"


def _percent(share: float | None, deviation: float | None = None) -> str:
    if share is None:
        return "none"
    return f"{100 * share:.1f}" + (f" ± {100 * deviation:.1f}" if deviation is not None else "")
