"""What Prometheus reads off the server's state, at the moment it asks: queue, calls, model, galleries, disk.

The label `gallery` holds the id that an operator gave. It is empty, and the figures are of all galleries together
(sums; the least recall), unless `metrics.gallery_labels` is on: an id may say more than a monitoring system should know,
log lines do not carry it either, and each one makes series.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import metadata

from passerby.errors import PasserbyError
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from passerby_server.gallery.types import Galleries, GalleryFigures
from passerby_server.interceptors import Guard
from passerby_server.runtime import Loaded, Runtime
from passerby_server.security.tls import Certificates

FRESH_SECONDS = 15.0
"""Counting tracklets reads the store: no more often than that, however often somebody asks."""
MAX_GALLERIES = 200
"""Galleries with series of their own; those that come later by id are left out."""


class State(Collector):
    """Collects from a running server, in the thread of whoever asks."""

    def __init__(
        self, runtime: Runtime, guard: Guard, certificates: Certificates | None = None, *, by_gallery: bool = False
    ) -> None:
        self._runtime = runtime
        self._guard = guard
        self._certificates = certificates
        self._by_gallery = by_gallery
        self._figures: tuple[GalleryFigures, ...] = ()
        self._counted = -FRESH_SECONDS
        self._lock = threading.Lock()

    def serving(self) -> bool:
        """Whether calls are answered."""
        loaded = self._runtime.newest
        return loaded is not None and loaded.encoder.batcher.healthy and not self._runtime.draining.is_set()

    def unwritable(self) -> str:
        """Why nothing can be stored, as far as is known: a reason, or nothing."""
        loaded = self._runtime.newest
        return "" if loaded is None else loaded.galleries.unwritable

    def collect(self) -> Iterator[Metric]:
        """Every family each time, without samples where there is nothing to say yet."""
        loaded = self._runtime.newest
        about = "1 while calls are answered, 0 while loading and draining, and while the encoder hangs."
        yield _gauge("passerby_serving", about, self.serving())
        yield _gauge("passerby_calls_in_progress", "Calls being worked on.", self._guard.calls)
        yield _gauge("passerby_streams_in_progress", "Streams among them.", self._guard.streams)
        yield from self._queue(loaded)
        yield from _model(loaded)
        yield from self._disk(loaded)
        ends = [] if self._certificates is None else [self._certificates.expire_time.timestamp()]
        name = "passerby_certificate_expiry_timestamp_seconds"
        yield _gauge(name, "When the certificate in use ends, since 1970; absent without TLS.", *ends)
        yield from self._galleries(loaded)

    def _queue(self, loaded: Loaded | None) -> Iterator[Metric]:
        waiting = 0 if loaded is None else loaded.encoder.batcher.admitted
        limit = self._runtime.config.batching.max_queued_snippets
        yield _gauge("passerby_queue_snippets", "Snippets being decoded, waiting or computing.", waiting)
        yield _gauge("passerby_queue_limit_snippets", "Snippets beyond which calls are refused.", limit)

    def _disk(self, loaded: Loaded | None) -> Iterator[Metric]:
        try:
            usage = shutil.disk_usage(self._runtime.config.data)
        except FileNotFoundError:  # before the folder is made
            usage = None
        free, size = (
            ("passerby_data_free_bytes", "Free on the data's volume."),
            ("passerby_data_size_bytes", "Its size."),
        )
        yield _gauge(*free, *([] if usage is None else [usage.free]))
        yield _gauge(*size, *([] if usage is None else [usage.total]))
        about = "1 while the data can be written, 0 since a write, or the look once a sweep, found that it cannot."
        yield _gauge("passerby_data_writable", about, *([] if loaded is None else [not self.unwritable()]))

    def _galleries(self, loaded: Loaded | None) -> Iterator[Metric]:
        figures = () if loaded is None else self._fresh(loaded.galleries)
        rows = [(one.gallery_id, (one,)) for one in figures[:MAX_GALLERIES]] if self._by_gallery else [("", figures)]
        yield _gauge("passerby_galleries", "Galleries.", len(figures))
        for name, help, value in (
            ("passerby_gallery_tracklets", "Stored tracklets.", _tracklets),
            ("passerby_gallery_index_bytes", "What the index holds in memory.", _index_bytes),
            ("passerby_index_lag_tracklets", "Stored tracklets that the index does not hold.", _lag),
            ("passerby_index_recall_ratio", "Neighbours that audited searches found, of those there were.", _recall),
            ("passerby_index_recall_queries", "Searches that the recall audit has repeated.", _recall_queries),
        ):
            family = GaugeMetricFamily(name, help, labels=["gallery"])
            for gallery_id, ones in rows:
                if (number := value(ones)) is not None:
                    family.add_metric([gallery_id], number)
            yield family

    def _fresh(self, galleries: Galleries) -> tuple[GalleryFigures, ...]:
        with self._lock:
            if time.monotonic() - self._counted >= FRESH_SECONDS:
                try:
                    self._figures = galleries.figures()
                except PasserbyError:  # closed meanwhile: the last figures stand
                    return self._figures
                self._counted = time.monotonic()
            return self._figures


def _model(loaded: Loaded | None) -> Iterator[Metric]:
    build = GaugeMetricFamily("passerby_build_info", "Version of the server.", labels=["version"])
    build.add_metric([metadata.version("passerby")], 1)
    yield build
    labels = ["bundle", "architecture", "fingerprint", "backend", "precision"]
    model = GaugeMetricFamily("passerby_model_info", "The model that new calls get.", labels=labels)
    if loaded is not None:
        manifest, backend = loaded.bundle.manifest, loaded.backend
        values = [manifest.name, manifest.architecture, manifest.fingerprint, backend.name, backend.precision]
        model.add_metric(values, 1)
    yield model
    name = "passerby_model_load_timestamp_seconds"
    yield _gauge(name, "When it was loaded, since 1970.", *([] if loaded is None else [loaded.load_time]))


def _gauge(name: str, help: str, *values: float) -> Metric:
    family = GaugeMetricFamily(name, help)
    for value in values:
        family.add_metric([], value)
    return family


def _tracklets(of: Sequence[GalleryFigures]) -> float:
    return sum(one.tracklets for one in of)


def _index_bytes(of: Sequence[GalleryFigures]) -> float:
    return sum(one.index_bytes for one in of)


def _lag(of: Sequence[GalleryFigures]) -> float:
    # Counted one after the other while tracklets come and go: less than none is none.
    return sum(max(0, one.tracklets - one.indexed) for one in of)


def _recall(of: Sequence[GalleryFigures]) -> float | None:
    return min((one.recall for one in of if one.recall is not None), default=None)


def _recall_queries(of: Sequence[GalleryFigures]) -> float:
    return sum(one.recall_queries for one in of)
