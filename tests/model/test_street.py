"""The synthetic street: the same bytes from the same seed, true masks, and colours that are not enough."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from passerby.errors import AlreadyExistsError, InvalidArgumentError, PasserbyError
from passerby_model.street import (
    StreetConfig,
    StreetTracklet,
    contact_sheet,
    generate,
    make_camera,
    make_person,
    render_tracklet,
    write,
)
from passerby_model.street.canvas import ACCESSORIES, PERSON, Canvas
from passerby_model.street.cli import parse_frames
from passerby_model.street.difficulty import colour_baseline
from passerby_model.street.figure import View, Wardrobe, blank, paint_person
from passerby_model.street.people import HAIR, PALETTE, SKIN
from PIL import Image
from typer.testing import CliRunner

CONFIG = StreetConfig(identities=6, cameras=3, frames=4, seed=7)


@pytest.fixture(scope="module")
def tracklets() -> list[StreetTracklet]:
    return list(generate(CONFIG))


def same(a: StreetTracklet, b: StreetTracklet) -> bool:
    return (
        np.array_equal(a.frames, b.frames)
        and np.array_equal(a.labels, b.labels)
        and (a.identity, a.camera, a.times, a.attributes) == (b.identity, b.camera, b.times, b.attributes)
    )


# Determinism


def test_every_tracklet_is_the_same_in_reverse_order(tracklets: list[StreetTracklet]) -> None:
    keys = list(CONFIG.tracklet_keys())
    again = [render_tracklet(CONFIG, *key) for key in reversed(keys)][::-1]
    assert all(same(a, b) for a, b in zip(tracklets, again, strict=True))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(replace(CONFIG, identities=50, cameras=9), id="larger street"),
        pytest.param(replace(CONFIG, first_identity=3), id="another range"),
        pytest.param(replace(CONFIG, visits=2), id="more visits"),
    ],
)
def test_a_person_does_not_depend_on_how_much_else_is_generated(
    tracklets: list[StreetTracklet], other: StreetConfig
) -> None:
    found = render_tracklet(other, 4, 1)
    expected = next(t for t in tracklets if (t.identity, t.camera) == ("0004", "c2"))
    assert np.array_equal(found.frames, expected.frames)
    assert found.attributes == expected.attributes


def test_another_seed_gives_other_people_and_pictures() -> None:
    people = [[make_person(seed, index).attributes for index in range(8)] for seed in (1, 2)]
    assert all(a != b for a, b in zip(*people, strict=True))
    first, second = (render_tracklet(StreetConfig(1, 1, 1, seed=seed), 0, 0) for seed in (1, 2))
    assert not np.array_equal(first.frames, second.frames)


def test_visits_differ_in_picture_and_day_but_not_in_person() -> None:
    config = StreetConfig(1, 1, 3, visits=2)
    first, second = (render_tracklet(config, 0, 0, visit) for visit in (0, 1))
    assert first.attributes == second.attributes
    assert not np.array_equal(first.frames, second.frames)
    assert first.start_time.date() < second.start_time.date()


def test_generate_is_lazy() -> None:
    street = generate(StreetConfig(identities=1_000_000, cameras=64, frames=10))
    assert next(street).identity == "0000"


# Shapes, times


def test_shapes_and_types(tracklets: list[StreetTracklet]) -> None:
    assert len(tracklets) == CONFIG.tracklet_count == 18
    assert {t.camera for t in tracklets} == {"c1", "c2", "c3"}
    for tracklet in tracklets:
        assert tracklet.frames.shape == (4, 256, 128, 3)
        assert tracklet.frames.dtype == np.uint8
        assert tracklet.labels.shape == (4, 256, 128)
        assert len(tracklet.times) == 4


@pytest.mark.parametrize(("height", "width"), [(128, 64), (384, 128), (64, 16), (200, 200)])
def test_any_size(height: int, width: int) -> None:
    tracklet = render_tracklet(StreetConfig(1, 2, 2, height=height, width=width, seed=3), 0, 1)
    assert tracklet.frames.shape == (2, height, width, 3)
    assert tracklet.masks["silhouette"].any(axis=(1, 2)).all()


def test_frame_range_is_drawn_within_its_bounds() -> None:
    config = StreetConfig(10, 1, (2, 5))
    counts = {len(tracklet.frames) for tracklet in generate(config)}
    assert counts <= {2, 3, 4, 5}
    assert len(counts) > 1


def test_people_walk_from_camera_to_camera_at_walking_pace() -> None:
    config = StreetConfig(8, 4, 2, seed=5)
    for identity in range(8):
        seen = sorted((t.start_time, t.camera) for t in (render_tracklet(config, identity, c) for c in range(4)))
        order = [int(camera[1:]) - 1 for _, camera in seen]
        assert order in (sorted(order), sorted(order, reverse=True))
        for (before, a), (after, b) in itertools.pairwise(seen):
            way = abs(make_camera(5, int(a[1:]) - 1).position_m - make_camera(5, int(b[1:]) - 1).position_m)
            travel = (after - before) / timedelta(seconds=1)
            assert 0.3 < way / travel < 3.0  # metres per second, with pauses


def test_times_are_utc_and_rise(tracklets: list[StreetTracklet]) -> None:
    for tracklet in tracklets:
        assert tracklet.start_time.utcoffset() == timedelta(0)
        assert list(tracklet.times) == sorted(set(tracklet.times))
        assert (tracklet.start_time, tracklet.end_time) == (tracklet.times[0], tracklet.times[-1])


# What a camera keeps, and where it stands


def likeness(frames: NDArray[np.uint8], labels: NDArray[np.uint8]) -> float:
    """Mean correlation of the background of neighbouring frames, at the same places."""
    found = []
    for a, b in itertools.pairwise(range(len(frames))):
        common = (labels[a] == 0) & (labels[b] == 0)
        found.append(np.corrcoef(frames[a][common].ravel(), frames[b][common].ravel())[0, 1])
    return float(np.mean(found))


def test_every_nth_frame_lies_that_much_later_and_shares_less_background() -> None:
    near = StreetConfig(4, 3, 4, seed=7, occlusion=0.0)
    far = replace(near, every=8)
    pairs = list(zip(generate(near), generate(far), strict=True))
    for a, b in pairs:
        assert a.times[0] == b.times[0]
        assert b.end_time - b.start_time == pytest.approx(
            8 * (a.end_time - a.start_time), abs=timedelta(milliseconds=1)
        )
    side = [pair for pair in pairs if pair[0].camera == "c2"]  # there the background passes by
    assert all(likeness(a.frames, a.labels) > likeness(b.frames, b.labels) + 0.2 for a, b in side)


def test_scenes_change_what_is_behind_the_person_and_nothing_else() -> None:
    own = StreetConfig(3, 2, 2, seed=7, visits=2)
    moved = replace(own, scenes=40)
    others = 0
    for a, b in zip(generate(own), generate(moved), strict=True):
        assert np.array_equal(a.labels, b.labels)
        assert a.times == b.times
        difference = np.abs(a.frames.astype(int) - b.frames).mean(axis=3)
        if not difference.any():
            continue
        others += 1
        # Blur and JPEG carry a little of the background into the person.
        assert difference[a.labels == 0].mean() > 4 * difference[_inner(a.labels > 0)].mean()
    assert others >= own.tracklet_count - 2
    again = replace(moved, identities=1, first_identity=2)
    assert np.array_equal(render_tracklet(again, 2, 1, 1).frames, render_tracklet(moved, 2, 1, 1).frames)


def _inner(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    kernel = np.ones((9, 9), np.uint8)
    return np.stack([cv2.erode(mask.astype(np.uint8), kernel) > 0 for mask in masks])


def test_somebody_may_walk_towards_a_camera_for_minutes() -> None:
    long = render_tracklet(StreetConfig(1, 1, 400, height=64, width=32, seed=1), 0, 0)
    assert (long.frames.reshape(400, -1).std(axis=1) > 5).all()


# Masks


def test_masks_are_parts_of_the_silhouette(tracklets: list[StreetTracklet]) -> None:
    for tracklet in tracklets:
        masks = dict(tracklet.masks)
        silhouette = masks.pop("silhouette")
        share = silhouette.mean(axis=(1, 2))
        assert (share > 0.04).all()
        assert (share < 0.7).all()
        assert np.array_equal(sum(mask.astype(int) for mask in masks.values()), silhouette.astype(int))
        carried = {name for name in ACCESSORIES if getattr(tracklet.attributes, name)}
        assert set(masks) == {"person"} | carried


def test_what_is_carried_is_seen_in_some_camera() -> None:
    config = StreetConfig(30, 3, 1, seed=1, occlusion=0.0)
    pixels: dict[tuple[str, str], int] = {}
    for tracklet in generate(config):
        for name in set(tracklet.masks) & set(ACCESSORIES):
            key = (tracklet.identity, name)
            pixels[key] = pixels.get(key, 0) + int(tracklet.masks[name].sum())
    assert {name for _, name in pixels} == set(ACCESSORIES)
    assert min(pixels.values()) > 100


@pytest.mark.parametrize("facing", [0.0, 0.8, 1.57, 2.5, 3.14, -1.0])
@pytest.mark.parametrize("index", range(6))
def test_the_mask_is_exactly_what_the_figure_paints(index: int, facing: float) -> None:
    wardrobe = Wardrobe(make_person(11, index))
    painted = []
    for grey in (0, 255):  # whatever differs between the two backgrounds was not painted
        canvas = Canvas(np.full((256, 128, 3), grey, np.uint8))
        paint_person(canvas, wardrobe, View(64, 244, 220, facing, 0.2, 0.3), 1.0 + index)
        painted.append(canvas)
    unchanged = (painted[0].image == painted[1].image).all(axis=2)
    assert np.array_equal(unchanged, painted[0].labels > 0)


def test_occluders_take_pixels_from_the_mask() -> None:
    free = StreetConfig(8, 1, 6, seed=2, occlusion=0.0)
    hidden = replace(free, occlusion=1.0)
    areas = [
        [render_tracklet(config, identity, 0).masks["silhouette"].sum() for identity in range(8)]
        for config in (free, hidden)
    ]
    assert all(after <= before for before, after in zip(*areas, strict=True))
    assert sum(areas[1]) < 0.95 * sum(areas[0])


def test_a_logo_on_the_chest_is_not_seen_from_behind() -> None:
    index = next(n for n in range(200) if make_person(0, n).attributes.front_logo)
    person = make_person(0, index)
    plain = replace(person, attributes=replace(person.attributes, front_logo=""))
    differences = []
    for facing in (0.0, np.pi):
        pictures = []
        for who in (person, plain):
            canvas = Canvas(blank(256, 128))
            paint_person(canvas, Wardrobe(who), View(64, 244, 220, facing, 0.1, 0.0), 0.0)
            pictures.append(canvas.image.astype(int))
        differences.append(int((np.abs(pictures[0] - pictures[1]).sum(axis=2) > 20).sum()))
    assert differences[0] > 30
    assert differences[1] == 0


# Attributes


def test_attributes_are_consistent() -> None:
    people = [make_person(3, index).attributes for index in range(400)]
    for wears in people:
        assert wears.upper_colour in PALETTE
        assert wears.skin_tone in SKIN
        assert (wears.hair_style == "bald") == (wears.hair_colour == "")
        assert wears.hair_colour in {"", *HAIR}
        assert (wears.upper_type == "dress") == (wears.lower_type in ("tights", "bare legs"))
        for name in ACCESSORIES:
            assert getattr(wears, name) == bool(getattr(wears, f"{name}_colour"))
    assert len(set(people)) == len(people)


def test_many_people_share_their_colours() -> None:
    people = [make_person(0, index).attributes for index in range(60)]
    colours = [(wears.upper_colour, wears.lower_colour) for wears in people]
    assert len(set(colours)) < 0.6 * len(colours)


def test_colours_alone_fall_clearly_short() -> None:
    result = colour_baseline(generate(StreetConfig(identities=30, cameras=3, frames=3, seed=0)))
    assert result.rank1 < 0.3
    assert result.mean_average_precision < 0.35


def test_neighbouring_cameras_differ_in_cast() -> None:
    balance = [make_camera(7, index).cast for index in range(6)]
    ratios = np.log([red / blue for red, _, blue in balance])
    assert (np.abs(np.diff(ratios)) > 0.3).all()


# Errors


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"identities": 0}, "identities"),
        ({"cameras": 0}, "cameras"),
        ({"cameras": 65}, "cameras"),
        ({"frames": 0}, "frames"),
        ({"frames": (5, 2)}, "minimum 5"),
        ({"frames": (1, 2, 3)}, "frames"),
        ({"frames": 2.5}, "frames"),
        ({"height": 10}, "height"),
        ({"width": 512}, "width"),
        ({"seed": -1}, "seed"),
        ({"first_identity": -1}, "first_identity"),
        ({"visits": 0}, "visits"),
        ({"occlusion": 1.5}, "occlusion"),
        ({"every": 0}, "every"),
        ({"scenes": -1}, "scenes"),
        ({"identities": True}, "identities"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        StreetConfig(**{"identities": 2, "cameras": 2, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [(6, 0, 0), (-1, 0, 0), (0, 3, 0), (0, 0, 1)])
def test_what_the_street_does_not_have_is_refused(key: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidArgumentError, match="this street has"):
        render_tracklet(CONFIG, *key)


# On disk


def test_write_gives_the_plain_layout_with_masks_and_a_record(tmp_path: Path) -> None:
    config = StreetConfig(2, 2, (2, 3), seed=4)
    done: list[tuple[int, int]] = []
    record = write(config, tmp_path / "street", masks=True, progress=lambda a, b: done.append((a, b)))
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert json.loads((tmp_path / "street" / "street.json").read_text()) == json.loads(json.dumps(record))
    assert [path.name for path in (tmp_path / "street").iterdir() if path.is_file()] == ["street.json"]
    for entry, tracklet in zip(record["tracklets"], generate(config), strict=True):
        files = sorted((tmp_path / "street" / entry["path"]).iterdir())
        assert [path.name for path in files] == [f"{n + 1:05d}.jpg" for n in range(entry["frames"])]
        assert entry["path"] == f"{tracklet.identity}/{tracklet.camera}/t1"
        assert entry["start_time"] == tracklet.start_time.isoformat(timespec="milliseconds")[:-6] + "Z"
        assert entry["attributes"]["upper_type"] == tracklet.attributes.upper_type
        for frame, labels, path in zip(tracklet.frames, tracklet.labels, files, strict=True):
            written = np.asarray(Image.open(path)).astype(int)
            assert np.abs(written - frame).mean() < 2  # another JPEG decoder, the same picture
            mask = tmp_path / "street-masks" / entry["path"] / path.with_suffix(".png").name
            with Image.open(mask) as picture:
                assert picture.mode == "P"
                assert np.array_equal(np.asarray(picture), labels)


def test_write_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    config = StreetConfig(2, 1, 2, seed=9)
    for name in ("a", "b"):
        write(config, tmp_path / name)
    files = [sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()) for name in ("a", "b")]
    assert len(files[0]) == 5
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


def test_write_refuses_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(AlreadyExistsError, match="empty folder"):
        write(StreetConfig(1, 1, 1), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_contact_sheet_has_a_row_for_everybody() -> None:
    config = StreetConfig(2, 3, 4, seed=1)
    plain, tinted = contact_sheet(config, frames_per_camera=2), contact_sheet(config, frames_per_camera=2, overlay=True)
    assert plain.shape == tinted.shape == (2 * 259, 3 * (2 * 128 + 4), 3)
    assert not np.array_equal(plain, tinted)


# Command


def test_command_writes_a_street(tmp_path: Path) -> None:
    import typer
    from passerby_model.street.cli import street

    app = typer.Typer()
    app.command()(street)
    options = ["--identities", "2", "--cameras", "2", "--frames", "1-2", "--seed", "7"]
    result = CliRunner().invoke(app, [str(tmp_path / "out"), *options, "--masks", str(tmp_path / "m")])
    assert result.exit_code == 0, result.output
    assert "4 tracklets" in result.output
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == len(list((tmp_path / "m").rglob("*.png")))


@pytest.mark.parametrize("text", ["many", "1-2-3", "-4", "", "2.5"])
def test_command_explains_wrong_frame_counts(text: str) -> None:
    with pytest.raises(PasserbyError, match="8-24"):
        parse_frames(text)


def test_labels_are_distinct() -> None:
    assert len({PERSON, *ACCESSORIES.values()}) == 5
