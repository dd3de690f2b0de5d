"""Sets of one tracklet a person and camera, from two cameras, judged by the mean of ten random halvings.

The first camera's tracklets of the test half are the queries, the second's the gallery: a single gallery instance.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from passerby.errors import NotFoundError

from passerby_model.datasets.files import shown, whole_tracklet
from passerby_model.datasets.tracklets import EvaluationSplit, Part, Tracklet


def tracklet(folder: Path) -> Tracklet:
    """The tracklet in <camera>/<person>. Raises InvalidArgumentError when it is empty, NotFoundError when missing."""
    person, camera = folder.name, folder.parent.name
    return Tracklet(person, camera, f"{person}_{camera}", whole_tracklet(folder))


def refuse_halves(root: Path, name: str, part: Part) -> None:
    """Raises NotFoundError for part "train" or "test": these sets have ten of each."""
    if part != "all":
        raise NotFoundError(
            f"{shown(root)}: {name} has no part {part!r}: it has ten random halvings; take all of it with the "
            "identities of one, which `passerby data identities` lists"
        )


def split(
    number: int, tracklets: Sequence[Tracklet], train: Collection[str], test: Collection[str], query_camera: str
) -> EvaluationSplit:
    """Split `number`, 1-based, from the names of its two halves."""
    return EvaluationSplit(
        name=f"split {number}",
        train=tuple(one for one in tracklets if one.identity in train),
        query=tuple(one for one in tracklets if one.identity in test and one.camera == query_camera),
        gallery=tuple(one for one in tracklets if one.identity in test and one.camera != query_camera),
    )
