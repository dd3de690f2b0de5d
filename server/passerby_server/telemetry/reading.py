"""Figures out of two readings of a server's metrics: rates, quantiles, and what is now."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from passerby.errors import UnavailableError
from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]
TIMEOUT = 5.0
"""Seconds that a server may take to say its metrics."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Every sample by name and sorted labels; `time` on the monotonic clock."""

    values: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    time: float = 0.0

    def value(self, name: str, **labels: str) -> float:
        """One sample, 0 when it is not there."""
        return self.values.get(name, {}).get(tuple(sorted(labels.items())), 0.0)

    def labels(self, name: str) -> Iterator[dict[str, str]]:
        """The labels of each sample of a name."""
        yield from (dict(labels) for labels in self.values.get(name, {}))


def parse(text: str) -> Reading:
    """A page in Prometheus's text format."""
    values: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return Reading(values, time.monotonic())


def url_of(address: str) -> str:
    """Where the metrics of HOST:PORT are; a whole URL stays what it is."""
    if not address.startswith(("http://", "https://")):
        address = f"http://{address}"
    return address if urllib.parse.urlsplit(address).path.strip("/") else f"{address.rstrip('/')}/metrics"


def read(address: str) -> Reading:
    """The metrics at HOST:PORT or at a URL. Raises UnavailableError (NO_METRICS) when there are none."""
    url = url_of(address)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310  (url_of gives http or https alone)
            return parse(answer.read().decode())
    except http.client.HTTPException as error:
        raise UnavailableError(
            f"{url} is no metrics port, it speaks another protocol than HTTP: name the server's metrics.address, not the "
            "port of its calls",
            reason="NO_METRICS",
        ) from error
    except (OSError, ValueError, urllib.error.URLError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        why = getattr(error, "reason", None) or error
        raise UnavailableError(
            f"no metrics at {url}: {why}; does the server run, with metrics.address set?",
            reason="NO_METRICS",
        ) from error


class Between:
    """What happened between two readings of one server."""

    def __init__(self, before: Reading, now: Reading) -> None:
        restarted = before.value("process_start_time_seconds") != now.value("process_start_time_seconds")
        self.before = Reading(time=before.time) if restarted else before
        self.now = now
        self.seconds = max(now.time - before.time, 1e-9)

    def count(self, name: str, **labels: str) -> float:
        """By how much the counters rose that have these labels, whatever their others."""
        wanted = set(labels.items())
        now, before = self.now.values.get(name, {}), self.before.values.get(name, {})
        return sum(value - before.get(key, 0.0) for key, value in now.items() if wanted <= set(key))

    def rate(self, name: str, **labels: str) -> float:
        """The same, by the second."""
        return self.count(name, **labels) / self.seconds

    def mean(self, name: str, **labels: str) -> float | None:
        """Mean of what a histogram observed; None when it observed nothing."""
        count = self.count(f"{name}_count", **labels)
        return self.count(f"{name}_sum", **labels) / count if count else None

    def quantile(self, share: float, name: str, **labels: str) -> float | None:
        """As Prometheus's histogram_quantile: linear within a bucket, the last bound for what lies above it."""
        wanted = set(labels.items())
        buckets: dict[float, float] = defaultdict(float)
        before = self.before.values.get(f"{name}_bucket", {})
        for key, value in self.now.values.get(f"{name}_bucket", {}).items():
            if wanted <= set(key):
                buckets[float(dict(key)["le"])] += value - before.get(key, 0.0)
        bounds = sorted(buckets)
        if not bounds or not buckets[bounds[-1]]:
            return None
        rank = share * buckets[bounds[-1]]
        below, start = 0.0, 0.0
        for bound in bounds:
            if buckets[bound] >= rank:
                if bound == float("inf"):
                    return start
                inside = buckets[bound] - below
                return start + (bound - start) * ((rank - below) / inside if inside else 0.0)
            below, start = buckets[bound], bound
        return start
