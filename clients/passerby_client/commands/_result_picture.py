"""From a search answer to a picture: fetches thumbnails and masks, judges the hits, and has it all drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray
from passerby.errors import NotFoundError
from passerby.v1.model_service_pb2 import ExplainTrackletResponse
from passerby.v1.resources_pb2 import Metric, Tracklet
from passerby.v1.search_service_pb2 import SearchHit, SearchTrackletsResponse
from PIL import Image

from passerby_client import Client
from passerby_client._requests import SearchOptions
from passerby_client.commands.common import counted, last_part, time_span, zone_of
from passerby_client.picture import Hit, Shot, Verdict, draw

# More would make a picture that no one looks at; the table has them all.
MAX_DRAWN = 30
_METRIC_WORDS = {Metric.METRIC_SQUARED_EUCLIDEAN: "squared Euclidean distance", Metric.METRIC_COSINE: "cosine distance"}


def save_picture(
    path: Path,
    client: Client,
    gallery: str,
    answer: SearchTrackletsResponse,
    *,
    frames: Sequence[Path],
    tracklet: str | None,
    identity: str,
    camera: str,
    overlay: bool,
    options: SearchOptions,
) -> None:
    """Draws the answer to a search into `path`; its suffix chooses the format.

    `frames` are the query's, or `tracklet` names it; `options` are those of the search. Raises PasserbyError, NotFoundError also when `path` cannot be
    written.
    """
    overlay = overlay and _has_masks(client)
    if tracklet is not None:
        stored = client.get_tracklet(tracklet, thumbnail=True)
        query = [Shot(stored.thumbnail)]
        identity = identity or stored.tracklet.identity_id
        caption = _describe(stored.tracklet)
    else:
        query = [Shot(frame.read_bytes()) for frame in frames]
        seen = ", ".join([counted(len(frames), "frame")] + [f"camera {camera}"] * bool(camera))
        caption = (identity or "identity unknown", seen, str(frames[0].parent))
    if overlay:
        query = _explained(client, query)
    drawn = answer.hits[:MAX_DRAWN]
    hits = [_hit(client, rank, hit, identity, answer, overlay) for rank, hit in enumerate(drawn, start=1)]
    measure = "re-ranked distance" if answer.reranked else _METRIC_WORDS.get(answer.metric, "distance")
    zone = zone_of(time for hit in drawn for time in (hit.tracklet.start_time, hit.tracklet.end_time))
    sheet = draw(
        query,
        hits,
        title=f"Nearest {len(hits)} in {last_part(gallery)}" if hits else f"Nobody found in {last_part(gallery)}",
        searched=how_searched(options, answer),
        subtitle=f"{measure}, lower is nearer    times in {zone}    model {answer.model_fingerprint[:12]}",
        caption=caption,
        query_known=bool(identity),
    )
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise NotFoundError(f"{path}: the picture cannot be written: {error}") from error


def _has_masks(client: Client) -> bool:
    if client.model_info().mask_blocks:
        return True
    typer.echo("the server's model has no masks to overlay", err=True)
    return False


def _hit(
    client: Client, rank: int, hit: SearchHit, identity: str, answer: SearchTrackletsResponse, overlay: bool
) -> Hit:
    shot = Shot(hit.thumbnail)
    if overlay:
        (shot,) = _explained(client, [shot])
    reranked = answer.reranked and hit.HasField("reranked_distance")
    return Hit(
        shot,
        rank,
        f"{hit.reranked_distance if reranked else hit.distance:.3f}",
        judge(identity, hit.tracklet.identity_id),
        _describe(hit.tracklet),
    )


def judge(query: str, hit: str) -> Verdict:
    """Whether a hit is right; unknown where either identity is."""
    if not query or not hit:
        return "unknown"
    return "same" if query == hit else "other"


def how_searched(options: SearchOptions, answer: SearchTrackletsResponse) -> str:
    """What a search was told, in words: grouping, re-ranking, filters."""
    parts = ["one hit for each identity"] * options.get("group_by_identity", False)
    if options.get("rerank"):
        parts.append("re-ranked" if answer.reranked else "not re-ranked, for want of time")
    for word, values in (
        ("only camera", options.get("cameras", ())),
        ("not camera", options.get("exclude_cameras", ())),
        ("only identity", options.get("identities", ())),
        ("labels", [f"{key}={value}" for key, value in (options.get("labels") or {}).items()]),
        ("travel times for camera", options.get("travel_windows") or ()),
    ):
        parts += [f"{word} {', '.join(values)}"] * bool(values)
    parts += ["not the query's camera"] * options.get("exclude_query_camera", False)
    for word, time in (("from", options.get("start_time")), ("before", options.get("end_time"))):
        parts += [f"{word} {time.astimezone():%Y-%m-%d %H:%M:%S}"] if time else []
    return "; ".join(parts) or "every tracklet by its distance: not grouped, not re-ranked, no filter"


def check_writable(path: Path) -> None:
    """Raises NotFoundError when no picture can be written to `path`; better known before the search than after it."""
    if not path.parent.is_dir():
        raise NotFoundError(f"{path}: the picture cannot be written: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK) or path.is_dir():
        raise NotFoundError(f"{path}: the picture cannot be written: it is a folder, or may not be written")
    if path.suffix.lower() not in Image.registered_extensions():
        raise NotFoundError(f"{path}: the picture cannot be written: name it .png or .jpg")


def _describe(tracklet: Tracklet) -> tuple[str, ...]:
    start, dash, end = time_span(tracklet.start_time, tracklet.end_time).partition(" - ")
    times = [text for text in (start or "at an unknown time", dash.lstrip() + end) if text]
    return (
        tracklet.identity_id or "identity unknown",
        f"camera {tracklet.camera_id}",
        *times,
        last_part(tracklet.name),
    )


def _explained(client: Client, shots: Sequence[Shot]) -> list[Shot]:
    answer = client.explain([shot.image for shot in shots])
    return [Shot(shot.image, masks_of(answer, number)) for number, shot in enumerate(shots)]


def masks_of(answer: ExplainTrackletResponse, frame: int) -> dict[int, NDArray[np.float32]]:
    """The masks of frame number `frame`, by CNN block: float32 (height, width), values in [0, 1]."""
    return {
        mask.block: np.array(mask.values, dtype=np.float32).reshape(mask.height, mask.width)
        for mask in answer.masks
        if mask.frame_index == frame
    }
