"""Where an encoder looks, as a picture: rows are tracklets, columns the frames of a snippet, then each COSAM's overlay.

Source: Subramaniam et al., ICCV 2019, figure 6, and the authors' visualisation: each mask upsampled bilinearly to its
frame, scaled to [0, 1] on its own, in jet colours over the frame. The true outline of the person, where it is known
(the synthetic street), is drawn on the overlays. Numpy and Pillow only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError
from PIL import Image, ImageDraw, ImageFont

from passerby_model import preprocess, snippets
from passerby_model.attention import Encode, Masks, mask_quality, min_max, upsampled
from passerby_model.datasets import Tracklet

HEAT_WEIGHT = 0.5  # of the heat map over its frame
Colour = tuple[int, int, int]

# Pixels. Snippets of more frames than FEW get smaller cells, so that the sheet stays readable at a screen's width.
CELL_HEIGHT, SMALL_CELL_HEIGHT, FEW = 224, 168, 4
GAP, GROUP_GAP, MARGIN = 4, 26, 28
LABEL_WIDTH = 222
TITLE_HEIGHT, HEADING_HEIGHT, FOOTER_HEIGHT = 76, 34, 44
_PAPER: Colour = (250, 250, 248)
_INK: Colour = (28, 32, 38)
_FAINT: Colour = (104, 110, 120)
_OUTLINE: Colour = (255, 255, 255)
_SMALL, _TEXT, _STRONG, _TITLE = 14, 16, 18, 26


@dataclass(frozen=True)
class Row:
    """One snippet of one tracklet.

    title: names it. frames: uint8 (N, H, W, 3) RGB, of any size.
    masks: by CNN block, float32 (N, h, w) in [0, 1]. silhouettes: bool (N, H, W), or None where nobody knows them.
    """

    title: str
    frames: NDArray[np.uint8]
    masks: Mapping[int, Masks] = field(default_factory=dict)
    silhouettes: NDArray[np.bool_] | None = None


def snippet_row(
    encode: Encode,
    tracklet: Tracklet,
    snippet_length: int,
    size: tuple[int, int],
    labels_of: Callable[[Tracklet], NDArray[np.uint8]] | None = None,
) -> Row:
    """The middle snippet of a tracklet with its masks.

    Args:
        encode, snippet_length, size: as for `attention.evaluate_street`.
        labels_of: the tracklet's label maps, uint8 (T, H, W), as `attention.Street.labels_of` gives them.

    Raises:
        NotFoundError, InvalidArgumentError: a file is missing or cannot be read; frames differ in size.
    """
    indices = snippets.split(len(tracklet.frames), snippet_length)
    chosen = indices[len(indices) // 2 if len(indices) > 2 else 0]
    frames = [preprocess.read_image(tracklet.frames[index]) for index in chosen]
    _, masks = encode(np.stack([preprocess.resize(frame, *size) for frame in frames])[None])
    # Crops of a detector differ in size from frame to frame; shown is the size of the first.
    height, width = frames[0].shape[:2]
    shown = np.stack([preprocess.resize(frame, height, width) for frame in frames])
    labels = labels_of(tracklet)[chosen] if labels_of is not None else None
    return Row(
        title=f"{tracklet.identity}\n{tracklet.camera}, {tracklet.tracklet_id}",
        frames=shown,
        masks={block: np.asarray(values[0], np.float32) for block, values in masks.items()},
        silhouettes=None if labels is None else labels > 0,
    )


def attention_sheet(rows: Sequence[Row], *, title: str, subtitle: str = "") -> Image.Image:
    """The whole picture. Rows may have other sizes of frames, but all the same number of frames and blocks.

    Raises:
        InvalidArgumentError: no rows, or rows that do not fit together.
    """
    if not rows:
        raise InvalidArgumentError("there is no tracklet to show")
    count, blocks = len(rows[0].frames), sorted(rows[0].masks)
    if any(len(row.frames) != count or sorted(row.masks) != blocks for row in rows):
        raise InvalidArgumentError("the rows of a sheet need equally many frames, and masks of the same CNN blocks")
    height = CELL_HEIGHT if count <= FEW else SMALL_CELL_HEIGHT
    width = height // 2
    group = count * (width + GAP) - GAP
    lefts = [MARGIN + LABEL_WIDTH + number * (group + GROUP_GAP) for number in range(1 + len(blocks))]
    sheet_size = (
        lefts[-1] + group + MARGIN,
        TITLE_HEIGHT + HEADING_HEIGHT + len(rows) * (height + GAP) + FOOTER_HEIGHT,
    )
    sheet = Image.new("RGB", (max(sheet_size[0], 900), sheet_size[1]), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 16), title, _INK, _font(_TITLE))
    pen.text((MARGIN, 50), subtitle, _FAINT, _font(_SMALL))
    for left, heading in zip(lefts, ("Frames", *(f"COSAM_{block}" for block in blocks)), strict=True):
        pen.text((left, TITLE_HEIGHT + 6), heading, _INK, _font(_STRONG))
    for number, row in enumerate(rows):
        top = TITLE_HEIGHT + HEADING_HEIGHT + number * (height + GAP)
        _draw_label(pen, (MARGIN, top), row)
        for left, block in zip(lefts, (None, *blocks), strict=True):
            for n in range(count):
                cell = _cell(row, n, block, (width, height))
                centred = left + n * (width + GAP) + (width - cell.width) // 2, top + (height - cell.height) // 2
                sheet.paste(cell, centred)
    _draw_footer(sheet, heat=bool(blocks), outline=any(row.silhouettes is not None for row in rows))
    return sheet


def overlay(frame: NDArray[np.uint8], mask: Masks) -> NDArray[np.uint8]:
    """A frame, uint8 (H, W, 3) RGB, with its mask, float32 (h, w), scaled to [0, 1], over it in jet colours."""
    heat = 255 * jet(min_max(upsampled(mask, *frame.shape[:2])))
    blended: NDArray[np.uint8] = (frame * (1 - HEAT_WEIGHT) + heat * HEAT_WEIGHT).round().astype(np.uint8)
    return blended


def jet(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """MATLAB's jet colours: values (...) in [0, 1] -> RGB (..., 3) in [0, 1], dark blue over green to dark red.

    The colours of the client's result pictures (`passerby_client.picture`), which imports nothing from here.
    """
    centres = np.array([3.0, 2.0, 1.0], dtype=np.float32)
    ramps: NDArray[np.float32] = 1.5 - np.abs(4 * values[..., None] - centres)
    return ramps.clip(0, 1).astype(np.float32)


def _cell(row: Row, number: int, block: int | None, size: tuple[int, int]) -> Image.Image:
    """One frame at most `size` (width, height) large, its sides in proportion."""
    frame = row.frames[number]
    scale = min(size[0] / frame.shape[1], size[1] / frame.shape[0])
    fitted = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    picture = Image.fromarray(frame).resize(fitted, Image.Resampling.LANCZOS)
    if block is None:
        return picture
    pixels = overlay(np.asarray(picture), row.masks[block][number])
    if row.silhouettes is not None:
        pixels[_outline(row.silhouettes[number], fitted)] = _OUTLINE
    return Image.fromarray(pixels)


def _outline(silhouette: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """bool (height, width): the silhouette's pixels that touch the background, at `size` (width, height)."""
    picture = Image.fromarray(silhouette.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    padded = np.pad(np.asarray(picture) >= 128, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: NDArray[np.bool_] = padded[1:-1, 1:-1] & ~inner
    return edge


def _draw_label(pen: ImageDraw.ImageDraw, corner: tuple[int, int], row: Row) -> None:
    name, *more = row.title.splitlines()
    lines: list[tuple[str, int, Any]] = [(name, _STRONG, _INK), *((line, _SMALL, _FAINT) for line in more)]
    if row.silhouettes is not None and row.silhouettes.any() and not row.silhouettes.all():
        for block, masks in sorted(row.masks.items()):
            found = mask_quality(masks, row.silhouettes)
            lines.append((f"COSAM_{block}: AUC {found.frame_auc:.2f}, IoU {found.frame_iou:.2f}", _SMALL, _INK))
    left, top = corner
    for text, size, colour in lines:
        pen.text((left, top), text, colour, _font(size))
        top += size + 7


def _draw_footer(sheet: Image.Image, *, heat: bool, outline: bool) -> None:
    pen = ImageDraw.Draw(sheet)
    left, top = MARGIN, sheet.height - FOOTER_HEIGHT + 14
    if heat:
        left = _write(pen, (left, top), "attention: least") + 8
        colours = (255 * jet(np.linspace(0, 1, 120, dtype=np.float32))).astype(np.uint8)
        sheet.paste(Image.fromarray(np.broadcast_to(colours, (14, 120, 3)).copy()), (left, top + 2))
        left = _write(pen, (left + 128, top), "most (each frame scaled on its own)") + 36
    if outline:
        pen.rectangle((left, top, left + 26, top + 17), fill=(60, 66, 74))
        pen.rectangle((left + 7, top + 4, left + 19, top + 13), outline=_OUTLINE)
        _write(pen, (left + 36, top), "true outline of the person; AUC and IoU are means over the frames shown")


def _write(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str) -> int:
    """Draws small text; the x at which it ends."""
    font = _font(_SMALL)
    pen.text(corner, text, _FAINT, font)
    return corner[0] + int(font.getlength(text))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
