"""Which role may call which method, which gallery a request is about, and whom: one table, with every method of the API.

- `reader` looks: searches, lists, gets, embeds. It sees thumbnails and descriptors, but changes nothing.
- `ingester` stores, and reads nothing back: the box beside a camera is the one that gets stolen. It sees which model a
  gallery is of.
- `admin` does everything: makes and deletes galleries, corrects, erases, sets retention, reads the audit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import Message
from passerby import names
from passerby.errors import InvalidArgumentError

ALL_GALLERIES = "-"
"""Stands for all of them: only callers who may use each one may do what is about it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a method takes. Fields of the request are dotted paths.

    gallery: the field that holds the gallery's name or id, or the name of something in it; empty for a method of no
        gallery, `ALL_GALLERIES` for one that changes what all of them get. Methods whose requests come as a stream check
        each by themselves (`permit.check_gallery`).
    audited: whether calls that succeed are recorded; those that are refused always are.
    identities, tracklets: fields with identities, and with names or ids of tracklets, of the request and of the answer.
    counts: fields of the answer: numbers, or lists of which the length is recorded.
    galleries: fields of the request with names or ids of further galleries; their ids are recorded.
    """

    roles: frozenset[str]
    gallery: str = ""
    audited: bool = True
    identities: tuple[str, ...] = ()
    tracklets: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    galleries: tuple[str, ...] = ()


_ADMIN = frozenset({"admin"})
_READ = frozenset({"reader", "admin"})
_INGEST = frozenset({"ingester", "admin"})
_ANY = frozenset({"reader", "ingester", "admin"})
_STORED = Rule(_INGEST, identities=("tracklet.identity_id",), tracklets=("tracklet.name",))

RULES: Mapping[str, Rule] = {
    "GalleryService/CreateGallery": Rule(_ADMIN, "gallery_id", galleries=("gallery.follows",)),
    "GalleryService/GetGallery": Rule(_ANY, "name", audited=False),
    "GalleryService/ListGalleries": Rule(_READ, audited=False),
    "GalleryService/UpdateGallery": Rule(_ADMIN, "gallery.name"),
    "GalleryService/ReplaceGallery": Rule(
        _ADMIN, "name", counts=("missing_tracklet_count",), galleries=("replacement", "retired_gallery_id")
    ),
    "GalleryService/DeleteGallery": Rule(_ADMIN, "name", counts=("deleted_tracklet_count",)),
    "GalleryService/GetGalleryStats": Rule(_READ, "name", audited=False),
    "GalleryService/SetRetention": Rule(_ADMIN, "name", counts=("rules",)),
    "GalleryService/GetRetention": Rule(_READ, "name", audited=False),
    "GalleryService/ListAuditEntries": Rule(
        _ADMIN, "parent", identities=("identity_id",), tracklets=("tracklet_id",), counts=("entries",)
    ),
    "TrackletService/IngestTracklet": replace(_STORED, gallery="parent"),
    "TrackletService/StreamTracklet": _STORED,
    "TrackletService/BulkIngestTracklets": Rule(_INGEST),
    "TrackletService/GetTracklet": Rule(_READ, "name", identities=("tracklet.identity_id",), tracklets=("name",)),
    "TrackletService/ListTracklets": Rule(
        _READ, "parent", identities=("filter.identity_ids", "tracklets.identity_id"), counts=("tracklets",)
    ),
    "TrackletService/DeleteTracklet": Rule(_ADMIN, "name", tracklets=("name",)),
    "TrackletService/AssignIdentity": Rule(_ADMIN, "name", identities=("identity_id",), tracklets=("name",)),
    "TrackletService/MergeIdentities": Rule(_ADMIN, "parent", identities=("identity_id", "merged_identity_ids")),
    "TrackletService/SplitIdentity": Rule(
        _ADMIN, "parent", identities=("identity_id", "new_identity_id"), tracklets=("tracklets",)
    ),
    "TrackletService/UndoIdentityChange": Rule(_ADMIN, "parent"),
    "TrackletService/EraseIdentity": Rule(
        _ADMIN, "parent", identities=("identity_id",), counts=("force", "tracklet_count")
    ),
    "SearchService/SearchTracklets": Rule(
        _READ,
        "parent",
        identities=("filter.identity_ids", "hits.tracklet.identity_id"),
        tracklets=("tracklet",),
        counts=("hits",),
    ),
    # Storing the tracklet in the end takes an ingester besides.
    "SearchService/StreamSearchTracklets": Rule(
        _READ, identities=("filter.identity_ids", "hits.tracklet.identity_id", "tracklet.identity_id")
    ),
    "ModelService/EmbedTracklet": Rule(_READ),
    "ModelService/ExplainTracklet": Rule(_READ),
    "ModelService/GetModelInfo": Rule(_ANY, audited=False),
    "ModelService/ReloadBundle": Rule(_ADMIN, ALL_GALLERIES),
}
"""By service and method of passerby.v1."""


def gallery_of(rule: Rule, request: Message) -> str:
    """Id of the gallery that the request is about; `-` for all, empty for none. Raises InvalidArgumentError."""
    if rule.gallery in ("", ALL_GALLERIES):
        return rule.gallery
    (value,) = _values(request, rule.gallery)
    if rule.gallery == "gallery_id":
        return names.check_gallery_id(value)
    if value == f"galleries/{ALL_GALLERIES}":
        return ALL_GALLERIES
    if value.count("/") > 1:
        return names.parse_tracklet_name(value, field=rule.gallery)[0]
    return names.parse_gallery_name(value, field=rule.gallery)


def identities(rule: Rule, message: Message) -> Iterator[str]:
    """Identities that a request or an answer names."""
    for path in rule.identities:
        yield from (value for value in _values(message, path) if value)


def tracklets(rule: Rule, message: Message, gallery_id: str) -> Iterator[tuple[str, str]]:
    """Tracklets that a request or an answer names: gallery id and tracklet id."""
    for path in rule.tracklets:
        for value in _values(message, path):
            if not value:
                continue
            try:
                yield names.parse_tracklet_name(value)
            except InvalidArgumentError:
                yield gallery_id, value


def details(rule: Rule, message: Message) -> dict[str, int | str]:
    """Numbers and further galleries of a request or an answer, and which kind of query a request has."""
    found: dict[str, int | str] = {}
    if "query" in message.DESCRIPTOR.oneofs_by_name and (kind := message.WhichOneof("query")):
        found["query"] = kind
    for name in rule.counts:
        if name in message.DESCRIPTOR.fields_by_name:
            value = getattr(message, name)
            found[name] = int(value) if isinstance(value, int) else len(value)
    for path in rule.galleries:
        for value in _values(message, path):
            with suppress(InvalidArgumentError):  # no gallery at all: the call is refused for it
                found[path.rpartition(".")[2]] = names.check_gallery_id(value.removeprefix("galleries/"))
    return found


def _values(message: Any, path: str) -> Iterator[str]:
    """Texts at a dotted path; none where the message has no such field."""
    name, _, rest = path.partition(".")
    value = getattr(message, name, None)
    if value is None:
        return
    for one in (value,) if isinstance(value, (str, Message)) else value:
        if rest:
            yield from _values(one, rest)
        elif isinstance(one, str):
            yield one
