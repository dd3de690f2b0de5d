"""What is to be indexed: the tracklets of a data set on disk (formats: `passerby_model.datasets`)."""

from __future__ import annotations

import itertools
from pathlib import Path

from passerby_model.datasets import DISTRACTOR_IDENTITY, JUNK_IDENTITY, Format, Tracklet, read

from passerby_indexer.video import VideoTracklet


def scan(path: Path, format: Format = "auto", *, limit: int | None = None) -> tuple[Tracklet, ...]:
    """Lists the tracklets of the data set at `path`, sorted, at most `limit` of them, without opening an image.

    Raises:
        NotFoundError: nothing is there.
        InvalidArgumentError: nothing in it, another format, or something broken.
        FailedPreconditionError: a Parquet manifest, and pyarrow is not installed.
    """
    return tuple(itertools.islice(read(path, format=format).tracklets, limit))


def known_identity(tracklet: Tracklet | VideoTracklet) -> str:
    """Whom the tracklet shows; empty for MARS's junk and distractors, who are nobody in particular."""
    is_mars = tracklet.tracklet_id.startswith(f"{tracklet.identity}C")
    return "" if is_mars and tracklet.identity in (JUNK_IDENTITY, DISTRACTOR_IDENTITY) else tracklet.identity
