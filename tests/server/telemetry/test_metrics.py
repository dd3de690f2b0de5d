"""Metrics of a real server: what they count, what they never say."""

from __future__ import annotations

import re
import socket
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from passerby.errors import FailedPreconditionError, InvalidArgumentError
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_server.config import load_config
from passerby_server.telemetry import state
from passerby_server.telemetry.telemetry import methods

from tests.server.live import LiveServer, refused, running
from tests.server.pictures import crops, sequence
from tests.server.telemetry.scrape import samples, text, value

METRICS = {"address": "127.0.0.1:0"}


@pytest.fixture
def watched(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    monkeypatch.setattr(state, "FRESH_SECONDS", 0.0)
    with running(bundle, tmp_path / "data", metrics=METRICS) as live:
        yield live


def settled(live: LiveServer, name: str, wanted: float, **labels: str) -> float:
    """The sample once it has the value: a call is counted just after its answer has left. Its last value otherwise."""
    deadline = time.monotonic() + 5
    while (found := value(samples(live), name, **labels)) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_calls_stages_and_batches_are_counted(watched: LiveServer) -> None:
    before = samples(watched)
    assert value(before, "passerby_calls_total", method="SearchTracklets", code="OK") == 0
    gallery = watched.new_gallery()
    watched.ingest(gallery, sequence(crops(9)))
    query = search_v1.SearchTrackletsRequest(parent=gallery, top_k=1, frames=sequence(crops(4)))
    assert len(watched.search.SearchTracklets(query).hits) == 1
    missing = refused(lambda: watched.galleries.GetGallery(gallery_v1.GetGalleryRequest(name="galleries/none")))
    assert settled(watched, "passerby_calls_total", 1, method="SearchTracklets", code="OK") == 1
    assert missing.reason == "GALLERY_NOT_FOUND"
    found = samples(watched)
    assert value(found, "passerby_calls_total", method="GetGallery", code="NOT_FOUND") == 1
    assert value(found, "passerby_errors_total", code="NOT_FOUND", reason="GALLERY_NOT_FOUND") == 1
    assert value(found, "passerby_call_duration_seconds_count", method="IngestTracklet") == 1
    stages = {
        stage: value(found, "passerby_stage_duration_seconds_count", stage=stage) for stage in ("search", "store")
    }
    assert stages == {"search": 1, "store": 1}
    for stage in ("decode", "queue", "encode"):
        assert value(found, "passerby_stage_duration_seconds_count", stage=stage) == 2, stage
    # 9 frames are 3 snippets of 4, the query is one: so many rows went through the encoder.
    assert value(found, "passerby_batch_snippets_sum") == 4
    assert value(found, "passerby_queue_snippets") == 0
    assert value(found, "passerby_queue_limit_snippets") == 512
    assert value(found, "passerby_serving") == 1


def test_bulk_tracklets_are_counted_one_by_one(watched: LiveServer) -> None:
    gallery = watched.new_gallery()
    good = tracklet_v1.IngestTrackletRequest(parent=gallery, frames=sequence(crops(2)), request_id=str(uuid.uuid4()))
    good.tracklet.camera_id = "1"
    bad = tracklet_v1.IngestTrackletRequest(parent="galleries/none", request_id=str(uuid.uuid4()))
    messages = [tracklet_v1.BulkIngestTrackletsRequest(request=request) for request in (good, bad, bad)]
    assert len(list(watched.tracklets.BulkIngestTracklets(iter(messages), timeout=20))) == 3
    assert settled(watched, "passerby_calls_total", 1, method="BulkIngestTracklets", code="OK") == 1
    found = samples(watched)
    assert value(found, "passerby_bulk_tracklets_total", code="OK") == 1
    assert value(found, "passerby_bulk_tracklets_total", code="INVALID_ARGUMENT") == 2


def test_galleries_are_summed_and_named_only_when_asked(watched: LiveServer, bundle: Path, tmp_path: Path) -> None:
    for _ in range(2):
        watched.ingest(watched.new_gallery(), sequence(crops(2)), camera="secret-camera", identity_id="secret-identity")
    page = text(watched.server.metrics_port)
    assert 'passerby_gallery_tracklets{gallery=""} 2.0' in page
    assert "passerby_galleries 2.0" in page
    assert 'passerby_index_lag_tracklets{gallery=""} 0.0' in page
    assert "secret" not in page
    with running(bundle, tmp_path / "named", metrics=METRICS | {"gallery_labels": True}) as named:
        gallery = named.new_gallery().removeprefix("galleries/")
        named.ingest(f"galleries/{gallery}", sequence(crops(2)))
        assert f'passerby_gallery_tracklets{{gallery="{gallery}"}} 1.0' in text(named.server.metrics_port)


def test_what_the_index_does_not_hold_is_its_lag(watched: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = watched.new_gallery()
    galleries = watched.server.runtime.loaded.galleries
    (live,) = galleries._live.values()  # type: ignore[attr-defined]

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(live.index, "add", fails)
    watched.ingest(gallery, sequence(crops(2)))
    assert value(samples(watched), "passerby_index_lag_tracklets", gallery="") == 1


def test_the_model_and_the_disk_are_described(watched: LiveServer) -> None:
    info = watched.model.GetModelInfo(model_v1.GetModelInfoRequest()).model_info
    page = text(watched.server.metrics_port)
    assert f'fingerprint="{info.model_fingerprint}"' in page
    found = samples(watched)
    assert 0 < value(found, "passerby_data_free_bytes") < value(found, "passerby_data_size_bytes")
    assert abs(value(found, "passerby_model_load_timestamp_seconds") - time.time()) < 600
    assert value(found, "process_resident_memory_bytes") > 0


def test_labels_hold_nothing_that_a_caller_chooses(watched: LiveServer) -> None:
    gallery = watched.new_gallery()
    request = gallery_v1.GetGalleryRequest(name="galleries/chosen-by-caller")
    refused(lambda: watched.galleries.GetGallery(request, metadata=(("x-request-id", "chosen-by-caller"),)))
    unknown: Any = watched.channel.unary_unary("/passerby.v1.GalleryService/ChosenByCaller")
    refused(lambda: unknown(b""))
    page = text(watched.server.metrics_port).lower()
    assert "chosen" not in page
    assert gallery.removeprefix("galleries/") not in page


def test_methods_have_names_of_their_own() -> None:
    assert len(methods()) > 15
    assert len(set(methods())) == len(methods())


def test_without_an_address_there_is_no_port(live: LiveServer) -> None:
    assert live.server.metrics_port == 0


def test_the_port_closes_with_the_server(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path, metrics=METRICS) as server:
        port = server.server.metrics_port
        assert text(port)
    with pytest.raises(urllib.error.URLError):
        text(port)


def health(port: int) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_probes_without_grpc_see_the_same_health(watched: LiveServer) -> None:
    port = watched.server.metrics_port
    assert health(port) == (200, b"SERVING\n")
    watched.on_loop(watched.server.runtime.draining.set)
    assert health(port) == (503, b"NOT_SERVING\n")
    assert value(samples(watched), "passerby_serving") == 0


def test_a_data_folder_that_cannot_be_written_is_said_and_no_reason_to_restart(
    watched: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, store = watched.server.metrics_port, vars(watched.server.runtime.loaded.galleries)["_store"]
    assert value(samples(watched), "passerby_data_writable") == 1
    monkeypatch.setattr(store.disk, "reason", "STORE_NOT_WRITABLE")
    assert health(port) == (200, b"SERVING\nnothing can be stored: STORE_NOT_WRITABLE\n")
    assert value(samples(watched), "passerby_data_writable") == 0


def test_a_taken_port_is_an_error(bundle: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(FailedPreconditionError, match=f"cannot serve metrics on {re.escape(address)}"),
            running(bundle, tmp_path, metrics={"address": address}),
        ):
            pass


def test_metrics_beyond_this_machine_have_to_be_asked_for(tmp_path: Path) -> None:
    flags = {"bundle": "b", "metrics.address": "0.0.0.0:9464"}
    with pytest.raises(InvalidArgumentError, match=r"set metrics\.insecure_listen"):
        load_config(flags)
    with pytest.raises(InvalidArgumentError, match="is not HOST:PORT"):
        load_config(flags | {"metrics.address": "9464"})
    assert load_config(flags | {"metrics.insecure_listen": "true"}).metrics.address == "0.0.0.0:9464"


def test_the_end_of_the_certificate_is_told(bundle: Path, tmp_path: Path) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=9)
    issued = trustme.CA().issue_cert("localhost", not_after=ends)
    issued.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    issued.private_key_pem.write_to_path(tmp_path / "tls.key")
    tls = {"certificate": tmp_path / "tls.crt", "key": tmp_path / "tls.key"}
    with running(bundle, tmp_path / "data", metrics=METRICS, tls=tls) as server:
        assert value(samples(server), "passerby_certificate_expiry_timestamp_seconds") == ends.timestamp()
