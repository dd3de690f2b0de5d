"""Real people, a public model, the whole way: wrap, serve, bulk-index, search over gRPC."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from passerby_client import Client
from passerby_export.spec import load_spec
from passerby_export.wrap import wrap
from passerby_indexer.bulk import index
from passerby_model.datasets import Tracklet, read
from passerby_model.metrics import evaluate

from tests.server.process import serving

SPECS = Path(__file__).resolve().parents[2] / "bundles/specs"
FRAMES = 8  # of each tracklet, evenly spread: what the figures of the data's own notes were made with


def thinned(tracklet: Tracklet) -> Tracklet:
    chosen = np.linspace(0, len(tracklet.frames) - 1, FRAMES).round().astype(int)
    return replace(tracklet, frames=tuple(tracklet.frames[i] for i in chosen))


@pytest.mark.timeout(600)
def test_public_model_finds_everyone_of_camera_1_in_cameras_2_and_3(shared: Path, tmp_path: Path) -> None:
    name = "person-reidentification-retail-0277"
    bundle = tmp_path / "bundle"
    wrap(shared / f"data/weights/{name}-fp16/{name}.xml", bundle, load_spec(SPECS / f"{name}.yaml", {}))
    tracklets = [thinned(tracklet) for tracklet in read(shared / "data/real_tracklets/ward")]
    with serving(bundle, tmp_path / "data") as server, Client(f"127.0.0.1:{server.port}", timeout=120) as client:
        client.create_gallery("ward")
        stored = [t for t in tracklets if t.camera != "1"]
        assert index(client, "ward", stored).stored == 140
        queries = [t for t in tracklets if t.camera == "1"]
        column = {tracklet.key: i for i, tracklet in enumerate(stored)}
        distances = np.full((len(queries), len(stored)), np.nan, np.float32)
        for row, query in enumerate(queries):
            for hit in client.search("ward", frames=query.frames, top_k=len(stored)).hits:
                distances[row, column[hit.tracklet.labels["source"]]] = hit.distance
    assert not np.isnan(distances).any(), "every stored tracklet is ranked"
    ids, cameras = (np.array([getattr(t, key) for t in queries]) for key in ("identity", "camera"))
    stored_ids, stored_cameras = (np.array([getattr(t, key) for t in stored]) for key in ("identity", "camera"))
    result = evaluate(distances, ids, stored_ids, cameras, stored_cameras)
    assert result.valid_queries == 70
    assert result.cmc[0] == 1
    assert result.mean_average_precision >= 0.99
