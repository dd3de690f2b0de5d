"""`check`: what is in a data set, and what is wrong with it, before anyone trains on it.

    read, read_splits -> tracklets by part -> each file looked at -> each frame opened (on request) -> report

What `read` and `read_splits` refuse is refused here too. The rest are problems: an error makes the set unfit for use, a
warning may be as it should be (a distractor is seen by one camera).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from passerby.errors import InvalidArgumentError, NotFoundError

from passerby_model.datasets import mars
from passerby_model.datasets.files import folders, shown
from passerby_model.datasets.frames import Finding, FrameSizes, Progress, examine
from passerby_model.datasets.layouts import detect
from passerby_model.datasets.reading import read
from passerby_model.datasets.splits import read_splits
from passerby_model.datasets.tracklets import (
    DISTRACTOR_IDENTITY,
    JUNK_IDENTITY,
    EvaluationSplit,
    Format,
    KnownFormat,
    Tracklet,
    TrackletDataset,
)

Severity = Literal["error", "warning"]
_NAMED = 5  # so many identities of a list are named


@dataclass(frozen=True)
class Problem:
    """Something wrong, and where.

    kind: "missing", "unreadable" (errors); "twice", "size", "empty", "unlisted", "one camera", "leak", "no match",
        "no split", "metadata" (warnings).
    """

    severity: Severity
    kind: str
    path: str
    reason: str


@dataclass(frozen=True)
class PartSummary:
    """Counts of one part: "train", "test", "query", "gallery" or "all".

    identities, cameras: without junk and distractors. tracklets: in all, `junk` and `distractors` of them MARS's.
    shortest, median, longest: frames of a tracklet; 0 without tracklets.
    """

    name: str
    identities: int
    cameras: tuple[str, ...]
    tracklets: int
    junk: int
    distractors: int
    frames: int
    shortest: int
    median: float
    longest: int


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one evaluation split.

    gallery: tracklets without junk, which does not count in any protocol (MARS: 9,330). without_match: queries whose
    identity no other camera of the gallery has seen.
    """

    name: str
    queries: int
    identities: int
    gallery: int
    without_match: int
    all_against_all: bool


@dataclass(frozen=True)
class CheckReport:
    """What `check` found. files: whether the frames' files were "opened", "looked at", or are "not there"."""

    path: str
    format: KnownFormat
    parts: tuple[PartSummary, ...]
    splits: tuple[SplitSummary, ...]
    attributes: tuple[str, ...]
    files: Literal["opened", "looked at", "not there"]
    sizes: FrameSizes | None
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """No problem is an error."""
        return all(problem.severity != "error" for problem in self.problems)


def check(
    path: str | os.PathLike[str],
    format: Format = "auto",
    *,
    decode: bool = False,
    threads: int = 4,
    progress: Progress | None = None,
) -> CheckReport:
    """Count what is in the data set at `path`, and look for what is wrong with it.

    Args:
        decode: open every frame: finds broken images, images that are there twice, and odd sizes.
        threads: that read files at a time, 1 or more.
        progress: called with (frames done, frames in all) now and then.

    Raises: as `read` and `read_splits`, but for a set without an evaluation split; InvalidArgumentError for threads
    below 1.
    """
    if threads < 1:
        raise InvalidArgumentError(f"threads is {threads}; give 1 or more")
    known = detect(Path(path), format)
    splits, problems = _splits(Path(path), known)
    dataset = _dataset(Path(path), known, splits)
    parts = _parts(dataset, splits)
    everything = {tracklet.key: tracklet for group in parts.values() for tracklet in group}
    absent = _absent_folders(dataset, everything.values())
    there = [tracklet for tracklet in everything.values() if _folder(tracklet) not in absent]
    findings, sizes = examine(there, decode, threads, progress)
    problems += [
        *(Problem("warning", "metadata", shown(one), "no images there: known from tables alone") for one in absent),
        *(Problem(_severity(one), one.kind, shown(one.frame), one.reason) for one in findings),
        *_unlisted(dataset, everything),
        *_empty_folders(dataset),
        *_identity_problems(dataset, parts, splits),
    ]
    return CheckReport(
        path=shown(dataset.root),
        format=dataset.format,
        parts=tuple(_part_summary(name, group, _nobody(known)) for name, group in parts.items()),
        splits=tuple(_split_summary(split, _nobody(known)) for split in splits),
        attributes=tuple(sorted({name for tracklet in everything.values() for name in tracklet.attributes})),
        files="not there" if not there else "opened" if decode else "looked at",
        sizes=sizes,
        problems=tuple(sorted(problems, key=lambda problem: problem.severity)),
    )


def _splits(root: Path, known: KnownFormat) -> tuple[tuple[EvaluationSplit, ...], list[Problem]]:
    try:
        return read_splits(root, known), []
    except NotFoundError as error:
        return (), [Problem("warning", "no split", shown(root), f"can be trained on alone: {error.message}")]


def _dataset(root: Path, known: KnownFormat, splits: tuple[EvaluationSplit, ...]) -> TrackletDataset:
    """What is on disk; of metadata alone the split is all there is, and long to read twice."""
    if known == "mars" and splits and not mars.image_folders(root):
        (split,) = splits
        return TrackletDataset(root, known, (*split.train, *split.query, *split.gallery))
    return read(root, known)


def _parts(dataset: TrackletDataset, splits: tuple[EvaluationSplit, ...]) -> dict[str, tuple[Tracklet, ...]]:
    """Tracklets by part; of a set with several splits all together."""
    if len(splits) != 1:
        return {"all": dataset.tracklets}
    (split,) = splits
    test = {"test": split.gallery} if split.all_against_all else {"query": split.query, "gallery": split.gallery}
    return ({"train": split.train} if split.train else {}) | test


def _folder(tracklet: Tracklet) -> Path:
    return tracklet.frames[0].parent.parent


def _absent_folders(dataset: TrackletDataset, tracklets: Iterable[Tracklet]) -> list[Path]:
    """Halves of MARS that the tables name and that were not downloaded."""
    if dataset.format != "mars":
        return []
    return sorted(folder for folder in {_folder(tracklet) for tracklet in tracklets} if not folder.is_dir())


def _severity(finding: Finding) -> Severity:
    return "error" if finding.kind in ("missing", "unreadable") else "warning"


def _unlisted(dataset: TrackletDataset, listed: Mapping[str, Tracklet]) -> Iterator[Problem]:
    """Frames on disk that the tables leave out."""
    for tracklet in dataset:
        known = listed.get(tracklet.key)
        names = {frame.name for frame in known.frames} if known is not None else set()
        extra = [frame for frame in tracklet.frames if frame.name not in names] if known is not tracklet else []
        if extra:
            reason = f"{len(extra)} of {len(tracklet.frames)} frames of {tracklet.key} are in no split, this the first"
            yield Problem("warning", "unlisted", shown(extra[0]), reason)


def _empty_folders(dataset: TrackletDataset) -> Iterator[Problem]:
    """People of MARS without a frame; the other layouts refuse empty folders."""
    if dataset.format == "mars":
        full = {tracklet.frames[0].parent for tracklet in dataset}
        people = (person for half in mars.image_folders(dataset.root) for person in folders(half))
        for folder in (person for person in people if person not in full):
            yield Problem("warning", "empty", shown(folder), "a folder without images")


def _identity_problems(
    dataset: TrackletDataset, parts: Mapping[str, tuple[Tracklet, ...]], splits: tuple[EvaluationSplit, ...]
) -> Iterator[Problem]:
    test = tuple(tracklet for name in parts if name != "train" for tracklet in parts[name])
    groups = {"train": parts.get("train", ()), "test": test}
    cameras = [(name, _cameras(group, _nobody(dataset.format))) for name, group in groups.items() if group]
    for name, seen in cameras:
        alone = sorted(identity for identity, found in seen.items() if len(found) == 1)
        if alone:
            where = "" if "all" in parts else f" of {name}"
            reason = f"{len(alone)} of {len(seen)} identities{where} are seen by one camera only: {_listed(alone)}"
            yield Problem("warning", "one camera", shown(dataset.root), reason)
    if len(cameras) == 2:
        both = sorted(cameras[0][1].keys() & cameras[1][1].keys())
        if both:
            reason = f"{len(both)} identities are in train and in test: {_listed(both)}"
            yield Problem("warning", "leak", shown(dataset.root), reason)
    for split in splits:
        if len(split.queries_without_match()) == len(split.query):
            reason = f"no query of {split.name} has a match from another camera, so nothing can be scored"
            yield Problem("warning", "no match", shown(dataset.root), reason)


def _nobody(known: KnownFormat) -> tuple[str, ...]:
    """Identities that are nobody; elsewhere than in MARS "0000" is a person like any other."""
    return (JUNK_IDENTITY, DISTRACTOR_IDENTITY) if known == "mars" else ()


def _cameras(tracklets: Iterable[Tracklet], nobody: Collection[str]) -> dict[str, set[str]]:
    """Cameras by identity."""
    seen: dict[str, set[str]] = {}
    for tracklet in tracklets:
        if tracklet.identity not in nobody:
            seen.setdefault(tracklet.identity, set()).add(tracklet.camera)
    return seen


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _part_summary(name: str, tracklets: tuple[Tracklet, ...], nobody: Collection[str]) -> PartSummary:
    lengths = [len(tracklet.frames) for tracklet in tracklets]
    counts = Counter(tracklet.identity for tracklet in tracklets)
    seen = _cameras(tracklets, nobody)
    return PartSummary(
        name=name,
        identities=len(seen),
        cameras=tuple(sorted(set().union(*seen.values()))),
        tracklets=len(tracklets),
        junk=counts[JUNK_IDENTITY] if JUNK_IDENTITY in nobody else 0,
        distractors=counts[DISTRACTOR_IDENTITY] if DISTRACTOR_IDENTITY in nobody else 0,
        frames=sum(lengths),
        shortest=min(lengths, default=0),
        median=float(median(lengths)) if lengths else 0.0,
        longest=max(lengths, default=0),
    )


def _split_summary(split: EvaluationSplit, nobody: Collection[str]) -> SplitSummary:
    junk = {JUNK_IDENTITY} & set(nobody)
    return SplitSummary(
        name=split.name,
        queries=len(split.query),
        identities=len({query.identity for query in split.query}),
        gallery=sum(tracklet.identity not in junk for tracklet in split.gallery),
        without_match=len(split.queries_without_match()),
        all_against_all=split.all_against_all,
    )
