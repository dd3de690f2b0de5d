"""The words of a data set: tracklet, data set, part, format, evaluation split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

KnownFormat = Literal["mars", "duke", "ilids", "prid", "rtf", "plain", "manifest", "street"]
Format = Literal["auto", "mars", "duke", "ilids", "prid", "rtf", "plain", "manifest", "street"]
Part = Literal["all", "train", "test"]

JUNK_IDENTITY = "00-1"
DISTRACTOR_IDENTITY = "0000"
NOBODY = (JUNK_IDENTITY, DISTRACTOR_IDENTITY)


@dataclass(frozen=True)
class Tracklet:
    """Crops of one person from one camera.

    identity, camera: as the folder or file names have them ("0003", "1"; "ann", "entrance").
    tracklet_id: "0003C1T0001" for MARS, the folder's name for the plain layout (unique within identity and camera).
    frames: paths in order of time, at least one. A set of metadata alone names frames that are not there.
    attributes: what is known of the person ("hat": "cap"), by name; empty where nothing is.
    start_time, end_time: of the first and the last frame, with a time zone; None where unknown.
    """

    identity: str
    camera: str
    tracklet_id: str
    frames: tuple[Path, ...]
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)
    start_time: datetime | None = None
    end_time: datetime | None = None

    @property
    def key(self) -> str:
        """Unique within a data set: "identity/camera/tracklet_id"."""
        return f"{self.identity}/{self.camera}/{self.tracklet_id}"


@dataclass(frozen=True)
class TrackletDataset:
    """Tracklets of one folder or manifest, sorted by identity, camera and tracklet."""

    root: Path
    format: KnownFormat
    tracklets: tuple[Tracklet, ...]

    def __len__(self) -> int:
        return len(self.tracklets)

    def __iter__(self) -> Iterator[Tracklet]:
        return iter(self.tracklets)

    @property
    def identities(self) -> tuple[str, ...]:
        """Sorted, each once; junk and distractors of MARS included."""
        return tuple(sorted({tracklet.identity for tracklet in self.tracklets}))

    @property
    def cameras(self) -> tuple[str, ...]:
        """Sorted, each once."""
        return tuple(sorted({tracklet.camera for tracklet in self.tracklets}))

    @property
    def frame_count(self) -> int:
        return sum(len(tracklet.frames) for tracklet in self.tracklets)

    def people(self) -> TrackletDataset:
        """Without MARS's junk and distractors, which are nobody to train on or to search for."""
        if self.format != "mars":
            return self
        return TrackletDataset(self.root, self.format, people(self.tracklets))


@dataclass(frozen=True)
class EvaluationSplit:
    """One way to judge a model on a data set: train on these, ask for those, look through the others.

    name: "test"; "split 1".."split 10" for sets that are judged by the mean of ten.
    train: without junk and distractors; empty where the set has no training half.
    query: who is asked for, never junk or a distractor. gallery: what is looked through, without the queries, and
        with MARS's junk (identity JUNK_IDENTITY, to be ignored) and distractors (DISTRACTOR_IDENTITY, never a match).
        Only in MARS do these names mean that; elsewhere "0000" is a person like any other.

    Where a set does not say what a query is (`all_against_all`), every tracklet is asked for and every one is in the
    gallery; the rule that a query's own identity in its own camera does not count keeps it from finding itself.
    """

    name: str
    train: tuple[Tracklet, ...]
    query: tuple[Tracklet, ...]
    gallery: tuple[Tracklet, ...]

    @property
    def all_against_all(self) -> bool:
        """The queries are in the gallery too."""
        return bool(self.query) and {one.key for one in self.query} <= {one.key for one in self.gallery}

    def queries_without_match(self) -> tuple[Tracklet, ...]:
        """Queries whose identity no other camera of the gallery has seen; no protocol can score them."""
        seen: dict[str, set[str]] = {}
        for tracklet in self.gallery:
            seen.setdefault(tracklet.identity, set()).add(tracklet.camera)
        return tuple(query for query in self.query if not seen.get(query.identity, set()) - {query.camera})


def people(tracklets: tuple[Tracklet, ...]) -> tuple[Tracklet, ...]:
    """Without MARS's junk and distractors."""
    return tuple(tracklet for tracklet in tracklets if tracklet.identity not in NOBODY)
