"""Attention sheets: the reference's colours, what lies where, outlines of the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError
from passerby_client import picture
from passerby_model.attention import min_max
from passerby_model.attention_sheet import (
    CELL_HEIGHT,
    GAP,
    GROUP_GAP,
    HEADING_HEIGHT,
    LABEL_WIDTH,
    MARGIN,
    SMALL_CELL_HEIGHT,
    TITLE_HEIGHT,
    Row,
    attention_sheet,
    jet,
    overlay,
    snippet_row,
)
from passerby_model.datasets import Tracklet
from PIL import Image

GREY = 120
WHITE = (255, 255, 255)


def row(
    *, frames: int = 4, height: int = 64, width: int = 32, value: int = GREY, blocks: tuple[int, ...] = (4, 5)
) -> Row:
    """Grey frames; attention in the left half for block 4, in the right half for block 5."""
    left = np.zeros((frames, 4, 2), np.float32)
    left[:, :, 0] = 1
    masks = {4: left, 5: 1 - left}
    return Row(
        "0007\nc1, t1",
        np.full((frames, height, width, 3), value, np.uint8),
        {block: masks[block] for block in blocks},
    )


def cell(sheet: Image.Image, line: int, group: int, number: int, *, frames: int = 4) -> NDArray[np.uint8]:
    """The pixels of one cell, uint8 (height, width, 3)."""
    height = CELL_HEIGHT if frames <= 4 else SMALL_CELL_HEIGHT
    width = height // 2
    left = MARGIN + LABEL_WIDTH + group * (frames * (width + GAP) - GAP + GROUP_GAP) + number * (width + GAP)
    top = TITLE_HEIGHT + HEADING_HEIGHT + line * (height + GAP)
    return np.asarray(sheet)[top : top + height, left : left + width]


def test_colours_are_those_of_the_result_pictures() -> None:
    values = np.linspace(0, 1, 101, dtype=np.float32)
    np.testing.assert_array_equal(jet(values), picture.jet(values))
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (64, 32, 3), dtype=np.uint8)
    mask = rng.random((8, 4), dtype=np.float32)
    drawn = np.asarray(picture.heat_map(Image.fromarray(frame), mask))
    assert np.abs(overlay(frame, mask).astype(int) - drawn).max() <= 1


def test_overlay_by_hand() -> None:
    frame = np.full((1, 3, 3), 100, np.uint8)
    # Jet: dark blue at 0, green in the middle (half red, half blue), dark red at 1; each half of it over grey 100.
    found = overlay(frame, np.array([[0.2, 0.3, 0.4]], np.float32))
    np.testing.assert_allclose(found[0], [(50, 50, 114), (114, 178, 114), (114, 50, 50)], atol=1)


@pytest.mark.parametrize("frames", [2, 4, 8])
def test_frames_then_each_block_in_columns(frames: int) -> None:
    rows = [row(frames=frames), row(frames=frames, value=200)]
    sheet = attention_sheet(rows, title="Where it looks", subtitle="two")
    for line, value in enumerate((GREY, 200)):
        for number in range(frames):
            assert (cell(sheet, line, 0, number, frames=frames) == value).all()
            for group, (hot, cold) in ((1, (0, -1)), (2, (-1, 0))):
                pixels = cell(sheet, line, group, number, frames=frames).astype(int)
                assert (pixels[:, hot, 0] > pixels[:, hot, 2] + 50).all()  # red where it looks
                assert (pixels[:, cold, 2] > pixels[:, cold, 0] + 50).all()  # blue where it does not


def test_frames_of_another_shape_keep_it() -> None:
    sheet = attention_sheet([row(height=128, width=32)], title="narrow")
    pixels = cell(sheet, 0, 0, 0)
    inside = (pixels == GREY).all(axis=2).any(axis=0)
    assert inside.sum() == CELL_HEIGHT // 4
    assert inside[len(inside) // 2]


def test_the_truth_is_outlined_on_overlays_alone() -> None:
    silhouettes = np.zeros((4, 64, 32), bool)
    silhouettes[:, 16:48, 8:24] = True
    plain, known = row(), Row("a\nb", row().frames, row().masks, silhouettes)
    sheets = [attention_sheet([one], title="t") for one in (plain, known)]
    for group in (0, 1, 2):
        before, after = (cell(sheet, 0, group, 1) for sheet in sheets)
        changed = (before != after).any(axis=2)
        if group == 0:
            assert not changed.any()
            continue
        assert (after[changed] == WHITE).all()
        rows, columns = np.nonzero(changed)
        scale = CELL_HEIGHT / 64
        for found, wanted in zip((rows, columns), ((16, 48), (8, 24)), strict=True):
            np.testing.assert_allclose((found.min(), found.max()), (wanted[0] * scale, wanted[1] * scale - 1), atol=1)
        assert not changed[CELL_HEIGHT // 2, CELL_HEIGHT // 4]  # its inside stays free


def test_rows_must_fit_together() -> None:
    with pytest.raises(InvalidArgumentError, match="no tracklet"):
        attention_sheet([], title="t")
    with pytest.raises(InvalidArgumentError, match="equally many frames"):
        attention_sheet([row(), row(frames=2)], title="t")
    with pytest.raises(InvalidArgumentError, match="same CNN blocks"):
        attention_sheet([row(), row(blocks=(4,))], title="t")


def test_a_row_is_the_middle_snippet_with_its_masks(tmp_path: Path) -> None:
    sizes = [(40, 20), (40, 20), (40, 20), (44, 22), (40, 20), (40, 20)]
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, (path, (height, width)) in enumerate(zip(paths, sizes, strict=True)):
        Image.new("RGB", (width, height), (10 * number,) * 3).save(path)

    def encode(batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], dict[int, NDArray[np.float32]]]:
        assert batch.shape == (1, 2, 32, 16, 3)
        return np.zeros((1, 3), np.float32), {4: (batch[..., 0] / 255).astype(np.float32)}

    labels = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 40, 20), np.uint8)
    tracklet = Tracklet("ann", "entrance", "t3", tuple(paths))
    found = snippet_row(encode, tracklet, 2, (32, 16), lambda _: labels)
    assert found.title == "ann\nentrance, t3"
    assert found.frames.shape == (2, 40, 20, 3)
    assert [int(frame[0, 0, 0]) for frame in found.frames] == [20, 30]
    np.testing.assert_allclose(found.masks[4].max(axis=(1, 2)), [20 / 255, 30 / 255])
    assert found.silhouettes is not None
    assert found.silhouettes.all()
    assert not min_max(found.masks[4]).any()  # flat frames, flat masks: nothing divides by zero
    attention_sheet([found], title="t")
