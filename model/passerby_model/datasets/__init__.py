"""Data sets of tracklets: what is where on disk, without opening an image (no torch, no decoding).

    read(path)             -> TrackletDataset              every tracklet
    read_splits(path)      -> tuple[EvaluationSplit, ...]  who is trained on, asked for and looked through
    checking.check(path)   -> CheckReport                  counts, and what is wrong with the files

Eight formats, one module each, which `layouts.py` lists. Every listing is sorted, so that results never depend on the
file system. What a set brings along (names, tables, JSON, pickles) is untrusted: it is bounded and checked, and what
is wrong is an InvalidArgumentError that names the path.
"""

from passerby_model.datasets.reading import read, read_identities
from passerby_model.datasets.splits import read_splits
from passerby_model.datasets.tracklets import (
    DISTRACTOR_IDENTITY,
    JUNK_IDENTITY,
    EvaluationSplit,
    Format,
    KnownFormat,
    Part,
    Tracklet,
    TrackletDataset,
)

__all__ = [
    "DISTRACTOR_IDENTITY",
    "JUNK_IDENTITY",
    "EvaluationSplit",
    "Format",
    "KnownFormat",
    "Part",
    "Tracklet",
    "TrackletDataset",
    "read",
    "read_identities",
    "read_splits",
]
