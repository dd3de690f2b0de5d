"""Arguments -> request messages. Pure functions, but for the reading of frames' files."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError, ResourceExhaustedError
from passerby.names import gallery_name, parse_gallery_name, parse_tracklet_name
from passerby.v1 import gallery_service_pb2, resources_pb2, search_service_pb2, tracklet_service_pb2

from passerby_client._frames import FrameInput, frame, frame_sequence, timestamp

DescriptorInput = resources_pb2.TrackletDescriptor | tuple[Sequence[float] | NDArray[np.float32], str]
"""A descriptor as the server gave it, or its values (D,) and the fingerprint of the bundle that made them."""

LiveFrame = FrameInput | tuple[FrameInput, datetime]
"""A frame, on request with its capture time."""

# A message is more than its frames: room for the header of a gRPC message and for what a proxy may add.
MESSAGE_OVERHEAD_BYTES = 4096
LIST_PAGE_SIZE = 500
_PRECISIONS = {
    "fp32": resources_pb2.DESCRIPTOR_PRECISION_FP32,
    "fp16": resources_pb2.DESCRIPTOR_PRECISION_FP16,
}


def gallery(name: str) -> str:
    """`galleries/ID` of either an id or a name already in that form. Raises InvalidArgumentError."""
    return gallery_name(parse_gallery_name(name) if "/" in name else name)


def gallery_or_all(name: str) -> str:
    """As `gallery`; "-" and "galleries/-" mean all galleries."""
    return "galleries/-" if name in ("-", "galleries/-") else gallery(name)


def tracklet(name: str) -> str:
    """`name` unchanged. Raises InvalidArgumentError unless it is `galleries/GALLERY/tracklets/TRACKLET`."""
    parse_tracklet_name(name, field="tracklet")
    return name


def new_request_id(given: str | None = None) -> str:
    """`given`, or a fresh UUID: one for a whole call, so that each of its attempts names the same write."""
    return given or str(uuid.uuid4())


def create_gallery(
    gallery_id: str, display_name: str, request_id: str | None
) -> gallery_service_pb2.CreateGalleryRequest:
    return gallery_service_pb2.CreateGalleryRequest(
        gallery_id=parse_gallery_name(gallery(gallery_id)),
        gallery=resources_pb2.Gallery(display_name=display_name),
        request_id=new_request_id(request_id),
    )


def precision(name: str) -> resources_pb2.DescriptorPrecision.ValueType:
    """The format of stored descriptors that `fp32` or `fp16` names. Raises InvalidArgumentError."""
    if name not in _PRECISIONS:
        raise InvalidArgumentError.of("descriptor_precision", f"must be fp32 or fp16, not {name!r}")
    return _PRECISIONS[name]


def tracklet_header(
    *,
    camera: str,
    tracklet_id: str = "",
    identity: str = "",
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    labels: Mapping[str, str] | None = None,
    request_id: str | None = None,
) -> tracklet_service_pb2.StreamTrackletRequest.Header:
    """A tracklet that `Client.stream_search` shall store; the arguments are those of `Client.ingest_tracklet`.

    Raises InvalidArgumentError for a time without a time zone.
    """
    described = resources_pb2.Tracklet(camera_id=camera, identity_id=identity, labels=labels or {})
    if start_time is not None:
        described.start_time.CopyFrom(timestamp(start_time, field="start_time"))
    if end_time is not None:
        described.end_time.CopyFrom(timestamp(end_time, field="end_time"))
    return tracklet_service_pb2.StreamTrackletRequest.Header(
        tracklet_id=tracklet_id, tracklet=described, request_id=new_request_id(request_id)
    )


def tracklet_request(
    gallery_id: str,
    frames: Iterable[FrameInput],
    *,
    camera: str,
    tracklet_id: str = "",
    identity: str = "",
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    capture_times: Sequence[datetime] | None = None,
    labels: Mapping[str, str] | None = None,
    request_id: str | None = None,
) -> tracklet_service_pb2.IngestTrackletRequest:
    """One tracklet for `Client.bulk_ingest`; the arguments are those of `Client.ingest_tracklet`.

    Raises:
        NotFoundError: a frame's file cannot be read.
        InvalidArgumentError: no frames, a frame of another kind, a time without a time zone, a malformed gallery name.
    """
    header = tracklet_header(
        camera=camera,
        tracklet_id=tracklet_id,
        identity=identity,
        start_time=start_time,
        end_time=end_time,
        labels=labels,
        request_id=request_id,
    )
    return tracklet_service_pb2.IngestTrackletRequest(
        parent=gallery(gallery_id),
        tracklet_id=tracklet_id,
        tracklet=header.tracklet,
        frames=frame_sequence(frames, capture_times),
        request_id=header.request_id,
    )


def stream_messages(
    request: tracklet_service_pb2.IngestTrackletRequest,
) -> Iterator[tracklet_service_pb2.StreamTrackletRequest]:
    """The same tracklet as `request`, frame by frame: its header, then one message for each frame."""
    header = tracklet_service_pb2.StreamTrackletRequest.Header(
        parent=request.parent,
        tracklet_id=request.tracklet_id,
        tracklet=request.tracklet,
        request_id=request.request_id,
        frame_count=len(request.frames.frames),
    )
    yield tracklet_service_pb2.StreamTrackletRequest(header=header)
    for each in request.frames.frames:
        yield tracklet_service_pb2.StreamTrackletRequest(frame=each)


def fits(size_bytes: int, max_message_bytes: int) -> bool:
    """Whether a message of `size_bytes` passes through a channel that carries `max_message_bytes`."""
    return size_bytes + MESSAGE_OVERHEAD_BYTES <= max_message_bytes


def check_fits(frames: resources_pb2.FrameSequence, max_message_bytes: int) -> resources_pb2.FrameSequence:
    """`frames` unchanged. Raises ResourceExhaustedError when they do not fit into one message."""
    size = frames.ByteSize()
    if fits(size, max_message_bytes):
        return frames
    raise ResourceExhaustedError(
        f"the {len(frames.frames)} frames are {size / 2**20:.1f} MiB, and one message holds "
        f"{max_message_bytes / 2**20:g} MiB: ingest them as a tracklet, which streams, and search by its name; or send "
        "fewer frames; or raise the message limit of both client and server",
        reason="MESSAGE_TOO_LARGE",
    )


def query_frames(frames: Iterable[FrameInput], max_message_bytes: int) -> resources_pb2.FrameSequence:
    """The frames of a query. Raises what `frame_sequence` and `check_fits` raise."""
    return check_fits(frame_sequence(frames), max_message_bytes)


def tracklet_filter(
    *,
    cameras: Iterable[str] = (),
    exclude_cameras: Iterable[str] = (),
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    labels: Mapping[str, str] | None = None,
    identities: Iterable[str] = (),
) -> tracklet_service_pb2.TrackletFilter | None:
    """Which tracklets count; None when nothing is asked for. Raises InvalidArgumentError for a time without a zone."""
    for field, values in (("cameras", cameras), ("exclude_cameras", exclude_cameras), ("identities", identities)):
        if isinstance(values, str):  # would silently become one entry for each letter
            raise InvalidArgumentError.of(field, f"give a list, [{values!r}]")
    made = tracklet_service_pb2.TrackletFilter(
        camera_ids=cameras, exclude_camera_ids=exclude_cameras, labels=labels or {}, identity_ids=identities
    )
    if start_time is not None:
        made.start_time.CopyFrom(timestamp(start_time, field="start_time"))
    if end_time is not None:
        made.end_time.CopyFrom(timestamp(end_time, field="end_time"))
    return made if made.ByteSize() else None


def descriptor(given: DescriptorInput) -> resources_pb2.TrackletDescriptor:
    """A descriptor for a request. Raises InvalidArgumentError unless its values are (D,) and it has a fingerprint."""
    if isinstance(given, resources_pb2.TrackletDescriptor):
        return given
    values, fingerprint = given
    array = np.asarray(values, dtype=np.float32)
    if array.ndim != 1 or not fingerprint:
        raise InvalidArgumentError.of(
            "descriptor", f"give (values of shape (D,), model fingerprint), got values {array.shape}, {fingerprint!r}"
        )
    return resources_pb2.TrackletDescriptor(values=array.tolist(), model_fingerprint=fingerprint)


class SearchOptions(TypedDict, total=False):
    """The options of `Client.search`, which explains them."""

    top_k: int | None
    cameras: Iterable[str]
    exclude_cameras: Iterable[str]
    start_time: datetime | None
    end_time: datetime | None
    labels: Mapping[str, str] | None
    identities: Iterable[str]
    rerank: bool | search_service_pb2.RerankOptions
    group_by_identity: bool
    query_camera: str
    exclude_query_camera: bool
    query_time: tuple[datetime, datetime] | None
    travel_windows: Mapping[str, tuple[timedelta, timedelta]] | None
    false_match_rate: float | None
    thumbnails: bool


_FILTERS = frozenset({"cameras", "exclude_cameras", "start_time", "end_time", "labels", "identities"})


def search_options(gallery_id: str, options: SearchOptions) -> search_service_pb2.SearchTrackletsRequest:
    """A request of a search without its query. Raises InvalidArgumentError."""
    given: Mapping[str, Any] = options
    request = search_service_pb2.SearchTrackletsRequest(
        parent=gallery(gallery_id),
        top_k=options.get("top_k"),
        filter=tracklet_filter(**{name: given[name] for name in _FILTERS & given.keys()}),
        group_by_identity=options.get("group_by_identity", False),
        query_camera_id=options.get("query_camera", ""),
        exclude_query_camera=options.get("exclude_query_camera", False),
        false_match_rate=options.get("false_match_rate"),
        include_thumbnails=options.get("thumbnails", False),
    )
    for camera, (least, most) in (options.get("travel_windows") or {}).items():
        window = request.travel_windows.add(camera_id=camera)
        window.min_time.FromTimedelta(least)
        window.max_time.FromTimedelta(most)
    if (times := options.get("query_time")) is not None:
        request.query_start_time.CopyFrom(timestamp(times[0], field="query_time"))
        request.query_end_time.CopyFrom(timestamp(times[1], field="query_time"))
    rerank = options.get("rerank", False)
    if isinstance(rerank, search_service_pb2.RerankOptions):
        request.rerank.CopyFrom(rerank)
    elif rerank:
        request.rerank.SetInParent()
    return request


def search(
    gallery_id: str,
    *,
    frames: Iterable[FrameInput] | None,
    descriptor_: DescriptorInput | None,
    tracklet_: str | None,
    max_message_bytes: int,
    **options: Unpack[SearchOptions],
) -> search_service_pb2.SearchTrackletsRequest:
    """The request of `Client.search`, which explains the arguments and the errors."""
    if sum(query is not None for query in (frames, descriptor_, tracklet_)) != 1:
        raise InvalidArgumentError.of("query", "give exactly one of frames, descriptor and tracklet")
    request = search_options(gallery_id, options)
    if frames is not None:
        request.frames.CopyFrom(query_frames(frames, max_message_bytes))
    if descriptor_ is not None:
        request.tracklet_descriptor.CopyFrom(descriptor(descriptor_))
    if tracklet_ is not None:
        request.tracklet = tracklet(tracklet_)
    return request


def stream_search_header(
    gallery_id: str,
    *,
    answer_frames: int | None,
    answer_interval: timedelta | None,
    ingest: tracklet_service_pb2.StreamTrackletRequest.Header | None,
    options: SearchOptions,
) -> search_service_pb2.StreamSearchTrackletsRequest:
    """The first message of `Client.stream_search`, which explains the arguments and the errors."""
    header = search_service_pb2.StreamSearchTrackletsRequest.Header(
        search=search_options(gallery_id, options), answer_frames=answer_frames, ingest=ingest
    )
    if answer_interval is not None:
        header.answer_interval.FromTimedelta(answer_interval)
    return search_service_pb2.StreamSearchTrackletsRequest(header=header)


def live_frame(source: LiveFrame) -> search_service_pb2.StreamSearchTrackletsRequest:
    """A further message of `Client.stream_search`. Raises what `frame` raises."""
    made = frame(*source, field="frame") if isinstance(source, tuple) else frame(source, field="frame")
    return search_service_pb2.StreamSearchTrackletsRequest(frame=made)
