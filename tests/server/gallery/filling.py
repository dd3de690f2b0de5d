"""Short ways to put tracklets into a gallery under test, and to ask for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
from passerby_server.gallery.types import ModelSpace, NewTracklet, SearchQuery

SPACE = ModelSpace("sha256:one", 4, "squared_euclidean")
START = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def at(minutes):
    return START + timedelta(minutes=minutes)


def put(galleries, tracklet_id, descriptor, *, gallery_id="g", fingerprint="sha256:one", thumbnail=b"", **said):
    request_id, digest = said.pop("request_id", ""), said.pop("request_digest", b"")
    tracklet = NewTracklet(tracklet_id, **({"camera_id": "c1"} | said))
    vector = np.asarray(descriptor, np.float32)
    return galleries.ingest(gallery_id, tracklet, vector, fingerprint, thumbnail, request_id, digest)


def ask(descriptor, top_k=10, fingerprint="sha256:one", **options):
    return SearchQuery(np.asarray(descriptor, np.float32), fingerprint, top_k, **options)


def ids(hits):
    return [hit.tracklet.tracklet_id for hit in hits]


def reason(caught):
    return caught.value.reason
