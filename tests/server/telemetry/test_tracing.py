"""Traces, as a real collector receives them from a real server."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from passerby.errors import InvalidArgumentError
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_server.config import load_config
from passerby_server.sections import Tracing as Settings
from passerby_server.telemetry.tracing import Tracing

from tests.server.live import LiveServer, refused, running
from tests.server.pictures import crops, sequence
from tests.server.telemetry.collector import collecting

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def attributes(span: Any) -> dict[str, Any]:
    return {found.key: found.value.string_value or found.value.int_value for found in span.attributes}


def test_a_call_and_its_stages_continue_the_callers_trace(bundle: Path, tmp_path: Path) -> None:
    with collecting() as collector:
        endpoint = f"http://127.0.0.1:{collector.port}"
        with running(bundle, tmp_path, tracing={"endpoint": endpoint}) as live:
            gallery = live.new_gallery()
            live.ingest(gallery, sequence(crops(9)), camera="secret-camera", identity_id="secret-identity")
            query = search_v1.SearchTrackletsRequest(parent=gallery, top_k=1, frames=sequence(crops(4)))
            metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "given"))
            live.search.SearchTracklets(query, metadata=metadata, timeout=20)
            refused(lambda: live.galleries.GetGallery(gallery_v1.GetGalleryRequest(name="galleries/none"), timeout=20))
        spans = collector.spans()  # the server sent what was left when it stopped
    assert collector.service == "passerby"
    search = next(span for span in spans if span.name == "passerby.v1.SearchService/SearchTracklets")
    assert (search.trace_id.hex(), search.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(search)["passerby.request_id"] == "given"
    assert attributes(search)["rpc.method"] == "SearchTracklets"
    stages = [span for span in spans if span.parent_span_id == search.span_id]
    assert [span.name for span in stages] == ["decode", "queue", "encode", "search"]
    for span in stages:
        assert search.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= search.end_time_unix_nano
    ingest = next(span for span in spans if span.name.endswith("/IngestTracklet"))
    assert ingest.trace_id != search.trace_id
    names = [span.name for span in spans if span.parent_span_id == ingest.span_id]
    assert names == ["decode", "queue", "encode", "thumbnail", "store"]
    failed = next(span for span in spans if span.name.endswith("/GetGallery"))
    assert (failed.status.code, failed.status.message) == (2, "GALLERY_NOT_FOUND")
    assert attributes(failed)["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert "secret" not in str(spans)
    assert gallery.removeprefix("galleries/") not in str(spans)


def test_each_tracklet_of_a_bulk_stream_has_a_span(bundle: Path, tmp_path: Path) -> None:
    with collecting() as collector:
        with running(bundle, tmp_path, tracing={"endpoint": f"http://127.0.0.1:{collector.port}"}) as live:
            gallery, messages = live.new_gallery(), []
            for _ in range(2):
                request = tracklet_v1.IngestTrackletRequest(parent=gallery, request_id=str(uuid.uuid4()))
                request.frames.CopyFrom(sequence(crops(2)))
                request.tracklet.camera_id = "1"
                messages.append(tracklet_v1.BulkIngestTrackletsRequest(request=request))
            assert len(list(live.tracklets.BulkIngestTracklets(iter(messages), timeout=20))) == 2
        spans = collector.spans()
    stream = next(span for span in spans if span.name.endswith("/BulkIngestTracklets"))
    items = [span for span in spans if span.parent_span_id == stream.span_id]
    assert [span.name for span in items] == ["tracklet", "tracklet"]
    for item in items:
        below = {span.name for span in spans if span.parent_span_id == item.span_id}
        assert below == {"decode", "queue", "encode", "thumbnail", "store"}


def test_the_callers_choice_wins_over_the_share() -> None:
    kept = InMemorySpanExporter()
    tracing = Tracing(Settings(endpoint="http://nowhere:1", sample=0.0), SimpleSpanProcessor(kept))
    for carrier in ({}, {"traceparent": f"00-{TRACE}-{PARENT}-01"}, {"traceparent": f"00-{TRACE}-{PARENT}-00"}):
        tracing.begin("Embed", "service", "id", carrier).end()
    tracing.close()
    (span,) = kept.get_finished_spans()
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE


def test_a_collector_that_is_not_there_disturbs_nobody(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path, tracing={"endpoint": "http://127.0.0.1:9"}) as live:
        assert live.new_gallery()


def test_without_an_endpoint_opentelemetry_is_not_loaded(live: LiveServer) -> None:
    assert live.server.telemetry.tracing is None


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "http://", "ftp://host:1"])
def test_an_endpoint_is_an_address(endpoint: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"tracing\.endpoint"):
        load_config({"bundle": "b", "tracing.endpoint": endpoint})
