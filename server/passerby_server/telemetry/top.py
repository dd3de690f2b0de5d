"""The picture of `passerby top`: what a server does now, drawn from two readings of its metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import get_args

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from passerby_server.telemetry.calls import Stage
from passerby_server.telemetry.reading import Between, Reading

MAX_GALLERIES = 10
"""Galleries with a line of their own."""
BAR = 30
"""Characters of a full bar."""


def frame(between: Between, address: str) -> RenderableType:
    """One picture."""
    now = between.now
    parts: list[RenderableType] = [_head(now, address), _load(between), _queue(between), Text()]
    parts += [_methods(between), Text(), _stages(between), Text(), _galleries(now)]
    if (errors := _errors(between)) is not None:
        parts += [Text(), errors]
    return Group(*parts)


def _head(now: Reading, address: str) -> Text:
    version = next(now.labels("passerby_build_info"), {}).get("version", "?")
    model = next(now.labels("passerby_model_info"), None)
    serving = bool(now.value("passerby_serving"))
    text = Text.assemble(
        (f"passerby {version}", "bold"),
        f" at {address}   ",
        ("SERVING", "bold green") if serving else ("NOT SERVING", "bold red"),
        f"   up {_duration(time.time() - now.value('process_start_time_seconds'))}",
    )
    if model is not None:
        loaded = _duration(time.time() - now.value("passerby_model_load_timestamp_seconds"))
        text.append(f"\nmodel {model['bundle']} {model['fingerprint'][:12]}, {model['backend']} {model['precision']}")
        text.append(f", loaded {loaded} ago")
    return text


def _load(between: Between) -> Text:
    now = between.now
    streams = f"{now.value('passerby_streams_in_progress'):.0f} streams"
    free, size = now.value("passerby_data_free_bytes"), now.value("passerby_data_size_bytes")
    share = f" ({free / size:.0%})" if size else ""
    return Text(
        f"calls {between.rate('passerby_calls_total'):.1f}/s, "
        f"{now.value('passerby_calls_in_progress'):.0f} in progress, {streams}   "
        f"cpu {between.rate('process_cpu_seconds_total'):.2f} cores   "
        f"memory {_bytes(now.value('process_resident_memory_bytes'))}   disk free {_bytes(free)}{share}"
    )


def _queue(between: Between) -> Text:
    used, limit = between.now.value("passerby_queue_snippets"), between.now.value("passerby_queue_limit_snippets")
    share = min(used / limit, 1.0) if limit else 0.0
    filled = round(share * BAR)
    style = "red" if share > 0.9 else "yellow" if share > 0.5 else "green"
    text = Text.assemble("queue ", ("█" * filled, style), ("░" * (BAR - filled), "dim"))
    text.append(f" {used:.0f} of {limit:.0f} snippets   ")
    mean, seconds = between.mean("passerby_batch_snippets"), between.mean("passerby_batch_duration_seconds")
    text.append(f"batches {between.rate('passerby_batch_snippets_count'):.1f}/s")
    if mean is not None:
        text.append(f", {mean:.1f} snippets and {_seconds(seconds)} each")
    return text


def _methods(between: Between) -> Table:
    name = "passerby_call_duration_seconds"
    table = _table("method", "calls/s", "failed/s", "p50", "p95", "p99")
    rows = []
    for labels in between.now.labels(f"{name}_count"):
        method = labels["method"]
        count = between.count("passerby_calls_total", method=method)
        if count or between.now.value(f"{name}_count", method=method):
            failed = count - between.count("passerby_calls_total", method=method, code="OK")
            rows.append((count, method, failed))
    for count, method, failed in sorted(rows, key=lambda row: (-row[0], row[1])):
        quantiles = [_seconds(between.quantile(share, name, method=method)) for share in (0.5, 0.95, 0.99)]
        failing = Text(f"{failed / between.seconds:.1f}", style="red" if failed else "")
        table.add_row(method, f"{count / between.seconds:.1f}", failing, *quantiles)
    if not rows:
        table.add_row(Text("no call yet", style="dim"))
    return table


def _stages(between: Between) -> Table:
    name = "passerby_stage_duration_seconds"
    table = _table("stage", "times/s", "mean", "p95")
    for stage in get_args(Stage):
        table.add_row(
            stage,
            f"{between.rate(f'{name}_count', stage=stage):.1f}",
            _seconds(between.mean(name, stage=stage)),
            _seconds(between.quantile(0.95, name, stage=stage)),
        )
    return table


def _galleries(now: Reading) -> Table:
    table = _table("gallery", "tracklets", "index", "not indexed", "recall", "audited")
    largest = sorted(
        now.labels("passerby_gallery_tracklets"),
        key=lambda labels: -now.value("passerby_gallery_tracklets", **labels),
    )
    for labels in largest[:MAX_GALLERIES]:
        recall = now.values.get("passerby_index_recall_ratio", {}).get(tuple(labels.items()))
        lag = now.value("passerby_index_lag_tracklets", **labels)
        table.add_row(
            labels["gallery"] or f"all {now.value('passerby_galleries'):.0f}",
            f"{now.value('passerby_gallery_tracklets', **labels):,.0f}",
            _bytes(now.value("passerby_gallery_index_bytes", **labels)),
            Text(f"{lag:,.0f}", style="yellow" if lag else ""),
            "exact" if recall is None else f"{recall:.4f}",
            f"{now.value('passerby_index_recall_queries', **labels):.0f}",
        )
    if len(largest) > MAX_GALLERIES:
        table.add_row(Text(f"and {len(largest) - MAX_GALLERIES} smaller ones", style="dim"))
    return table


def _errors(between: Between) -> Table | None:
    """What was refused or failed since the reading before; None when nothing was."""
    table = _table("refused or failed", "reason", "times/s")
    rows = [
        (between.count("passerby_errors_total", **labels), labels)
        for labels in between.now.labels("passerby_errors_total")
    ]
    for count, labels in sorted((row for row in rows if row[0]), key=lambda row: -row[0]):
        table.add_row(labels["code"], labels["reason"], f"{count / between.seconds:.1f}", style="red")
    return table if table.row_count else None


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for at, heading in enumerate(headings):
        table.add_column(heading, justify="left" if at == 0 or heading == "reason" else "right", min_width=8)
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _duration(seconds: float) -> str:
    parts: Iterable[tuple[int, str]] = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    left = max(0, int(seconds))
    said: list[str] = []
    for length, unit in parts:
        if left >= length or (unit == "s" and not said):
            said.append(f"{left // length} {unit}")
            left %= length
    return " ".join(said[:2])
