"""Figures of the reports of training and evaluation: each function writes one PNG and gives back its path.

Curves and histograms are drawn by matplotlib (Agg, no global state, imported when the first figure is drawn), sheets
of crops by Pillow. Colours as in `passerby search --picture`: green the same person, red another one, blue the query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError
from PIL import Image, ImageDraw, ImageFont

from passerby_model import preprocess

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Verdict = Literal["same", "other", "unknown"]
Colour = tuple[int, int, int]
ReadFrame = Callable[[Path], NDArray[np.uint8]]

SAME, OTHER, QUERY = "#1a9850", "#d73027", "#2654a0"
# Of one kind, told apart also by those who do not see colours: by line style where the colours repeat.
LINE_COLOURS = (QUERY, "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#666666")
LINE_STYLES = ("-", "--", ":", "-.")
_VERDICT_COLOURS: Mapping[Verdict, Colour] = {"same": (26, 152, 80), "other": (215, 48, 39), "unknown": (150, 156, 164)}
_QUERY_COLOUR: Colour = (38, 84, 160)
_INK, _FAINT, _PAPER, _MAT = (28, 32, 38), (104, 110, 120), (250, 250, 248), (226, 228, 231)

INCHES = (6.4, 4.2)
DOTS_PER_INCH = 100
# Pixels of a sheet.
CROP_HEIGHT, CROP_WIDTH = 128, 64
_FRAME, _GAP, _MARGIN, _CAPTION, _TITLE, _LABEL = 4, 8, 16, 18, 44, 20
_CELL_WIDTH, _CELL_HEIGHT = CROP_WIDTH + 2 * _FRAME, CROP_HEIGHT + 2 * _FRAME


def cmc_figure(path: Path, curves: Mapping[str, NDArray[np.float64]], *, title: str = "", max_rank: int = 20) -> Path:
    """CMC curves: the share of queries with a match among the first r.

    Args:
        path: of the PNG; its folder is made.
        curves: name (which should tell the protocol) -> float (R,) in [0, 1], `cmc[0]` is rank-1.
        title: above the figure.
        max_rank: the last rank that is shown.

    Raises:
        InvalidArgumentError: no curve, or an empty one.
    """
    from matplotlib.ticker import MaxNLocator

    _require(curves, "CMC curve")
    figure, axes = _axes(title, "rank", "queries with a match, %")
    for number, (name, curve) in enumerate(curves.items()):
        shown = 100 * np.asarray(curve, np.float64)[:max_rank]
        axes.plot(np.arange(1, len(shown) + 1), shown, label=_label(name), marker=".", **_style(number))
    axes.set_xlim(0.5, max_rank + 0.5)
    axes.set_ylim(0, 101)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no rank 2.5
    _legend(axes)
    return _save(figure, path)


def histogram_figure(
    path: Path,
    edges: NDArray[np.float64],
    genuine: NDArray[np.int64],
    impostor: NDArray[np.int64],
    *,
    title: str = "",
    distance: str = "distance",
    thresholds: Mapping[str, float] | None = None,
) -> Path:
    """Distances of genuine pairs (one person) and impostor pairs (two people), each as shares of its own kind.

    Args:
        path: of the PNG; its folder is made.
        edges: (B + 1,) ascending limits of the bins.
        genuine, impostor: (B,) pairs in each bin.
        distance: what the x axis measures, for example "squared Euclidean distance".
        thresholds: name (for example "FMR 1e-3") -> distance, drawn as vertical lines.

    Raises:
        InvalidArgumentError: shapes disagree, or there is no pair at all.
    """
    if len(edges) != len(genuine) + 1 or len(genuine) != len(impostor):
        raise InvalidArgumentError(f"{len(edges)} edges do not fit {len(genuine)} and {len(impostor)} bins")
    if not (genuine.sum() + impostor.sum()):
        raise InvalidArgumentError("there are no pairs whose distances could be drawn")
    figure, axes = _axes(title, distance, "share of the pairs of its kind, %")
    for counts, name, colour in ((genuine, "same person", SAME), (impostor, "two people", OTHER)):
        share = 100 * counts / max(int(counts.sum()), 1)
        label = _label(f"{name} ({int(counts.sum()):,} pairs)")
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(share, edges, color=colour, label=label)
    for number, (name, value) in enumerate((thresholds or {}).items()):
        style = LINE_STYLES[number % len(LINE_STYLES)]
        axes.axvline(value, color="black", linewidth=1, linestyle=style, label=_label(f"{name}: {value:.4g}"))
    axes.set_ylim(bottom=0)
    _legend(axes)
    return _save(figure, path)


def curves_figure(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float] | NDArray[Any], Sequence[float] | NDArray[Any]]],
    *,
    title: str = "",
    x: str = "",
    y: str = "",
    log_x: bool = False,
    log_y: bool = False,
) -> Path:
    """Any curves over one axis: losses over iterations, FNMR over FMR.

    Args:
        path: of the PNG; its folder is made.
        curves: name -> (xs, ys) of equal length; values that are not finite leave a gap.
        x, y: what the axes measure, with the unit.
        log_x, log_y: logarithmic axes.

    Raises:
        InvalidArgumentError: no curve, or xs and ys of different lengths.
    """
    _require(curves, "curve")
    figure, axes = _axes(title, x, y)
    for number, (name, (xs, ys)) in enumerate(curves.items()):
        if len(xs) != len(ys):
            raise InvalidArgumentError(f"curve {name!r} has {len(xs)} x values and {len(ys)} y values")
        marker = "." if len(xs) <= 40 else None
        axes.plot(
            np.asarray(xs, np.float64), np.asarray(ys, np.float64), label=_label(name), marker=marker, **_style(number)
        )
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    _legend(axes)
    return _save(figure, path)


@dataclass(frozen=True, slots=True)
class RankedCrop:
    """One crop of a ranked list: an image file, whether it shows the query's person, and a short text below."""

    image: Path
    verdict: Verdict
    caption: str = ""


@dataclass(frozen=True, slots=True)
class RankedList:
    """A query (image file), a line about it, and its hits, best first."""

    query: Path
    label: str
    hits: tuple[RankedCrop, ...]


def ranked_lists_sheet(
    path: Path, lists: Sequence[RankedList], *, title: str = "", read_frame: ReadFrame = preprocess.read_image
) -> Path:
    """Ranked lists below each other: the query on the left (blue), then its hits (green right, red wrong).

    Args:
        path: of the PNG; its folder is made.
        lists: at least one.
        title: above the sheet.
        read_frame: image file -> uint8 (h, w, 3) RGB.

    Raises:
        InvalidArgumentError: no list, or an image that cannot be read.
        NotFoundError: an image is missing.
    """
    _require(lists, "ranked list")
    columns = 1 + max(len(ranked.hits) for ranked in lists)
    row_height = _LABEL + _CELL_HEIGHT + _CAPTION + _GAP
    width = max(2 * _MARGIN + columns * (_CELL_WIDTH + _GAP) + _GAP, 480)
    sheet = Image.new("RGB", (width, _TITLE + len(lists) * row_height + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 12), title, font=ImageFont.load_default(size=18), fill=_INK)
    for row, ranked in enumerate(lists):
        top = _TITLE + row * row_height
        pen.text((_MARGIN, top), ranked.label, font=ImageFont.load_default(size=13), fill=_INK)
        _draw_crop(sheet, (_MARGIN, top + _LABEL), read_frame(ranked.query), _QUERY_COLOUR, "query")
        for column, hit in enumerate(ranked.hits, start=1):
            corner = (_MARGIN + _GAP + column * (_CELL_WIDTH + _GAP), top + _LABEL)
            _draw_crop(sheet, corner, read_frame(hit.image), _VERDICT_COLOURS[hit.verdict], hit.caption)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
    return path


def _draw_crop(
    sheet: Image.Image, corner: tuple[int, int], pixels: NDArray[np.uint8], colour: Colour, caption: str
) -> None:
    left, top = corner
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((left, top, left + _CELL_WIDTH - 1, top + _CELL_HEIGHT - 1), fill=colour)
    inner = (left + _FRAME, top + _FRAME)
    pen.rectangle((*inner, inner[0] + CROP_WIDTH - 1, inner[1] + CROP_HEIGHT - 1), fill=_MAT)
    picture = Image.fromarray(pixels)
    scale = min(CROP_WIDTH / picture.width, CROP_HEIGHT / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    fitted = picture.resize(size, Image.Resampling.LANCZOS)
    sheet.paste(fitted, (inner[0] + (CROP_WIDTH - size[0]) // 2, inner[1] + (CROP_HEIGHT - size[1]) // 2))
    middle = left + _CELL_WIDTH // 2
    font = ImageFont.load_default(size=11)
    pen.text((middle, top + _CELL_HEIGHT + 2), caption, font=font, fill=_FAINT, anchor="ma")


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    # Not through pyplot, which keeps every figure alive and picks a backend for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize="medium", parse_math=False)
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    axes.grid(visible=True, alpha=0.3)
    return figure, axes


def _legend(axes: Axes) -> None:
    """Names as they are: matplotlib hides a label that begins with "_" and reads formulae between dollar signs."""
    handles, _ = axes.get_legend_handles_labels()
    for text in axes.legend(handles=handles, fontsize="small").get_texts():
        text.set_parse_math(False)


def _label(name: str) -> str:
    return f" {name}"


def _style(number: int) -> dict[str, Any]:
    turn = number // len(LINE_COLOURS)
    return {"color": LINE_COLOURS[number % len(LINE_COLOURS)], "linestyle": LINE_STYLES[turn % len(LINE_STYLES)]}


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})  # the same figure, the same bytes
    return path


def _require(items: Mapping[str, Any] | Sequence[Any], what: str) -> None:
    if not items:
        raise InvalidArgumentError(f"there is no {what} to draw")
