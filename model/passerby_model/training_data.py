"""What a run trains and validates on: the tracklets of all sources, with classes 0..C-1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError, NotFoundError

from passerby_model import datasets
from passerby_model.datasets import KnownFormat, Tracklet
from passerby_model.train_config import DataSource, TrainConfig

# Data sets that are cut in two at random ten times: a person is trained on in some splits and searched for in others.
_SEVERAL_HALVINGS: tuple[KnownFormat, ...] = ("ilids", "prid")
_VALIDATION_STREAM = 0x76616C  # keeps this choice apart from other uses of the seed


@dataclass(frozen=True)
class TrainingData:
    """Tracklets to train on, their classes, and tracklets of held-out identities.

    names: of each class, "source number/identity"; repeats: visits of each class in an epoch. with_test_half: paths of
    the sources whose `part` asks for people beside those of a training half.
    """

    tracklets: tuple[Tracklet, ...]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    repeats: tuple[int, ...]
    validation: tuple[Tracklet, ...]
    with_test_half: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Counts, for the checkpoint's record."""
        return {
            "identities": len(self.names),
            "tracklets": len(self.tracklets),
            "frames": sum(len(tracklet.frames) for tracklet in self.tracklets),
            "validation_tracklets": len(self.validation),
        }

    def __str__(self) -> str:
        counts = self.summary()
        held = len({tracklet.identity for tracklet in self.validation})
        text = f"{counts['identities']} identities, {counts['tracklets']} tracklets, {counts['frames']} frames"
        if held:
            text += f"; {held} identities held out for validation"
        for path in self.with_test_half:
            text += f"; {path}: figures on a test half of it will mean nothing, its people are trained on"
        return text


def gather(config: TrainConfig) -> TrainingData:
    """Read all sources of a configuration; their test halves stay out, unless a source asks for one by `part`.

    Validation identities are named "source number/identity" too, so that those of two sources never meet.

    Raises:
        NotFoundError, InvalidArgumentError: see `datasets.read`; or nobody is left to train on.
    """
    generator = np.random.default_rng([config.seed, _VALIDATION_STREAM])
    tracklets: list[Tracklet] = []
    held: list[Tracklet] = []
    repeats: dict[str, int] = {}
    for number, source in enumerate(config.data):
        found = [_renamed(tracklet, number) for tracklet in _read(source)]
        identities = sorted({tracklet.identity for tracklet in found})
        count = round(config.val_identities * len(identities))
        chosen = {identities[i] for i in generator.permutation(len(identities))[:count]}
        held.extend(tracklet for tracklet in found if tracklet.identity in chosen)
        tracklets.extend(tracklet for tracklet in found if tracklet.identity not in chosen)
        repeats.update({name: source.repeat for name in identities if name not in chosen})
    if not tracklets:
        raise InvalidArgumentError("no identity is left to train on; lower val_identities or add data")
    _refuse_unusable_validation(held, config)
    names = tuple(repeats)
    number_of = {name: number for number, name in enumerate(names)}
    labels = np.array([number_of[tracklet.identity] for tracklet in tracklets], dtype=np.int64)
    _refuse_single_tracklets(tracklets, config)
    asked = tuple(str(source.path) for source in config.data if source.part in ("all", "test"))
    return TrainingData(tuple(tracklets), labels, names, tuple(repeats.values()), tuple(held), asked)


def mask_finder(config: TrainConfig) -> Callable[[Path], Path | None]:
    """Where the silhouette of a frame lies: below its source's `masks` as the frame lies below the source's `path`."""
    folders = [(source.path, source.masks) for source in config.data if source.masks is not None]

    def find(frame: Path) -> Path | None:
        for root, masks in folders:
            if frame.is_relative_to(root):
                return masks / frame.relative_to(root).with_suffix(".png")
        return None

    return find


def _read(source: DataSource) -> tuple[Tracklet, ...]:
    allowed = datasets.read_identities(source.identities) if source.identities else None
    if source.split is not None:
        return _of_split(source, source.split, allowed)
    if source.part is not None:
        return datasets.read(source.path, source.format, source.part, allowed).people().tracklets
    try:
        return datasets.read(source.path, source.format, "train", allowed).people().tracklets
    except NotFoundError:
        if _has_test_half(source):
            raise
    found = datasets.read(source.path, source.format, "all", allowed)
    if found.format in _SEVERAL_HALVINGS:
        raise InvalidArgumentError(
            f"{source.path}: everybody in it is a test person of some of its splits; set split to train on the others "
            "of one, or part to all"
        )
    return found.people().tracklets


def _of_split(source: DataSource, number: int, allowed: frozenset[str] | None) -> tuple[Tracklet, ...]:
    """The training people of the split with this number, counted from 1."""
    splits = datasets.read_splits(source.path, source.format)
    if number > len(splits) or not splits[number - 1].train:
        several = f"{len(splits)} splits" if len(splits) > 1 else "a single split"
        raise InvalidArgumentError(f"{source.path}: has no split {number} with people to train on, only {several}")
    chosen = splits[number - 1].train
    if absent := sorted((allowed or set()) - {tracklet.identity for tracklet in chosen}):
        raise InvalidArgumentError(f"{source.path}: not among its people to train on: {', '.join(absent[:5])}")
    return tuple(tracklet for tracklet in chosen if allowed is None or tracklet.identity in allowed)


def _has_test_half(source: DataSource) -> bool:
    try:
        datasets.read(source.path, source.format, "test")
    except NotFoundError:
        return False
    return True


def _renamed(tracklet: Tracklet, number: int) -> Tracklet:
    return replace(tracklet, identity=f"{number}/{tracklet.identity}")


def _refuse_single_tracklets(tracklets: list[Tracklet], config: TrainConfig) -> None:
    """The triplet loss needs positives: somebody must have two tracklets."""
    if config.triplet_weight and max(Counter(t.identity for t in tracklets).values()) < 2:
        raise InvalidArgumentError(
            "every identity has a single tracklet, so nothing teaches what one person looks like elsewhere; "
            "check that the folder levels are identity/camera/tracklet, or set triplet_weight to 0"
        )


def _refuse_unusable_validation(held: list[Tracklet], config: TrainConfig) -> None:
    """Ranking needs somebody seen by two cameras."""
    cameras: dict[str, set[str]] = {}
    for tracklet in held:
        cameras.setdefault(tracklet.identity, set()).add(tracklet.camera)
    if config.val_identities and max((len(seen) for seen in cameras.values()), default=0) < 2:
        raise InvalidArgumentError(
            f"val_identities={config.val_identities} holds out {len(cameras)} identities, none of them seen by two "
            "cameras, so there is nothing to rank; hold out more, or set it to 0"
        )
