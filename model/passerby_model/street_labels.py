"""A synthetic street with its label maps, read from disk: what is where in every frame. Numpy and Pillow only.

`passerby street FOLDER --masks FOLDER-masks` writes one palette PNG beside each frame, at the frame's place below the
other folder; street.json says what its values mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError, NotFoundError
from PIL import Image, UnidentifiedImageError

from passerby_model import datasets
from passerby_model.datasets import Tracklet
from passerby_model.datasets.files import broken, read_json
from passerby_model.datasets.street import RECORD

BACKGROUND, PERSON = 0, 1
"""Labels: background and what hides the person; the person without what it carries. Accessories lie above."""


@dataclass(frozen=True)
class Street:
    """A street on disk with its label maps.

    masks: folder of the label maps; accessories: name -> label, as street.json has them.
    """

    root: Path
    masks: Path
    tracklets: tuple[Tracklet, ...]
    accessories: Mapping[str, int]

    @classmethod
    def open(cls, folder: Path | str, masks: Path | str | None = None) -> Street:
        """`folder` with `masks`, "<folder>-masks" when not given.

        Raises:
            NotFoundError: the folder, its street.json or the folder of masks is missing.
            InvalidArgumentError: the folder or its street.json is not as `passerby street` writes it.
        """
        root = Path(folder)
        dataset = datasets.read(root)
        if not (root / RECORD).is_file():
            raise NotFoundError(f"{root} is no street: no {RECORD}; `passerby street` writes one")
        beside = root.absolute()
        where = Path(masks) if masks is not None else beside.with_name(f"{beside.name}-masks")
        if not where.is_dir():
            raise NotFoundError(f"{where}: no such folder; write the street with --masks, or say where its masks are")
        return cls(root, where, dataset.tracklets, _accessories(root / RECORD))

    def sample(self, limit: int | None) -> Sequence[Tracklet]:
        """At most `limit` of its tracklets; see `sample`."""
        return sample(self.tracklets, limit)

    def labels_of(self, tracklet: Tracklet) -> NDArray[np.uint8]:
        """Label maps of a tracklet, uint8 (T, H, W): 0 background, 1 person, and `accessories`.

        Raises NotFoundError or InvalidArgumentError, with the path, for one that is missing or broken.
        """
        paths = [self.masks / frame.relative_to(self.root).with_suffix(".png") for frame in tracklet.frames]
        maps = [read_labels(path) for path in paths]
        if any(found.shape != maps[0].shape for found in maps):
            raise InvalidArgumentError(f"{paths[0].parent}: the masks of one tracklet differ in size")
        return np.stack(maps)


def _accessories(path: Path) -> dict[str, int]:
    content = read_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not all(type(label) is int and 0 <= label < 256 for label in labels.values()):
        raise broken(path, "names no labels; write the street again")
    return {name: label for name, label in labels.items() if label > PERSON}


def sample(tracklets: Sequence[Tracklet], limit: int | None) -> Sequence[Tracklet]:
    """At most `limit` tracklets drawn at random, the same ones every time, in their order; None for all.

    Raises InvalidArgumentError for a limit below 1.
    """
    if limit is None or limit >= len(tracklets):
        return tracklets
    if limit < 1:
        raise InvalidArgumentError(f"limit is {limit}; give at least 1")
    chosen = np.random.default_rng(0).permutation(len(tracklets))[:limit]
    return [tracklets[index] for index in sorted(chosen)]


def read_labels(path: Path) -> NDArray[np.uint8]:
    """The labels of a palette or grey PNG (of a black and white one 0 and 1), uint8 (H, W).

    Raises:
        NotFoundError: there is no such file.
        InvalidArgumentError: it is something else.
    """
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.mode not in ("P", "L", "1"):
                raise InvalidArgumentError(f"{path}: a mask is a palette or grey PNG, not {picture.mode}")
            return np.array(picture, dtype=np.uint8)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is missing: the masks are not those of these frames") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidArgumentError(f"{path}: cannot be read as a PNG: {error}") from error
