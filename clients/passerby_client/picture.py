"""A search result as a picture: query on the left, hits in order of rank, with distances. Pillow only.

Frame of a hit: green for the query's identity, red for another, grey where either is unknown; a tick or a cross says the
same to those who do not tell red from green. Heat maps show where the model looks: each COSAM mask upsampled
bilinearly to its frame and scaled to [0, 1] on its own, in the jet colours of the COSAM paper's figures
(Subramaniam et al., ICCV 2019).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError
from PIL import Image, ImageDraw, ImageFont

Verdict = Literal["same", "other", "unknown"]
Colour = tuple[int, int, int]

VERDICT_COLOURS: Mapping[Verdict, Colour] = {
    "same": (26, 152, 80),
    "other": (215, 48, 39),
    "unknown": (150, 156, 164),
}
QUERY_COLOUR: Colour = (38, 84, 160)
_VERDICT_WORDS: Mapping[Verdict, str] = {
    "same": "same identity",
    "other": "another identity",
    "unknown": "identity unknown",
}
_UNKNOWN_QUERY = "the query's identity is not known"
_PAPER: Colour = (250, 250, 248)
_INK: Colour = (28, 32, 38)
_FAINT: Colour = (104, 110, 120)
_MAT: Colour = (226, 228, 231)  # behind a crop that is not 1:2
HEAT_WEIGHT = 0.5  # of the heat map over its frame

# Pixels.
IMAGE_WIDTH, IMAGE_HEIGHT = 160, 320
FRAME = 5
GAP = 20
MARGIN = 32
CAPTION_LINES = 6
CAPTION_HEIGHT = 6 + 20 * CAPTION_LINES
RANK_HEIGHT = 34
HEADER_HEIGHT = 106
FOOTER_HEIGHT = 48
HITS_PER_ROW = 6
QUERY_FRAMES = 2
_CELL = IMAGE_WIDTH + 2 * FRAME
_ROW_LABEL_SIZE, _SMALL, _TEXT, _STRONG, _TITLE = 14, 15, 17, 21, 30


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture of a person.

    image: encoded (JPEG, PNG or WebP).
    masks: by CNN block, float32 (h, w).
    """

    image: bytes
    masks: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """A ranked hit: its picture, its distance as text, whether it is right, and lines about it (see `draw`)."""

    shot: Shot
    rank: int
    distance: str
    verdict: Verdict
    caption: tuple[str, ...]


def draw(
    query: Sequence[Shot],
    hits: Sequence[Hit],
    *,
    title: str,
    subtitle: str,
    searched: str = "",
    caption: Sequence[str] = (),
    query_known: bool = True,
) -> Image.Image:
    """The whole picture.

    Args:
        query: the query's frames; at most two, evenly spaced, are shown.
        hits: best first, six in a row.
        title, searched, subtitle: above everything: what it shows, how was searched, in which measure.
        caption: lines below the query. A caption's last line is folded into what is left of six, others are cut.
        query_known: whether the query's identity is known; the legend says which of the two is unknown.

    Raises:
        InvalidArgumentError: no query frame, or an image that cannot be read.
    """
    if not query:
        raise InvalidArgumentError.of("query", "there is no picture of the query")
    shown = spread(query, QUERY_FRAMES)
    blocks = sorted({block for shot in (*shown, *(hit.shot for hit in hits)) for block in shot.masks})
    rows = max(1, -(-len(hits) // HITS_PER_ROW))
    columns = max(1, min(HITS_PER_ROW, len(hits)))
    row_height = RANK_HEIGHT + (1 + len(blocks)) * (IMAGE_HEIGHT + 2 * FRAME) + len(blocks) * 8 + CAPTION_HEIGHT + GAP
    hits_left = MARGIN + len(shown) * (_CELL + GAP) + 2 * GAP
    width = max(hits_left + columns * (_CELL + GAP) - GAP + MARGIN, 1000)
    height = HEADER_HEIGHT + rows * row_height + FOOTER_HEIGHT
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _text(pen, (MARGIN, 20), _fit(title, _TITLE, width - 2 * MARGIN), _TITLE)
    _text(pen, (MARGIN, 56), _fit(searched, _SMALL, width - 2 * MARGIN), _SMALL)
    _text(pen, (MARGIN, 78), _fit(subtitle, _SMALL, width - 2 * MARGIN), _SMALL, _FAINT)
    line_x = hits_left - GAP - GAP // 2
    pen.line((line_x, HEADER_HEIGHT + 8, line_x, height - FOOTER_HEIGHT - GAP), fill=(205, 208, 212), width=2)
    for number, shot in enumerate(shown):
        left = MARGIN + number * (_CELL + GAP)
        if number == 0:
            _text(pen, (left, HEADER_HEIGHT + 4), "Query", _STRONG, QUERY_COLOUR)
        below = _draw_shot(sheet, (left, HEADER_HEIGHT + RANK_HEIGHT), shot, blocks, QUERY_COLOUR)
        if number == 0:
            _caption(pen, (left, below), caption, len(shown) * (_CELL + GAP) - GAP)
    for number, hit in enumerate(hits):
        left = hits_left + number % HITS_PER_ROW * (_CELL + GAP)
        _draw_hit(sheet, (left, HEADER_HEIGHT + number // HITS_PER_ROW * row_height), hit, blocks)
    if not hits:
        _text(pen, (hits_left, HEADER_HEIGHT + RANK_HEIGHT), "No hits", _STRONG, _FAINT)
    _footer(sheet, {hit.verdict for hit in hits}, query_known=query_known, heat=bool(blocks))
    return sheet


def heat_map(image: Image.Image, mask: NDArray[np.float32]) -> Image.Image:
    """`image` (RGB) with `mask`, float32 (h, w) of any size and range, laid over it in jet colours."""
    small = Image.fromarray(np.ascontiguousarray(mask, dtype=np.float32))
    large: NDArray[np.float32] = np.asarray(small.resize(image.size, Image.Resampling.BILINEAR))
    low, high = float(large.min()), float(large.max())
    scaled = (large - low) / np.float32(high - low) if high > low else np.zeros_like(large)
    colours = Image.fromarray((255 * jet(scaled)).round().astype(np.uint8))
    return Image.blend(image, colours, HEAT_WEIGHT)


def jet(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """MATLAB's jet colours: values (...) in [0, 1] -> RGB (..., 3) in [0, 1], dark blue over green to dark red."""
    centres = np.array([3.0, 2.0, 1.0], dtype=np.float32)
    ramps: NDArray[np.float32] = 1.5 - np.abs(4 * values[..., None] - centres)
    return ramps.clip(0, 1).astype(np.float32)


def spread(items: Sequence[Shot], count: int) -> list[Shot]:
    """At most `count` of `items`, evenly spaced, in order; the middle one for a count of 1."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _draw_hit(sheet: Image.Image, corner: tuple[int, int], hit: Hit, blocks: Sequence[int]) -> None:
    left, top = corner
    pen = ImageDraw.Draw(sheet)
    colour = VERDICT_COLOURS[hit.verdict]
    _text(pen, (left, top + 4), str(hit.rank), _STRONG)
    pen.text((left + _CELL, top + 8), hit.distance, font=_font(_TEXT), fill=_INK, anchor="ra")
    below = _draw_shot(sheet, (left, top + RANK_HEIGHT), hit.shot, blocks, colour)
    _badge(sheet, (left + _CELL - 17, top + RANK_HEIGHT + 17), hit.verdict)
    _caption(pen, (left, below), hit.caption, _CELL)


def _draw_shot(sheet: Image.Image, corner: tuple[int, int], shot: Shot, blocks: Sequence[int], colour: Colour) -> int:
    """The framed picture and, below it, its heat maps; returns the y at which the caption starts."""
    left, top = corner
    picture = _fitted(shot.image)
    pen = ImageDraw.Draw(sheet)
    _framed(sheet, (left, top), picture, colour)
    top += IMAGE_HEIGHT + 2 * FRAME
    for block in blocks:
        top += 8
        mask = shot.masks.get(block)
        if mask is not None:
            _framed(sheet, (left, top), heat_map(picture, mask), (205, 208, 212))
        label = f"COSAM_{block}"
        box = pen.textbbox((left + FRAME + 6, top + IMAGE_HEIGHT - 14), label, font=_font(_ROW_LABEL_SIZE))
        pen.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill=(20, 22, 26))
        _text(pen, (left + FRAME + 6, top + IMAGE_HEIGHT - 14), label, _ROW_LABEL_SIZE, (255, 255, 255))
        top += IMAGE_HEIGHT + 2 * FRAME
    return top


def _framed(sheet: Image.Image, corner: tuple[int, int], picture: Image.Image, colour: Colour) -> None:
    left, top = corner
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((left, top, left + _CELL - 1, top + IMAGE_HEIGHT + 2 * FRAME - 1), fill=colour)
    inner = (left + FRAME, top + FRAME)
    pen.rectangle((*inner, inner[0] + IMAGE_WIDTH - 1, inner[1] + IMAGE_HEIGHT - 1), fill=_MAT)
    centred = (inner[0] + (IMAGE_WIDTH - picture.width) // 2, inner[1] + (IMAGE_HEIGHT - picture.height) // 2)
    sheet.paste(picture, centred)


def _fitted(data: bytes) -> Image.Image:
    """The image in RGB, as large as fits, its sides in proportion."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidArgumentError(f"a picture to be drawn cannot be read: {error}") from error
    scale = min(IMAGE_WIDTH / picture.width, IMAGE_HEIGHT / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _badge(sheet: Image.Image, centre: tuple[int, int], verdict: Verdict) -> None:
    """Tick or cross in a disc; drawn four times as large and reduced, for smooth edges."""
    if verdict == "unknown":
        return
    size, zoom = 30, 4
    disc = Image.new("RGBA", (size * zoom, size * zoom), (0, 0, 0, 0))
    pen = ImageDraw.Draw(disc)
    pen.ellipse((0, 0, size * zoom - 1, size * zoom - 1), fill=(*_PAPER, 255))
    pen.ellipse((8, 8, size * zoom - 9, size * zoom - 9), fill=(*VERDICT_COLOURS[verdict], 255))
    if verdict == "same":
        pen.line((36, 62, 54, 80, 86, 42), fill=(255, 255, 255, 255), width=13, joint="curve")
    else:
        pen.line((42, 42, 78, 78), fill=(255, 255, 255, 255), width=13)
        pen.line((42, 78, 78, 42), fill=(255, 255, 255, 255), width=13)
    small = disc.resize((size, size), Image.Resampling.LANCZOS)
    sheet.paste(small, (centre[0] - size // 2, centre[1] - size // 2), small)


def _caption(pen: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Sequence[str], width: int) -> None:
    left, top = corner
    for number, line in enumerate([*lines[:-1], *_folded("".join(lines[-1:]), _SMALL, width)][:CAPTION_LINES]):
        size, colour = (_TEXT, _INK) if number == 0 else (_SMALL, _FAINT)
        _text(pen, (left, top + 6 + number * 20), _fit(line, size, width), size, colour)


def _footer(sheet: Image.Image, verdicts: set[Verdict], *, query_known: bool, heat: bool) -> None:
    pen = ImageDraw.Draw(sheet)
    left, top = MARGIN, sheet.height - FOOTER_HEIGHT + 8
    for verdict, word in _VERDICT_WORDS.items():
        if verdict == "unknown" and not query_known:
            word = _UNKNOWN_QUERY
        if verdict in verdicts:
            pen.rectangle((left, top + 1, left + 15, top + 16), fill=VERDICT_COLOURS[verdict])
            _text(pen, (left + 23, top), word, _SMALL, _FAINT)
            left += 23 + int(_font(_SMALL).getlength(word)) + 28
    if heat:
        bar = Image.fromarray(
            np.broadcast_to((255 * jet(np.linspace(0, 1, 90, dtype=np.float32))).astype(np.uint8), (14, 90, 3)).copy()
        )
        text = "where the model looks: little"
        _text(pen, (left, top), text, _SMALL, _FAINT)
        left += int(_font(_SMALL).getlength(text)) + 8
        sheet.paste(bar, (left, top + 2))
        _text(pen, (left + 98, top), "much (each frame scaled on its own)", _SMALL, _FAINT)


def _text(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int, colour: Colour = _INK) -> None:
    pen.text(corner, text, font=_font(size), fill=colour)


def _fit(text: str, size: int, width: int) -> str:
    """`text`, cut with an ellipsis where it is wider than `width` pixels."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _folded(text: str, size: int, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels."""
    font, lines = _font(size), [""]
    for letter in text:
        if font.getlength(lines[-1] + letter) > width:
            lines.append("")
        lines[-1] += letter
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
