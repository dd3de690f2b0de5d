"""Result pictures, pixel by pixel where it matters: frames, heat maps, layout."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from passerby.errors import InvalidArgumentError
from passerby_client.commands._result_picture import judge
from passerby_client.picture import (
    FOOTER_HEIGHT,
    FRAME,
    HEADER_HEIGHT,
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    MARGIN,
    QUERY_COLOUR,
    RANK_HEIGHT,
    VERDICT_COLOURS,
    Hit,
    Shot,
    Verdict,
    draw,
    heat_map,
    jet,
    spread,
)
from PIL import Image

from tests.clients.conftest import crop

CELL = IMAGE_WIDTH + 2 * FRAME
GREY = (120, 120, 120)


def hit(rank: int, verdict: Verdict, **masks: np.ndarray) -> Hit:
    shot = Shot(crop(GREY), {int(name[1:]): mask for name, mask in masks.items()})
    return Hit(shot, rank, f"{rank / 10:.3f}", verdict, ("name", "camera 1", "2026-11-21"))


def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == colour).all(axis=2).sum())


def test_each_hit_is_framed_by_its_verdict() -> None:
    hits = [hit(1, "same"), hit(2, "other"), hit(3, "unknown")]
    picture = draw([Shot(crop(GREY))], hits, title="t", subtitle="s")
    # The row just inside the top of the frames: blue for the query, then the hits in order of rank.
    row = np.asarray(picture)[HEADER_HEIGHT + RANK_HEIGHT + 2]
    runs = [tuple(row[0])] + [tuple(b) for a, b in itertools.pairwise(row) if tuple(a) != tuple(b)]
    colours = [colour for colour in runs if colour in (QUERY_COLOUR, *VERDICT_COLOURS.values())]
    assert list(dict.fromkeys(colours)) == [QUERY_COLOUR, *(VERDICT_COLOURS[h.verdict] for h in hits)]
    frame = CELL * (IMAGE_HEIGHT + 2 * FRAME) - IMAGE_WIDTH * IMAGE_HEIGHT
    for verdict in ("same", "other"):
        # Frame, less its badge's corner, plus the badge and the legend.
        assert count(picture, VERDICT_COLOURS[verdict]) == pytest.approx(frame, abs=800)


def test_a_verdict_that_does_not_occur_is_not_drawn() -> None:
    picture = draw([Shot(crop(GREY))], [hit(1, "same")], title="t", subtitle="s")
    assert count(picture, VERDICT_COLOURS["other"]) == 0


@pytest.mark.parametrize("blocks", [(), (5,), (4, 5)], ids=["no-masks", "one-layer", "two-layers"])
def test_each_layer_adds_a_row_of_heat_maps(blocks: tuple[int, ...]) -> None:
    masks = {f"b{block}": np.eye(4, 2, dtype=np.float32) for block in blocks}
    plain = draw([Shot(crop(GREY))], [hit(1, "same")], title="t", subtitle="s")
    picture = draw([Shot(crop(GREY))], [hit(1, "same", **masks)], title="t", subtitle="s")
    assert picture.height - plain.height == len(blocks) * (IMAGE_HEIGHT + 2 * FRAME + 8)


def test_more_than_six_hits_take_another_row() -> None:
    six = draw([Shot(crop(GREY))], [hit(i, "other") for i in range(1, 7)], title="t", subtitle="s")
    seven = draw([Shot(crop(GREY))], [hit(i, "other") for i in range(1, 8)], title="t", subtitle="s")
    assert seven.width == six.width
    assert seven.height > six.height + IMAGE_HEIGHT


def test_no_hits_is_a_picture_too() -> None:
    picture = draw([Shot(crop(GREY))] * 9, [], title="Nobody found in station", subtitle="s", caption=("who", "where"))
    assert count(picture, QUERY_COLOUR) > 0


def test_a_crop_keeps_its_proportions() -> None:
    picture = draw([Shot(crop((255, 0, 255), size=(40, 40)))], [], title="t", subtitle="s")
    inside = np.asarray(picture)[:, MARGIN + FRAME + 20]
    rows = np.nonzero((inside[:, 0] > 100) & (inside[:, 1] < 60) & (inside[:, 2] > 100))[0]
    assert rows.max() - rows.min() == pytest.approx(IMAGE_WIDTH, abs=5)


def test_jet_runs_from_dark_blue_over_green_to_dark_red() -> None:
    colours = jet(np.array([0.0, 0.25, 0.5, 0.75, 1.0], dtype=np.float32))
    expected = [[0, 0, 0.5], [0, 0.5, 1], [0.5, 1, 0.5], [1, 0.5, 0], [0.5, 0, 0]]
    np.testing.assert_allclose(colours, expected, atol=1e-6)


def test_a_heat_map_is_warm_where_the_mask_is_high_whatever_its_range() -> None:
    grey = Image.new("RGB", (16, 32), GREY)
    mask = np.zeros((4, 2), dtype=np.float32)
    mask[0] = 1e-3
    shown = np.asarray(heat_map(grey, mask)).astype(int)
    same = np.asarray(heat_map(grey, mask * 500 + 7)).astype(int)
    assert np.abs(shown - same).max() <= 2
    top, bottom = shown[1, 8], shown[30, 8]
    assert top[0] > top[2]
    assert bottom[2] > bottom[0]
    flat = np.asarray(heat_map(grey, np.full((4, 2), 0.3, dtype=np.float32)))
    assert np.ptp(flat, axis=(0, 1)).max() == 0


def test_a_broken_image_is_our_error() -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        draw([Shot(b"no image")], [], title="t", subtitle="s")
    with pytest.raises(InvalidArgumentError, match="no picture of the query"):
        draw([], [], title="t", subtitle="s")


def test_spread_takes_evenly_from_the_whole() -> None:
    shots = [Shot(bytes([i])) for i in range(9)]
    assert [s.image[0] for s in spread(shots, 1)] == [4]
    assert [s.image[0] for s in spread(shots, 3)] == [1, 4, 7]
    assert spread(shots, 20) == shots


@pytest.mark.parametrize(
    ("query", "found", "verdict"),
    [("a", "a", "same"), ("a", "b", "other"), ("", "a", "unknown"), ("a", "", "unknown"), ("", "", "unknown")],
)
def test_judgement_needs_both_identities(query: str, found: str, verdict: str) -> None:
    assert judge(query, found) == verdict


def test_an_unknown_query_is_told_from_unknown_hits() -> None:
    known, unknown = (
        draw([Shot(crop(GREY))], [hit(1, "unknown")], title="t", subtitle="s", query_known=known)
        for known in (True, False)
    )
    differs = (np.asarray(known) != np.asarray(unknown)).any(axis=2).nonzero()[0]
    assert differs.min() > known.height - FOOTER_HEIGHT  # the legend alone


def test_a_long_tracklet_id_is_folded_not_cut() -> None:
    def ink(*lines: str) -> int:
        shot = Hit(Shot(crop(GREY)), 1, "0.1", "same", lines)
        return count(draw([Shot(crop(GREY))], [shot], title="t", subtitle="s"), (104, 110, 120))

    assert ink("ann", "camera 1", "WWWWW-" * 8) > 1.4 * ink("ann", "camera 1", "WWWWW-" * 3)
