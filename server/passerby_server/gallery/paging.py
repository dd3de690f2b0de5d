"""Page tokens: the place where the next page begins, bound to the listing that it belongs to.

A token is base64url(cursor + MAC), the MAC over the listing (method, gallery, filter) and the cursor under a secret
of the store: a token of another listing or another store, or a changed one, is refused rather than misread.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from typing import Any

from passerby.errors import InvalidArgumentError

from passerby_server.gallery.rows import to_microseconds
from passerby_server.gallery.types import TrackletFilter

MAC_BYTES = 16
MAX_PAGE_SIZE = 1000
"""Larger page sizes are lowered to this (AIP-158)."""


def page_limit(page_size: int) -> int:
    """Items of a page; raises InvalidArgumentError for a size below 1."""
    if page_size < 1:
        raise InvalidArgumentError.of("page_size", f"must be at least 1, not {page_size}")
    return min(page_size, MAX_PAGE_SIZE)


def listing(method: str, gallery_key: int = 0, where: TrackletFilter | None = None) -> bytes:
    """What a token is bound to, in canonical form."""
    parts: list[Any] = [method, gallery_key]
    if where is not None:
        parts += [
            sorted(where.camera_ids),
            sorted(where.exclude_camera_ids),
            sorted(where.identity_ids),
            sorted(where.labels.items()),
            to_microseconds(where.start_time),
            to_microseconds(where.end_time),
        ]
    return json.dumps(parts).encode()


def audit(gallery_id: str, tracklet_id: str, identity_id: str) -> bytes:
    """What a token of the audit's listing is bound to."""
    return json.dumps(["ListAuditEntries", gallery_id, tracklet_id, identity_id]).encode()


def make_token(secret: bytes, bound_to: bytes, cursor: str) -> str:
    """The token of the page after `cursor`."""
    raw = cursor.encode()
    return base64.urlsafe_b64encode(raw + _mac(secret, bound_to, raw)).decode()


def read_token(secret: bytes, bound_to: bytes, token: str) -> str:
    """The cursor in `token`; raises InvalidArgumentError unless `make_token` made it for this listing."""
    try:
        raw = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raw = b""
    cursor, mac = raw[:-MAC_BYTES], raw[-MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(secret, bound_to, cursor)):
        raise InvalidArgumentError.of(
            "page_token", "is not of this listing: pass next_page_token of the page before, with the same filter"
        )
    return cursor.decode()


def _mac(secret: bytes, bound_to: bytes, cursor: bytes) -> bytes:
    return hmac.digest(secret, hashlib.sha256(bound_to).digest() + cursor, "sha256")[:MAC_BYTES]
