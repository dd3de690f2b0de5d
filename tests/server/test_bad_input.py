"""Bad input: each gets a clear error with code, reason and field, and the server goes on."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1

from tests.encoders import make_bundle
from tests.server.live import LiveServer, fields, refused, running
from tests.server.pictures import bomb, crops, encoded, raw, sequence

FRAMES = sequence(crops(2))
DESCRIPTOR = [0.0] * 8


@pytest.fixture(autouse=True)
def _still_alive(live: LiveServer):
    """After every test here the server answers as before."""
    yield
    assert len(live.model.EmbedTracklet(model_v1.EmbedTrackletRequest(frames=FRAMES)).tracklet_descriptor.values) == 8


def frames_with(*wrong: resources.Frame) -> resources.FrameSequence:
    """Two good frames, then the wrong ones, then a good one."""
    good = sequence(crops(3)).frames
    return resources.FrameSequence(frames=[*good[:2], *wrong, good[2]])


BAD_FRAMES = [
    pytest.param(resources.FrameSequence(), "NO_FRAMES", "frames.frames", id="no-frames"),
    pytest.param(
        frames_with(resources.Frame(encoded=encoded(crops(1)[0], "JPEG")[:400])),
        "IMAGE_BROKEN",
        "frames.frames[2]",
        id="one-broken-jpeg-among-good-ones",
    ),
    pytest.param(
        frames_with(resources.Frame(encoded=Path(__file__).read_bytes()[:5000])),
        "IMAGE_UNREADABLE",
        "frames.frames[2]",
        id="text-file",
    ),
    pytest.param(
        frames_with(resources.Frame(encoded=bomb())), "IMAGE_TOO_LARGE", "frames.frames[2]", id="30000x30000-png"
    ),
    pytest.param(frames_with(resources.Frame()), "IMAGE_EMPTY", "frames.frames[2]", id="frame-without-pixels"),
    pytest.param(frames_with(resources.Frame(encoded=b"")), "IMAGE_EMPTY", "frames.frames[2]", id="empty-bytes"),
    pytest.param(
        frames_with(resources.Frame(encoded=bytes(2_200_000))), "IMAGE_TOO_LARGE", "frames.frames[2]", id="2.2-MB-frame"
    ),
    pytest.param(
        frames_with(resources.Frame(raw=resources.RawImage(height=9, width=9, rgb=bytes(9)))),
        "IMAGE_BROKEN",
        "frames.frames[2]",
        id="raw-too-short",
    ),
    pytest.param(
        frames_with(resources.Frame(raw=resources.RawImage(height=-1, width=9, rgb=bytes(27)))),
        "IMAGE_EMPTY",
        "frames.frames[2]",
        id="raw-negative",
    ),
    pytest.param(
        frames_with(resources.Frame(raw=resources.RawImage(height=1 << 30, width=1 << 30, rgb=bytes(27)))),
        "IMAGE_TOO_LARGE",
        "frames.frames[2]",
        id="raw-huge",
    ),
]


class TestFrames:
    @pytest.mark.parametrize(("frames", "reason", "field"), BAD_FRAMES)
    @pytest.mark.parametrize("method", ["ingest", "search", "embed", "explain"])
    def test_wrong_frames(self, live: LiveServer, gallery: str, frames, reason: str, field: str, method: str) -> None:
        calls: dict[str, Callable[[], Any]] = {
            "ingest": lambda: live.ingest(gallery, frames),
            "search": lambda: live.search.SearchTracklets(
                search_v1.SearchTrackletsRequest(parent=gallery, frames=frames)
            ),
            "embed": lambda: live.model.EmbedTracklet(model_v1.EmbedTrackletRequest(frames=frames)),
            "explain": lambda: live.model.ExplainTracklet(model_v1.ExplainTrackletRequest(frames=frames)),
        }
        error = refused(calls[method])
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", reason)
        assert fields(error) == [field]
        stats = live.galleries.GetGalleryStats(gallery_v1.GetGalleryStatsRequest(name=gallery))
        assert stats.tracklet_count == 0

    def test_every_wrong_frame_is_named(self, live: LiveServer) -> None:
        frames = frames_with(resources.Frame(encoded=b"x"), resources.Frame(encoded=b"y"))
        error = refused(lambda: live.model.EmbedTracklet(model_v1.EmbedTrackletRequest(frames=frames)))
        assert fields(error) == ["frames.frames[2]", "frames.frames[3]"]

    def test_a_wrong_frame_in_a_later_chunk_has_its_own_index(self, live: LiveServer) -> None:
        frames = resources.FrameSequence(frames=[raw(image) for image in crops(100)])
        frames.frames[77].encoded = b"broken"
        error = refused(lambda: live.model.EmbedTracklet(model_v1.EmbedTrackletRequest(frames=frames)))
        assert fields(error) == ["frames.frames[77]"]

    def test_too_many_frames(self, live: LiveServer) -> None:
        tiny = raw(np.zeros((1, 1, 3), dtype=np.uint8))
        frames = resources.FrameSequence(frames=[tiny] * 10_001)
        error = refused(lambda: live.model.EmbedTracklet(model_v1.EmbedTrackletRequest(frames=frames)))
        assert (error.reason, fields(error)) == ("TOO_MANY_FRAMES", ["frames.frames"])

    def test_message_of_five_mebibytes(self, live: LiveServer, gallery: str) -> None:
        frames = resources.FrameSequence(frames=[resources.Frame(encoded=bytes(1 << 20))] * 5)
        error = refused(lambda: live.ingest(gallery, frames))
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
        assert "StreamTracklet" in error.message

    def test_message_that_grpc_refuses_unread(self, live: LiveServer, gallery: str) -> None:
        frames = resources.FrameSequence(frames=[resources.Frame(encoded=bytes(1 << 20))] * 20)
        assert refused(lambda: live.ingest(gallery, frames)).code.name == "RESOURCE_EXHAUSTED"

    def test_bytes_that_are_no_message(self, live: LiveServer) -> None:
        call: Any = live.channel.unary_unary("/passerby.v1.ModelService/EmbedTracklet")
        error = refused(lambda: call(b"\xff\xff\xff", timeout=10))
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "MESSAGE_MALFORMED")

    def test_unknown_method(self, live: LiveServer) -> None:
        call: Any = live.channel.unary_unary("/passerby.v1.ModelService/Nothing")
        assert refused(lambda: call(b"", timeout=10)).code.name == "UNIMPLEMENTED"


class TestStream:
    def header(self, parent: str, **header: Any) -> tracklet_v1.StreamTrackletRequest:
        tracklet = resources.Tracklet(camera_id=header.pop("camera_id", "1"))
        return tracklet_v1.StreamTrackletRequest(
            header=tracklet_v1.StreamTrackletRequest.Header(parent=parent, tracklet=tracklet, **header)
        )

    def frame(self, frame: resources.Frame | None = None) -> tracklet_v1.StreamTrackletRequest:
        return tracklet_v1.StreamTrackletRequest(frame=frame or raw(crops(1)[0]))

    def test_streams_that_are_wrong(self, live: LiveServer, gallery: str) -> None:
        good, frame = self.header(gallery), self.frame()
        broken = self.frame(resources.Frame(encoded=b"broken"))
        cases: list[tuple[list[tracklet_v1.StreamTrackletRequest], str, list[str]]] = [
            ([], "STREAM_ORDER", ["header"]),
            ([frame], "STREAM_ORDER", ["header"]),
            ([good], "NO_FRAMES", ["frame"]),
            ([good, frame, good], "STREAM_ORDER", ["frame"]),
            ([good, frame, tracklet_v1.StreamTrackletRequest()], "STREAM_ORDER", ["frame"]),
            ([good, *[frame] * 40, broken], "IMAGE_UNREADABLE", ["frame[40]"]),
            ([self.header("galleries/X"), frame], "INVALID_ARGUMENT", ["header.parent"]),
            ([self.header(gallery, tracklet_id="a/b"), frame], "INVALID_ARGUMENT", ["header.tracklet_id"]),
            ([self.header(gallery, camera_id=""), frame], "CAMERA_ID_MISSING", ["header.tracklet.camera_id"]),
            ([self.header(gallery, request_id="x"), frame], "REQUEST_ID_MALFORMED", ["header.request_id"]),
            ([self.header("galleries/absent"), frame], "GALLERY_NOT_FOUND", []),
            ([self.header(gallery, frame_count=3), frame, frame], "STREAM_INCOMPLETE", ["header.frame_count"]),
        ]
        for messages, reason, where in cases:
            error = refused(partial(live.tracklets.StreamTracklet, iter(messages), timeout=20))
            assert (error.reason, fields(error)) == (reason, where)

    def test_a_stream_may_not_have_endless_frames(self, tmp_path: Path) -> None:
        with running(make_bundle(tmp_path / "bundle"), tmp_path / "data", limits={"max_frames": 100}) as strict:
            gallery = strict.new_gallery()
            stored = strict.tracklets.StreamTracklet(iter([self.header(gallery), *[self.frame()] * 100])).tracklet
            assert stored.frame_count == 100
            messages = iter([self.header(gallery), *[self.frame()] * 101])
            error = refused(lambda: strict.tracklets.StreamTracklet(messages, timeout=60))
            assert (error.reason, fields(error)) == ("TOO_MANY_FRAMES", ["frame"])


def time(seconds: int) -> Timestamp:
    return Timestamp(seconds=seconds)


BAD_TRACKLETS = [
    pytest.param({"camera": ""}, "CAMERA_ID_MISSING", ["tracklet.camera_id"], id="no-camera"),
    pytest.param({"camera": "x" * 129}, "INVALID_ARGUMENT", ["tracklet.camera_id"], id="long-camera"),
    pytest.param({"camera": "a\nb"}, "INVALID_ARGUMENT", ["tracklet.camera_id"], id="control-character"),
    pytest.param({"identity_id": "x" * 129}, "INVALID_ARGUMENT", ["tracklet.identity_id"], id="long-identity"),
    pytest.param({"tracklet_id": "a b"}, "INVALID_ARGUMENT", ["tracklet_id"], id="tracklet-id"),
    pytest.param({"request_id": "once"}, "REQUEST_ID_MALFORMED", ["request_id"], id="request-id"),
    pytest.param(
        {"labels": {str(index): "x" for index in range(65)}}, "INVALID_ARGUMENT", ["tracklet.labels"], id="65-labels"
    ),
    pytest.param({"labels": {"": "x"}}, "INVALID_ARGUMENT", ["tracklet.labels"], id="empty-label-key"),
    pytest.param({"labels": {"a": "x" * 257}}, "INVALID_ARGUMENT", ["tracklet.labels['a']"], id="long-label"),
    pytest.param(
        {"start_time": time(20), "end_time": time(10)}, "TIME_RANGE", ["tracklet.end_time"], id="ends-before-start"
    ),
    pytest.param({"start_time": time(20)}, "INVALID_ARGUMENT", ["tracklet.end_time"], id="no-end"),
    pytest.param({"end_time": time(20)}, "INVALID_ARGUMENT", ["tracklet.start_time"], id="no-start"),
    pytest.param(
        {"start_time": time(1 << 60), "end_time": time(1 << 60)},
        "TIME_MALFORMED",
        ["tracklet.start_time", "tracklet.end_time"],
        id="far-future",
    ),
    pytest.param(
        {"camera": "", "tracklet_id": "a b"},
        "INVALID_ARGUMENT",
        ["tracklet_id", "tracklet.camera_id"],
        id="all-at-once",
    ),
]


@pytest.mark.parametrize(("tracklet", "reason", "where"), BAD_TRACKLETS)
def test_wrong_tracklets(live: LiveServer, gallery: str, tracklet: dict[str, Any], reason: str, where) -> None:
    error = refused(lambda: live.ingest(gallery, FRAMES, **tracklet))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", reason)
    assert fields(error) == where


def test_unknown_and_malformed_galleries(live: LiveServer) -> None:
    error = refused(lambda: live.ingest("galleries/absent", FRAMES))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "GALLERY_NOT_FOUND")
    search = search_v1.SearchTrackletsRequest(parent="galleries/absent", frames=FRAMES)
    assert refused(lambda: live.search.SearchTracklets(search)).reason == "GALLERY_NOT_FOUND"
    error = refused(lambda: live.ingest("cameras/1", FRAMES))
    assert (error.code.name, fields(error)) == ("INVALID_ARGUMENT", ["parent"])
    request = gallery_v1.CreateGalleryRequest(
        gallery_id="Not Valid", gallery=resources.Gallery(display_name="x" * 201), request_id="1"
    )
    error = refused(lambda: live.galleries.CreateGallery(request))
    assert fields(error) == ["gallery_id", "gallery.display_name", "request_id"]


def test_negative_page_sizes_and_foreign_tokens(live: LiveServer, gallery: str) -> None:
    lists: list[Callable[..., Any]] = [
        lambda **page: live.galleries.ListGalleries(gallery_v1.ListGalleriesRequest(**page)),
        lambda **page: live.tracklets.ListTracklets(tracklet_v1.ListTrackletsRequest(parent=gallery, **page)),
    ]
    for call in lists:
        assert fields(refused(partial(call, page_size=-1))) == ["page_size"]
        assert refused(partial(call, page_token="abc")).code.name == "INVALID_ARGUMENT"  # noqa: S106
        call(page_size=1_000_000)  # lowered, as documented


BAD_SEARCHES = [
    pytest.param({"top_k": 0}, "TOP_K_OUT_OF_RANGE", ["top_k"], id="top_k-0"),
    pytest.param({"top_k": 1_000_000}, "TOP_K_OUT_OF_RANGE", ["top_k"], id="top_k-a-million"),
    pytest.param({"top_k": -5}, "TOP_K_OUT_OF_RANGE", ["top_k"], id="top_k-negative"),
    pytest.param({"frames": None}, "QUERY_MISSING", ["query"], id="no-query"),
    pytest.param({"rerank": search_v1.RerankOptions(k1=0)}, "INVALID_ARGUMENT", ["rerank.k1"], id="k1-0"),
    pytest.param({"rerank": search_v1.RerankOptions(k1=5, k2=6)}, "INVALID_ARGUMENT", ["rerank.k2"], id="k2-above-k1"),
    pytest.param(
        {"rerank": search_v1.RerankOptions(original_weight=1.5)},
        "INVALID_ARGUMENT",
        ["rerank.original_weight"],
        id="weight",
    ),
    pytest.param(
        {"rerank": search_v1.RerankOptions(original_weight=float("nan"))},
        "INVALID_ARGUMENT",
        ["rerank.original_weight"],
        id="weight-nan",
    ),
    pytest.param(
        {"rerank": search_v1.RerankOptions(shortlist_size=9)},
        "INVALID_ARGUMENT",
        ["rerank.shortlist_size"],
        id="shortlist-below-top_k",
    ),
    pytest.param(
        {"rerank": search_v1.RerankOptions(shortlist_size=1_000_000)},
        "INVALID_ARGUMENT",
        ["rerank.shortlist_size"],
        id="shortlist-a-million",
    ),
    pytest.param({"exclude_query_camera": True}, "QUERY_CAMERA_MISSING", ["query_camera_id"], id="no-query-camera"),
    pytest.param({"false_match_rate": 0.0}, "INVALID_ARGUMENT", ["false_match_rate"], id="rate-0"),
    pytest.param(
        {"filter": tracklet_v1.TrackletFilter(start_time=time(5), end_time=time(5))},
        "TIME_RANGE",
        ["filter.end_time"],
        id="empty-time-range",
    ),
    pytest.param(
        {"filter": tracklet_v1.TrackletFilter(camera_ids=[str(index) for index in range(1001)])},
        "INVALID_ARGUMENT",
        ["filter.camera_ids"],
        id="1001-cameras",
    ),
    pytest.param(
        {"frames": None, "tracklet_descriptor": resources.TrackletDescriptor(values=DESCRIPTOR)},
        "FINGERPRINT_MISSING",
        ["tracklet_descriptor.model_fingerprint"],
        id="descriptor-without-fingerprint",
    ),
    pytest.param(
        {"frames": None, "tracklet_descriptor": resources.TrackletDescriptor(model_fingerprint="a")},
        "INVALID_ARGUMENT",
        ["tracklet_descriptor.values"],
        id="descriptor-without-values",
    ),
    pytest.param(
        {
            "frames": None,
            "tracklet_descriptor": resources.TrackletDescriptor(
                values=[float("nan"), *DESCRIPTOR[1:]], model_fingerprint="a"
            ),
        },
        "INVALID_ARGUMENT",
        ["tracklet_descriptor.values"],
        id="descriptor-nan",
    ),
    pytest.param(
        {"frames": None, "tracklet": "galleries/other/tracklets/t"}, "PARENT", ["tracklet"], id="other-gallery"
    ),
    pytest.param({"frames": None, "tracklet": "t"}, "INVALID_ARGUMENT", ["tracklet"], id="malformed-tracklet"),
]


class TestSearch:
    @pytest.mark.parametrize(("options", "reason", "where"), BAD_SEARCHES)
    def test_wrong_searches(self, live: LiveServer, gallery: str, options, reason: str, where: list[str]) -> None:
        request = search_v1.SearchTrackletsRequest(**({"parent": gallery, "frames": FRAMES} | options))
        error = refused(lambda: live.search.SearchTracklets(request))
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", reason)
        assert fields(error) == where

    def test_a_query_of_another_model(self, live: LiveServer, gallery: str) -> None:
        descriptor = resources.TrackletDescriptor(values=[0.0] * 99, model_fingerprint="f" * 64)
        request = search_v1.SearchTrackletsRequest(parent=gallery, tracklet_descriptor=descriptor)
        error = refused(lambda: live.search.SearchTracklets(request))
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "MODEL_MISMATCH")
        assert error.metadata["fingerprint"] == "f" * 64

    def test_a_descriptor_of_another_size(self, live: LiveServer, gallery: str) -> None:
        info = live.model.GetModelInfo(model_v1.GetModelInfoRequest()).model_info
        descriptor = resources.TrackletDescriptor(values=[0.0] * 9, model_fingerprint=info.model_fingerprint)
        request = search_v1.SearchTrackletsRequest(parent=gallery, tracklet_descriptor=descriptor)
        error = refused(lambda: live.search.SearchTracklets(request))
        assert (error.reason, fields(error)) == ("DESCRIPTOR_SIZE", ["tracklet_descriptor.values"])

    def test_a_stored_tracklet_that_is_not_there(self, live: LiveServer, gallery: str) -> None:
        request = search_v1.SearchTrackletsRequest(parent=gallery, tracklet=f"{gallery}/tracklets/none")
        assert refused(lambda: live.search.SearchTracklets(request)).reason == "TRACKLET_NOT_FOUND"

    def test_a_camera_that_is_not_the_stored_tracklets(self, live: LiveServer, gallery: str) -> None:
        name = live.ingest(gallery, FRAMES, camera="1").name
        request = search_v1.SearchTrackletsRequest(parent=gallery, tracklet=name, query_camera_id="2")
        assert fields(refused(lambda: live.search.SearchTracklets(request))) == ["query_camera_id"]

    def test_a_decision_without_calibration(self, live: LiveServer, gallery: str) -> None:
        request = search_v1.SearchTrackletsRequest(parent=gallery, frames=FRAMES, false_match_rate=0.01)
        assert refused(lambda: live.search.SearchTracklets(request)).reason == "NOT_CALIBRATED"


def test_a_gallery_of_another_model(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(make_bundle(tmp_path / "one"), data) as first:
        gallery = first.new_gallery()
        stored = first.ingest(gallery, FRAMES, tracklet_id="t")
        descriptor = first.tracklets.GetTracklet(
            tracklet_v1.GetTrackletRequest(name=stored.name, include_descriptor=True)
        ).tracklet_descriptor
    with running(make_bundle(tmp_path / "two", seed=1), data) as second:
        calls: list[Callable[[], Any]] = [
            lambda: second.ingest(gallery, FRAMES),
            lambda: second.ingest(gallery, FRAMES, request_id=str(uuid.uuid4())),
            lambda: second.search.SearchTracklets(search_v1.SearchTrackletsRequest(parent=gallery, frames=FRAMES)),
        ]
        for call in calls:
            error = refused(call)
            assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "MODEL_MISMATCH")
        # Its own descriptors and tracklets are still good queries: no model is needed for them.
        for query in ({"tracklet_descriptor": descriptor}, {"tracklet": stored.name}):
            second.search.SearchTracklets(search_v1.SearchTrackletsRequest(parent=gallery, **query))


def test_a_model_without_masks_explains_nothing(tmp_path: Path) -> None:
    with running(make_bundle(tmp_path / "bundle"), tmp_path / "data") as plain:
        error = refused(lambda: plain.model.ExplainTracklet(model_v1.ExplainTrackletRequest(frames=FRAMES)))
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "NO_MASKS")


def test_an_answer_above_the_message_limit_says_what_to_ask_for(tmp_path: Path) -> None:
    limits = {"max_message_bytes": 65536, "max_frame_bytes": 65536}
    with running(make_bundle(tmp_path / "bundle"), tmp_path / "data", limits=limits) as small:
        gallery = small.new_gallery()
        for index in range(30):
            small.ingest(gallery, sequence(crops(1, index, height=100, width=60)))
        request = search_v1.SearchTrackletsRequest(parent=gallery, frames=FRAMES, top_k=30, include_thumbnails=True)
        error = refused(lambda: small.search.SearchTracklets(request))
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE")
        request.include_thumbnails = False
        assert len(small.search.SearchTracklets(request).hits) == 30


@pytest.mark.parametrize(
    "duration", [Duration(seconds=2**62), Duration(seconds=-(2**62)), Duration(seconds=1, nanos=-(10**9) + 1)]
)
def test_durations_that_are_none(live: LiveServer, gallery: str, duration: Duration) -> None:
    """Also one whose parts have two signs, and that comes to nothing."""
    rules = gallery_v1.SetRetentionRequest(name=gallery, rules=[gallery_v1.RetentionRule(keep=duration)])
    assert fields(refused(lambda: live.galleries.SetRetention(rules))) == ["rules[0].keep"]
    window = search_v1.TravelWindow(camera_id="c", min_time=Duration(seconds=2), max_time=duration)
    search = search_v1.SearchTrackletsRequest(
        parent=gallery, frames=FRAMES, travel_windows=[window], query_start_time=time(1), query_end_time=time(2)
    )
    assert fields(refused(lambda: live.search.SearchTracklets(search))) == ["travel_windows[0].max_time"]


def test_errors_carry_the_callers_request_id(live: LiveServer) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        live.model.EmbedTracklet(model_v1.EmbedTrackletRequest(), metadata=(("x-request-id", "my-id-1"),))
    trailing: Any = raised.value.trailing_metadata()
    assert dict(trailing)["x-request-id"] == "my-id-1"
