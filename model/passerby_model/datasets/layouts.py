"""The formats, and the signs by which they are told apart."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, get_args

from passerby.errors import InvalidArgumentError, NotFoundError

from passerby_model.datasets import duke, ilids, manifest, mars, plain, prid, rtf, street
from passerby_model.datasets.files import shown
from passerby_model.datasets.tracklets import EvaluationSplit, Format, KnownFormat, Part, Tracklet


class Layout(Protocol):
    """What each format's module offers. Errors as `reading.read` names them."""

    def sign(self, root: Path) -> str:
        """What at `root` speaks for this format; empty when nothing does."""

    def tracklets(self, root: Path, part: Part) -> Iterable[Tracklet]:
        """Tracklets of a part, in any order."""

    def splits(self, root: Path) -> tuple[EvaluationSplit, ...]:
        """Who is trained on, asked for and looked through."""


LAYOUTS: Mapping[KnownFormat, Layout] = {
    "mars": mars,
    "duke": duke,
    "ilids": ilids,
    "prid": prid,
    "rtf": rtf,
    "plain": plain,
    "manifest": manifest,
    "street": street,
}


def detect(root: Path, format: Format = "auto") -> KnownFormat:
    """The format asked for, or for "auto" the one whose sign is at `root`; "plain" has none.

    Raises:
        NotFoundError: there is no folder at `root`, or for a manifest no file.
        InvalidArgumentError: an unknown format, or signs of two.
    """
    if format not in get_args(Format):
        raise InvalidArgumentError(f"format is one of {', '.join(get_args(Format))}; got {format!r}")
    wanted = "manifest (.csv or .parquet)" if format == "manifest" else "folder"
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except FileNotFoundError as error:
        raise NotFoundError(f"{shown(root)}: no such {wanted}") from error
    except (OSError, ValueError) as error:
        raise NotFoundError(f"{shown(root)}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if format in ("auto", "manifest") and not is_folder and root.suffix.lower() in manifest.SUFFIXES:
        return "manifest"
    if format == "manifest" or not is_folder:
        raise NotFoundError(f"{shown(root)}: not a {wanted}")
    if format != "auto":
        return format
    signs = {name: sign for name, layout in LAYOUTS.items() if (sign := layout.sign(root))}
    if len(signs) > 1:
        listed = " and ".join(f"{sign} ({name})" for name, sign in signs.items())
        raise InvalidArgumentError(
            f"{shown(root)}: has the signs of {len(signs)} formats: {listed}; say which it is with the format",
            reason="DATASET_AMBIGUOUS",
        )
    return next(iter(signs), "plain")
