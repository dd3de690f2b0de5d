"""A new bundle without downtime: loaded beside the old one, switched, rolled back; under calls of every kind."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from passerby.errors import (
    CancelledError,
    DataLossError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    UnavailableError,
)
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_client.cli import main
from passerby_model.bundle import MANIFEST_NAME
from passerby_server import runtime
from passerby_server.backend import Sized, open_sized

from tests.encoders import expected_descriptor, make_bundle
from tests.server.live import LiveServer, refused, running
from tests.server.pictures import crops, sequence
from tests.server.process import serving
from tests.server.telemetry.scrape import samples, value

CROPS = crops(6)
FRAMES = sequence(CROPS)
EMBED = model_v1.EmbedTrackletRequest(frames=FRAMES)
RELOAD = model_v1.ReloadBundleRequest()


class Shelf:
    """Bundles, of which one lies where the server looks: a link that is replaced in one step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.link = folder / "current"
        for seed in (0, 1):
            make_bundle(folder / f"model-{seed}", seed=seed)

    def put(self, name: str) -> None:
        made = self.folder / "next"
        made.symlink_to(self.folder / name)
        os.replace(made, self.link)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(tmp_path / "bundles")
    made.put("model-0")
    return made


@pytest.fixture
def server(shelf: Shelf, tmp_path: Path) -> Iterator[LiveServer]:
    with running(shelf.link, tmp_path / "data", metrics={"address": "127.0.0.1:0"}) as live:
        yield live


def reload(server: LiveServer) -> model_v1.ReloadBundleResponse:
    return server.model.ReloadBundle(RELOAD, timeout=60)


def retired(server: LiveServer) -> None:
    """Returns once the model before is closed."""
    deadline = time.monotonic() + 20
    while not server.server.runtime._retiring.done():  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def embedded(server: LiveServer) -> Any:
    return np.array(server.model.EmbedTracklet(EMBED, timeout=20).tracklet_descriptor.values)


def bulk(gallery: str) -> tracklet_v1.BulkIngestTrackletsRequest:
    request = tracklet_v1.IngestTrackletRequest(parent=gallery, frames=FRAMES, request_id=str(uuid.uuid4()))
    request.tracklet.camera_id = "1"
    return tracklet_v1.BulkIngestTrackletsRequest(request=request)


def test_no_call_fails_while_the_same_model_is_loaded_again_and_again(server: LiveServer) -> None:
    gallery = server.new_gallery()
    wanted = expected_descriptor(CROPS)
    ingest = tracklet_v1.IngestTrackletRequest(parent=gallery, frames=FRAMES)
    ingest.tracklet.camera_id = "1"
    search = search_v1.SearchTrackletsRequest(parent=gallery, top_k=1, frames=FRAMES)
    done, counts = threading.Event(), dict.fromkeys(("embed", "ingest", "search"), 0)

    def load(name: str, call: Callable[[], Any]) -> None:
        while not done.is_set():
            call()
            counts[name] += 1

    def embeds() -> None:
        assert embedded(server) == pytest.approx(wanted, abs=1e-4)

    backends = [weakref.ref(server.server.runtime.loaded.backend)]
    with ThreadPoolExecutor(6) as threads:
        tasks = [
            threads.submit(load, name, call)
            for name, call in (
                ("embed", embeds),
                ("ingest", lambda: server.tracklets.IngestTracklet(ingest, timeout=20)),
                ("search", lambda: server.search.SearchTracklets(search, timeout=20)),
            )
            for _ in range(2)
        ]
        try:
            for _ in range(4):
                before = dict(counts)
                answer = reload(server)
                assert answer.previous_fingerprint == answer.model_info.model_fingerprint
                retired(server)
                backends.append(weakref.ref(server.server.runtime.loaded.backend))
                assert all(counts[name] > before[name] for name in counts), "calls waited for the reload"
        finally:
            done.set()
        for task in tasks:
            task.result(30)
    assert [backend() is None for backend in backends] == [True] * 4 + [False], "only the newest is kept"
    found = samples(server)
    assert value(found, "passerby_model_reloads_total", outcome="switched") == 4
    assert {dict(labels)["code"] for name, labels in found if name == "passerby_calls_total"} == {"OK"}


def test_another_model_and_back(server: LiveServer, shelf: Shelf) -> None:
    old = server.new_gallery()
    stored, _ = server.ingest(old, FRAMES), server.ingest(old, FRAMES)
    shelf.put("model-1")
    answer = reload(server)
    info = server.model.GetModelInfo(model_v1.GetModelInfoRequest()).model_info
    assert answer.model_info == info
    root = server.server.runtime.loaded.bundle.root
    assert root == shelf.folder.resolve() / "model-1", "a link that may change while its bundle is read"
    assert info.model_fingerprint != answer.previous_fingerprint
    assert embedded(server) == pytest.approx(expected_descriptor(CROPS, seed=1), abs=1e-4)
    error = refused(lambda: server.ingest(old, FRAMES))
    assert (type(error), error.reason) == (FailedPreconditionError, "MODEL_MISMATCH")
    by_stored = search_v1.SearchTrackletsRequest(parent=old, top_k=1, tracklet=stored.name)
    assert len(server.search.SearchTracklets(by_stored, timeout=20).hits) == 1, "stored descriptors are still searched"
    server.ingest(server.new_gallery(), FRAMES)
    shelf.put("model-0")
    retired(server)
    reload(server)
    server.ingest(old, FRAMES)


def test_the_same_fingerprint_on_another_runtime_keeps_the_galleries(server: LiveServer, shelf: Shelf) -> None:
    gallery = server.new_gallery()
    server.ingest(gallery, FRAMES)
    other = make_bundle(shelf.folder / "onnxruntime-only")
    manifest = json.loads((other / MANIFEST_NAME).read_text())
    artefact = manifest["artefacts"][0]
    artefact["runtimes"] = ["onnxruntime"]
    artefact["parity"]["rows"] = [row for row in artefact["parity"]["rows"] if row["runtime"] == "onnxruntime"]
    (other / MANIFEST_NAME).write_text(json.dumps(manifest))
    shelf.put(other.name)
    answer = reload(server)
    assert answer.model_info.model_fingerprint == answer.previous_fingerprint
    assert answer.model_info.backend == model_v1.BACKEND_ONNXRUNTIME
    server.ingest(gallery, FRAMES)


def damage(shelf: Shelf) -> None:
    made = make_bundle(shelf.folder / "damaged", seed=1)
    (made / "encoder.onnx").write_bytes((made / "encoder.onnx").read_bytes() + b"x")
    shelf.put(made.name)


def unproven(shelf: Shelf) -> None:
    shelf.put(make_bundle(shelf.folder / "unproven", seed=1, parity_passed=False).name)


@pytest.mark.parametrize(
    ("spoil", "kind", "text"),
    [
        (damage, DataLossError, "differs from its checksum"),
        (unproven, FailedPreconditionError, "failed its parity check"),
        (lambda shelf: shelf.link.unlink(), NotFoundError, "is no bundle"),
    ],
    ids=["damaged", "unproven", "absent"],
)
def test_a_bundle_that_cannot_be_served_changes_nothing(
    server: LiveServer, shelf: Shelf, caplog, spoil: Callable[[Shelf], None], kind: type[Exception], text: str
) -> None:
    spoil(shelf)
    error = refused(lambda: reload(server))
    assert type(error) is kind
    assert text in error.message
    assert any(text in record.getMessage() and record.levelname == "ERROR" for record in caplog.records)
    assert embedded(server) == pytest.approx(expected_descriptor(CROPS), abs=1e-4)
    assert value(samples(server), "passerby_model_reloads_total", outcome="failed") == 1
    shelf.put("model-1")
    reload(server)
    assert embedded(server) == pytest.approx(expected_descriptor(CROPS, seed=1), abs=1e-4)


def test_a_model_that_fails_while_it_is_warmed_up_changes_nothing(
    server: LiveServer, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = threading.active_count()

    kept: list[weakref.ref[Any]] = []

    def fails(sized: Sized, *_: object) -> None:
        kept.append(weakref.ref(sized.backend))
        raise InternalError("the runtime failed", reason="ENCODER_FAILED")

    shelf.put("model-1")
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "warm_up", fails)
        error = refused(lambda: reload(server))
    assert (type(error), error.reason) == (InternalError, "ENCODER_FAILED")
    assert [backend() for backend in kept] == [None], "a model that never served is still in memory"
    assert embedded(server) == pytest.approx(expected_descriptor(CROPS), abs=1e-4)
    assert threading.active_count() <= threads + 4, "threads of a model that never served go on"


def test_only_the_bundle_that_was_meant(server: LiveServer, shelf: Shelf) -> None:
    fingerprint = server.model.GetModelInfo(model_v1.GetModelInfoRequest()).model_info.model_fingerprint
    shelf.put("model-1")
    error = refused(lambda: server.model.ReloadBundle(model_v1.ReloadBundleRequest(model_fingerprint=fingerprint)))
    assert (type(error), error.reason) == (FailedPreconditionError, "OTHER_BUNDLE")
    meant = error.metadata["fingerprint"]
    assert meant[:12] in error.message
    for wrong in (meant[:11], f"{meant[:12]}x", f"{meant}0"):
        malformed = model_v1.ReloadBundleRequest(model_fingerprint=wrong)
        assert refused(partial(server.model.ReloadBundle, malformed)).reason == "FINGERPRINT_MALFORMED"
    answer = server.model.ReloadBundle(model_v1.ReloadBundleRequest(model_fingerprint=meant[:12]), timeout=60)
    assert answer.model_info.model_fingerprint == meant
    answer = server.model.ReloadBundle(model_v1.ReloadBundleRequest(model_fingerprint=meant), timeout=60)
    assert answer.model_info.model_fingerprint == meant


def test_a_call_in_progress_ends_with_its_model_which_is_then_closed(
    server: LiveServer, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = weakref.ref(server.server.runtime.loaded.backend)
    kind = type(server.server.runtime.loaded.backend)
    encode, inside, gate = kind.encode, threading.Event(), threading.Event()

    def held(self: Any, snippets: Any) -> Any:
        if self is kept():
            inside.set()
            assert gate.wait(30)
        return encode(self, snippets)

    monkeypatch.setattr(kind, "encode", held)
    call = server.model.EmbedTracklet.future(EMBED, timeout=60)
    assert inside.wait(10)
    shelf.put("model-1")
    fingerprint = reload(server).model_info.model_fingerprint
    assert embedded(server) == pytest.approx(expected_descriptor(CROPS, seed=1), abs=1e-4)
    error = refused(lambda: reload(server))
    assert (type(error), error.reason) == (FailedPreconditionError, "RELOAD_UNDER_WAY"), "a third model in memory"
    gate.set()
    descriptor = call.result().tracklet_descriptor
    assert np.array(descriptor.values) == pytest.approx(expected_descriptor(CROPS), abs=1e-4)
    assert descriptor.model_fingerprint != fingerprint
    retired(server)
    assert kept() is None
    reload(server)


def test_a_reload_heals_an_encoder_that_hangs(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(shelf.link, tmp_path / "data", batching={"watchdog_seconds": 0.3}) as server:
        kept = weakref.ref(server.server.runtime.loaded.backend)
        kind = type(server.server.runtime.loaded.backend)
        encode, gate = kind.encode, threading.Event()

        def hangs(self: Any, snippets: Any) -> Any:
            if self is kept():
                gate.wait(30)
            return encode(self, snippets)

        monkeypatch.setattr(kind, "encode", hangs)
        assert type(refused(lambda: embedded(server))) is InternalError
        stub: Any = health_pb2_grpc.HealthStub(server.channel)

        def health() -> int:
            return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status)

        try:
            assert health() == health_pb2.HealthCheckResponse.NOT_SERVING
            reload(server)
            assert embedded(server) == pytest.approx(expected_descriptor(CROPS), abs=1e-4)
            assert health() == health_pb2.HealthCheckResponse.SERVING
        finally:
            gate.set()


def test_a_server_that_stops_while_it_reloads_leaves_nothing_behind(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, gate = threading.Event(), threading.Event()
    kept: list[weakref.ref[Any]] = []

    def slowly(*arguments: Any) -> Any:
        inside.set()
        assert gate.wait(30)
        sized = open_sized(*arguments)
        kept.append(weakref.ref(sized.backend))
        return sized

    with running(shelf.link, tmp_path / "data", drain_seconds=0.2) as server:
        monkeypatch.setattr(runtime, "open_sized", slowly)
        call = server.model.ReloadBundle.future(RELOAD, timeout=60)
        assert inside.wait(10)
        threading.Timer(1.0, gate.set).start()
        server.on_loop(server.server.stop)
        assert type(refused(call.result)) in (UnavailableError, CancelledError)
    (new,) = kept
    assert new() is None, "a model that never served is still in memory"


def test_a_server_that_stops_does_not_wait_for_a_whole_warm_up(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    inside = threading.Event()
    with running(shelf.link, tmp_path / "data", drain_seconds=0.2) as server:
        kind, draining = type(server.server.runtime.loaded.backend), server.server.runtime.draining
        encode = kind.encode

        def slowly(self: Any, snippets: Any) -> Any:
            sizes.append(len(snippets))
            inside.set()
            deadline = time.monotonic() + 20
            while not draining.is_set():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return encode(self, snippets)

        monkeypatch.setattr(kind, "encode", slowly)
        call = server.model.ReloadBundle.future(RELOAD, timeout=60)
        assert inside.wait(10)
        server.on_loop(server.server.stop)
        assert type(refused(call.result)) in (UnavailableError, CancelledError)
    assert sizes == [1]


def test_streams_across_a_switch(server: LiveServer, shelf: Shelf) -> None:
    gallery = server.new_gallery()
    box: queue.Queue[tracklet_v1.BulkIngestTrackletsRequest | None] = queue.Queue()
    frames: queue.Queue[tracklet_v1.StreamTrackletRequest | None] = queue.Queue()
    answers = server.tracklets.BulkIngestTracklets(iter(box.get, None), timeout=60)
    box.put(bulk(gallery))
    assert next(answers).tracklet.frame_count == 6
    header = tracklet_v1.StreamTrackletRequest.Header(parent=gallery, tracklet=resources.Tracklet(camera_id="1"))
    single = server.tracklets.StreamTracklet.future(iter(frames.get, None), timeout=60)
    frames.put(tracklet_v1.StreamTrackletRequest(header=header))
    frames.put(tracklet_v1.StreamTrackletRequest(frame=FRAMES.frames[0]))
    generation = server.server.runtime._generation
    assert generation is not None
    deadline = time.monotonic() + 10
    while not generation.users:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    shelf.put("model-1")
    reload(server)
    # The tracklet that was on its way is one of the old model's; those of the bulk stream begin one by one.
    for frame in FRAMES.frames[1:]:
        frames.put(tracklet_v1.StreamTrackletRequest(frame=frame))
    frames.put(None)
    stored = single.result().tracklet
    got = tracklet_v1.GetTrackletRequest(name=stored.name, include_descriptor=True)
    descriptor = server.tracklets.GetTracklet(got, timeout=20).tracklet_descriptor
    assert np.array(descriptor.values) == pytest.approx(expected_descriptor(CROPS), abs=1e-4)
    box.put(bulk(gallery))
    status = next(answers).status
    assert status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    retired(server)  # although the bulk stream is still open
    box.put(bulk(server.new_gallery()))
    assert next(answers).tracklet.frame_count == 6
    box.put(None)
    assert list(answers) == []


def test_sighup_and_the_command_reload(shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(shelf.link, tmp_path / "data", "--log-format", "json") as process:
        shelf.put("model-1")
        process.process.send_signal(signal.SIGHUP)
        wanted = expected_descriptor(CROPS, seed=1)
        deadline = time.monotonic() + 20
        while not np.allclose(
            np.array(process.model.EmbedTracklet(EMBED).tracklet_descriptor.values), wanted, atol=1e-4
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        shelf.link.unlink()
        process.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        shelf.put("model-0")
        with pytest.raises(SystemExit) as ended:
            main(["model", "reload", "--server", f"127.0.0.1:{process.port}"])
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        assert "galleries of the model before refuse frames now" in printed.err
        assert process.stop() == 0
    log = [json.loads(line) for line in (tmp_path / "data.log").read_text().splitlines()]
    messages = [line["message"] for line in log]
    assert messages.count("the model was switched") == 2
    assert messages.count("SIGHUP changed nothing") == 1
    assert any("the bundle was not reloaded" in message and "is no bundle" in message for message in messages)
