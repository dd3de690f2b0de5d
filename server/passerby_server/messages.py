"""Plain values as the protocol buffers of answers; `convert` reads requests."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from passerby import names
from passerby.v1 import gallery_service_pb2 as gallery_service
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as search_service
from passerby.v1 import tracklet_service_pb2 as tracklet_service

from passerby_server.decision import Thresholds
from passerby_server.gallery.types import (
    AuditEntry,
    GalleryRecord,
    GalleryStats,
    Hit,
    IdentityChange,
    Receipt,
    RetentionRule,
    TrackletRecord,
)

METRICS = {
    "squared_euclidean": resources.METRIC_SQUARED_EUCLIDEAN,
    "cosine": resources.METRIC_COSINE,
}


def to_timestamp(time: datetime) -> Timestamp:
    """The time as protocol buffer."""
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def gallery_message(record: GalleryRecord) -> resources.Gallery:
    """A stored gallery as the API shows it."""
    return resources.Gallery(
        name=names.gallery_name(record.gallery_id),
        display_name=record.display_name,
        create_time=to_timestamp(record.create_time),
        model_fingerprint=record.space.fingerprint,
        metric=METRICS[record.space.metric],
        descriptor_dim=record.space.descriptor_dim,
        index_kind=record.options.index_kind,
        false_match_rate=record.options.false_match_rate or 0.0,
        follows=names.gallery_name(record.options.follows) if record.options.follows else "",
        keep_frames=record.options.keep_frames,
        descriptor_precision=resources.DescriptorPrecision.Value(
            f"DESCRIPTOR_PRECISION_{record.options.descriptor_precision.upper()}"
        ),
    )


def tracklet_message(record: TrackletRecord) -> resources.Tracklet:
    """A stored tracklet as the API shows it."""
    return resources.Tracklet(
        name=names.tracklet_name(record.gallery_id, record.tracklet_id),
        camera_id=record.camera_id,
        start_time=to_timestamp(record.start_time) if record.start_time else None,
        end_time=to_timestamp(record.end_time) if record.end_time else None,
        identity_id=record.identity_id,
        frame_count=record.frame_count,
        create_time=to_timestamp(record.create_time),
        labels=record.labels,
    )


def hit_message(hit: Hit, thresholds: Thresholds | None = None) -> search_service.SearchHit:
    """One hit as the API shows it; with the decision about it where the model is calibrated."""
    return search_service.SearchHit(
        tracklet=tracklet_message(hit.tracklet),
        distance=hit.distance,
        reranked_distance=hit.reranked_distance,
        decision=thresholds.decide(hit.distance) if thresholds else search_service.DECISION_UNSPECIFIED,
        siblings=[tracklet_message(sibling) for sibling in hit.siblings],
        thumbnail=hit.thumbnail,
    )


def receipt_message(receipt: Receipt, only: frozenset[str] | None) -> tracklet_service.ErasureReceipt:
    """What an erasure did, as the API shows it to who may see the galleries in `only` (ids), None for all."""
    due = receipt.rewrite_due_time
    left_in = [one for one in receipt.left_in if only is None or one in only]
    left = [f"{names.gallery_name(one)} holds the same people" for one in left_in]
    if hidden := len(receipt.left_in) - len(left_in):
        left.append(f"galleries that you may not use, {hidden} in number, hold the same people")
    return tracklet_service.ErasureReceipt(
        erase_time=to_timestamp(receipt.erase_time),
        tracklets=[
            name for name in receipt.tracklet_names if only is None or names.parse_tracklet_name(name)[0] in only
        ],
        rewritten_files=receipt.rewritten_files,
        unreachable_copies=[*left, *receipt.unreachable_copies],
        subject_digest=receipt.subject_digest,
        rewrite_due_time=to_timestamp(due) if due else None,
    )


def change_message(change: IdentityChange) -> tracklet_service.IdentityChange:
    """A correction as the API shows it."""
    return tracklet_service.IdentityChange(change_id=change.change_id, tracklet_count=change.tracklet_count)


def retention_message(rule: RetentionRule) -> gallery_service.RetentionRule:
    """A retention rule as the API shows it."""
    message = gallery_service.RetentionRule(camera_id=rule.camera_id)
    message.keep.FromTimedelta(rule.keep)
    return message


def audit_message(entry: AuditEntry) -> gallery_service.AuditEntry:
    """A recorded change as the API shows it."""
    return gallery_service.AuditEntry(
        time=to_timestamp(entry.time), action=entry.action, tracklet_id=entry.tracklet_id, detail=entry.detail
    )


def stats_message(stats: GalleryStats) -> gallery_service.GetGalleryStatsResponse:
    """Counts as the API shows them."""
    return gallery_service.GetGalleryStatsResponse(
        tracklet_count=stats.tracklet_count,
        identity_count=stats.identity_count,
        camera_count=stats.camera_count,
        index_size_bytes=stats.index_size_bytes,
        frame_count=stats.frame_count,
        index_kind=stats.index_kind,
        index_lag=stats.index_lag,
        audited_query_count=stats.audited_queries,
        recall=stats.recall,
    )
