"""DukeMTMC-VideoReID.

    <root>/train|query|gallery/<person>/<track>/0001C6F0099X30823.jpg     old names: person, camera, frame of the
                                               0001_C6_F0099_X30823.jpg   tracklet, frame of the camera's video

Source: Wu et al., "Exploit the Unknown Gradually", CVPR 2018; Yu-Wu/DukeMTMC-VideoReID, README. 702 people to train
on; 702 queries and 2,636 gallery tracklets, 408 people of which nobody asks for.

Frames are sorted by their F number, wherever it starts. Track numbers are counted per folder, so a tracklet's id tells
the folder too: "query-0003".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from passerby_model.datasets.files import broken, folders, misplaced, whole_tracklet
from passerby_model.datasets.plain import present
from passerby_model.datasets.tracklets import EvaluationSplit, Part, Tracklet

_HALVES: dict[Part, tuple[str, ...]] = {
    "train": ("train",),
    "test": ("query", "gallery"),
    "all": ("train", "query", "gallery"),
}
_FRAME = re.compile(
    r"(?P<person>\d+)(?P<gap>_?)C(?P<camera>\d+)(?P=gap)F(?P<frame>\d+)(?P=gap)X(?P<video>\d+)\.\w+", re.ASCII
)


def sign(root: Path) -> str:
    """The queries' folder beside the gallery's."""
    return "query and gallery" if (root / "query").is_dir() and (root / "gallery").is_dir() else ""


def tracklets(root: Path, part: Part) -> Iterator[Tracklet]:
    """Tracklets of a part; "test" is query and gallery. Raises: see `reading.read`."""
    for folder in present(root, [root / name for name in _HALVES[part]], part):
        yield from _below(folder)


def splits(root: Path) -> tuple[EvaluationSplit, ...]:
    """One, as the folders have it."""
    train = tuple(_below(root / "train")) if (root / "train").is_dir() else ()
    query, gallery = (tuple(_below(present(root, [root / name], "test")[0])) for name in _HALVES["test"])
    return (EvaluationSplit("test", train, query, gallery),)


def _below(half: Path) -> Iterator[Tracklet]:
    for person in folders(half):
        for track in folders(person, least=1):
            yield _tracklet(half.name, person.name, track)


def _tracklet(half: str, person: str, track: Path) -> Tracklet:
    numbered = []
    cameras = set()
    for file in whole_tracklet(track):
        match = _FRAME.fullmatch(file.name)
        if match is None or match["person"].lstrip("0") != person.lstrip("0"):
            raise misplaced(file, f"the name is neither {person}CcFffffXx.jpg nor {person}_Cc_Fffff_Xx.jpg (Duke)")
        numbered.append((int(match["frame"]), int(match["video"]), file))
        cameras.add(match["camera"])
    if len(cameras) > 1:
        raise broken(track, f"frames of several cameras in one tracklet: {', '.join(sorted(cameras))}")
    frames = tuple(file for _, _, file in sorted(numbered))
    return Tracklet(person, cameras.pop(), f"{half}-{track.name}", frames)
