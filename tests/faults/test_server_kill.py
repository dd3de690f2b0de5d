"""kill -9 in the middle of a bulk ingest: what was acknowledged is there, once, and searchable."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from passerby.errors import from_rpc_error
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1

from tests.encoders import expected_descriptor, make_bundle
from tests.server.pictures import crops, sequence
from tests.server.process import Process, serving

COUNT = 120


def requests(gallery: str) -> list[tracklet_v1.BulkIngestTrackletsRequest]:
    return [
        tracklet_v1.BulkIngestTrackletsRequest(
            request=tracklet_v1.IngestTrackletRequest(
                parent=gallery,
                tracklet_id=f"t{index}",
                tracklet=resources.Tracklet(camera_id="1"),
                frames=sequence(crops(1 + index % 5, seed=index)),
                request_id=str(uuid.uuid5(uuid.NAMESPACE_URL, str(index))),
            )
        )
        for index in range(COUNT)
    ]


def ingest_until_killed(server: Process, gallery: str, after: int) -> list[str]:
    """Names that were acknowledged before and while the server was killed, right after the `after`-th answer."""
    acknowledged = []
    call = server.tracklets.BulkIngestTracklets(iter(requests(gallery)), timeout=60)
    try:
        for answer in call:
            acknowledged.append(answer.tracklet.name)
            if len(acknowledged) == after:
                server.process.kill()
    except grpc.RpcError as error:
        code = from_rpc_error(error).code
    else:
        pytest.fail("the server outlived its kill")
    assert code == grpc.StatusCode.UNAVAILABLE
    return acknowledged


def stored(server: Process, gallery: str) -> list[str]:
    def pages() -> Iterator[str]:
        token = ""
        while True:
            page = server.tracklets.ListTracklets(
                tracklet_v1.ListTrackletsRequest(parent=gallery, page_size=50, page_token=token), timeout=20
            )
            yield from (tracklet.name for tracklet in page.tracklets)
            if not (token := page.next_page_token):
                return

    return list(pages())


@pytest.mark.parametrize("after", [5, 60])
def test_acknowledged_tracklets_survive_kill_9(tmp_path: Path, after: int) -> None:
    bundle, data = make_bundle(tmp_path / "bundle"), tmp_path / "data"
    with serving(bundle, data) as server:
        gallery = server.new_gallery()
        acknowledged = ingest_until_killed(server, gallery, after)
    assert after <= len(acknowledged) < COUNT

    with serving(bundle, data) as server:
        names = stored(server, gallery)
        assert set(acknowledged) <= set(names)
        assert len(names) == len(set(names))
        for name in acknowledged[:: max(1, len(acknowledged) // 10)]:
            index = int(name.rpartition("/t")[2])
            request = search_v1.SearchTrackletsRequest(
                parent=gallery, frames=sequence(crops(1 + index % 5, seed=index)), top_k=1
            )
            [hit] = server.search.SearchTracklets(request, timeout=20).hits
            assert hit.tracklet.name == name
            assert hit.distance == pytest.approx(0, abs=1e-6)

        answers = list(server.tracklets.BulkIngestTracklets(iter(requests(gallery)), timeout=60))
        assert len(answers) == COUNT
        assert all(answer.WhichOneof("result") == "tracklet" for answer in answers)
        names = stored(server, gallery)
        assert len(names) == len(set(names)) == COUNT
        stats = server.galleries.GetGalleryStats(gallery_v1.GetGalleryStatsRequest(name=gallery), timeout=20)
        assert stats.tracklet_count == COUNT
        last = server.tracklets.GetTracklet(
            tracklet_v1.GetTrackletRequest(name=f"{gallery}/tracklets/t{COUNT - 1}", include_descriptor=True)
        )
        np.testing.assert_allclose(
            last.tracklet_descriptor.values,
            expected_descriptor(crops(1 + (COUNT - 1) % 5, seed=COUNT - 1)),
            atol=1e-5,
        )
