"""What is evaluated on: a data set on disk -> the trials that the options ask for."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_model.datasets import EvaluationSplit, Format, KnownFormat, Tracklet, read_splits
from passerby_model.datasets.layouts import detect
from passerby_model.protocol import ProtocolName, Trial, trial

IDENTITY_COLUMN = "identity"
ANY_LABEL_BYTES = 64 << 20
"""A table of attributes is small; beyond this it is some other file."""


@dataclass(frozen=True)
class Subject:
    """A data set with its trials, one for each split."""

    name: str
    path: Path
    format: KnownFormat
    trials: tuple[Trial, ...]

    @property
    def tracklets(self) -> tuple[Tracklet, ...]:
        """Those of all trials, each once."""
        return tuple({one.key: one for each in self.trials for one in each.tracklets}.values())


def subject_names(paths: Sequence[Path]) -> list[str]:
    """What results call each data set: its last folder's name, or its whole path where two have the same."""
    names = [path.resolve().name for path in paths]
    return [str(path) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]


def read_subject(
    path: Path,
    name: str,
    *,
    format: Format = "auto",
    protocol: ProtocolName | None = None,
    query_camera: str | None = None,
    identities: Collection[str] | None = None,
    splits: str | None = None,
) -> Subject:
    """The data at `path` as the options want it ranked.

    Args:
        path: root of a data set, or a manifest.
        name: what results call it.
        format, protocol, query_camera, identities: see `read_splits` and `protocol.trial`.
        splits: numbers of splits from 1, such as "1,3" or "1-5"; all by default.

    Raises:
        NotFoundError, InvalidArgumentError, FailedPreconditionError: see those; the message names the data.
    """
    known = detect(path, format)
    chosen = _chosen(read_splits(path, format), splits)
    try:
        trials = tuple(
            trial(split, known, protocol, query_camera=query_camera, identities=identities) for split in chosen
        )
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{path}: {error.message}", reason=error.reason) from error
    return Subject(name, path, known, trials)


def read_attribute_labels(path: Path) -> Mapping[str, Mapping[str, str]]:
    """A CSV table of people: identity -> attribute -> value; empty cells are no label.

    Its first line names the columns: one is `identity`, every other an attribute.

    Raises:
        NotFoundError: it cannot be read.
        InvalidArgumentError: no such table, or an identity twice with different values.
    """
    try:
        if path.stat().st_size > ANY_LABEL_BYTES:
            raise InvalidArgumentError(f"{path}: too large for a table of attributes")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path}: not a CSV table in UTF-8: {error}") from error
    rows = csv.DictReader(text.splitlines())
    if IDENTITY_COLUMN not in (rows.fieldnames or ()):
        raise InvalidArgumentError(
            f"{path}: no column `{IDENTITY_COLUMN}` among {', '.join(rows.fieldnames or ['nothing'])}; "
            "the first line names the columns"
        )
    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise InvalidArgumentError(f"{path}: line {number} has more or fewer cells than the first line")
        values = {key: value for key, value in row.items() if key != IDENTITY_COLUMN and value}
        if found.setdefault(row[IDENTITY_COLUMN], values) != values:
            raise InvalidArgumentError(f"{path}: line {number} says otherwise of {row[IDENTITY_COLUMN]!r} than before")
    if not found:
        raise InvalidArgumentError(f"{path}: the table has no rows")
    return found


def _chosen(splits: tuple[EvaluationSplit, ...], wanted: str | None) -> tuple[EvaluationSplit, ...]:
    if wanted is None:
        return splits
    numbers: set[int] = set()
    for part in wanted.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise InvalidArgumentError(f"--splits {wanted!r}: write numbers such as 1,3 or 1-5")
        numbers |= set(range(int(first), int(last or first) + 1)) if int(last or first) <= len(splits) else {0}
    if not numbers or not numbers <= set(range(1, len(splits) + 1)):
        raise InvalidArgumentError(f"--splits {wanted!r}: the data has the splits 1 to {len(splits)}")
    return tuple(splits[number - 1] for number in sorted(numbers))
