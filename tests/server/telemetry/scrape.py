"""Metrics of a real server, as Prometheus reads them."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from tests.server.live import LiveServer

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def text(port: int) -> str:
    """The page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def samples(live: LiveServer) -> Samples:
    """Every sample by name and sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text(live.server.metrics_port))
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """One sample; fails when it is not there."""
    return found[name, tuple(sorted(labels.items()))]
