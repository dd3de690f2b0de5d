"""The formats, and the signs by which they are told apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, get_args

from passerby.errors import InvalidArgumentError, NotFoundError

from passerby_model.datasets import mars, mars_tables, plain
from passerby_model.datasets.files import shown
from passerby_model.datasets.tracklets import EvaluationSplit, Format, KnownFormat, Part, Tracklet


class Layout(Protocol):
    """What each format's module offers. Errors as `reading.read` names them."""

    def tracklets(self, root: Path, part: Part) -> Iterable[Tracklet]:
        """Tracklets of a part, in any order."""

    def splits(self, root: Path) -> tuple[EvaluationSplit, ...]:
        """Who is trained on, asked for and looked through."""


LAYOUTS: Mapping[KnownFormat, Layout] = {"mars": mars, "plain": plain}


def detect(root: Path, format: Format = "auto") -> KnownFormat:
    """The format asked for, or for "auto" the one whose sign is at `root`; "plain" has none.

    Raises:
        NotFoundError: there is no folder at `root`, or for a manifest no file.
        InvalidArgumentError: an unknown format, or signs of two.
    """
    if format not in get_args(Format):
        raise InvalidArgumentError(f"format is one of {', '.join(get_args(Format))}; got {format!r}")
    if not root.is_dir():
        raise NotFoundError(f"{shown(root)}: " + ("not a folder" if root.exists() else "no such folder"))
    if format != "auto":
        return format
    signs = _signs(root)
    if len(signs) > 1:
        listed = " and ".join(f"{sign} ({name})" for name, sign in signs.items())
        raise InvalidArgumentError(
            f"{shown(root)}: has the signs of {len(signs)} formats: {listed}; name the right one as format",
            reason="DATASET_AMBIGUOUS",
        )
    return next(iter(signs), "plain")


def _signs(root: Path) -> dict[KnownFormat, str]:
    """What speaks for each format at `root`."""
    found: dict[KnownFormat, str] = {}
    halves = [name for name in ("bbox_train", "bbox_test") if (root / name).is_dir()]
    if halves or mars_tables.folder_of(root) is not None:
        found["mars"] = halves[0] if halves else "tracks_*_info.mat"
    return found
