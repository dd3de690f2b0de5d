"""`read_splits`: what a model is judged on, in each data set's own way."""

from __future__ import annotations

import os
from pathlib import Path

from passerby.errors import InvalidArgumentError

from passerby_model.datasets.files import refuse_duplicates, shown
from passerby_model.datasets.layouts import LAYOUTS, detect
from passerby_model.datasets.tracklets import EvaluationSplit, Format

__all__ = ["EvaluationSplit", "read_splits"]


def read_splits(path: str | os.PathLike[str], format: Format = "auto") -> tuple[EvaluationSplit, ...]:
    """The evaluation splits of the data set at `path`, at least one.

        MARS, DukeMTMC-VideoReID, RTF    one: the set's own queries (MARS: of query_IDX.mat, where the tables are there)
        iLIDS-VID, PRID 2011             ten: camera 1 or a asks, camera 2 or b is looked through
        manifest                         one: by its column `part`
        plain, street, MARS without      one: everything of the test half (of all, where there are no halves)
        tables                           against everything of it, see EvaluationSplit.all_against_all

    Frames are named, not opened: a split of metadata alone works, and its paths lead nowhere.

    Raises:
        NotFoundError: nothing is there, or a table that says what a query is.
        InvalidArgumentError: nobody to ask for or to look through, or something broken.
        FailedPreconditionError: a Parquet manifest, and pyarrow is not installed.
    """
    root = Path(path)
    known = detect(root, format)
    found = LAYOUTS[known].splits(root)
    for split in found:
        for name in ("train", "query", "gallery"):
            tracklets = getattr(split, name)
            refuse_duplicates(root, tracklets)
            if not tracklets and name != "train":
                raise InvalidArgumentError(f"{shown(root)}: {split.name} has an empty {name}", reason="DATASET_EMPTY")
    return found
