"""Writes a street to disk in the plain layout that `passerby index` and the data sets read.

<root>/<identity>/<camera>/<tracklet>/<frame>.jpg    JPEG at the camera's quality
<masks>/<identity>/<camera>/<tracklet>/<frame>.png   palette PNG, value = label of canvas.py
<root>/street.json                                   configuration, labels, and a record per tracklet
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from passerby.errors import AlreadyExistsError
from PIL import Image as Pillow

from passerby_model.street.canvas import ACCESSORIES, PERSON, Image
from passerby_model.street.config import StreetConfig
from passerby_model.street.tracklets import CodedTracklet, identity_name, render_coded

RECORD = "street.json"
LABELS = {"background": 0, "person": PERSON, **ACCESSORIES}
# Colours by which the masks' labels are told apart in an image viewer.
_LABEL_COLOURS = (0, 0, 0, 60, 200, 80, 240, 190, 20, 230, 60, 180, 60, 150, 250, 250, 120, 20)

Progress = Callable[[int, int], None]


def write(
    config: StreetConfig,
    root: Path | str,
    *,
    masks: bool | Path | str = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write every tracklet of `config` below `root` and give back what went into street.json.

    masks: True writes masks below "<root>-masks", a path writes them there.
    progress: called with (tracklets done, tracklets in all) after each tracklet.

    The same configuration writes the same bytes. Raises AlreadyExistsError if `root` or the folder for
    masks holds anything: files of two streets must not mix.
    """
    root = Path(root)
    mask_root = _mask_root(root, masks)
    for folder in (root, mask_root):
        if folder is not None:
            _claim(folder)
    records = []
    for done, (identity, camera, visit) in enumerate(config.tracklet_keys(), start=1):
        tracklet = render_coded(config, identity, camera, visit)
        records.append(_write_tracklet(tracklet, root, mask_root, config.every))
        if progress is not None:
            progress(done, config.tracklet_count)
    record = {"format": 1, "config": asdict(config), "labels": LABELS, "tracklets": records}
    (root / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _mask_root(root: Path, masks: bool | Path | str) -> Path | None:
    if masks is False:
        return None
    return root.with_name(root.name + "-masks") if masks is True else Path(masks)


def _claim(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AlreadyExistsError(f"{folder} already holds something; give a new or an empty folder")
    folder.mkdir(parents=True, exist_ok=True)


def _write_tracklet(tracklet: CodedTracklet, root: Path, mask_root: Path | None, every: int) -> dict[str, Any]:
    identity = identity_name(tracklet.person.index)
    place = Path(identity, tracklet.camera.name, f"t{tracklet.visit + 1}")
    folder = root / place
    folder.mkdir(parents=True, exist_ok=True)
    for frame, data in enumerate(tracklet.jpegs, start=1):
        (folder / f"{frame:05d}.jpg").write_bytes(data)
    if mask_root is not None:
        (mask_root / place).mkdir(parents=True, exist_ok=True)
        for frame, labels in enumerate(tracklet.labels, start=1):
            save_labels(labels, mask_root / place / f"{frame:05d}.png")
    return {
        "identity": identity,
        "camera": tracklet.camera.name,
        "tracklet": place.name,
        "path": place.as_posix(),
        "frames": len(tracklet.jpegs),
        "start_time": _iso(tracklet.times[0]),
        "end_time": _iso(tracklet.times[-1]),
        "frames_per_second": tracklet.camera.frames_per_second / every,
        "attributes": asdict(tracklet.person.attributes),
    }


def _iso(time: Any) -> str:
    return str(time.isoformat(timespec="milliseconds")).replace("+00:00", "Z")


def save_labels(labels: Image, path: Path) -> None:
    """Write a label map (uint8 (H, W)) as a palette PNG that shows the labels in colours."""
    picture = Pillow.fromarray(labels).convert("L")
    picture.putpalette(_LABEL_COLOURS)
    picture.save(path, optimize=False)
