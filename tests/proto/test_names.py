"""Resource names: what is made is parsed back, what is malformed is refused by field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from passerby import names
from passerby.errors import InvalidArgumentError


@given(st.from_regex(names.GALLERY_ID, fullmatch=True), st.from_regex(names.TRACKLET_ID, fullmatch=True))
def test_names_round_trip(gallery_id: str, tracklet_id: str) -> None:
    assert names.parse_gallery_name(names.gallery_name(gallery_id)) == gallery_id
    assert names.parse_tracklet_name(names.tracklet_name(gallery_id, tracklet_id)) == (gallery_id, tracklet_id)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "galleries/",
        "galleries/-",
        "gallery/a",
        "galleries/A",
        "galleries/a/b",
        "galleries/a\n",
        "galleries/" + "a" * 64,
    ],
)
def test_malformed_gallery_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        names.parse_gallery_name(name, field="parent")
    assert caught.value.violations[0].field == "parent"


@pytest.mark.parametrize(
    "name",
    ["galleries/a/tracklets/", "galleries/a/tracklets/b/c", "galleries/a", "galleries/a/tracklets/b c", "a/b/c/d"],
)
def test_malformed_tracklet_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        names.parse_tracklet_name(name)
