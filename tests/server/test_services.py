"""Every method against a real server with a real, tiny encoder; descriptors equal numpy's own computation."""

from __future__ import annotations

import gc
import io
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from passerby import errors, names
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from PIL import Image

from tests.encoders import expected_descriptor
from tests.server.live import LiveServer, Stubs, fields, refused
from tests.server.pictures import crops, encoded, raw, sequence

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(NOON + timedelta(seconds=seconds))
    return timestamp


def stream_of(gallery: str, images: list[np.ndarray], **header):
    tracklet = resources.Tracklet(camera_id="1", **header.pop("tracklet", {}))
    yield tracklet_v1.StreamTrackletRequest(
        header=tracklet_v1.StreamTrackletRequest.Header(parent=gallery, tracklet=tracklet, **header)
    )
    for index, image in enumerate(images):
        frame = raw(image)
        frame.capture_time.CopyFrom(at(index))
        yield tracklet_v1.StreamTrackletRequest(frame=frame)


def stored_descriptor(live: LiveServer, name: str) -> np.ndarray:
    request = tracklet_v1.GetTrackletRequest(name=name, include_descriptor=True)
    return np.array(live.tracklets.GetTracklet(request, timeout=20).tracklet_descriptor.values)


class TestGalleries:
    def test_create_get_list_stats_delete(self, live: LiveServer) -> None:
        gallery_id = f"lobby-{uuid.uuid4().hex[:8]}"
        created = live.galleries.CreateGallery(
            gallery_v1.CreateGalleryRequest(
                gallery_id=gallery_id, gallery=resources.Gallery(display_name="Lobby, ground floor")
            )
        ).gallery
        info = live.model.GetModelInfo(model_v1.GetModelInfoRequest()).model_info
        assert created.name == f"galleries/{gallery_id}"
        assert created.display_name == "Lobby, ground floor"
        assert created.model_fingerprint == info.model_fingerprint
        assert (created.metric, created.descriptor_dim) == (resources.METRIC_SQUARED_EUCLIDEAN, 8)
        assert live.galleries.GetGallery(gallery_v1.GetGalleryRequest(name=created.name)).gallery == created
        listed = live.galleries.ListGalleries(gallery_v1.ListGalleriesRequest(page_size=1000)).galleries
        assert created in listed
        live.ingest(created.name, sequence(crops(2)), identity_id="ann")
        stats = live.galleries.GetGalleryStats(gallery_v1.GetGalleryStatsRequest(name=created.name))
        assert (stats.tracklet_count, stats.identity_count, stats.camera_count, stats.frame_count) == (1, 1, 1, 2)
        error = refused(lambda: live.galleries.DeleteGallery(gallery_v1.DeleteGalleryRequest(name=created.name)))
        assert error.code.name == "FAILED_PRECONDITION"
        gone = live.galleries.DeleteGallery(gallery_v1.DeleteGalleryRequest(name=created.name, force=True))
        assert gone.deleted_tracklet_count == 1
        error = refused(lambda: live.galleries.GetGallery(gallery_v1.GetGalleryRequest(name=created.name)))
        assert (error.code.name, error.reason) == ("NOT_FOUND", "GALLERY_NOT_FOUND")

    def test_the_list_comes_in_pages(self, live: LiveServer) -> None:
        made = {live.new_gallery() for _ in range(3)}
        seen: list[str] = []
        token = ""
        while True:
            page = live.galleries.ListGalleries(gallery_v1.ListGalleriesRequest(page_size=2, page_token=token))
            assert len(page.galleries) <= 2
            seen += [gallery.name for gallery in page.galleries]
            if not (token := page.next_page_token):
                break
        assert seen == sorted(seen)
        assert made <= set(seen)

    def test_a_taken_name_is_refused_and_a_repeated_request_is_not(self, live: LiveServer) -> None:
        request = gallery_v1.CreateGalleryRequest(gallery_id=f"g-{uuid.uuid4().hex[:8]}", request_id=str(uuid.uuid4()))
        first = live.galleries.CreateGallery(request)
        assert live.galleries.CreateGallery(request) == first
        request.request_id = ""
        error = refused(lambda: live.galleries.CreateGallery(request))
        assert (error.code.name, error.reason) == ("ALREADY_EXISTS", "GALLERY_EXISTS")


class TestDescriptors:
    @pytest.mark.parametrize("count", [1, 3, 5, 8])
    @pytest.mark.parametrize("format", ["PNG", "WEBP"])
    def test_a_tracklet_in_one_message(self, live: LiveServer, gallery: str, count: int, format: str) -> None:
        images = crops(count, seed=count)
        stored = live.ingest(gallery, sequence(images, format))
        assert stored.frame_count == count
        np.testing.assert_allclose(stored_descriptor(live, stored.name), expected_descriptor(images), atol=1e-5)

    @pytest.mark.parametrize("count", [1, 3, 5, 31, 32, 33, 900])
    def test_a_tracklet_frame_by_frame(self, live: LiveServer, gallery: str, count: int) -> None:
        images = crops(count, seed=count)
        stored = live.tracklets.StreamTracklet(stream_of(gallery, images), timeout=60).tracklet
        assert stored.frame_count == count
        assert (stored.start_time, stored.end_time) == (at(0), at(count - 1))
        np.testing.assert_allclose(stored_descriptor(live, stored.name), expected_descriptor(images), atol=1e-5)

    def test_embedding_stores_nothing_and_counts_snippets(self, live: LiveServer, gallery: str) -> None:
        images = crops(6)
        frames = resources.FrameSequence(frames=[raw(image) for image in images])
        answer = live.model.EmbedTracklet(model_v1.EmbedTrackletRequest(frames=frames))
        assert answer.snippet_count == 2
        np.testing.assert_allclose(answer.tracklet_descriptor.values, expected_descriptor(images), atol=1e-5)
        info = live.model.GetModelInfo(model_v1.GetModelInfoRequest()).model_info
        assert answer.tracklet_descriptor.model_fingerprint == info.model_fingerprint
        stats = live.galleries.GetGalleryStats(gallery_v1.GetGalleryStatsRequest(name=gallery))
        assert stats.tracklet_count == 0

    def test_jpeg_and_orientation_are_read_as_the_model_room_reads_them(self, live: LiveServer) -> None:
        image = crops(1, height=40, width=20)[0]
        stream = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(image).rotate(90, expand=True).save(stream, "JPEG", quality=95, exif=exif)
        frames = resources.FrameSequence(frames=[resources.Frame(encoded=stream.getvalue())])
        answer = live.model.EmbedTracklet(model_v1.EmbedTrackletRequest(frames=frames))
        np.testing.assert_allclose(answer.tracklet_descriptor.values, expected_descriptor([image]), atol=0.1)


class TestModel:
    def test_info(self, live: LiveServer) -> None:
        answer = live.model.GetModelInfo(model_v1.GetModelInfoRequest())
        info = answer.model_info
        assert (info.descriptor_dim, info.snippet_length, info.input_height, info.input_width) == (8, 4, 32, 16)
        assert info.backend == model_v1.BACKEND_OPENVINO
        assert (info.max_batch_size, info.architecture, info.precision) == (8, "mean-colour", "fp32")
        assert (info.metric, list(info.mask_blocks)) == (resources.METRIC_SQUARED_EUCLIDEAN, [4, 5])
        assert (info.bundle_name, info.calibrated) == ("tiny", False)
        assert answer.server_version

    def test_one_mask_for_each_frame_and_block(self, live: LiveServer) -> None:
        images = crops(37, height=32, width=16)  # more than one batch, and a padded tail
        frames = resources.FrameSequence(frames=[raw(image) for image in images])
        answer = live.model.ExplainTracklet(model_v1.ExplainTrackletRequest(frames=frames))
        assert [(mask.block, mask.frame_index) for mask in answer.masks] == [
            (block, index) for block in (4, 5) for index in range(37)
        ]
        light = (np.stack(images) / 255).reshape(37, 4, 8, 2, 8, 3).mean(axis=(2, 4, 5))
        for mask in answer.masks:
            values = np.array(mask.values).reshape(mask.height, mask.width)
            np.testing.assert_allclose(values, light[mask.frame_index] ** mask.block, rtol=1e-3, atol=1e-5)


class TestTracklets:
    def test_what_was_said_comes_back(self, live: LiveServer, gallery: str) -> None:
        stored = live.ingest(
            gallery,
            sequence(crops(3)),
            camera="door",
            tracklet_id="t-1",
            identity_id="ann",
            labels={"coat": "red"},
            start_time=at(0),
            end_time=at(2),
        )
        assert stored.name == f"{gallery}/tracklets/t-1"
        assert (stored.camera_id, stored.identity_id, dict(stored.labels)) == ("door", "ann", {"coat": "red"})
        assert (stored.start_time, stored.end_time) == (at(0), at(2))
        assert stored.create_time.seconds > 0
        answer = live.tracklets.GetTracklet(tracklet_v1.GetTrackletRequest(name=stored.name))
        assert answer == tracklet_v1.GetTrackletResponse(tracklet=stored)

    def test_the_thumbnail_is_the_middle_frame_as_jpeg(self, live: LiveServer, gallery: str) -> None:
        images = crops(5, height=600, width=200)
        stored = live.ingest(gallery, sequence(images))
        request = tracklet_v1.GetTrackletRequest(name=stored.name, include_thumbnail=True)
        picture = Image.open(io.BytesIO(live.tracklets.GetTracklet(request).thumbnail))
        assert (picture.format, picture.height, picture.width) == ("JPEG", 256, 85)
        assert np.abs(np.asarray(picture).mean(axis=(0, 1)) - images[2].mean(axis=(0, 1))).max() < 3

    def test_capture_times_fill_in_for_missing_times(self, live: LiveServer, gallery: str) -> None:
        frames = sequence(crops(3))
        for index, frame in enumerate(frames.frames):
            frame.capture_time.CopyFrom(at(10 + index))
        stored = live.ingest(gallery, frames)
        assert (stored.start_time, stored.end_time) == (at(10), at(12))
        stored = live.ingest(gallery, frames, start_time=at(0))
        assert (stored.start_time, stored.end_time) == (at(0), at(12))

    def test_repeating_an_ingest_is_harmless_and_does_not_run_the_model(
        self, live: LiveServer, gallery: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        frames, request_id = sequence(crops(4)), str(uuid.uuid4())
        batches = []
        backend = live.server.runtime.loaded.backend
        encode = type(backend).encode

        def counting(self, snippets):
            batches.append(len(snippets))
            return encode(self, snippets)

        monkeypatch.setattr(type(backend), "encode", counting)
        first = live.ingest(gallery, frames, request_id=request_id)
        assert len(batches) == 1
        assert live.ingest(gallery, frames, request_id=request_id) == first
        assert len(batches) == 1
        error = refused(lambda: live.ingest(gallery, sequence(crops(3)), request_id=request_id))
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
        stats = live.galleries.GetGalleryStats(gallery_v1.GetGalleryStatsRequest(name=gallery))
        assert stats.tracklet_count == 1

    def test_repeating_a_stream_is_harmless(self, live: LiveServer, gallery: str) -> None:
        request_id, images = str(uuid.uuid4()), crops(6)
        stored = [
            live.tracklets.StreamTracklet(stream_of(gallery, images, request_id=request_id), timeout=20).tracklet
            for _ in range(2)
        ]
        assert stored[0] == stored[1]
        other = stream_of(gallery, crops(6, seed=1), request_id=request_id)
        error = refused(lambda: live.tracklets.StreamTracklet(other, timeout=20))
        assert error.reason == "REQUEST_ID_REUSED"

    def test_list_with_filter_and_pages(self, live: LiveServer, gallery: str) -> None:
        names_ = [
            live.ingest(gallery, sequence(crops(1)), camera=str(index % 2), tracklet_id=f"t{index}").name
            for index in range(6)
        ]
        request = tracklet_v1.ListTrackletsRequest(
            parent=gallery, page_size=2, filter=tracklet_v1.TrackletFilter(camera_ids=["1"])
        )
        page = live.tracklets.ListTracklets(request)
        assert [tracklet.name for tracklet in page.tracklets] == [names_[1], names_[3]]
        request.page_token = page.next_page_token
        page = live.tracklets.ListTracklets(request)
        assert [tracklet.name for tracklet in page.tracklets] == [names_[5]]
        assert page.next_page_token == ""

    def test_delete_and_assign(self, live: LiveServer, gallery: str) -> None:
        stored = live.ingest(gallery, sequence(crops(1)))
        assigned = live.tracklets.AssignIdentity(
            tracklet_v1.AssignIdentityRequest(name=stored.name, identity_id="bob")
        ).tracklet
        assert assigned.identity_id == "bob"
        back = live.tracklets.AssignIdentity(tracklet_v1.AssignIdentityRequest(name=stored.name)).tracklet
        assert back.identity_id == ""
        live.tracklets.DeleteTracklet(tracklet_v1.DeleteTrackletRequest(name=stored.name))
        error = refused(lambda: live.tracklets.GetTracklet(tracklet_v1.GetTrackletRequest(name=stored.name)))
        assert (error.code.name, error.reason) == ("NOT_FOUND", "TRACKLET_NOT_FOUND")

    def test_erasing_counts_without_force_and_hands_a_receipt_with_it(self, live: LiveServer, gallery: str) -> None:
        names = [live.ingest(gallery, sequence(crops(2)), identity_id="ann").name for _ in range(2)]
        other = live.ingest(gallery, sequence(crops(2)), identity_id="bob").name
        request = tracklet_v1.EraseIdentityRequest(parent=gallery, identity_id="ann")
        counted = live.tracklets.EraseIdentity(request)
        assert (counted.tracklet_count, counted.HasField("receipt")) == (2, False)
        request.force, request.request_id = True, str(uuid.uuid4())
        erased = live.tracklets.EraseIdentity(request)
        assert (erased.tracklet_count, sorted(erased.receipt.tracklets)) == (2, sorted(names))
        assert {"gallery.db", "gallery.db-wal"} <= set(erased.receipt.rewritten_files)
        assert not erased.receipt.HasField("rewrite_due_time")
        again = live.tracklets.EraseIdentity(request)
        assert (again.tracklet_count, list(again.receipt.tracklets)) == (2, [])
        assert again.receipt.subject_digest == erased.receipt.subject_digest
        listed = live.tracklets.ListTracklets(tracklet_v1.ListTrackletsRequest(parent=gallery)).tracklets
        assert [tracklet.name for tracklet in listed] == [other]

    def test_wrong_requests_of_corrections_name_their_fields(self, live: LiveServer, gallery: str) -> None:
        split = tracklet_v1.SplitIdentityRequest(
            parent=gallery, identity_id="ann", tracklets=["t1", "galleries/other/tracklets/t1"]
        )
        error = refused(lambda: live.tracklets.SplitIdentity(split))
        assert fields(error) == ["tracklets[0]", "tracklets[1]"]
        erase = tracklet_v1.EraseIdentityRequest(parent="-", identity_id="ann")
        assert fields(refused(lambda: live.tracklets.EraseIdentity(erase))) == ["parent"]
        rules = [gallery_v1.RetentionRule(camera_id="1"), gallery_v1.RetentionRule(camera_id="1")]
        retention = gallery_v1.SetRetentionRequest(name=gallery, rules=rules)
        error = refused(lambda: live.galleries.SetRetention(retention))
        assert fields(error) == ["rules[0].keep", "rules[1].camera_id", "rules[1].keep"]


class TestBulk:
    def requests(self, gallery: str, count: int) -> list[tracklet_v1.BulkIngestTrackletsRequest]:
        return [
            tracklet_v1.BulkIngestTrackletsRequest(
                request=tracklet_v1.IngestTrackletRequest(
                    parent=gallery,
                    tracklet_id=f"t{index}",
                    tracklet=resources.Tracklet(camera_id="1"),
                    frames=sequence(crops(1 + index % 6, seed=index)),
                    request_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{gallery}/{index}")),
                )
            )
            for index in range(count)
        ]

    def test_every_request_is_answered_and_its_descriptor_is_its_own(self, live: LiveServer, gallery: str) -> None:
        requests = self.requests(gallery, 60)
        answers = list(live.tracklets.BulkIngestTracklets(iter(requests), timeout=60))
        assert {answer.request_id for answer in answers} == {message.request.request_id for message in requests}
        assert len(answers) == 60
        assert all(answer.WhichOneof("result") == "tracklet" for answer in answers)
        for index in (0, 17, 59):
            np.testing.assert_allclose(
                stored_descriptor(live, f"{gallery}/tracklets/t{index}"),
                expected_descriptor(crops(1 + index % 6, seed=index)),
                atol=1e-5,
            )

    def test_bad_ones_do_not_end_the_stream(self, live: LiveServer, gallery: str) -> None:
        requests = self.requests(gallery, 8)
        requests[1].request.request_id = ""
        requests[2].request.frames.frames[0].encoded = b"no picture"
        requests[3].request.tracklet.camera_id = ""
        requests[4].request.parent = "galleries/nowhere"
        requests[5].request.request_id = "five"
        padding = resources.Frame(encoded=bytes(5 << 20))
        requests[6].request.frames.frames.append(padding)
        answers = list(live.tracklets.BulkIngestTracklets(iter(requests), timeout=60))
        codes = {answer.request_id: answer.status.code for answer in answers}
        assert len(answers) == 8
        ids = [message.request.request_id for message in requests]
        assert [codes[request_id] for request_id in ids] == [0, 3, 3, 3, 5, 3, 8, 0]
        stats = live.galleries.GetGalleryStats(gallery_v1.GetGalleryStatsRequest(name=gallery))
        assert stats.tracklet_count == 2

    def test_all_broken_frames_of_a_chunk_are_named(self, live: LiveServer, gallery: str) -> None:
        [request] = self.requests(gallery, 1)
        request.request.frames.frames.extend([resources.Frame(encoded=b"no picture")] * 20)
        [answer] = live.tracklets.BulkIngestTracklets(iter([request]), timeout=60)
        error = errors.from_status(answer.status)
        assert len(fields(error)) == 20

    def test_repeating_the_stream_stores_nothing_twice(self, live: LiveServer, gallery: str) -> None:
        requests = self.requests(gallery, 10)
        first = {a.request_id: a.tracklet for a in live.tracklets.BulkIngestTracklets(iter(requests), timeout=60)}
        again = {a.request_id: a.tracklet for a in live.tracklets.BulkIngestTracklets(iter(requests), timeout=60)}
        assert first == again
        stats = live.galleries.GetGalleryStats(gallery_v1.GetGalleryStatsRequest(name=gallery))
        assert stats.tracklet_count == 10

    def test_an_empty_stream_ends(self, live: LiveServer) -> None:
        assert list(live.tracklets.BulkIngestTracklets(iter(()), timeout=20)) == []

    def test_a_caller_that_goes_away_leaves_nothing_behind(self, live: LiveServer, gallery: str) -> None:
        call = live.tracklets.BulkIngestTracklets(iter(self.requests(gallery, 40)), timeout=60)
        next(call)
        call.cancel()
        live.ingest(gallery, sequence(crops(1)))
        admitted = live.server.runtime.loaded.encoder.batcher
        for _ in range(200):
            if live.on_loop(lambda: admitted.admitted) == 0:
                return
        raise AssertionError("room is still held")

    @pytest.mark.parametrize("how", ["cancelled", "closed"])
    def test_a_stream_that_breaks_off_while_it_is_read_leaves_no_task_behind(
        self, live: LiveServer, gallery: str, caplog, how: str
    ) -> None:
        [request] = self.requests(gallery, 1)
        more = threading.Event()

        def requests() -> Iterator[tracklet_v1.BulkIngestTrackletsRequest]:
            yield request
            more.wait(30)

        other = Stubs(live.port)
        call = other.tracklets.BulkIngestTracklets(requests(), timeout=60)
        next(call)  # the server now waits for the second request
        if how == "cancelled":
            call.cancel()
        other.close()
        more.set()
        for _ in range(200):
            if live.on_loop(lambda: live.server.guard.calls) == 0:
                break
        assert live.on_loop(lambda: live.server.guard.calls) == 0
        live.on_loop(gc.collect)  # asyncio complains of a lost task when it is collected
        assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]


@pytest.fixture(scope="module")
def street(live: LiveServer) -> str:
    """Identities p0..p4, each seen by cameras 1, 2 and 3: nearly the same crops."""
    gallery = live.new_gallery()
    for identity in range(5):
        for camera in (1, 2, 3):
            images = [np.clip(image.astype(int) + camera, 0, 255).astype(np.uint8) for image in crops(4, identity)]
            live.ingest(
                gallery,
                sequence(images),
                camera=str(camera),
                tracklet_id=f"p{identity}-c{camera}",
                identity_id=f"p{identity}",
                start_time=at(camera * 100),
                end_time=at(camera * 100 + 50),
            )
    return gallery


class TestSearch:
    def ids(self, answer: search_v1.SearchTrackletsResponse) -> list[str]:
        return [names.parse_tracklet_name(hit.tracklet.name)[1] for hit in answer.hits]

    def test_by_frames(self, live: LiveServer, street: str) -> None:
        request = search_v1.SearchTrackletsRequest(parent=street, frames=sequence(crops(4, seed=2)), top_k=3)
        answer = live.search.SearchTracklets(request)
        assert self.ids(answer) == ["p2-c1", "p2-c2", "p2-c3"]
        distances = [hit.distance for hit in answer.hits]
        query = expected_descriptor(crops(4, seed=2))
        stored = stored_descriptor(live, f"{street}/tracklets/p2-c1")
        assert distances == sorted(distances)
        assert distances[0] == pytest.approx(float(((query - stored) ** 2).sum()), abs=1e-5)
        assert answer.metric == resources.METRIC_SQUARED_EUCLIDEAN
        assert not answer.reranked
        assert answer.hits[0].thumbnail == b""

    def test_by_descriptor_and_by_stored_tracklet(self, live: LiveServer, street: str) -> None:
        name = f"{street}/tracklets/p3-c2"
        descriptor = live.tracklets.GetTracklet(
            tracklet_v1.GetTrackletRequest(name=name, include_descriptor=True)
        ).tracklet_descriptor
        request = search_v1.SearchTrackletsRequest(parent=street, tracklet_descriptor=descriptor, top_k=1)
        assert self.ids(live.search.SearchTracklets(request)) == ["p3-c2"]
        request = search_v1.SearchTrackletsRequest(parent=street, tracklet=name, top_k=2)
        assert set(self.ids(live.search.SearchTracklets(request))) == {"p3-c1", "p3-c3"}
        request.exclude_query_camera = True
        request.top_k = 15
        found = self.ids(live.search.SearchTracklets(request))
        assert len(found) == 10
        assert not any(tracklet.endswith("-c2") for tracklet in found)

    def test_top_k_stays_full_under_a_filter(self, live: LiveServer, street: str) -> None:
        request = search_v1.SearchTrackletsRequest(
            parent=street,
            frames=sequence(crops(4, seed=2)),
            top_k=5,
            filter=tracklet_v1.TrackletFilter(exclude_camera_ids=["1", "2"]),
        )
        found = self.ids(live.search.SearchTracklets(request))
        assert found[0] == "p2-c3"
        assert len(found) == 5
        assert all(tracklet.endswith("-c3") for tracklet in found)
        request.filter.Clear()
        request.filter.start_time.CopyFrom(at(310))
        assert len(self.ids(live.search.SearchTracklets(request))) == 5
        request.filter.end_time.CopyFrom(at(320))
        request.filter.start_time.CopyFrom(at(260))
        found = self.ids(live.search.SearchTracklets(request))
        assert all(tracklet.endswith("-c3") for tracklet in found)
        assert len(found) == 5

    def test_the_querys_camera_is_left_out(self, live: LiveServer, street: str) -> None:
        request = search_v1.SearchTrackletsRequest(
            parent=street,
            frames=sequence(crops(4, seed=1)),
            top_k=2,
            query_camera_id="1",
            exclude_query_camera=True,
        )
        assert set(self.ids(live.search.SearchTracklets(request))) == {"p1-c2", "p1-c3"}

    def test_grouped_by_identity(self, live: LiveServer, street: str) -> None:
        request = search_v1.SearchTrackletsRequest(
            parent=street, frames=sequence(crops(4, seed=4)), top_k=5, group_by_identity=True, include_thumbnails=True
        )
        answer = live.search.SearchTracklets(request)
        assert sorted(hit.tracklet.identity_id for hit in answer.hits) == ["p0", "p1", "p2", "p3", "p4"]
        first = answer.hits[0]
        assert first.tracklet.name.endswith("p4-c1")
        assert [sibling.name[-5:] for sibling in first.siblings] == ["p4-c2", "p4-c3"]
        assert all(hit.thumbnail.startswith(b"\xff\xd8") for hit in answer.hits)

    def test_reranked(self, live: LiveServer, street: str) -> None:
        request = search_v1.SearchTrackletsRequest(
            parent=street,
            frames=sequence(crops(4, seed=2)),
            top_k=6,
            rerank=search_v1.RerankOptions(k1=4, k2=2, shortlist_size=15),
        )
        answer = live.search.SearchTracklets(request)
        assert answer.reranked
        distances = [hit.reranked_distance for hit in answer.hits]
        assert all(hit.HasField("reranked_distance") for hit in answer.hits)
        assert distances == sorted(distances)
        assert {tracklet[:2] for tracklet in self.ids(answer)[:3]} == {"p2"}

    def test_reranking_with_defaults_and_a_large_top_k(self, live: LiveServer, street: str) -> None:
        request = search_v1.SearchTrackletsRequest(
            parent=street, frames=sequence(crops(4)), top_k=1000, rerank=search_v1.RerankOptions()
        )
        assert len(live.search.SearchTracklets(request).hits) == 15

    def test_default_top_k_is_ten(self, live: LiveServer, street: str) -> None:
        request = search_v1.SearchTrackletsRequest(parent=street, frames=sequence(crops(4)))
        assert len(live.search.SearchTracklets(request).hits) == 10

    def test_an_empty_gallery_has_no_hits(self, live: LiveServer, gallery: str) -> None:
        for options in (None, search_v1.RerankOptions()):
            request = search_v1.SearchTrackletsRequest(parent=gallery, frames=sequence(crops(1)), rerank=options)
            answer = live.search.SearchTracklets(request)
            assert list(answer.hits) == []
            assert answer.model_fingerprint


def test_encoded_helper_is_lossless() -> None:
    image = crops(1)[0]
    for format in ("PNG", "WEBP"):
        assert (np.asarray(Image.open(io.BytesIO(encoded(image, format)))) == image).all()
