"""Fuzzing of what a stranger can send: pictures and messages that were right once, cut, changed and glued together.

The long form: TEST_FUZZ=100000 pictures, a tenth as many messages (300 without it).
"""

from __future__ import annotations

import contextlib
import os
import random
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from passerby.errors import InvalidArgumentError
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_model import preprocess

from tests.encoders import make_bundle
from tests.faults.test_connections import PREFACE, closed, connected
from tests.server.live import LiveServer, running
from tests.server.pictures import crops, raw, sequence
from tests.server.test_decode import PICTURES

INPUTS = int(os.environ.get("TEST_FUZZ", "300"))
MAX_PIXELS = 64 * 1024
# What no input may ever cause.
FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}

fuzz = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
EDITS = st.lists(
    st.tuples(st.sampled_from(["set", "insert", "delete", "repeat", "cut", "splice", "number"]), st.integers(0, 1 << 16), st.integers(0, 1 << 16)),
    max_size=6,
)  # fmt: skip


def edited(data: bytes, other: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    """`data` after `edits`, each an action, a place and a number."""
    changed = bytearray(data)
    for action, place, number in edits:
        if not changed:
            break
        at = place % len(changed)
        span = slice(at, at + 1 + number % 64)
        if action == "set":
            changed[at] = number % 256
        elif action == "insert":
            changed[at:at] = number.to_bytes(3, "little")
        elif action == "delete":
            del changed[span]
        elif action == "repeat":
            changed[at:at] = changed[span]
        elif action == "cut":
            del changed[at:]
        elif action == "splice":
            changed[at:] = other[number % (len(other) + 1) :]
        else:  # the numbers that sizes and offsets break on
            changed[at : at + 4] = random.Random(number).choice(
                [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"]
            )
    return bytes(changed)


SEEDS = [make() for _, make in PICTURES]


@settings(fuzz, max_examples=INPUTS)
@given(seed=st.sampled_from(SEEDS), other=st.sampled_from(SEEDS), edits=EDITS, reduced=st.booleans())
@pytest.mark.timeout(3600)
def test_any_picture_is_read_or_refused(
    seed: bytes, other: bytes, edits: list[tuple[str, int, int]], reduced: bool
) -> None:
    data = edited(seed, other, edits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata
        try:
            if reduced:
                assert preprocess.decode_resized(data, 32, 16, MAX_PIXELS).shape == (32, 16, 3)
            pixels = preprocess.decode(data, MAX_PIXELS, resized_to=(32, 16) if reduced else None)
        except InvalidArgumentError as error:
            assert error.reason in ("IMAGE_EMPTY", "IMAGE_BROKEN", "IMAGE_UNREADABLE", "IMAGE_TOO_LARGE")  # noqa: PT017
            return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
    assert preprocess.resize(pixels, 32, 16).shape == (32, 16, 3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    root = tmp_path_factory.mktemp("fuzz")
    limits = {"stream_idle_seconds": 2.0, "max_frames": 50, "max_pixels": MAX_PIXELS}
    with running(make_bundle(root / "bundle"), root / "data", limits=limits) as made:
        made.galleries.CreateGallery(gallery_v1.CreateGalleryRequest(gallery_id="fuzz"), timeout=20)
        for number in range(5):
            made.ingest("galleries/fuzz", sequence(crops(2, number)), tracklet_id=f"t{number}", identity_id="ann")
        yield made


def messages() -> list[tuple[str, bytes]]:
    """A right message for each kind of call; those that change much are dry or harmless."""
    frames, parent = sequence(crops(2)), "galleries/fuzz"
    mixed = resources.FrameSequence(frames=[*frames.frames, raw(crops(1)[0])])
    descriptor = resources.TrackletDescriptor(values=[0.5] * 8, model_fingerprint="f" * 64)
    right: dict[str, Any] = {
        "ModelService/EmbedTracklet": model_v1.EmbedTrackletRequest(frames=mixed),
        "ModelService/ExplainTracklet": model_v1.ExplainTrackletRequest(frames=frames),
        "SearchService/SearchTracklets": search_v1.SearchTrackletsRequest(
            parent=parent, frames=frames, top_k=3, rerank=search_v1.RerankOptions(k1=2, k2=1, original_weight=0.3)
        ),
        "TrackletService/IngestTracklet": tracklet_v1.IngestTrackletRequest(
            parent=parent, tracklet=resources.Tracklet(camera_id="c", labels={"a": "b"}), frames=frames, request_id=str(uuid.uuid4())
        ),
        "TrackletService/GetTracklet": tracklet_v1.GetTrackletRequest(name=f"{parent}/tracklets/t1", include_thumbnail=True),
        "TrackletService/ListTracklets": tracklet_v1.ListTrackletsRequest(parent=parent, page_size=2),
        "TrackletService/MergeIdentities": tracklet_v1.MergeIdentitiesRequest(parent=parent, identity_id="ann", merged_identity_ids=["bob"]),
        "TrackletService/EraseIdentity": tracklet_v1.EraseIdentityRequest(parent=parent, identity_id="nobody"),
        "GalleryService/GetGalleryStats": gallery_v1.GetGalleryStatsRequest(name=parent),
        "GalleryService/ListGalleries": gallery_v1.ListGalleriesRequest(page_size=3),
    }  # fmt: skip
    found = [(f"/passerby.v1.{method}", message.SerializeToString()) for method, message in right.items()]
    by_descriptor = search_v1.SearchTrackletsRequest(parent=parent, tracklet_descriptor=descriptor, top_k=3)
    stored = search_v1.SearchTrackletsRequest(
        parent=parent, tracklet=f"{parent}/tracklets/t1", top_k=3, group_by_identity=True
    )
    return found + [
        ("/passerby.v1.SearchService/SearchTracklets", one.SerializeToString()) for one in (by_descriptor, stored)
    ]


MESSAGES = messages()


@settings(fuzz, max_examples=max(100, INPUTS // 10))
@given(message=st.sampled_from(MESSAGES), other=st.sampled_from(MESSAGES), edits=EDITS)
@pytest.mark.timeout(3600)
def test_any_message_is_answered_or_refused(
    server: LiveServer, message: tuple[str, bytes], other: tuple[str, bytes], edits: list[tuple[str, int, int]]
) -> None:
    call: Any = server.channel.unary_unary(message[0])
    try:
        call(edited(message[1], other[1], edits), timeout=20)
    except grpc.RpcError as error:
        assert error.code() not in FAULTS, (message[0], error.details())  # noqa: PT017


STREAMED = st.lists(st.tuples(st.sampled_from(["header", "frame", "raw", "broken", "empty"]), EDITS), max_size=6)


@settings(fuzz, max_examples=max(30, INPUTS // 100))
@given(parts=STREAMED, bulk=st.booleans())
@pytest.mark.timeout(3600)
def test_any_stream_is_answered_or_refused(
    server: LiveServer, parts: list[tuple[str, list[tuple[str, int, int]]]], bulk: bool
) -> None:
    header = tracklet_v1.StreamTrackletRequest.Header(
        parent="galleries/fuzz", tracklet=resources.Tracklet(camera_id="c")
    )
    kinds = {
        "header": tracklet_v1.StreamTrackletRequest(header=header),
        "frame": tracklet_v1.StreamTrackletRequest(frame=sequence(crops(1)).frames[0]),
        "raw": tracklet_v1.StreamTrackletRequest(frame=raw(crops(1)[0])),
        "broken": tracklet_v1.StreamTrackletRequest(frame=resources.Frame(encoded=b"broken")),
        "empty": tracklet_v1.StreamTrackletRequest(),
    }
    if bulk:
        request = dict(MESSAGES)["/passerby.v1.TrackletService/IngestTracklet"]
        whole = tracklet_v1.IngestTrackletRequest.FromString(request)
        sent = [
            edited(tracklet_v1.BulkIngestTrackletsRequest(request=whole).SerializeToString(), request, edits)
            for _, edits in parts
        ]
        call: Any = server.channel.stream_stream("/passerby.v1.TrackletService/BulkIngestTracklets")
    else:
        sent = [edited(kinds[kind].SerializeToString(), b"", edits) for kind, edits in parts]
        call = server.channel.stream_unary("/passerby.v1.TrackletService/StreamTracklet")
    try:
        answer = call(iter(sent), timeout=30)
        if bulk:
            for item in answer:
                code = tracklet_v1.BulkIngestTrackletsResponse.FromString(item).status.code
                assert code != grpc.StatusCode.INTERNAL.value[0]
    except grpc.RpcError as error:
        assert error.code() not in FAULTS, error.details()  # noqa: PT017


@settings(fuzz, max_examples=max(20, INPUTS // 300))
@given(noise=st.binary(max_size=300), greeted=st.booleans())
def test_noise_on_the_wire_ends_its_connection_alone(server: LiveServer, noise: bytes, greeted: bool) -> None:
    with contextlib.suppress(ConnectionError):
        closed(connected(server.port, (PREFACE if greeted else b"") + noise), 0.05)
    server.galleries.ListGalleries(gallery_v1.ListGalleriesRequest(), timeout=20)


def test_nothing_is_left_behind(server: LiveServer) -> None:
    """After all of the above the server answers, and holds no room."""
    embed = model_v1.EmbedTrackletRequest(frames=sequence(crops(4)))
    assert server.model.EmbedTracklet(embed, timeout=20).snippet_count == 1
    batcher, guard = server.server.runtime.loaded.encoder.batcher, server.server.guard
    assert server.on_loop(lambda: (batcher.admitted, batcher.waiting, guard.calls)) == (0, 0, 0)


@pytest.mark.parametrize("name", [name for name, _ in PICTURES])
def test_every_decoder_is_among_the_seeds(name: str) -> None:
    assert preprocess.decode(SEEDS[[other for other, _ in PICTURES].index(name)]).shape == (64, 32, 3)
