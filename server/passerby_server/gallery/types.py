"""What goes into and comes out of a gallery. Plain values: no protocol buffers, no SQL, no FAISS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Metric = Literal["squared_euclidean", "cosine"]
Precision = Literal["fp32", "fp16"]
T = TypeVar("T")

MAX_SIBLINGS = 10
"""Further tracklets of an identity in one hit at most; the others are found with a filter on the identity."""


@dataclass(frozen=True, slots=True)
class ModelSpace:
    """The space of one model's descriptors: nothing of another fingerprint is ever compared with it."""

    fingerprint: str
    descriptor_dim: int
    metric: Metric


@dataclass(frozen=True, slots=True)
class GalleryOptions:
    """What an operator chooses for a gallery.

    `index_kind` (see `kinds`) is empty for the server's; `false_match_rate` in (0, 1) is that of decisions where a
    search names none. A gallery that `follows` another (its id) is to take its place, or was there before: whatever
    is erased from the other is erased from it, too.
    """

    index_kind: str = ""
    false_match_rate: float | None = None
    follows: str = ""
    keep_frames: bool = False
    """Whether frames of its tracklets are kept, to fill it anew from."""
    descriptor_precision: Precision = "fp32"
    """Format of the stored descriptors, by which the gallery ranks; it never changes."""


NO_OPTIONS = GalleryOptions()


@dataclass(frozen=True, slots=True)
class GalleryRecord:
    """A stored gallery."""

    gallery_id: str
    display_name: str
    space: ModelSpace
    create_time: datetime
    options: GalleryOptions = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class NewTracklet:
    """What a caller says of a tracklet. Times are timezone-aware UTC, both or neither, start <= end."""

    tracklet_id: str
    """Chosen by the gallery when empty."""
    camera_id: str
    start_time: datetime | None = None
    end_time: datetime | None = None
    identity_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    frame_count: int = 0


@dataclass(frozen=True, slots=True)
class TrackletRecord:
    """A stored tracklet. `create_time` is when it became durable."""

    gallery_id: str
    tracklet_id: str
    camera_id: str
    start_time: datetime | None
    end_time: datetime | None
    identity_id: str
    labels: Mapping[str, str]
    frame_count: int
    create_time: datetime


@dataclass(frozen=True, slots=True)
class TravelWindow:
    """Only tracklets of the camera whose time from the query's, which lasts from `start_time` to `end_time`, is from
    `shortest` to `longest`; two that overlap are 0 apart, one without times never passes. Other cameras all pass."""

    camera_id: str
    shortest: timedelta
    longest: timedelta
    start_time: datetime
    end_time: datetime


@dataclass(frozen=True, slots=True)
class TrackletFilter:
    """Which tracklets count. Empty fields do not restrict; set ones all apply.

    Time: a tracklet passes when it ends at or after `start_time` and starts before `end_time`; one without times
    never passes a time restriction.
    """

    camera_ids: frozenset[str] = frozenset()
    exclude_camera_ids: frozenset[str] = frozenset()
    start_time: datetime | None = None
    end_time: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    identity_ids: frozenset[str] = frozenset()
    travel: tuple[TravelWindow, ...] = ()
    """At most one for each camera."""


@dataclass(frozen=True, slots=True)
class Rerank:
    """k-reciprocal re-ranking (arXiv 1701.08398) of the nearest `shortlist_size` candidates, or none at all if that
    would take longer than `budget` seconds: then no hit has a re-ranked distance."""

    k1: int = 20
    k2: int = 6
    original_weight: float = 0.3
    shortlist_size: int = 200
    budget: float = 1.0


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """One search: `descriptor` float32 (D,) of `fingerprint`, `top_k` >= 1 hits (identities when grouped)."""

    descriptor: NDArray[np.float32]
    fingerprint: str
    top_k: int
    filter: TrackletFilter = field(default_factory=TrackletFilter)
    rerank: Rerank | None = None
    group_by_identity: bool = False
    exclude_tracklet_id: str = ""
    include_thumbnails: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer: distances to the query, lower is nearer; `siblings` only when grouped, the nearest MAX_SIBLINGS."""

    tracklet: TrackletRecord
    distance: float
    reranked_distance: float | None = None
    siblings: tuple[TrackletRecord, ...] = ()
    thumbnail: bytes = b""


@dataclass(frozen=True, slots=True)
class GalleryStats:
    """Counts over a gallery, and its index.

    `index_size_bytes` is what the index holds in memory, `index_kind` the kind that answers now, `index_lag` how many
    stored tracklets it lacks: none, unless it has failed and is to be rebuilt. `recall` in [0, 1] is what the audit
    found since the index was built, over `audited_queries` searches; None before the first, and for an exact index.
    """

    tracklet_count: int
    identity_count: int
    camera_count: int
    frame_count: int
    index_size_bytes: int
    index_kind: str = "exact"
    index_lag: int = 0
    audited_queries: int = 0
    recall: float | None = None


@dataclass(frozen=True, slots=True)
class GalleryFigures:
    """What is watched of a gallery. `indexed` of its `tracklets` are in the index, of kind `index_kind`; `recall` in
    [0, 1] is over `recall_queries` audited searches since the index was built, None before the first."""

    gallery_id: str
    tracklets: int
    indexed: int
    index_bytes: int
    index_kind: str
    recall: float | None
    recall_queries: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an erasure did.

    `rewritten_files` are relative to the data folder, `unreachable_copies` say in words which copies the galleries
    know of and cannot reach. `subject_digest` stands for the erased name in the audit. `rewrite_due_time` is set while
    the slack of the database may still hold pieces: by when it will have been written anew. `left_in` are the ids of
    galleries that the erasure did not reach and that hold the same people.
    """

    erase_time: datetime
    tracklet_names: tuple[str, ...]
    rewritten_files: tuple[str, ...]
    unreachable_copies: tuple[str, ...]
    subject_digest: str
    rewrite_due_time: datetime | None = None
    left_in: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Erasure:
    """How many tracklets were erased, or would be: then there is no receipt."""

    tracklet_count: int
    receipt: Receipt | None


@dataclass(frozen=True, slots=True)
class Replacement:
    """A gallery that took another's place, the one that was there before, and how many tracklets of that it lacks."""

    gallery: GalleryRecord
    retired: GalleryRecord
    missing_count: int


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """How long tracklets of a camera are kept; `camera_id` is empty for all cameras without a rule of their own."""

    camera_id: str
    keep: timedelta


@dataclass(frozen=True, slots=True)
class IdentityChange:
    """A correction by its number, and in how many tracklets it changed the identity; number 0 of a repeated request."""

    change_id: int
    tracklet_count: int


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change: `action` is the method's name; `tracklet_id` is empty when the gallery itself is meant, and a keyed
    digest (`hmac:...`) once the tracklet is erased. `detail` is a JSON object, or empty."""

    time: datetime
    action: str
    gallery_id: str
    tracklet_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing; `next_page_token` is empty on the last page."""

    items: tuple[T, ...]
    next_page_token: str = ""


class Galleries(Protocol):
    """All galleries of a server. Methods block and are safe to call from any thread.

    Every write is durable when the method returns. A `request_id` makes repeating a write harmless: the same id with
    the same request answers as the first time did, with another request it is InvalidArgumentError
    (reason REQUEST_ID_REUSED). Missing things raise NotFoundError (GALLERY_NOT_FOUND, TRACKLET_NOT_FOUND), taken
    names AlreadyExistsError (GALLERY_EXISTS, TRACKLET_EXISTS), another model's descriptors
    FailedPreconditionError (MODEL_MISMATCH). Repeating a write whose tracklet was deleted since does not bring it
    back: FailedPreconditionError (TRACKLET_DELETED). Deleting a gallery forgets the request ids of its writes.
    """

    def create_gallery(
        self,
        gallery_id: str,
        display_name: str,
        space: ModelSpace,
        request_id: str = "",
        options: GalleryOptions = NO_OPTIONS,
    ) -> GalleryRecord: ...

    def update_gallery(
        self,
        gallery_id: str,
        *,
        display_name: str | None = None,
        index_kind: str | None = None,
        false_match_rate: float | None = None,
    ) -> GalleryRecord:
        """Changes what is not None; a rate of 0 takes the rate away."""
        ...

    def replace_gallery(
        self, gallery_id: str, replacement_id: str, retired_id: str, *, allow_missing: bool, request_id: str = ""
    ) -> Replacement:
        """Puts a gallery that follows another in its place, with what people said of its tracklets; see `replacing`."""
        ...

    def get_gallery(self, gallery_id: str) -> GalleryRecord: ...

    def list_galleries(
        self, page_size: int, page_token: str = "", *, only: frozenset[str] | None = None
    ) -> Page[GalleryRecord]:
        """A page of the galleries by name; of those in `only` (ids), None for all."""
        ...

    def delete_gallery(self, gallery_id: str, *, force: bool, request_id: str = "") -> Erasure:
        """Erases a gallery, and how many tracklets with it. Not empty without `force`: FailedPreconditionError."""
        ...

    def stats(self, gallery_id: str) -> GalleryStats: ...

    def figures(self) -> tuple[GalleryFigures, ...]:
        """Of every gallery, by id; cheap enough for every quarter of a minute."""
        ...

    def ingest(
        self,
        gallery_id: str,
        tracklet: NewTracklet,
        descriptor: NDArray[np.float32],
        fingerprint: str,
        thumbnail: bytes,
        request_id: str = "",
        request_digest: bytes = b"",
        frames: Sequence[bytes] = (),
    ) -> TrackletRecord:
        """Stores a tracklet; `request_digest` tells whether a repeated `request_id` repeats the same request.

        `frames`, in whatever form, are kept if the gallery keeps frames.
        """
        ...

    def find_request(self, gallery_id: str, request_id: str, request_digest: bytes) -> TrackletRecord | None:
        """What an earlier ingest with this request id stored, so that a retry need not run the model again."""
        ...

    def get_tracklet(self, gallery_id: str, tracklet_id: str) -> TrackletRecord: ...

    def get_descriptor(self, gallery_id: str, tracklet_id: str) -> NDArray[np.float32]: ...

    def get_thumbnail(self, gallery_id: str, tracklet_id: str) -> bytes: ...

    def get_frames(self, gallery_id: str, tracklet_id: str) -> tuple[bytes, ...]:
        """The frames that were kept of a tracklet, as `ingest` got them."""
        ...

    def list_tracklets(
        self, gallery_id: str, filter: TrackletFilter, page_size: int, page_token: str = ""
    ) -> Page[TrackletRecord]: ...

    def delete_tracklet(self, gallery_id: str, tracklet_id: str, request_id: str = "") -> Receipt | None:
        """Erases a tracklet; None when the request is a repetition."""
        ...

    def erase_identity(self, gallery_id: str, identity_id: str, *, force: bool, request_id: str = "") -> Erasure:
        """Erases all tracklets of an identity in one gallery, or in all ("-"); without `force` only counts them."""
        ...

    def assign_identity(
        self, gallery_id: str, tracklet_id: str, identity_id: str, request_id: str = ""
    ) -> tuple[TrackletRecord, int]:
        """The tracklet as stored, and the number of this change (0: the request is a repetition)."""
        ...

    def merge_identities(
        self, gallery_id: str, identity_id: str, merged: Sequence[str], request_id: str = ""
    ) -> IdentityChange: ...

    def split_identity(
        self, gallery_id: str, identity_id: str, tracklet_ids: Sequence[str], new_identity_id: str, request_id: str = ""
    ) -> IdentityChange: ...

    def undo_identity_change(self, gallery_id: str, change_id: int, request_id: str = "") -> IdentityChange: ...

    def set_retention(self, gallery_id: str, rules: Sequence[RetentionRule]) -> tuple[RetentionRule, ...]: ...

    def get_retention(self, gallery_id: str) -> tuple[RetentionRule, ...]: ...

    def apply_retention(self) -> int:
        """Erases what is older than its rule allows; how many tracklets."""
        ...

    def expire_audit(self, keep: timedelta) -> int:
        """Deletes what the audit says of tracklets that retention erased, where it is older than `keep` (whole days); how
        many entries. An entry `ExpireAudit` of each gallery counts them."""
        ...

    def rewrite_if_due(self) -> bool:
        """Writes the files anew when slack space has held deleted content for long enough; whether it did."""
        ...

    @property
    def unwritable(self) -> str:
        """Why nothing could be stored when that was last tried (a reason: STORAGE_FULL, STORE_NOT_WRITABLE or
        DISK_FAILED); empty when it could."""
        ...

    def check_disk(self) -> str:
        """Tries whether the data's disk can be written; `unwritable` as it is then."""
        ...

    def list_audit(
        self, gallery_id: str, tracklet_id: str, identity_id: str, page_size: int, page_token: str = ""
    ) -> Page[AuditEntry]: ...

    def search(self, gallery_id: str, query: SearchQuery) -> tuple[Hit, ...]:
        """The nearest tracklets that pass the filter: exactly min(top_k, how many pass) of them, ties by storing order."""
        ...

    def close(self) -> None: ...
