"""A video and its tracks -> tracklets: crops of each person, one track after the other as they end.

    frames in order --boxes of the frame--> crops, JPEG --the track's last frame--> tracklet

The video is read once, and only frames with a box that is wanted are decoded. Kept in memory are the encoded crops of the
tracks that are on. OpenCV decodes (the `video` extra).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passerby.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

from passerby_indexer.tracks import Box, Track, read_tracks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

JPEG_QUALITY = 95
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@dataclass(frozen=True, slots=True)
class Crop:
    """A person in one frame. place: `walk.mp4#17`. image: JPEG; empty when there is none, for the reason `problem`."""

    place: str
    image: bytes
    problem: str = ""


@dataclass(frozen=True, slots=True)
class VideoTracklet:
    """A tracklet of a video; the names are those of `passerby_model.datasets.Tracklet`.

    key: unique within the video. source: unique on this machine. frames: none of one that was not asked for.
    """

    camera: str
    tracklet_id: str
    key: str
    source: str
    frames: tuple[Crop, ...]
    start_time: datetime | None
    end_time: datetime | None
    identity: str = ""


class TrackedVideo:
    """A video file, or a folder of its frames in order of their names, and the tracks in it.

    Args:
        path: the video.
        tracks: the tracker's output, see `tracks`.
        camera: which camera made it.
        start: time of the first frame, with a time zone; None when unknown.
        rate: frames a second; None takes the video's own, and a folder of frames has none.

    Raises:
        NotFoundError: video or tracks cannot be read.
        InvalidArgumentError: tracks as `read_tracks`, a start without a time zone, or a rate that is missing or not above 0.
        FailedPreconditionError: OpenCV is not installed.
    """

    def __init__(
        self, path: Path, tracks: Path, *, camera: str, start: datetime | None = None, rate: float | None = None
    ) -> None:
        _opencv()
        if not path.exists():
            raise NotFoundError(f"{path}: no such video")
        if not camera:
            raise InvalidArgumentError.of("camera", "is empty; say which camera made the video")
        if start is not None and start.utcoffset() is None:
            raise InvalidArgumentError.of("start", f"{start.isoformat()} has no time zone; add one, for example Z")
        self.path, self.tracks = path, read_tracks(tracks)
        self._camera = camera
        self._start = start
        self._rate = rate if rate is not None or start is None else _rate_of(path)
        if self._rate is not None and not self._rate > 0:
            raise InvalidArgumentError.of("rate", f"{self._rate} frames a second is not above 0")

    def tracklets(self, left_out: Callable[[str], bool], *, limit: int | None = None) -> Iterator[VideoTracklet]:
        """The tracklets in the order in which they end, at most `limit`; those whose source is `left_out` without frames.

        Raises InvalidArgumentError when the video cannot be decoded at all.
        """
        tracks = self.tracks[:limit]
        wanted: list[Track] = []
        for track in tracks:
            if left_out(self._source(track)):
                yield self._tracklet(track, ())
            else:
                wanted.append(track)
        boxes: dict[int, list[tuple[Track, Box]]] = {}
        for track in wanted:
            for box in track.boxes:
                boxes.setdefault(box.frame, []).append((track, box))
        crops: dict[str, list[Crop]] = {track.name: [] for track in wanted}
        for number, picture in _frames(self.path, boxes):
            for track, box in boxes[number]:
                crops[track.name].append(_crop(f"{self.path}#{number}", picture, box))
                if box is track.boxes[-1]:
                    yield self._tracklet(track, tuple(crops.pop(track.name)))

    def _tracklet(self, track: Track, crops: tuple[Crop, ...]) -> VideoTracklet:
        start, end = (self._time(track.boxes[place].frame) for place in (0, -1))
        # Cameras write files of the same name every day.
        began = f"-{self._start.astimezone(UTC):%Y%m%dT%H%M%SZ}" if self._start else ""
        return VideoTracklet(
            camera=self._camera,
            tracklet_id=f"{self.path.stem}{began}-{track.name}",
            key=f"{self.path.name}#{track.name}",
            source=self._source(track),
            frames=crops,
            start_time=start,
            end_time=end,
        )

    def _source(self, track: Track) -> str:
        return f"{self.path.resolve()}::{self._camera}::{track.name}"

    def _time(self, frame: int) -> datetime | None:
        if self._start is None or self._rate is None:
            return None
        return self._start + timedelta(seconds=(frame - 1) / self._rate)


def _crop(place: str, picture: Picture | None, box: Box) -> Crop:
    """The part of `picture` (BGR) inside `box`, as far as there is one."""
    if picture is None:
        return Crop(place, b"", "the frame cannot be decoded, or the video ends before it")
    height, width = picture.shape[:2]
    left, right = (min(max(round(x), 0), width) for x in (box.left, box.left + box.width))
    top, bottom = (min(max(round(y), 0), height) for y in (box.top, box.top + box.height))
    if left >= right or top >= bottom:
        return Crop(place, b"", f"the box lies outside of the {width} x {height} picture")
    cv2 = _opencv()
    done, encoded = cv2.imencode(".jpg", picture[top:bottom, left:right], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return Crop(place, encoded.tobytes() if done else b"", "" if done else "OpenCV cannot encode it")


def _frames(path: Path, wanted: Collection[int] | Mapping[int, Any]) -> Iterator[tuple[int, Picture | None]]:
    """The wanted frames (from 1) in order, uint8 (h, w, 3) BGR; None for one that cannot be decoded or is not there."""
    read = _folder_frames if path.is_dir() else _file_frames
    left = sorted(wanted, reverse=True)
    if left:
        for number, picture in read(path, frozenset(left)):
            left.pop()
            yield number, picture
    yield from ((number, None) for number in reversed(left))


def _file_frames(path: Path, wanted: frozenset[int]) -> Iterator[tuple[int, Picture | None]]:
    capture = _open(path)
    try:
        for number in range(1, max(wanted) + 1):
            if not capture.grab():
                return
            if number in wanted:
                done, picture = capture.retrieve()
                yield number, picture if done else None
    finally:
        capture.release()


def _folder_frames(path: Path, wanted: frozenset[int]) -> Iterator[tuple[int, Picture | None]]:
    images = sorted(image for image in path.iterdir() if image.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise InvalidArgumentError(f"{path}: holds no images; a video is a file, or a folder of its frames")
    for number, image in enumerate(images, start=1):
        if number in wanted:
            yield number, _opencv().imread(str(image), _opencv().IMREAD_COLOR)


def _rate_of(path: Path) -> float:
    """Frames a second of a video file. Raises InvalidArgumentError when nobody knows."""
    rate = 0.0
    if not path.is_dir():
        capture = _open(path)
        rate = float(capture.get(_opencv().CAP_PROP_FPS))
        capture.release()
    if not rate > 0:
        raise InvalidArgumentError.of("rate", f"{path} does not say how many frames a second it has; give them")
    return rate


def _open(path: Path) -> Any:
    capture = _opencv().VideoCapture(str(path))
    if not capture.isOpened():
        capture.release()
        raise InvalidArgumentError(f"{path}: no video that OpenCV can read")
    return capture


def _opencv() -> Any:
    """OpenCV, which the base install does without. Raises FailedPreconditionError."""
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            "videos need the video extra: pip install 'passerby[video]' (no package 'cv2')", reason="EXTRA_MISSING"
        ) from error
    return cv2
