"""Spatial attention that can be checked: COSAM's masks against the known silhouettes of the synthetic street.

Numpy only. COSAM learns its masks from identities alone (Subramaniam et al., ICCV 2019, section 3.2) unless a recipe sets
`mask_weight`; this says where they ended up.

    mask (h, w) in [0, 1] -> upsampled to the frame -> every pixel is a score for "belongs to the person"

Which values: pooled figures (`auc`, `iou`) take the **raw** sigmoid values, for these multiply the features, and one
threshold has to mean the same in every frame; scaling each frame to [0, 1] would blow the noise of a flat mask up to
full contrast. Figures of single frames (`frame_auc`, `frame_iou`) are the same for raw and for scaled masks, since
scaling keeps the order of a frame's pixels: they judge what the pictures of `attention_sheet` show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError

from passerby_model import preprocess, snippets
from passerby_model.datasets import Tracklet
from passerby_model.street_labels import PERSON, Street

Masks = NDArray[np.float32]
Encode = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], Mapping[int, Masks]]]
"""uint8 (B, N, H, W, 3) RGB -> descriptors float32 (B, D) and, by CNN block, masks float32 (B, N, h, w) in [0, 1]."""

BINS = 1 << 16  # of attention, over all frames
FRAME_BINS = 1 << 12  # of one frame's attention, scaled to [0, 1]
BATCH = 16  # snippets in one call of the encoder


@dataclass(frozen=True)
class Region:
    """What the masks make of one part of the person (or of the background).

    pixels: in all frames. mean: mean attention, in [0, 1], to 1/131072. recall: share of the pixels at or above the threshold of
    the best IoU. auc: that a pixel of this part gets more attention than one of the background; 0.5 is chance (and
    the background's own value).
    """

    pixels: int
    mean: float
    recall: float
    auc: float


@dataclass(frozen=True)
class MaskQuality:
    """Masks against silhouettes, pixel by pixel at the silhouettes' resolution.

    Attributes:
        frames: how many; of these `empty_frames` show nothing of the person, or nothing else, and have no AUC of
            their own.
        auc: area under the ROC curve over the pixels of all frames, raw values; ties count half. 0.5 is chance,
            below 0.5 the masks prefer the background (no absolute value is taken).
        auc_error: the exact `auc` is within this of the histogram's: half the share of pixel pairs in one bin of
            1/65536. Masks that are constant are all one bin, true ties or not.
        frame_auc: mean over frames of the frame's own AUC (its mask scaled to [0, 1], then in 4096 bins).
        iou: largest intersection over union over all pixels, one threshold for the whole set; never below
            `coverage`, which calling everything a person reaches.
        threshold: where; a pixel counts from it upwards.
        frame_iou: mean over frames of the largest IoU with a threshold of the frame's own.
        coverage: share of pixels that belong to the person.
        regions: "background", "person" (without what it carries), and each accessory that is seen.
    """

    frames: int
    empty_frames: int
    auc: float
    auc_error: float
    frame_auc: float
    iou: float
    threshold: float
    frame_iou: float
    coverage: float
    regions: Mapping[str, Region] = field(default_factory=dict)


@dataclass(frozen=True)
class StreetAttention:
    """Mask quality on a street: by CNN block, and of the centre prior.

    centre_prior: the mean silhouette of these very frames in place of every mask. Of all maps that do not look at the
    picture it has the largest `auc` (Neyman and Pearson: it ranks places by how often the person is there), so a
    mask above it has found the person, and not only the middle of the crop.
    """

    tracklets: int
    frames: int
    blocks: Mapping[int, MaskQuality]
    centre_prior: MaskQuality

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; blocks as "cosam4"."""
        return {
            "tracklets": self.tracklets,
            "frames": self.frames,
            **{f"cosam{block}": asdict(quality) for block, quality in self.blocks.items()},
            "centre_prior": asdict(self.centre_prior),
        }


def upsampled(masks: Masks, height: int, width: int) -> Masks:
    """Masks at the size of the frames: bilinear, corners not aligned, as the reference draws them.

    Args:
        masks: float (..., h, w).
        height, width: pixels, >= 1.

    Returns:
        float32 (..., height, width), within the range of its mask.

    Raises:
        InvalidArgumentError: fewer than two axes, or an empty one.
    """
    if masks.ndim < 2 or 0 in masks.shape[-2:] or height < 1 or width < 1:
        raise InvalidArgumentError(f"cannot bring masks of shape {masks.shape} to {height} x {width} pixels")
    rows, columns = _interpolation(masks.shape[-2], height), _interpolation(masks.shape[-1], width)
    large: Masks = rows @ np.asarray(masks, np.float32) @ columns.T
    # A constant mask stays constant to the last bit; else its rounding errors would be ranked, and scaled to [0, 1].
    low, high = (extreme(axis=(-2, -1), keepdims=True).astype(np.float32) for extreme in (masks.min, masks.max))
    return np.clip(large, low, high, out=large)


def min_max(masks: Masks) -> Masks:
    """Each mask (last two axes) scaled to [0, 1] on its own, as the reference shows them; a constant one gives zeros.

    float (..., h, w) -> float32 of the same shape.
    """
    low = masks.min(axis=(-2, -1), keepdims=True)
    span = masks.max(axis=(-2, -1), keepdims=True) - low
    scaled: Masks = ((masks - low) / np.where(span > 0, span, 1)).astype(np.float32)
    return scaled


def mask_quality(masks: Masks, silhouettes: NDArray[Any], accessories: Mapping[str, int] | None = None) -> MaskQuality:
    """Judge masks against the truth; `MaskMeter` does the same for more frames than fit into memory.

    Args:
        masks: float32 (T, h, w) in [0, 1], of any size.
        silhouettes: bool (T, H, W), or uint8 labels with 0 for the background.
        accessories: label of each accessory in `silhouettes`.

    Raises:
        InvalidArgumentError: shapes disagree, a value is outside [0, 1], or not both person and background are seen.
    """
    meter = MaskMeter(accessories)
    meter.add(masks, silhouettes)
    return meter.quality()


class MaskMeter:
    """Collects histograms of attention by what is there; memory does not grow with the number of frames."""

    def __init__(self, accessories: Mapping[str, int] | None = None) -> None:
        """accessories: label of each accessory in the label maps to come; other labels above 0 are the person."""
        self.names = {0: "background", PERSON: "person"}
        self.names |= {label: name for name, label in (accessories or {}).items()}
        self.counts = np.zeros((max(self.names) + 1, BINS), np.int64)
        self.frames = 0
        self._frame_figures: list[tuple[float, float]] = []

    def add(self, masks: Masks, labels: NDArray[Any]) -> None:
        """Count frames: masks float32 (T, h, w) in [0, 1], labels bool or uint8 (T, H, W). Errors: `mask_quality`."""
        if masks.ndim != 3 or labels.ndim != 3 or len(masks) != len(labels):
            raise InvalidArgumentError(f"{masks.shape} masks and {labels.shape} silhouettes are not of the same frames")
        if not (masks.size and masks.min() >= 0 and masks.max() <= 1):  # a NaN is in no range
            raise InvalidArgumentError("masks must lie in [0, 1], as a sigmoid gives them")
        if labels.max(initial=0) >= len(self.counts):
            raise InvalidArgumentError(f"label {labels.max()} is none of {self.names}")
        for start in range(0, len(masks), BATCH):
            large = upsampled(masks[start : start + BATCH], *labels.shape[1:])
            self._add_frames(large, labels[start : start + BATCH])

    def _add_frames(self, masks: Masks, labels: NDArray[Any]) -> None:
        self.frames += len(masks)
        places = labels.astype(np.int64) * BINS + _bins(masks, BINS)
        self.counts += np.bincount(places.ravel(), minlength=self.counts.size).reshape(self.counts.shape)
        own = _bins(min_max(masks), FRAME_BINS) + FRAME_BINS * (labels > 0)
        for places in own:
            outside, inside = np.bincount(places.ravel(), minlength=2 * FRAME_BINS).reshape(2, FRAME_BINS)
            if inside.any() and outside.any():
                self._frame_figures.append((_auc(inside, outside), _best_iou(inside, outside)[0]))

    def quality(self) -> MaskQuality:
        """What the frames so far say. Raises InvalidArgumentError unless person and background were seen."""
        background, person = self.counts[0], self.counts[1:].sum(axis=0)
        if not background.any() or not person.any():
            raise InvalidArgumentError("the frames show no person, or nothing else: there is nothing to tell apart")
        iou, threshold = _best_iou(person, background)
        frame_auc, frame_iou = np.mean(self._frame_figures, axis=0) if self._frame_figures else (np.nan, np.nan)
        return MaskQuality(
            frames=self.frames,
            empty_frames=self.frames - len(self._frame_figures),
            auc=_auc(person, background),
            auc_error=float(0.5 * (person / person.sum()) @ (background / background.sum())),
            frame_auc=float(frame_auc),
            iou=iou,
            threshold=threshold / BINS,
            frame_iou=float(frame_iou),
            coverage=float(person.sum() / (person.sum() + background.sum())),
            regions={
                name: self._region(label, threshold)
                for label, name in sorted(self.names.items())
                if self.counts[label].any()
            },
        )

    def _region(self, label: int, threshold: int) -> Region:
        counts = self.counts[label]
        pixels = int(counts.sum())
        return Region(
            pixels=pixels,
            mean=float(counts @ (np.arange(BINS) + 0.5) / BINS / pixels),
            recall=float(counts[threshold:].sum() / pixels),
            auc=_auc(counts, self.counts[0]),
        )


def evaluate_street(
    encode: Encode,
    folder: Path | str,
    snippet_length: int,
    size: tuple[int, int],
    limit: int | None = None,
    *,
    masks: Path | str | None = None,
) -> StreetAttention:
    """Run an encoder over a street and judge its masks; every frame counts once.

    Args:
        encode: the encoder, from any runtime.
        folder: what `passerby street FOLDER --masks FOLDER-masks` wrote.
        snippet_length: N. size: (H, W), pixels, to which frames are resized. Both as the encoder takes them.
        limit: at most so many tracklets, drawn with a fixed seed; None for all.
        masks: where the label maps are; "<folder>-masks" when not given.

    Raises:
        NotFoundError: the folder, its street.json, its masks or one of the files is missing.
        InvalidArgumentError: the encoder gives no masks, or a file cannot be read.
    """
    street = Street.open(folder, masks)
    tracklets = street.sample(limit)
    meters: dict[int, MaskMeter] = {}
    for tracklet in tracklets:
        labels = street.labels_of(tracklet)
        found = tracklet_masks(encode, tracklet, snippet_length, size)
        for block, values in found.items():
            meters.setdefault(block, MaskMeter(street.accessories)).add(values, labels)
    return StreetAttention(
        tracklets=len(tracklets),
        frames=sum(len(tracklet.frames) for tracklet in tracklets),
        blocks={block: meter.quality() for block, meter in sorted(meters.items())},
        centre_prior=centre_prior(lambda: map(street.labels_of, tracklets), street.accessories),
    )


def centre_prior(
    label_maps: Callable[[], Iterable[NDArray[Any]]], accessories: Mapping[str, int] | None = None
) -> MaskQuality:
    """Quality of the mean silhouette as a mask for every frame.

    Args:
        label_maps: called twice; gives arrays (T, H, W), all of one H and W, with 0 for the background.
    """
    total, frames = 0.0, 0
    for labels in label_maps():
        total = total + (labels > 0).sum(axis=0, dtype=np.float64)
        frames += len(labels)
    prior = np.asarray(total / frames, np.float32)
    meter = MaskMeter(accessories)
    for labels in label_maps():
        meter.add(np.broadcast_to(prior, labels.shape), labels)
    return meter.quality()


def tracklet_masks(encode: Encode, tracklet: Tracklet, snippet_length: int, size: tuple[int, int]) -> dict[int, Masks]:
    """Masks of every frame of a tracklet, by CNN block: float32 (T, h, w), T in order of time.

    A last snippet that is short is filled up as in the test scheme (`snippets.split`); the fillers' masks are dropped.

    Raises:
        InvalidArgumentError: the encoder gives no masks, or a frame cannot be read.
    """
    indices = snippets.split(len(tracklet.frames), snippet_length)
    parts: dict[int, list[Masks]] = {}
    for start in range(0, len(indices), BATCH):
        chunk = indices[start : start + BATCH]
        shown, places = np.unique(chunk, return_inverse=True)
        frames = np.stack([preprocess.resize(preprocess.read_image(tracklet.frames[i]), *size) for i in shown])
        _, found = encode(frames[places.reshape(chunk.shape)])
        for block, masks in found.items():
            parts.setdefault(block, []).append(np.asarray(masks, np.float32).reshape(-1, *masks.shape[2:]))
    if not parts:
        raise InvalidArgumentError(
            "the encoder gives no attention masks: its architecture has no COSAM", reason="NO_MASKS"
        )
    first = np.unique(indices, return_index=True)[1]
    return {block: np.concatenate(found)[first] for block, found in sorted(parts.items())}


def _interpolation(small: int, large: int) -> Masks:
    """(large, small): row i holds the weights of the input's values in output i; places outside repeat the edge."""
    places = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    before = np.floor(places).astype(np.int64)
    after = np.minimum(before + 1, small - 1)
    weights = np.zeros((large, small))
    np.add.at(weights, (np.arange(large), before), 1 - (places - before))
    np.add.at(weights, (np.arange(large), after), places - before)
    return weights.astype(np.float32)


def _bins(values: Masks, count: int) -> NDArray[np.int64]:
    """Bin of each value in [0, 1], in its shape; order is kept, bin b starts at b / count (a power of two: exact)."""
    return np.clip((values * np.float32(count)).astype(np.int64), 0, count - 1)


def _auc(inside: NDArray[np.int64], outside: NDArray[np.int64]) -> float:
    """Mann-Whitney: the share of pairs in which the one inside is in the higher bin; pairs in one bin count half."""
    below = np.cumsum(outside) - outside
    pairs = float(inside.sum()) * float(outside.sum())
    return float((inside * (below + 0.5 * outside)).sum() / pairs)


def _best_iou(inside: NDArray[np.int64], outside: NDArray[np.int64]) -> tuple[float, int]:
    """Largest IoU of {bin >= threshold} with what is inside, and the threshold's bin (the lowest of equals)."""
    hits, false = (np.cumsum(counts[::-1])[::-1] for counts in (inside, outside))
    ratios = hits / (inside.sum() + false)
    best = int(ratios.argmax())
    return float(ratios[best]), best
