"""Requests as plain values, with validation: every wrong field becomes a violation with its path. `messages` answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray
from passerby import names
from passerby.errors import FieldViolation, InvalidArgumentError
from passerby.v1 import gallery_service_pb2 as gallery_service
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as search_service
from passerby.v1 import tracklet_service_pb2 as tracklet_service

from passerby_server.gallery.types import (
    GalleryOptions,
    NewTracklet,
    Precision,
    Rerank,
    RetentionRule,
    TrackletFilter,
    TravelWindow,
)
from passerby_server.sections import Limits

T = TypeVar("T")

MAX_DISPLAY_NAME = 200
MAX_CAMERA_ID = 128
MAX_IDENTITY_ID = 128
MAX_LABELS = 64
MAX_LABEL_KEY = 63
MAX_LABEL_VALUE = 256
MAX_KEEP_SECONDS = 100 * 366 * 86_400
DEFAULT_PAGE_SIZE = 50
DEFAULT_TOP_K = 10
DEFAULT_RERANK = Rerank()
MAX_TRAVEL = timedelta(days=366)

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Problems:
    """Collects what is wrong with a request, so that the caller learns all of it at once."""

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []
        self._reason = ""

    def add(self, field: str, description: str, *, reason: str = "") -> None:
        """One wrong field; the first `reason` becomes the error's."""
        self._violations.append(FieldViolation(field, description))
        self._reason = self._reason or reason

    def catch(self, function: Callable[..., T], *arguments: object, **options: object) -> T | None:
        """The result of `function`; its InvalidArgumentError is collected."""
        try:
            return function(*arguments, **options)
        except InvalidArgumentError as error:
            self._violations += error.violations
            self._reason = self._reason or error.reason
            return None

    def check(self) -> None:
        """Raises InvalidArgumentError when anything was wrong."""
        if self._violations:
            text = "; ".join(f"{field}: {description}" for field, description in self._violations)
            raise InvalidArgumentError(text, reason=self._reason, violations=self._violations)


def check_request_id(request_id: str, field: str = "request_id", *, required: bool = False) -> str:
    """`request_id` unchanged; raises InvalidArgumentError unless it is a UUID, or empty when not `required`."""
    if not request_id and not required:
        return ""
    if not request_id:
        raise InvalidArgumentError.of(field, "is required here: it names the answer", reason="REQUEST_ID_MISSING")
    if not _UUID.fullmatch(request_id):
        raise InvalidArgumentError.of(field, "is not a UUID", reason="REQUEST_ID_MALFORMED")
    return request_id


def page_size(size: int, limits: Limits) -> int:
    """Entries of a page: 50 when unset, lowered to the limit; raises InvalidArgumentError when negative."""
    if size < 0:
        raise InvalidArgumentError.of("page_size", f"{size} is negative", reason="PAGE_SIZE")
    return min(size or DEFAULT_PAGE_SIZE, limits.max_page_size)


def display_name(gallery: resources.Gallery) -> str:
    """The gallery's display name; raises InvalidArgumentError when it is too long."""
    if len(gallery.display_name) > MAX_DISPLAY_NAME:
        raise InvalidArgumentError.of("gallery.display_name", f"is longer than {MAX_DISPLAY_NAME} characters")
    return gallery.display_name


_PRECISIONS: dict[int, Precision] = {
    resources.DESCRIPTOR_PRECISION_UNSPECIFIED: "fp32",
    resources.DESCRIPTOR_PRECISION_FP32: "fp32",
    resources.DESCRIPTOR_PRECISION_FP16: "fp16",
}


def gallery_options(gallery: resources.Gallery) -> GalleryOptions:
    """What a new gallery is asked to be. Raises InvalidArgumentError."""
    follows = names.parse_gallery_name(gallery.follows, field="gallery.follows") if gallery.follows else ""
    _check_rate("gallery.false_match_rate", gallery.false_match_rate)
    precision = _PRECISIONS.get(gallery.descriptor_precision)
    if precision is None:
        raise InvalidArgumentError.of("gallery.descriptor_precision", f"{gallery.descriptor_precision} is none")
    return GalleryOptions(gallery.index_kind, gallery.false_match_rate or None, follows, gallery.keep_frames, precision)


def gallery_changes(request: gallery_service.UpdateGalleryRequest) -> dict[str, Any]:
    """What an update changes, by name. Raises InvalidArgumentError."""
    changeable = ("display_name", "index_kind", "false_match_rate")
    paths = request.update_mask.paths
    if not paths or not set(paths) <= set(changeable):
        raise InvalidArgumentError.of("update_mask", f"must name some of {', '.join(changeable)}")
    display_name(request.gallery)
    _check_rate("gallery.false_match_rate", request.gallery.false_match_rate)
    return {path: getattr(request.gallery, path) for path in paths}


def _check_rate(field: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise InvalidArgumentError.of(field, f"must be between 0 and 1, not {rate}; 0 is the server's")


def check_identity_id(identity_id: str, field: str = "identity_id") -> str:
    """`identity_id` unchanged; raises InvalidArgumentError when it is too long or holds control characters."""
    problems = Problems()
    _check_text(problems, field, identity_id, MAX_IDENTITY_ID)
    problems.check()
    return identity_id


def new_tracklet(
    tracklet_id: str,
    tracklet: resources.Tracklet,
    capture_times: tuple[datetime, datetime] | None,
    frame_count: int,
    *,
    prefix: str = "",
) -> NewTracklet:
    """What a caller says of a tracklet.

    Args:
        capture_times: of the first and the last frame, for the times that `tracklet` leaves open.
        prefix: path of the message in the request, for example `header.`.

    Raises:
        InvalidArgumentError: with a violation for each wrong field.
    """
    problems, at = Problems(), f"{prefix}tracklet."
    if tracklet_id:
        problems.catch(names.check_tracklet_id, tracklet_id, field=f"{prefix}tracklet_id")
    if not tracklet.camera_id:
        problems.add(f"{at}camera_id", "is required", reason="CAMERA_ID_MISSING")
    _check_text(problems, f"{at}camera_id", tracklet.camera_id, MAX_CAMERA_ID)
    _check_text(problems, f"{at}identity_id", tracklet.identity_id, MAX_IDENTITY_ID)
    _check_labels(problems, f"{at}labels", tracklet.labels)
    start, end = _times(problems, at, tracklet, capture_times)
    problems.check()
    return NewTracklet(
        tracklet_id=tracklet_id,
        camera_id=tracklet.camera_id,
        start_time=start,
        end_time=end,
        identity_id=tracklet.identity_id,
        labels=dict(tracklet.labels),
        frame_count=frame_count,
    )


def capture_times(
    frames: Sequence[resources.Frame], first: int = 0, field: str = "frames.frames"
) -> tuple[datetime, datetime] | None:
    """Earliest and latest capture time of the frames that have one; raises InvalidArgumentError for a wrong one."""
    problems = Problems()
    times = [
        time
        for index, frame in enumerate(frames, start=first)
        if frame.HasField("capture_time")
        and (time := problems.catch(to_datetime, frame.capture_time, f"{field}[{index}].capture_time"))
    ]
    problems.check()
    return (min(times), max(times)) if times else None


def tracklet_filter(filter: tracklet_service.TrackletFilter, limits: Limits) -> TrackletFilter:
    """The filter of a search or a listing; raises InvalidArgumentError with a violation for each wrong field."""
    problems = Problems()
    for field in ("camera_ids", "exclude_camera_ids", "identity_ids", "labels"):
        count = len(getattr(filter, field))
        if count > limits.max_filter_values:
            problems.add(f"filter.{field}", f"names {count} values, more than the allowed {limits.max_filter_values}")
    start = end = None
    if filter.HasField("start_time"):
        start = problems.catch(to_datetime, filter.start_time, "filter.start_time")
    if filter.HasField("end_time"):
        end = problems.catch(to_datetime, filter.end_time, "filter.end_time")
    if start and end and start >= end:
        problems.add("filter.end_time", "must be later than filter.start_time", reason="TIME_RANGE")
    problems.check()
    return TrackletFilter(
        camera_ids=frozenset(filter.camera_ids),
        exclude_camera_ids=frozenset(filter.exclude_camera_ids),
        start_time=start,
        end_time=end,
        labels=dict(filter.labels),
        identity_ids=frozenset(filter.identity_ids),
    )


def top_k(request: search_service.SearchTrackletsRequest, limits: Limits) -> int:
    """Hits to return; raises InvalidArgumentError unless in [1, limits.max_top_k]."""
    value = request.top_k if request.HasField("top_k") else min(DEFAULT_TOP_K, limits.max_top_k)
    if not 1 <= value <= limits.max_top_k:
        raise InvalidArgumentError.of(
            "top_k", f"{value} is not between 1 and {limits.max_top_k}", reason="TOP_K_OUT_OF_RANGE"
        )
    return value


def rerank(request: search_service.SearchTrackletsRequest, hits: int, limits: Limits) -> Rerank | None:
    """The re-ranking asked for, with defaults filled in; raises InvalidArgumentError for a wrong option."""
    if not request.HasField("rerank"):
        return None
    given, default, problems = request.rerank, DEFAULT_RERANK, Problems()
    k1 = given.k1 if given.HasField("k1") else min(default.k1, limits.max_shortlist)
    # A k1 below the default k2 lowers it: asking for a small k1 alone is no mistake.
    k2 = given.k2 if given.HasField("k2") else min(default.k2, max(k1, 1))
    weight = given.original_weight if given.HasField("original_weight") else default.original_weight
    shortlist = max(min(default.shortlist_size, limits.max_shortlist), hits)
    if given.HasField("shortlist_size"):
        shortlist = given.shortlist_size
    if not 1 <= k1 <= limits.max_shortlist:
        problems.add("rerank.k1", f"{k1} is not between 1 and {limits.max_shortlist}")
    if not 1 <= k2 <= max(k1, 1):
        problems.add("rerank.k2", f"{k2} is not between 1 and k1 = {k1}")
    if not 0 <= weight <= 1:  # false for NaN too
        problems.add("rerank.original_weight", f"{weight} is not in [0, 1]")
    if not hits <= shortlist <= limits.max_shortlist:
        problems.add("rerank.shortlist_size", f"{shortlist} is not between top_k = {hits} and {limits.max_shortlist}")
    budget = given.time_budget.ToNanoseconds() / 1e9 if given.HasField("time_budget") else default.budget
    if budget <= 0:
        problems.add("rerank.time_budget", f"{budget} s is not above 0")
    problems.check()
    return Rerank(k1=k1, k2=k2, original_weight=weight, shortlist_size=shortlist, budget=budget)


def query_times(request: search_service.SearchTrackletsRequest) -> tuple[datetime, datetime] | None:
    """When the query was seen, None when unsaid; raises InvalidArgumentError for one time without the other."""
    given = [name for name in ("query_start_time", "query_end_time") if request.HasField(name)]
    if not given:
        return None
    if len(given) == 1:
        raise InvalidArgumentError.of(given[0], "needs query_start_time and query_end_time both", reason="TIME_RANGE")
    start = to_datetime(request.query_start_time, "query_start_time")
    end = to_datetime(request.query_end_time, "query_end_time")
    if start > end:
        raise InvalidArgumentError.of("query_end_time", "is before query_start_time", reason="TIME_RANGE")
    return start, end


def travel_windows(
    request: search_service.SearchTrackletsRequest, times: tuple[datetime, datetime] | None, limits: Limits
) -> tuple[TravelWindow, ...]:
    """The windows about a query seen at `times`; raises InvalidArgumentError with a violation for each wrong field."""
    problems, found, windows = Problems(), list(request.travel_windows), []
    if found and times is None:
        problems.add(
            "travel_windows", "need query_start_time and query_end_time, or a stored tracklet with times as the query",
            reason="QUERY_TIME_MISSING",
        )  # fmt: skip
    if len(found) > limits.max_filter_values:
        problems.add("travel_windows", f"are {len(found)}, more than the allowed {limits.max_filter_values}")
    if len({window.camera_id for window in found}) < len(found):
        problems.add("travel_windows", "name a camera twice")
    for number, window in enumerate(found[: limits.max_filter_values]):
        at = f"travel_windows[{number}]"
        shortest = problems.catch(to_timedelta, window.min_time, f"{at}.min_time")
        longest = problems.catch(to_timedelta, window.max_time, f"{at}.max_time")
        if not window.camera_id:
            problems.add(f"{at}.camera_id", "is required")
        if shortest is None or longest is None:
            continue
        if not timedelta(0) <= shortest <= longest <= MAX_TRAVEL or not window.HasField("max_time"):
            problems.add(f"{at}.max_time", f"needs 0 <= min_time <= max_time <= {MAX_TRAVEL.days} days")
        if times is not None:
            windows.append(TravelWindow(window.camera_id, shortest, longest, *times))
    problems.check()
    return tuple(windows)


def descriptor(message: resources.TrackletDescriptor, field: str = "tracklet_descriptor") -> NDArray[np.float32]:
    """float32 (D,); raises InvalidArgumentError without values or a fingerprint, or when a value is not finite."""
    problems = Problems()
    values = np.array(message.values, dtype=np.float32)
    if not message.model_fingerprint:
        problems.add(
            f"{field}.model_fingerprint",
            "is required: descriptors of two models are never compared",
            reason="FINGERPRINT_MISSING",
        )
    if not len(values):
        problems.add(f"{field}.values", "is empty")
    elif not np.isfinite(values).all():
        problems.add(f"{field}.values", "holds a value that is not finite")
    problems.check()
    return values


def to_datetime(timestamp: Timestamp, field: str) -> datetime:
    """Timezone-aware UTC, microseconds; raises InvalidArgumentError outside the years 1 to 9999."""
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgumentError.of(field, f"is no valid time: {error}", reason="TIME_MALFORMED") from error


def to_timedelta(duration: Duration, field: str) -> timedelta:
    """Microseconds; raises InvalidArgumentError for more than a timedelta holds."""
    try:
        return duration.ToTimedelta()
    except OverflowError as error:
        raise InvalidArgumentError.of(
            field,
            "is too long, or its seconds and nanos differ in sign: give a shorter one, of one sign",
            reason="DURATION_MALFORMED",
        ) from error


def retention_rules(
    rules: Sequence[gallery_service.RetentionRule], limits: Limits, field: str = "rules"
) -> list[RetentionRule]:
    """The rules of a request; raises InvalidArgumentError for a camera named twice or a wrong duration."""
    problems = Problems()
    if len(rules) > limits.max_filter_values:
        problems.add(field, f"are {len(rules)}, more than the allowed {limits.max_filter_values}")
    cameras: set[str] = set()
    found: list[RetentionRule] = []
    for index, rule in enumerate(rules):
        at = f"{field}[{index}]"
        _check_text(problems, f"{at}.camera_id", rule.camera_id, MAX_CAMERA_ID)
        if rule.camera_id in cameras:
            problems.add(f"{at}.camera_id", "has a rule already")
        cameras.add(rule.camera_id)
        keep = problems.catch(to_timedelta, rule.keep, f"{at}.keep")
        if keep is not None and not 1 <= keep.total_seconds() <= MAX_KEEP_SECONDS:
            problems.add(f"{at}.keep", f"must be from one second to {MAX_KEEP_SECONDS:,}, not {rule.keep.seconds:,}")
        elif keep is not None:
            found.append(RetentionRule(rule.camera_id, keep))
    problems.check()
    return found


def _check_text(problems: Problems, field: str, text: str, longest: int) -> None:
    if len(text) > longest:
        problems.add(field, f"is longer than {longest} characters")
    elif _CONTROL.search(text):
        problems.add(field, "holds control characters")


def _check_labels(problems: Problems, field: str, labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:
        problems.add(field, f"{len(labels)} labels are more than the allowed {MAX_LABELS}")
        return
    for key, value in labels.items():
        if not 1 <= len(key) <= MAX_LABEL_KEY:
            problems.add(field, f"the key {key[:MAX_LABEL_KEY]!r} does not have 1 to {MAX_LABEL_KEY} characters")
        elif len(value) > MAX_LABEL_VALUE:
            problems.add(f"{field}[{key!r}]", f"is longer than {MAX_LABEL_VALUE} characters")


def _times(
    problems: Problems, at: str, tracklet: resources.Tracklet, captured: tuple[datetime, datetime] | None
) -> tuple[datetime | None, datetime | None]:
    start, end = captured or (None, None)
    if tracklet.HasField("start_time"):
        start = problems.catch(to_datetime, tracklet.start_time, f"{at}start_time")
    if tracklet.HasField("end_time"):
        end = problems.catch(to_datetime, tracklet.end_time, f"{at}end_time")
    if start and end and end < start:
        problems.add(f"{at}end_time", "is before start_time", reason="TIME_RANGE")
    elif start and not end and not tracklet.HasField("end_time"):
        problems.add(f"{at}end_time", "is required with start_time, unless the frames have capture times")
    elif end and not start and not tracklet.HasField("start_time"):
        problems.add(f"{at}start_time", "is required with end_time, unless the frames have capture times")
    return start, end
