"""`read`: the tracklets of a data set, whatever its format."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import get_args

from passerby.errors import InvalidArgumentError, NotFoundError

from passerby_model.datasets.files import refuse_duplicates, shown
from passerby_model.datasets.layouts import LAYOUTS, detect
from passerby_model.datasets.tracklets import Format, Part, Tracklet, TrackletDataset


def read(
    path: str | os.PathLike[str],
    format: Format = "auto",
    part: Part = "all",
    identities: Collection[str] | None = None,
) -> TrackletDataset:
    """List the tracklets of the data set at `path`, sorted by identity, camera and tracklet.

    Args:
        path: the root of the data set, or a manifest file.
        format: one of `Format`; "auto" goes by the signs that `layouts.detect` knows.
        part: which of the two halves; "all" for both, and for sets without fixed halves.
        identities: keep these only (an allow-list); every name must be present.

    Raises:
        NotFoundError: nothing is there, or the part asked for is not.
        InvalidArgumentError: no tracklets, something broken or where it does not belong, an unknown identity, or
            signs of two formats.
        FailedPreconditionError: a Parquet manifest, and pyarrow is not installed.
    """
    if part not in get_args(Part):
        raise InvalidArgumentError(f"part is one of {', '.join(get_args(Part))}; got {part!r}")
    root = Path(path)
    known = detect(root, format)
    found = sorted(LAYOUTS[known].tracklets(root, part), key=lambda one: (one.identity, one.camera, one.tracklet_id))
    if not found:
        raise InvalidArgumentError(f"{shown(root)}: holds no tracklets", reason="DATASET_EMPTY")
    refuse_duplicates(root, found)
    return TrackletDataset(root, known, tuple(_allowed(root, found, identities)))


def read_identities(path: str | os.PathLike[str]) -> frozenset[str]:
    """An allow-list: one identity a line; blank lines and everything after "#" do not count.

    Raises:
        NotFoundError: no such file.
        InvalidArgumentError: it names nobody, or is no text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path}: no list of identities: {error}") from error
    names = frozenset(line.partition("#")[0].strip() for line in lines) - {""}
    if not names:
        raise InvalidArgumentError(f"{path}: names no identity; write one a line")
    return names


def _allowed(root: Path, found: list[Tracklet], identities: Collection[str] | None) -> list[Tracklet]:
    if identities is None:
        return found
    absent = sorted(set(identities) - {tracklet.identity for tracklet in found})
    if absent:
        raise InvalidArgumentError(
            f"{shown(root)}: {len(absent)} of the identities asked for are not in it: {', '.join(absent[:5])}"
        )
    return [tracklet for tracklet in found if tracklet.identity in set(identities)]
