"""Galleries that store descriptors in fp16: half the bytes, and ranked by exactly what is stored, by every kind of index."""

from __future__ import annotations

import contextlib
import sqlite3

import numpy as np
import onnxruntime
import pytest
from passerby.errors import AlreadyExistsError, DataLossError, InvalidArgumentError
from passerby_model.datasets import read
from passerby_server.gallery import schema
from passerby_server.gallery.backup import back_up, check, restore
from passerby_server.gallery.embedded import EmbeddedGalleries, open_galleries
from passerby_server.gallery.store import DATABASE_NAME
from passerby_server.gallery.types import GalleryOptions, ModelSpace, Precision, Rerank, TrackletFilter
from PIL import Image

from tests.server.gallery.brute import distance
from tests.server.gallery.filling import SPACE, ask, ids, put, reason

HALF = GalleryOptions(descriptor_precision="fp16")
WIDE = ModelSpace("sha256:one", 64, "squared_euclidean")


def _vectors(count, dimension=64, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def _as_half(vectors):
    return np.asarray(vectors).astype(np.float16).astype(np.float32)


def _filled(galleries, vectors, space=WIDE, **options):
    galleries.create_gallery("g", "", space, options=GalleryOptions(descriptor_precision="fp16", **options))
    for number, vector in enumerate(vectors):
        put(galleries, f"t{number}", vector, camera_id=f"c{number % 50}", request_id=f"r{number}")


def _blobs(folder):
    with contextlib.closing(sqlite3.connect(folder / DATABASE_NAME)) as connection:
        return [blob for (blob,) in connection.execute("SELECT descriptor FROM descriptors ORDER BY vector_id")]


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
@pytest.mark.parametrize("kind", ["exact", "fp16", "int8", "IVF4,SQ8;nprobe=4", "HNSW16"])
def test_every_index_ranks_by_the_stored_values(tmp_path, kind, metric):
    """Distances are those to the rounded descriptors, to the last bits; to the given ones they would not be."""
    vectors, space = _vectors(400), ModelSpace("sha256:one", 64, metric)
    query = _vectors(1, seed=1)[0]
    galleries = EmbeddedGalleries(tmp_path, maintained=False)
    _filled(galleries, vectors, space, index_kind=kind)
    galleries.maintain()
    assert str(galleries.index_kind("g")) == {"fp16": "SQfp16", "int8": "SQ8"}.get(kind, kind)
    expected = sorted(
        (distance(query, vector, metric), f"t{number}") for number, vector in enumerate(_as_half(vectors))
    )
    unrounded = sorted(distance(query, vector, metric) for vector in vectors)
    few = TrackletFilter(camera_ids=frozenset({"c1", "c2"}))
    for opened in range(2):
        hits = galleries.search("g", ask(query, 10))
        assert ids(hits) == [name for _, name in expected[:10]]
        np.testing.assert_allclose([hit.distance for hit in hits], [near for near, _ in expected[:10]], rtol=1e-6)
        assert np.abs(np.array([hit.distance for hit in hits]) / unrounded[:10] - 1).max() > 1e-5
        filtered = [name for _, name in expected if int(name[1:]) % 50 in (1, 2)]
        assert ids(galleries.search("g", ask(query, 20, filter=few))) == filtered
        reranked = galleries.search("g", ask(query, 10, rerank=Rerank(budget=100)))
        near = {name: found for found, name in expected}
        for hit in reranked:
            assert hit.distance == pytest.approx(near[hit.tracklet.tracklet_id], rel=1e-6)
        if not opened:
            galleries.close()
            galleries = EmbeddedGalleries(tmp_path, maintained=False)
            galleries.maintain()
    galleries.close()


def test_reranking_is_that_of_the_stored_values(tmp_path):
    """A gallery of fp32 that is given the rounded values answers the same."""
    vectors, query = _vectors(300), _vectors(1, seed=1)[0]
    galleries = open_galleries(tmp_path)
    _filled(galleries, vectors)
    galleries.create_gallery("same", "", WIDE)
    for number, vector in enumerate(_as_half(vectors)):
        put(galleries, f"t{number}", vector, gallery_id="same")
    found = [galleries.search(name, ask(query, 50, rerank=Rerank(budget=100))) for name in ("g", "same")]
    assert [(hit.tracklet.tracklet_id, hit.distance, hit.reranked_distance) for hit in found[0]] == [
        (hit.tracklet.tracklet_id, hit.distance, hit.reranked_distance) for hit in found[1]
    ]
    galleries.close()


def test_it_takes_half_the_disk(tmp_path):
    space, vectors = ModelSpace("sha256:one", 2048, "cosine"), _vectors(200, 2048)
    sizes = {}
    for precision in ("fp32", "fp16"):
        galleries = open_galleries(tmp_path / precision)
        galleries.create_gallery("g", "", space, options=GalleryOptions(descriptor_precision=precision))
        for number, vector in enumerate(vectors):
            put(galleries, f"t{number}", vector)
        galleries.close()
        assert {len(blob) for blob in _blobs(tmp_path / precision)} == {2048 * {"fp32": 4, "fp16": 2}[precision]}
        sizes[precision] = (tmp_path / precision / DATABASE_NAME).stat().st_size
    assert sizes["fp32"] - sizes["fp16"] > 0.9 * 200 * 4096
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


def test_a_stored_descriptor_is_the_rounded_one_and_finds_itself(tmp_path):
    vectors = _vectors(5)
    galleries = open_galleries(tmp_path)
    _filled(galleries, vectors)
    stored = galleries.get_descriptor("g", "t3")
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, _as_half(vectors[3]))
    (hit,) = galleries.search("g", ask(stored, 1))
    assert (hit.tracklet.tracklet_id, hit.distance) == ("t3", 0)
    assert put(galleries, "t3", vectors[3], camera_id="c3", request_id="r3").tracklet_id == "t3"  # a retry is one still
    galleries.close()


@pytest.mark.parametrize("value", [65520.0, -1e18, 1e-9], ids=["above", "far-below", "vanishing"])
def test_what_fp16_cannot_hold_is_refused(tmp_path, value):
    galleries = open_galleries(tmp_path)
    galleries.create_gallery("g", "", SPACE, options=HALF)
    with pytest.raises(InvalidArgumentError, match="fp16 cannot hold") as caught:
        put(galleries, "t", [value, 0, 0, 0])
    assert reason(caught) == "DESCRIPTOR_RANGE"
    assert galleries.stats("g").tracklet_count == 0
    put(galleries, "largest", [65504, 1e-9, 0, 0])
    put(galleries, "zero", [0, 0, 0, 0])
    galleries.create_gallery("full", "", SPACE)
    put(galleries, "t", [value, 0, 0, 0], gallery_id="full")
    assert ids(galleries.search("g", ask([65504, 0, 0, 0], 1))) == ["largest"]
    galleries.close()


def test_the_choice_is_kept_and_is_the_galleries_own(tmp_path):
    galleries = open_galleries(tmp_path / "data")
    _filled(galleries, _vectors(5))
    with pytest.raises(InvalidArgumentError, match="fp32 or fp16"):
        galleries.create_gallery("h", "", SPACE, options=GalleryOptions(descriptor_precision="fp8"))  # type: ignore[arg-type]
    galleries.create_gallery("h", "", SPACE, request_id="made")
    assert galleries.create_gallery("h", "", SPACE, request_id="made").options.descriptor_precision == "fp32"
    with pytest.raises(InvalidArgumentError):
        galleries.create_gallery("h", "", SPACE, request_id="made", options=HALF)
    with pytest.raises(AlreadyExistsError):
        galleries.create_gallery("h", "", SPACE, options=HALF)
    galleries.update_gallery("g", display_name="Archive")
    back_up(tmp_path / "data", tmp_path / "backup")
    galleries.close()
    restore(tmp_path / "backup", tmp_path / "restored")
    assert not check(tmp_path / "restored")
    again = open_galleries(tmp_path / "restored")
    assert again.get_gallery("g").options.descriptor_precision == "fp16"
    assert [record.options.descriptor_precision for record in again.list_galleries(9).items] == ["fp16", "fp32"]
    np.testing.assert_array_equal(again.get_descriptor("g", "t4"), _as_half(_vectors(5)[4]))
    again.close()


def test_a_gallery_takes_the_place_of_one_in_another_format(tmp_path):
    vectors = _vectors(6)
    galleries = open_galleries(tmp_path)
    galleries.create_gallery("hall", "", WIDE)
    galleries.create_gallery("hall-next", "", WIDE, options=GalleryOptions(follows="hall", descriptor_precision="fp16"))
    for name in ("hall", "hall-next"):
        for number, vector in enumerate(vectors):
            put(galleries, f"t{number}", vector, gallery_id=name, thumbnail=b"jpeg")
    done = galleries.replace_gallery("hall", "hall-next", "hall-before", allow_missing=False)
    assert (done.gallery.options.descriptor_precision, done.retired.options.descriptor_precision) == ("fp16", "fp32")
    for _ in range(2):
        np.testing.assert_array_equal(galleries.get_descriptor("hall", "t1"), _as_half(vectors[1]))
        np.testing.assert_array_equal(galleries.get_descriptor("hall-before", "t1"), vectors[1])
        assert galleries.get_thumbnail("hall", "t1") == b"jpeg"
        galleries.close()
        galleries = open_galleries(tmp_path)
    galleries.close()
    assert not check(tmp_path)


def test_a_descriptor_of_the_wrong_length_is_damage(tmp_path):
    galleries = open_galleries(tmp_path)
    _filled(galleries, _vectors(3))
    galleries._store.write(  # type: ignore[attr-defined]
        lambda connection: (
            connection.execute("UPDATE descriptors SET checksum = crc32(x'00'), descriptor = x'00'").rowcount
        )
    )
    with pytest.raises(DataLossError, match="galleries/g/tracklets/t1 is damaged"):
        galleries.get_descriptor("g", "t1")
    galleries.close()


def test_galleries_of_an_earlier_version_are_of_fp32(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_NAME, isolation_level=None)) as connection:
        schema.migrate(connection, schema.MIGRATIONS[:5])
        connection.execute(
            "INSERT INTO galleries (gallery_id, display_name, fingerprint, descriptor_dim, metric, create_time, seal) "
            "VALUES ('g', '', 'sha256:one', 4, 'squared_euclidean', 1, "
            "seal(1, 'g', '', 'sha256:one', 4, 'squared_euclidean', 1, '', NULL, NULL, 0))"
        )
    tmp_path.chmod(0o700)
    galleries = open_galleries(tmp_path)
    assert galleries.get_gallery("g").options.descriptor_precision == "fp32"
    put(galleries, "t", [0.1, 1e6, 0, 0])
    np.testing.assert_array_equal(galleries.get_descriptor("g", "t"), np.array([0.1, 1e6, 0, 0], np.float32))
    galleries.close()
    assert not check(tmp_path)


def _real_descriptors(shared):
    """Of 90 real tracklets by a public model, two frames each; float32 (90, D)."""
    session = onnxruntime.InferenceSession(shared / "data/weights/osnet_x0_25_msmt17/osnet_x0_25_msmt17.onnx")
    name = session.get_inputs()[0].name
    found = []
    for tracklet in list(read(shared / "data/real_tracklets/ward"))[:90]:
        pictures = [Image.open(path).convert("RGB") for path in (tracklet.frames[0], tracklet.frames[-1])]
        sized = np.stack([np.asarray(picture.resize((128, 256))) for picture in pictures]) / 255
        pixels = (sized - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        batch = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
        found.append(np.mean([session.run(None, {name: one[None]})[0][0] for one in batch], axis=0))
    return np.array(found, np.float32)


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
def test_real_tracklets_have_the_neighbours_that_they_have_in_fp32(tmp_path, shared, metric):
    descriptors = _real_descriptors(shared)
    space = ModelSpace("sha256:one", descriptors.shape[1], metric)
    galleries = open_galleries(tmp_path)
    ranked: dict[str, list[list[str]]] = {}
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in precisions:
        galleries.create_gallery(precision, "", space, options=GalleryOptions(descriptor_precision=precision))
        for number, descriptor in enumerate(descriptors):
            put(galleries, f"t{number}", descriptor, gallery_id=precision)
        ranked[precision] = [ids(galleries.search(precision, ask(query, 10))) for query in descriptors]
    galleries.close()
    assert [found[0] for found in ranked["fp16"]] == [f"t{number}" for number in range(len(descriptors))]
    agreement = [len(set(a) & set(b)) / 10 for a, b in zip(ranked["fp32"], ranked["fp16"], strict=True)]
    assert np.mean(agreement) > 0.99
