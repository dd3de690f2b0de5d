"""The client against a real server with a tiny encoder: every method, every way of giving frames, every filter."""

from __future__ import annotations

import ast
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import passerby_client
import pytest
from passerby.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from passerby.v1 import (
    gallery_service_pb2,
    model_service_pb2,
    resources_pb2,
    search_service_pb2,
    tracklet_service_pb2,
)
from passerby_client import Client, tracklet_request

from tests.clients.conftest import PEOPLE, MakeClient, crop
from tests.encoders import expected_descriptor

TEN = datetime(2026, 11, 21, 10, tzinfo=UTC)


def ids(answer: search_service_pb2.SearchTrackletsResponse) -> list[str]:
    return [hit.tracklet.name.rpartition("/")[2] for hit in answer.hits]


def test_every_method_of_the_api_is_called_by_the_client() -> None:
    services = (gallery_service_pb2, tracklet_service_pb2, search_service_pb2, model_service_pb2)
    methods = {
        method.name
        for file in services
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    modules = (Path(passerby_client.__file__).parent / "_async").glob("*.py")
    nodes = [node for module in modules for node in ast.walk(ast.parse(module.read_text()))]
    called = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert len(methods) > 15
    assert methods <= called


def test_everything_exported_exists() -> None:
    assert {name for name in passerby_client.__all__ if getattr(passerby_client, name)} == set(passerby_client.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = passerby_client.nothing


def test_galleries_from_creation_to_deletion(client: Client) -> None:
    name = f"g-{uuid.uuid4().hex[:12]}"
    made = client.create_gallery(name, display_name="North hall")
    assert made.name == f"galleries/{name}"
    assert client.get_gallery(made.name).display_name == "North hall"
    assert made.model_fingerprint == client.model_info().model_fingerprint
    with pytest.raises(AlreadyExistsError):
        client.create_gallery(name)
    changed = client.update_gallery(name, index_kind="fp16", false_match_rate=0.05)
    assert (changed.display_name, changed.index_kind, changed.false_match_rate) == ("North hall", "fp16", 0.05)
    with pytest.raises(InvalidArgumentError, match="index kind"):
        client.update_gallery(name, index_kind="galaxy")
    with pytest.raises(InvalidArgumentError, match="update_mask"):
        client.update_gallery(name)
    with pytest.raises(FailedPreconditionError, match="follow"):
        client.replace_gallery(name, client.create_gallery(f"{name}-2").name, keep_as=f"{name}-3")
    follower = client.create_gallery(f"{name}-4", follows=name, index_kind="exact", false_match_rate=0.5)
    assert (follower.follows, follower.index_kind, follower.false_match_rate) == (made.name, "exact", 0.5)
    client.ingest_tracklet(name, [crop((1, 2, 3))], camera="1")
    stats = client.gallery_stats(name)
    assert (stats.tracklet_count, stats.index_kind, stats.index_lag, stats.HasField("recall")) == (1, "exact", 0, False)
    with pytest.raises(FailedPreconditionError):
        client.delete_gallery(name)
    deleted = client.delete_gallery(name, force=True)
    assert deleted.deleted_tracklet_count == 1
    assert deleted.receipt.rewritten_files == ["gallery.db", "gallery.db-wal"]
    with pytest.raises(NotFoundError):
        client.get_gallery(name)


def test_lists_go_through_all_pages(client: Client, people: str) -> None:
    listed = [tracklet.name.rpartition("/")[2] for tracklet in client.list_tracklets(people, page_size=4)]
    assert listed == [f"{name}-{camera}" for name in PEOPLE for camera in (1, 2)]
    galleries = [gallery.name for gallery in client.list_galleries(page_size=1)]
    assert f"galleries/{people}" in galleries
    assert galleries == sorted(set(galleries))


def test_paths_bytes_and_pixels_give_the_same_descriptor(client: Client, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    encoded = crop((9, 8, 7))
    (tmp_path / "a.png").write_bytes(encoded)
    a = client.embed([tmp_path / "a.png", str(tmp_path / "a.png")])
    b = client.embed([encoded, encoded])
    assert a.tracklet_descriptor == b.tracklet_descriptor
    got = client.embed([pixels] * 3).tracklet_descriptor.values
    np.testing.assert_allclose(got, expected_descriptor([pixels] * 3), atol=1e-5)
    assert client.embed(np.stack([pixels] * 6)).snippet_count == 2


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        ([], "at least one"),
        ("a.jpg", "list of frames"),
        ([np.zeros((4, 4), np.uint8)], r"uint8 \(h, w, 3\)"),
        ([np.zeros((4, 4, 3), np.float32)], "float32"),
        ([3], "not int"),
    ],
    ids=["none", "a-string", "grey", "float", "a-number"],
)
def test_what_is_no_list_of_frames_is_refused_here(client: Client, frames, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        client.embed(frames)


def test_a_file_that_is_not_there_is_named(client: Client, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gone\.jpg: cannot be read: No such file"):
        client.embed([tmp_path / "gone.jpg"])


def test_a_time_without_a_zone_is_refused(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match=r"start_time: .* has no time zone"):
        client.search("g", frames=[b"x"], start_time=datetime(2026, 1, 1))
    with pytest.raises(InvalidArgumentError, match="2 times for 1 frames"):
        client.ingest_tracklet("g", [b"x"], camera="1", capture_times=[TEN, TEN])


def test_capture_times_become_the_tracklets_times(client: Client, gallery: str) -> None:
    times = [TEN + timedelta(seconds=i) for i in range(3)]
    stored = client.ingest_tracklet(gallery, [crop((5, 5, 5))] * 3, camera="1", capture_times=times)
    assert stored.start_time.ToDatetime(tzinfo=UTC) == times[0]
    assert stored.end_time.ToDatetime(tzinfo=UTC) == times[2]


def test_a_long_tracklet_is_streamed_and_a_long_query_explained(client: Client, gallery: str) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (60, 256, 128, 3), dtype=np.uint8)  # 5.6 MiB
    stored = client.ingest_tracklet(gallery, frames, camera="1", tracklet_id="long")
    assert stored.frame_count == 60
    with pytest.raises(ResourceExhaustedError, match=r"60 frames are 5\.6 MiB, and one message holds 4 MiB"):
        client.search(gallery, frames=frames)
    near = client.search(gallery, frames=frames[:8], top_k=1)
    assert ids(near) == ["long"]


def test_the_query_may_be_frames_a_descriptor_or_a_stored_tracklet(client: Client, people: str) -> None:
    frames = [crop((205, 35, 35))] * 5  # ann-1, to the pixel
    embedded = client.embed(frames).tracklet_descriptor
    by_frames = client.search(people, frames=frames)
    by_descriptor = client.search(people, descriptor=embedded)
    by_values = client.search(people, descriptor=(np.array(embedded.values), embedded.model_fingerprint))
    by_name = client.search(people, tracklet=f"galleries/{people}/tracklets/ann-1")
    assert ids(by_frames) == ids(by_descriptor) == ids(by_values)
    assert ids(by_frames)[:2] == ["ann-1", "ann-2"]
    assert by_frames.hits[0].distance == pytest.approx(0, abs=1e-5)
    assert ids(by_name) == ids(by_frames)[1:]


def test_exactly_one_query(client: Client) -> None:
    queries: list[dict[str, Any]] = [{}, {"frames": [b"x"], "tracklet": "galleries/g/tracklets/t"}]
    for query in queries:
        with pytest.raises(InvalidArgumentError, match="exactly one"):
            client.search("g", **query)


def test_another_models_descriptor_is_refused(client: Client, people: str) -> None:
    with pytest.raises(FailedPreconditionError):
        client.search(people, descriptor=([0.0] * 8, "f" * 64))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cameras": ["2"]}, {"ann-2", "bob-2", "cleo-2"}),
        ({"exclude_cameras": ["2"]}, {"ann-1", "bob-1", "cleo-1"}),
        ({"identities": ["bob", "cleo"]}, {"bob-1", "bob-2", "cleo-1", "cleo-2"}),
        ({"labels": {"coat": "red"}}, {"ann-1", "ann-2"}),
        ({"start_time": TEN, "end_time": TEN + timedelta(hours=1)}, {"bob-1", "bob-2"}),
        ({"query_camera": "1", "exclude_query_camera": True}, {"ann-2", "bob-2", "cleo-2"}),
        ({"top_k": 1}, {"ann-1"}),
        ({"group_by_identity": True}, {"ann-1", "bob-1", "cleo-1"}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_filters(client: Client, people: str, options, expected: set[str]) -> None:
    found = ids(client.search(people, frames=[crop((205, 35, 35))] * 5, **options))
    if "group_by_identity" in options:
        assert {name.partition("-")[0] for name in found} == set(PEOPLE)
        assert len(found) == 3
    else:
        assert set(found) == expected


def test_a_string_is_no_list_of_cameras(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match=r"give a list, \['12'\]"):
        client.search("g", frames=[b"x"], cameras="12")


def test_rerank_with_and_without_options(client: Client, people: str) -> None:
    frames = [crop((205, 35, 35))] * 5
    plain = client.search(people, frames=frames)
    reranked = client.search(people, frames=frames, rerank=True)
    tuned = client.search(people, frames=frames, rerank=search_service_pb2.RerankOptions(k1=3, k2=1))
    assert not plain.reranked
    assert reranked.reranked
    assert tuned.hits[0].HasField("reranked_distance")


def test_reading_correcting_and_deleting_a_tracklet(client: Client, people: str) -> None:
    name = f"galleries/{people}/tracklets/bob-1"
    got = client.get_tracklet(name, descriptor=True, thumbnail=True)
    assert len(got.tracklet_descriptor.values) == 8
    assert got.thumbnail.startswith(b"\xff\xd8")
    assert client.assign_identity(name, "robert").identity_id == "robert"
    assert client.get_tracklet(name).tracklet.identity_id == "robert"
    assert client.get_tracklet(name).thumbnail == b""
    client.delete_tracklet(name)
    with pytest.raises(NotFoundError):
        client.delete_tracklet(name)


def test_erasing_an_identity(client: Client, people: str) -> None:
    assert client.erase_identity(people, "bob").tracklet_count == 2
    assert len(list(client.list_tracklets(people, identities=["bob"]))) == 2
    receipt = client.erase_identity(people, "bob", force=True).receipt
    assert sorted(receipt.tracklets) == [f"galleries/{people}/tracklets/bob-{n}" for n in (1, 2)]
    assert list(client.list_tracklets(people, identities=["bob"])) == []
    assert [entry.action for entry in client.audit(people, identity="bob")] == ["EraseIdentity"]
    assert "bob" not in "".join(f"{entry.tracklet_id}{entry.detail}" for entry in client.audit(people))


def test_a_wrong_merge_is_undone_and_a_split_moves_some(client: Client, people: str) -> None:
    merged = client.merge_identities(people, "ann", ["bob", "cleo"])
    assert merged.tracklet_count == 4
    assert len(list(client.list_tracklets(people, identities=["ann"]))) == 6
    assert client.undo_identity_change(people, merged.change_id).tracklet_count == 4
    assert {t.identity_id for t in client.list_tracklets(people)} == {"ann", "bob", "cleo"}
    name = f"galleries/{people}/tracklets/ann-2"
    client.split_identity(people, "ann", [name], "anna")
    assert client.get_tracklet(name).tracklet.identity_id == "anna"
    with pytest.raises(FailedPreconditionError):
        client.undo_identity_change(people, merged.change_id)


def test_retention_is_set_shown_and_taken_back(client: Client, people: str) -> None:
    rules = {"": timedelta(days=36500), "2": timedelta(days=36501)}
    assert client.set_retention(people, rules) == rules
    assert client.get_retention(people) == rules
    assert client.set_retention(people, {}) == {}


def test_explain_gives_a_mask_for_each_frame_and_layer(client: Client) -> None:
    masks = client.explain([crop((200, 30, 30))] * 3).masks
    assert sorted((mask.block, mask.frame_index) for mask in masks) == [(b, f) for b in (4, 5) for f in range(3)]
    assert all(len(mask.values) == mask.height * mask.width for mask in masks)


def test_bulk_ingest_reports_each_tracklet(client: Client, gallery: str) -> None:
    good = [tracklet_request(gallery, [crop((i, i, i))], camera="1", tracklet_id=f"t{i}") for i in range(10)]
    bad = tracklet_request(gallery, [b"no image", crop((1, 1, 1))], camera="1")
    large = tracklet_request(gallery, np.zeros((60, 256, 128, 3), np.uint8), camera="1", tracklet_id="large")
    results = {result.request_id: result for result in client.bulk_ingest([*good, bad, large], max_in_flight=3)}
    assert len(results) == 12
    assert results[bad.request_id].HasField("status")
    assert results[large.request_id].tracklet.frame_count == 60
    assert client.gallery_stats(gallery).tracklet_count == 11


@pytest.mark.parametrize("name", ["UPPER", "", "galleries/a/b", "x" * 64], ids=["case", "empty", "path", "long"])
def test_a_malformed_gallery_is_refused_here(client: Client, name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        client.get_gallery(name)


def test_a_closed_client_says_so(make_client: MakeClient, address: str) -> None:
    with make_client(address) as client:
        client.model_info()
    for call in (client.model_info, client.wait_until_ready, lambda: client.bulk_ingest([])):
        with pytest.raises(FailedPreconditionError, match="client is closed"):
            call()


def test_raw_frames_pass_through(client: Client) -> None:
    frame = resources_pb2.Frame(encoded=crop((1, 2, 3)))
    assert client.embed([frame]).snippet_count == 1
