"""A gallery filled anew with the model that is served now, from the data sets that it came from, or from kept frames.

    GALLERY (old model) --ids--> which tracklets of those --index--> GALLERY-next --replace--> GALLERY (new model)
                                                                                        the old one: GALLERY-before

The old gallery answers until the last step, which is one transaction of the server. Only tracklets that it still holds
are indexed: who was erased from it is not stored again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from passerby.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    PasserbyError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    from_status,
)
from passerby.v1 import gallery_service_pb2, resources_pb2, tracklet_service_pb2
from passerby_client import Client
from passerby_model.datasets import Tracklet

from passerby_indexer.bulk import Failure, IndexReport, index, stored_id

NEXT, BEFORE = "next", "before"


@dataclass(frozen=True, slots=True)
class Reindexed:
    """What became of a reindex.

    report: of the indexing. gone: tracklets of the data sets that the gallery does not hold (any more), left out. missing:
    names of the gallery's tracklets that the new one lacks. replaced: the server's answer; None when it did not come
    to that.
    """

    report: IndexReport
    gone: int
    missing: tuple[str, ...]
    replaced: gallery_service_pb2.ReplaceGalleryResponse | None


def reindex(
    client: Client,
    gallery_id: str,
    found: Sequence[Tracklet],
    *,
    kept_frames: bool = False,
    camera_prefix: str = "",
    journal: Path | None = None,
    allow_missing: bool = False,
    fill_only: bool = False,
    keep_as: str = "",
    on_progress: Callable[[IndexReport], None] | None = None,
) -> Reindexed:
    """Fills `GALLERY-next` and puts it in the gallery's place. Repeating it goes on where it was stopped.

    Args:
        found: the tracklets of the data sets that the gallery was filled from.
        kept_frames: what is in none of them is stored again from the frames that the server kept.
        camera_prefix: as given then.
        allow_missing: replace also when tracklets of the gallery are in none of them: they stay in the old one.
        fill_only: do not replace.
        keep_as: what the old gallery is called then; by default `GALLERY-before`.
        journal, on_progress: see `bulk.index`.

    Raises:
        FailedPreconditionError: the gallery is of the served model already (SAME_MODEL), or `GALLERY-next` is there for
            something else (NOT_A_FOLLOWER). AlreadyExistsError: `keep_as` is another gallery's.
        NotFoundError: no such gallery.
    """
    gallery = client.get_gallery(gallery_id)
    new = _follower(client, gallery)
    kept = {tracklet.name.rpartition("/")[2] for tracklet in client.list_tracklets(gallery.name)}
    wanted = [tracklet for tracklet in found if stored_id(tracklet, camera_prefix) in kept]
    report = index(
        client,
        new.name,
        wanted,
        journal=journal,
        camera_prefix=camera_prefix,
        on_progress=on_progress,
    )
    if kept_frames:
        _from_kept_frames(client, new, _missing(client, gallery, new), report)
    missing = _missing(client, gallery, new)
    replaced = None
    if not fill_only and (allow_missing or not missing):
        replaced = client.replace_gallery(
            gallery.name, new.name, keep_as=keep_as or f"{_id(gallery)}-{BEFORE}", allow_missing=allow_missing
        )
    return Reindexed(report, len(found) - len(wanted), missing, replaced)


def _missing(client: Client, gallery: resources_pb2.Gallery, new: resources_pb2.Gallery) -> tuple[str, ...]:
    """Names of the tracklets that only the old gallery holds, as it is now."""
    held = {tracklet.name.rpartition("/")[2] for tracklet in client.list_tracklets(new.name)}
    everyone = (tracklet.name for tracklet in client.list_tracklets(gallery.name))
    return tuple(sorted(name for name in everyone if name.rpartition("/")[2] not in held))


def _from_kept_frames(client: Client, new: resources_pb2.Gallery, names: Sequence[str], report: IndexReport) -> None:
    """Stores tracklets of the old gallery in the new one, as far as their frames were kept, and adds to the report."""
    sent: dict[str, str] = {}

    def requests() -> Iterator[tracklet_service_pb2.IngestTrackletRequest]:
        for name in names:
            try:
                found = client.get_tracklet(name, frames=True)
            except NotFoundError:  # erased meanwhile
                continue
            except (UnavailableError, UnauthenticatedError, PermissionDeniedError):
                raise
            except (
                PasserbyError
            ) as error:  # of this one alone: a frame is damaged, or they are too large for one answer
                report.failed.append(Failure(name, error.message))
                continue
            if found.frames.frames:
                request = tracklet_service_pb2.IngestTrackletRequest(
                    parent=new.name,
                    tracklet_id=name.rpartition("/")[2],
                    tracklet=found.tracklet,
                    frames=found.frames,
                    request_id=str(uuid.uuid4()),
                )
                sent[request.request_id] = name
                yield request

    for result in client.bulk_ingest(requests()):
        name = sent.pop(result.request_id)
        if result.HasField("tracklet"):
            report.stored += 1
            report.frames += result.tracklet.frame_count
        else:
            report.failed.append(Failure(name, from_status(result.status).message))


def _follower(client: Client, gallery: resources_pb2.Gallery) -> resources_pb2.Gallery:
    """`GALLERY-next`, new or from a run before."""
    served = client.model_info().model_fingerprint
    if gallery.model_fingerprint == served:
        raise FailedPreconditionError(
            f"{gallery.name} is of the model that is served now ({served[:12]}): serve the new model's bundle, then reindex",
            reason="SAME_MODEL",
        )
    name = f"{_id(gallery)}-{NEXT}"
    try:
        return client.create_gallery(
            name,
            display_name=gallery.display_name,
            follows=gallery.name,
            keep_frames=gallery.keep_frames,
            descriptor_precision="fp16"
            if gallery.descriptor_precision == resources_pb2.DESCRIPTOR_PRECISION_FP16
            else "fp32",
        )
    except AlreadyExistsError:
        found = client.get_gallery(name)
    if found.follows != gallery.name or found.model_fingerprint != served:
        raise FailedPreconditionError(
            f"{found.name} exists, and is not what this model's reindex of {gallery.name} began: delete it first",
            reason="NOT_A_FOLLOWER",
        )
    return found


def _id(gallery: resources_pb2.Gallery) -> str:
    return gallery.name.rpartition("/")[2]
