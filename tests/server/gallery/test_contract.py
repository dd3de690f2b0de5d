"""What the Galleries protocol promises. Runs against every implementation in conftest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from passerby.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from passerby_server.gallery.types import MAX_SIBLINGS, ModelSpace, Rerank, TrackletFilter

from tests.server.gallery.filling import SPACE, ask, at, ids, put, reason


def test_gallery_is_stored_as_given(galleries, home):
    made = galleries.create_gallery("lobby-2", "Lobby", SPACE)
    assert (made.gallery_id, made.display_name, made.space) == ("lobby-2", "Lobby", SPACE)
    assert home.reopen().get_gallery("lobby-2") == made


def test_tracklet_is_stored_as_given(gallery, home):
    vector = np.array([0.1, -2.0, 3e-20, 4e6], np.float32)
    said = {
        "camera_id": "кам",
        "start_time": at(0),
        "end_time": at(1),
        "identity_id": "p",
        "labels": {"b": "2", "a": ""},
    }
    stored = put(gallery, "t.1", vector, thumbnail=b"\xff\xd8", frame_count=9, **said)
    assert {name: getattr(stored, name) for name in said} == said
    for opened in home.now_and_reopened():
        assert opened.get_tracklet("g", "t.1") == stored
        np.testing.assert_array_equal(opened.get_descriptor("g", "t.1"), vector)
        assert opened.get_thumbnail("g", "t.1") == b"\xff\xd8"


def test_tracklet_id_is_chosen_when_empty(gallery):
    first, second = (put(gallery, "", [1, 0, 0, 0]).tracklet_id for _ in range(2))
    assert first != second
    assert gallery.get_tracklet("g", first).tracklet_id == first


def test_tracklet_without_thumbnail_and_times(gallery):
    stored = put(gallery, "t", [1, 0, 0, 0])
    assert (stored.start_time, stored.end_time, stored.labels, stored.identity_id) == (None, None, {}, "")
    assert gallery.get_thumbnail("g", "t") == b""


def test_stats_count_what_is_there(gallery):
    put(gallery, "a", [1, 0, 0, 0], camera_id="c1", identity_id="p", frame_count=3)
    put(gallery, "b", [1, 0, 0, 0], camera_id="c2", identity_id="p", frame_count=4)
    put(gallery, "c", [1, 0, 0, 0], camera_id="c2")
    stats = gallery.stats("g")
    assert (stats.tracklet_count, stats.identity_count, stats.camera_count, stats.frame_count) == (3, 1, 2, 7)
    assert stats.index_size_bytes >= 3 * 4 * 4


MISSING = [
    ("get_gallery", ("none",), "GALLERY_NOT_FOUND"),
    ("stats", ("none",), "GALLERY_NOT_FOUND"),
    ("get_tracklet", ("none", "t"), "GALLERY_NOT_FOUND"),
    ("get_tracklet", ("g", "none"), "TRACKLET_NOT_FOUND"),
    ("get_descriptor", ("g", "none"), "TRACKLET_NOT_FOUND"),
    ("get_thumbnail", ("g", "none"), "TRACKLET_NOT_FOUND"),
    ("delete_tracklet", ("g", "none"), "TRACKLET_NOT_FOUND"),
    ("assign_identity", ("g", "none", "p"), "TRACKLET_NOT_FOUND"),
    ("list_tracklets", ("none", TrackletFilter(), 5), "GALLERY_NOT_FOUND"),
    ("find_request", ("none", "r", b""), "GALLERY_NOT_FOUND"),
    ("search", ("none", ask([1, 0, 0, 0])), "GALLERY_NOT_FOUND"),
]


@pytest.mark.parametrize(("method", "arguments", "expected"), MISSING, ids=[f"{m}-{e}" for m, _, e in MISSING])
def test_missing_things_are_not_found(gallery, method, arguments, expected):
    with pytest.raises(NotFoundError) as caught:
        getattr(gallery, method)(*arguments)
    assert reason(caught) == expected


def test_names_are_taken_once(gallery):
    put(gallery, "t", [1, 0, 0, 0])
    with pytest.raises(AlreadyExistsError) as caught:
        gallery.create_gallery("g", "again", SPACE)
    assert reason(caught) == "GALLERY_EXISTS"
    with pytest.raises(AlreadyExistsError) as caught:
        put(gallery, "t", [0, 1, 0, 0])
    assert reason(caught) == "TRACKLET_EXISTS"
    np.testing.assert_array_equal(gallery.get_descriptor("g", "t"), [1, 0, 0, 0])


def test_two_galleries_do_not_see_each_other(gallery):
    gallery.create_gallery("h", "", ModelSpace("sha256:two", 2, "cosine"))
    put(gallery, "t", [1, 0, 0, 0])
    put(gallery, "t", [0, 1], gallery_id="h", fingerprint="sha256:two")
    assert ids(gallery.search("g", ask([0, 0, 0, 1]))) == ["t"]
    gallery.delete_tracklet("h", "t")
    assert gallery.get_tracklet("g", "t").gallery_id == "g"
    assert gallery.search("h", ask([1, 0], fingerprint="sha256:two")) == ()


BAD_TRACKLETS = [
    ("id", {"tracklet_id": "a/b"}),
    ("camera", {"camera_id": ""}),
    ("frames", {"frame_count": -1}),
    ("start-only", {"start_time": at(0)}),
    ("end-before-start", {"start_time": at(1), "end_time": at(0)}),
    ("no-time-zone", {"start_time": at(0).replace(tzinfo=None), "end_time": at(1).replace(tzinfo=None)}),
]


@pytest.mark.parametrize("change", [c for _, c in BAD_TRACKLETS], ids=[name for name, _ in BAD_TRACKLETS])
def test_malformed_tracklets_are_refused(gallery, change):
    with pytest.raises(InvalidArgumentError):
        put(gallery, **({"tracklet_id": "t", "descriptor": [1, 0, 0, 0]} | change))
    assert gallery.stats("g").tracklet_count == 0


@pytest.mark.parametrize(
    "vector",
    [[1, 0, 0], [1, 0, 0, float("nan")], [1, 0, 0, float("inf")], [[1, 0, 0, 0]], [1e19, 0, 0, 0], []],
    ids=["size", "nan", "inf", "two-axes", "overflow", "empty"],
)
def test_unusable_descriptors_are_refused(gallery, vector):
    with pytest.raises(InvalidArgumentError):
        put(gallery, "t", vector)
    with pytest.raises(InvalidArgumentError):
        gallery.search("g", ask(vector))
    assert gallery.stats("g").tracklet_count == 0


def test_another_models_descriptors_are_refused(gallery):
    for attempt in (
        lambda: put(gallery, "t", [1, 0, 0, 0], fingerprint="sha256:two"),
        lambda: gallery.search("g", ask([1, 0, 0, 0], fingerprint="sha256:two")),
        lambda: gallery.search("g", ask([1, 0, 0, 0, 0], fingerprint="")),
    ):
        with pytest.raises(FailedPreconditionError, match="sha256:one") as caught:
            attempt()
        assert reason(caught) == "MODEL_MISMATCH"


@pytest.mark.parametrize(
    "space",
    [
        ModelSpace("f", 0, "cosine"),
        ModelSpace("f", 70000, "cosine"),
        ModelSpace("f", 4, "l1"),  # type: ignore[arg-type]
        ModelSpace("", 4, "cosine"),
    ],
    ids=["no-values", "too-many-values", "metric", "no-fingerprint"],
)
def test_impossible_spaces_are_refused(galleries, space):
    with pytest.raises(InvalidArgumentError):
        galleries.create_gallery("g", "", space)


# Request ids


def test_repeated_ingest_answers_as_the_first_time(gallery, home):
    first = put(gallery, "", [1, 0, 0, 0], request_id="r1", request_digest=b"same")
    assert gallery.find_request("g", "r1", b"same") == first
    assert put(gallery, "", [9, 9, 9, 9], request_id="r1", request_digest=b"same") == first
    opened = home.reopen()
    assert put(opened, "", [1, 0, 0, 0], request_id="r1", request_digest=b"same") == first
    assert opened.stats("g").tracklet_count == 1


def test_repeated_ingest_without_digest_is_recognised_by_content(gallery):
    first = put(gallery, "t", [1, 0, 0, 0], request_id="r1")
    assert put(gallery, "t", [1, 0, 0, 0], request_id="r1") == first
    with pytest.raises(InvalidArgumentError) as caught:
        put(gallery, "t", [2, 0, 0, 0], request_id="r1")
    assert reason(caught) == "REQUEST_ID_REUSED"


def test_reused_request_id_is_refused(gallery):
    put(gallery, "t", [1, 0, 0, 0], request_id="r1", request_digest=b"one")
    for attempt in (
        lambda: put(gallery, "u", [1, 0, 0, 0], request_id="r1", request_digest=b"two"),
        lambda: gallery.find_request("g", "r1", b"two"),
        lambda: gallery.delete_tracklet("g", "t", "r1"),
        lambda: gallery.assign_identity("g", "t", "p", "r1"),
        lambda: gallery.delete_gallery("g", force=True, request_id="r1"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            attempt()
        assert reason(caught) == "REQUEST_ID_REUSED"
    assert gallery.stats("g").tracklet_count == 1


def test_refused_request_can_be_repeated(gallery):
    put(gallery, "t", [1, 0, 0, 0])
    with pytest.raises(AlreadyExistsError):
        put(gallery, "t", [2, 0, 0, 0], request_id="r1")
    assert gallery.find_request("g", "r1", b"") is None
    gallery.delete_tracklet("g", "t")
    assert put(gallery, "t", [2, 0, 0, 0], request_id="r1").tracklet_id == "t"


def test_unknown_request_is_none(gallery):
    assert gallery.find_request("g", "r1", b"") is None
    assert gallery.find_request("g", "", b"") is None


def test_late_retry_does_not_bring_back_what_was_deleted(gallery):
    put(gallery, "t", [1, 0, 0, 0], request_id="r1")
    gallery.delete_tracklet("g", "t")
    with pytest.raises(FailedPreconditionError) as caught:
        put(gallery, "t", [1, 0, 0, 0], request_id="r1")
    assert reason(caught) == "TRACKLET_DELETED"
    assert gallery.search("g", ask([1, 0, 0, 0])) == ()


def test_every_write_can_be_repeated(gallery):
    assert gallery.create_gallery("h", "H", SPACE, "r0") == gallery.create_gallery("h", "H", SPACE, "r0")
    put(gallery, "t", [1, 0, 0, 0])
    put(gallery, "u", [1, 0, 0, 0])
    gallery.assign_identity("g", "t", "p", "r1")
    gallery.assign_identity("g", "t", "q")
    assert gallery.assign_identity("g", "t", "p", "r1")[0].identity_id == "q"  # not applied a second time
    gallery.delete_tracklet("g", "t", "r2")
    gallery.delete_tracklet("g", "t", "r2")
    assert gallery.delete_gallery("g", force=True, request_id="r3").tracklet_count == 1
    assert gallery.delete_gallery("g", force=True, request_id="r3").tracklet_count == 1


def test_new_gallery_of_an_old_name_remembers_no_requests(gallery):
    put(gallery, "t", [1, 0, 0, 0], request_id="r1")
    gallery.delete_gallery("g", force=True)
    gallery.create_gallery("g", "", SPACE)
    assert put(gallery, "t", [1, 0, 0, 0], request_id="r1").tracklet_id == "t"
    assert ids(gallery.search("g", ask([1, 0, 0, 0]))) == ["t"]


# Deleting and correcting


def test_deleted_tracklet_is_gone(gallery, home):
    put(gallery, "t", [1, 0, 0, 0], thumbnail=b"jpeg", identity_id="p", labels={"k": "v"})
    put(gallery, "u", [0, 1, 0, 0])
    gallery.delete_tracklet("g", "t")
    for opened in home.now_and_reopened():
        assert ids(opened.search("g", ask([1, 0, 0, 0]))) == ["u"]
        with pytest.raises(NotFoundError):
            opened.get_tracklet("g", "t")
        assert opened.stats("g").tracklet_count == 1


def test_gallery_with_tracklets_is_deleted_only_by_force(gallery, home):
    put(gallery, "t", [1, 0, 0, 0])
    with pytest.raises(FailedPreconditionError) as caught:
        gallery.delete_gallery("g", force=False)
    assert reason(caught) == "GALLERY_NOT_EMPTY"
    assert gallery.delete_gallery("g", force=True).tracklet_count == 1
    for opened in home.now_and_reopened():
        with pytest.raises(NotFoundError):
            opened.search("g", ask([1, 0, 0, 0]))
    home.galleries.create_gallery("g", "", SPACE)
    assert home.galleries.delete_gallery("g", force=False).tracklet_count == 0


def test_assigned_identity_counts_at_once(gallery, home):
    put(gallery, "t", [1, 0, 0, 0], identity_id="p")
    assert gallery.assign_identity("g", "t", "q")[0].identity_id == "q"
    where = TrackletFilter(identity_ids=frozenset({"q"}))
    for opened in home.now_and_reopened():
        assert ids(opened.search("g", ask([0, 0, 0, 0], filter=where))) == ["t"]
    assert home.galleries.assign_identity("g", "t", "")[0].identity_id == ""


# Listing


def test_listing_galleries_by_name(galleries):
    for name in ("c", "a", "b"):
        galleries.create_gallery(name, "", SPACE)
    first = galleries.list_galleries(2)
    assert [item.gallery_id for item in first.items] == ["a", "b"]
    last = galleries.list_galleries(2, first.next_page_token)
    assert ([item.gallery_id for item in last.items], last.next_page_token) == (["c"], "")


def test_listing_is_stable_while_tracklets_come_and_go(gallery):
    for number in range(7):
        put(gallery, f"t{number}", [number, 0, 0, 0])
    page = gallery.list_tracklets("g", TrackletFilter(), 3)
    seen = [item.tracklet_id for item in page.items]
    gallery.delete_tracklet("g", "t1")
    gallery.delete_tracklet("g", "t4")
    put(gallery, "t1", [1, 0, 0, 0])
    while page.next_page_token:
        page = gallery.list_tracklets("g", TrackletFilter(), 3, page.next_page_token)
        seen += [item.tracklet_id for item in page.items]
    assert seen == ["t0", "t1", "t2", "t3", "t5", "t6", "t1"]


def test_page_tokens_survive_a_restart(gallery, home):
    for number in range(3):
        put(gallery, f"t{number}", [number, 0, 0, 0])
    token = gallery.list_tracklets("g", TrackletFilter(), 2).next_page_token
    assert [item.tracklet_id for item in home.reopen().list_tracklets("g", TrackletFilter(), 2, token).items] == ["t2"]


@pytest.mark.parametrize("kind", ["garbled", "changed", "not-ascii", "other-filter", "other-gallery", "other-method"])
def test_foreign_page_tokens_are_refused(gallery, kind):
    gallery.create_gallery("h", "", SPACE)
    for number in range(3):
        put(gallery, f"t{number}", [number, 0, 0, 0])
    token = gallery.list_tracklets("g", TrackletFilter(), 1).next_page_token
    calls = {
        "garbled": lambda: gallery.list_tracklets("g", TrackletFilter(), 1, "x!"),
        "changed": lambda: gallery.list_tracklets("g", TrackletFilter(), 1, "A" + token[1:]),
        "not-ascii": lambda: gallery.list_tracklets("g", TrackletFilter(), 1, "é"),
        "other-filter": lambda: gallery.list_tracklets("g", TrackletFilter(frozenset({"c1"})), 1, token),
        "other-gallery": lambda: gallery.list_tracklets("h", TrackletFilter(), 1, token),
        "other-method": lambda: gallery.list_galleries(1, token),
    }
    with pytest.raises(InvalidArgumentError, match="page_token"):
        calls[kind]()


def test_page_size_below_one_is_refused(gallery):
    with pytest.raises(InvalidArgumentError, match="page_size"):
        gallery.list_tracklets("g", TrackletFilter(), 0)


# Searching


@pytest.fixture
def street(gallery):
    """Ten tracklets along a line at 0..9, in three cameras, three people, one tracklet a minute."""
    for place in range(10):
        put(
            gallery,
            f"t{place}",
            [place, 0, 0, 0],
            camera_id=f"c{place % 3}",
            identity_id="" if place == 9 else f"p{place // 3}",
            start_time=at(place),
            end_time=at(place + 1),
            labels={"side": "odd" if place % 2 else "even"},
            thumbnail=b"jpeg%d" % place,
        )
    put(gallery, "undated", [20, 0, 0, 0], camera_id="c9")
    return gallery


def test_empty_gallery_has_no_hits(gallery):
    assert gallery.search("g", ask([1, 0, 0, 0])) == ()
    assert gallery.search("g", ask([1, 0, 0, 0], group_by_identity=True, rerank=Rerank())) == ()


def test_nearest_first_with_exact_distances(street):
    hits = street.search("g", ask([2.25, 0, 0, 0], top_k=3))
    assert [(hit.tracklet.tracklet_id, hit.distance) for hit in hits] == [
        ("t2", 0.0625),
        ("t3", 0.5625),
        ("t1", 1.5625),
    ]
    assert all(hit.reranked_distance is None and hit.siblings == () and hit.thumbnail == b"" for hit in hits)


def test_top_k_beyond_the_gallery_gives_all(street):
    assert len(street.search("g", ask([0, 0, 0, 0], top_k=1000))) == 11


FILTERS = {
    "camera": (TrackletFilter(camera_ids=frozenset({"c1", "c2"})), "t1 t2 t4 t5 t7 t8"),
    "not-camera": (TrackletFilter(exclude_camera_ids=frozenset({"c1", "c2", "c9"})), "t0 t3 t6 t9"),
    "both": (TrackletFilter(frozenset({"c1"}), frozenset({"c1"})), ""),
    "from": (TrackletFilter(start_time=at(8)), "t7 t8 t9"),
    "until": (TrackletFilter(end_time=at(2)), "t0 t1"),
    "window": (TrackletFilter(start_time=at(3), end_time=at(4)), "t2 t3"),
    "label": (TrackletFilter(labels={"side": "odd"}), "t1 t3 t5 t7 t9"),
    "no-such-label": (TrackletFilter(labels={"side": "up"}), ""),
    "identity": (TrackletFilter(identity_ids=frozenset({"p1", "nobody"})), "t3 t4 t5"),
    "all": (TrackletFilter(frozenset({"c0"}), start_time=at(1), labels={"side": "odd"}), "t3 t9"),
}


@pytest.mark.parametrize(("where", "expected"), FILTERS.values(), ids=FILTERS)
def test_filters_leave_a_full_answer(street, where, expected):
    assert ids(street.search("g", ask([-1, 0, 0, 0], filter=where))) == expected.split()
    assert [item.tracklet_id for item in street.list_tracklets("g", where, 50).items] == expected.split()


def test_query_by_stored_tracklet_leaves_itself_out(street):
    assert ids(street.search("g", ask([4, 0, 0, 0], top_k=2, exclude_tracklet_id="t4"))) == ["t3", "t5"]


def test_thumbnails_on_request(street):
    hits = street.search("g", ask([9, 0, 0, 0], top_k=2, include_thumbnails=True))
    assert [hit.thumbnail for hit in hits] == [b"jpeg9", b"jpeg8"]


def test_grouping_gives_one_hit_an_identity(street):
    hits = street.search("g", ask([4.1, 0, 0, 0], group_by_identity=True))
    groups = [(hit.tracklet.tracklet_id, [s.tracklet_id for s in hit.siblings]) for hit in hits]
    assert groups == [("t4", ["t5", "t3"]), ("t6", ["t7", "t8"]), ("t2", ["t1", "t0"]), ("t9", []), ("undated", [])]


def test_grouping_is_full_behind_a_crowd_of_one_person(gallery):
    for number in range(200):
        put(gallery, f"crowd{number}", [number / 1000, 0, 0, 0], identity_id="everywhere")
    for number in range(5):
        put(gallery, f"other{number}", [10 + number, 0, 0, 0], identity_id=f"p{number}")
    hits = gallery.search("g", ask([0, 0, 0, 0], top_k=4, group_by_identity=True))
    assert ids(hits) == ["crowd0", "other0", "other1", "other2"]
    assert [s.tracklet_id for s in hits[0].siblings] == [f"crowd{n}" for n in range(1, 1 + MAX_SIBLINGS)]


def test_grouping_respects_the_filter(street):
    where = TrackletFilter(labels={"side": "odd"})
    hits = street.search("g", ask([4, 0, 0, 0], group_by_identity=True, filter=where))
    groups = {hit.tracklet.tracklet_id: [s.tracklet_id for s in hit.siblings] for hit in hits}
    assert groups == {"t3": ["t5"], "t1": [], "t7": [], "t9": []}


def test_ties_keep_the_storing_order(gallery):
    for number in range(60):
        put(gallery, f"t{number}", [1, 2, 3, 4])
    gallery.delete_tracklet("g", "t0")
    expected = [f"t{number}" for number in range(1, 8)]
    assert ids(gallery.search("g", ask([0, 0, 0, 0], top_k=7))) == expected
    assert ids(gallery.search("g", ask([0, 0, 0, 0], top_k=7, rerank=Rerank()))) == expected
    assert [hit.distance for hit in gallery.search("g", ask([1, 2, 3, 4], top_k=7))] == [0.0] * 7


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
def test_identical_descriptors_are_at_distance_zero(galleries, metric):
    space = ModelSpace("sha256:one", 2048, metric)
    galleries.create_gallery("g", "", space)
    rng = np.random.default_rng(0)
    vectors = (1000 + rng.normal(size=(20, 2048))).astype(np.float32)
    for number, vector in enumerate(vectors):
        put(galleries, f"t{number}", vector)
    for number, vector in enumerate(vectors):
        hit = galleries.search("g", ask(vector, top_k=1))[0]
        assert (hit.tracklet.tracklet_id, hit.distance) == (f"t{number}", 0.0)


def test_cosine_ignores_length_and_takes_zero_vectors(galleries):
    galleries.create_gallery("g", "", ModelSpace("sha256:one", 2, "cosine"))
    for name, vector in {"ahead": [5, 0], "zero": [0, 0], "back": [-2, 0], "aside": [0, 1e-9]}.items():
        put(galleries, name, vector)
    hits = galleries.search("g", ask([0.1, 0]))
    assert [(hit.tracklet.tracklet_id, hit.distance) for hit in hits] == [
        ("ahead", 0.0), ("zero", 1.0), ("aside", 1.0), ("back", 2.0)
    ]  # fmt: skip
    assert {hit.distance for hit in galleries.search("g", ask([0, 0]))} == {1.0}
    np.testing.assert_array_equal(galleries.get_descriptor("g", "ahead"), [5, 0])  # stored as it came


def test_reranked_hits_carry_both_distances(street):
    hits = street.search("g", ask([4, 0, 0, 0], top_k=4, rerank=Rerank(k1=3, k2=2)))
    reranked = [hit.reranked_distance for hit in hits]
    assert reranked == sorted(reranked)
    assert all(hit.distance == (hit.tracklet.start_time - at(4)).total_seconds() ** 2 / 3600 for hit in hits)


def test_reranking_short_of_top_k_takes_at_least_top_k(street):
    hits = street.search("g", ask([4, 0, 0, 0], top_k=8, rerank=Rerank(k1=3, k2=2, shortlist_size=2)))
    assert len(hits) == 8
    assert all(hit.reranked_distance is not None for hit in hits)


def test_grouping_goes_on_beyond_the_shortlist(street):
    options = ask([0, 0, 0, 0], top_k=5, rerank=Rerank(k1=2, k2=1, shortlist_size=5), group_by_identity=True)
    hits = street.search("g", options)
    assert [hit.tracklet.identity_id for hit in hits] == ["p0", "p1", "p2", "", ""]
    assert [hit.reranked_distance is None for hit in hits] == [False, False, True, True, True]


@pytest.mark.parametrize(
    "change",
    [
        {"top_k": 0},
        {"top_k": -1},
        {"rerank": Rerank(k1=0)},
        {"rerank": Rerank(k2=30)},
        {"rerank": Rerank(original_weight=2.0)},
        {"rerank": Rerank(shortlist_size=0)},
        {"rerank": Rerank(shortlist_size=10**6)},
        {"filter": TrackletFilter(start_time=at(0).replace(tzinfo=None))},
    ],
    ids=["zero", "negative", "k1", "k2", "weight", "no-shortlist", "huge-shortlist", "no-time-zone"],
)
def test_impossible_searches_are_refused(street, change):
    with pytest.raises(InvalidArgumentError):
        street.search("g", replace(ask([0, 0, 0, 0]), **change))
