"""From a search answer to a picture: fetches thumbnails and masks, judges the hits, and has it all drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray
from passerby.errors import NotFoundError
from passerby.v1.model_service_pb2 import ExplainTrackletResponse
from passerby.v1.resources_pb2 import Metric, Tracklet
from passerby.v1.search_service_pb2 import SearchHit, SearchTrackletsResponse

from passerby_client import Client
from passerby_client.commands.common import last_part, time_span
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
) -> None:
    """Draws the answer to a search into `path`; its suffix chooses the format.

    `frames` are the query's, or `tracklet` names it. Raises PasserbyError, NotFoundError also when `path` cannot be
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
        seen = ", ".join([f"{len(frames)} frames"] + [f"camera {camera}"] * bool(camera))
        caption = (identity or "identity unknown", seen, str(frames[0].parent))
    if overlay:
        query = _explained(client, query)
    drawn = answer.hits[:MAX_DRAWN]
    hits = [_hit(client, rank, hit, identity, answer, overlay) for rank, hit in enumerate(drawn, start=1)]
    measure = "re-ranked distance" if answer.reranked else _METRIC_WORDS.get(answer.metric, "distance")
    sheet = draw(
        query,
        hits,
        title=f"Nearest {len(hits)} in {last_part(gallery)}" if hits else f"Nobody found in {last_part(gallery)}",
        subtitle=f"{measure}, lower is nearer    model {answer.model_fingerprint[:12]}",
        caption=caption,
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


def _describe(tracklet: Tracklet) -> tuple[str, ...]:
    seen = time_span(tracklet.start_time, tracklet.end_time)
    day, _, hours = seen.partition(" ")
    when = f"{day} {hours[:8]}" if seen else last_part(tracklet.name)
    return (tracklet.identity_id or "identity unknown", f"camera {tracklet.camera_id}", when)


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
