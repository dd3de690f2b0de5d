"""Figures show what they were given: read back from the pixels, not from the drawing library."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_model import figures
from PIL import Image


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def columns_of(picture: np.ndarray, colour: str) -> np.ndarray:
    """x of every pixel near a colour such as "#1a9850"."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.flatnonzero((np.abs(picture - wanted).max(axis=2) < 12).any(axis=0))


def rows_of(picture: np.ndarray, colour: str) -> np.ndarray:
    return columns_of(picture.transpose(1, 0, 2), colour)


def faded(colour: str) -> str:
    """The colour of a filled bar."""
    return "#" + "".join(f"{round(0.35 * int(colour[i : i + 2], 16) + 0.65 * 255):02x}" for i in (1, 3, 5))


def test_a_better_cmc_lies_higher_and_a_short_one_ends_early(tmp_path: Path) -> None:
    high = pixels(figures.cmc_figure(tmp_path / "a.png", {"_a $x": np.full(20, 0.9)}))
    low = pixels(figures.cmc_figure(tmp_path / "b.png", {"_a $x": np.full(20, 0.2)}))
    short = pixels(figures.cmc_figure(tmp_path / "c.png", {"_a $x": np.full(5, 0.9)}))
    height, width = high.shape[:2]
    middle = slice(int(0.4 * width), int(0.45 * width))  # the legend is at the side where nothing else is
    assert rows_of(high[:, middle], figures.QUERY).max() < 0.3 * height
    assert rows_of(low[:, middle], figures.QUERY).min() > 0.6 * height
    assert not len(rows_of(short[:, middle], figures.QUERY))


def test_histogram_keeps_the_sides_and_draws_thresholds(tmp_path: Path) -> None:
    edges = np.linspace(0, 1, 11)
    genuine, impostor = np.zeros(10, np.int64), np.zeros(10, np.int64)
    genuine[1], impostor[8] = 5, 4000
    path = figures.histogram_figure(tmp_path / "new/h.png", edges, genuine, impostor, thresholds={"FMR 0.01": 0.5})
    picture = pixels(path)
    same, other = faded(figures.SAME), faded(figures.OTHER)
    assert columns_of(picture, same).max() < 0.4 * picture.shape[1]
    assert columns_of(picture, other).min() > 0.6 * picture.shape[1]
    # Rare genuine pairs are as tall as frequent impostor pairs: each kind has its own total.
    assert rows_of(picture, same).min() == pytest.approx(rows_of(picture, other).min(), abs=2)


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    curves = {"loss": (range(5), [5.0, 4.0, float("nan"), 2.0, 1.0])}
    first = figures.curves_figure(tmp_path / "1.png", curves, x="iteration", y="loss", log_y=True)
    again = figures.curves_figure(tmp_path / "2.png", curves, x="iteration", y="loss", log_y=True)
    assert first.read_bytes() == again.read_bytes()
    assert 3_000 < first.stat().st_size < 60_000
    assert "matplotlib.pyplot" not in sys.modules


def test_ranked_lists_show_query_and_verdicts(tmp_path: Path) -> None:
    for name, level in (("q", 10), ("a", 90), ("b", 200)):
        Image.fromarray(np.full((60, 30, 3), level, np.uint8)).save(tmp_path / f"{name}.png")
    hits = (
        figures.RankedCrop(tmp_path / "a.png", "other", "1.25"),
        figures.RankedCrop(tmp_path / "b.png", "same", "1.50"),
    )
    lists = [figures.RankedList(tmp_path / "q.png", "ann, camera 1", hits)] * 2
    picture = pixels(figures.ranked_lists_sheet(tmp_path / "sheet.png", lists, title="worst"))
    starts = [columns_of(picture, colour).min() for colour in (figures.QUERY, figures.OTHER, figures.SAME)]
    assert starts == sorted(starts)
    assert starts[2] - starts[1] > figures.CROP_WIDTH
    for level in (10, 90, 200):  # every crop is there, in both rows
        exact = (picture == level).all(axis=2).sum()
        assert exact >= 2 * figures.CROP_WIDTH * figures.CROP_HEIGHT


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    with pytest.raises(InvalidArgumentError, match="no CMC curve"):
        figures.cmc_figure(path, {})
    with pytest.raises(InvalidArgumentError, match="3 x values and 2 y values"):
        figures.curves_figure(path, {"a": ([1, 2, 3], [1, 2])})
    with pytest.raises(InvalidArgumentError, match="no pairs"):
        figures.histogram_figure(path, np.arange(3.0), np.zeros(2, np.int64), np.zeros(2, np.int64))
    with pytest.raises(InvalidArgumentError, match="edges do not fit"):
        figures.histogram_figure(path, np.arange(3.0), np.ones(3, np.int64), np.ones(3, np.int64))
    with pytest.raises(NotFoundError, match="absent"):
        figures.ranked_lists_sheet(path, [figures.RankedList(tmp_path / "absent.png", "", ())])
    assert not path.exists()
