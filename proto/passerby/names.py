"""Resource names of the API: `galleries/{gallery}` and `galleries/{gallery}/tracklets/{tracklet}`."""

from __future__ import annotations

import re

from passerby.errors import InvalidArgumentError

GALLERY_ID = re.compile(r"(?!-$)[a-z0-9-]{1,63}")  # "galleries/-" stands for all of them (AIP-159)
TRACKLET_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")


def check_gallery_id(gallery_id: str, *, field: str = "gallery_id") -> str:
    """`gallery_id` unchanged; raises InvalidArgumentError unless it is `[a-z0-9-]{1,63}`, and not `-` alone."""
    return _check(
        GALLERY_ID,
        gallery_id,
        field,
        "1 to 63 of the characters a-z, 0-9 and -, which stands for all galleries when it is alone",
    )


def check_tracklet_id(tracklet_id: str, *, field: str = "tracklet_id") -> str:
    """`tracklet_id` unchanged; raises InvalidArgumentError unless it is `[A-Za-z0-9._~-]{1,128}`."""
    return _check(TRACKLET_ID, tracklet_id, field, "1 to 128 of the characters A-Z, a-z, 0-9, ., _, ~ and -")


def gallery_name(gallery_id: str) -> str:
    """`galleries/{gallery_id}`; raises InvalidArgumentError when the id is malformed."""
    return f"galleries/{check_gallery_id(gallery_id)}"


def tracklet_name(gallery_id: str, tracklet_id: str) -> str:
    """`galleries/{gallery_id}/tracklets/{tracklet_id}`; raises InvalidArgumentError when an id is malformed."""
    return f"{gallery_name(gallery_id)}/tracklets/{check_tracklet_id(tracklet_id)}"


def parse_gallery_name(name: str, *, field: str = "name") -> str:
    """The gallery id in `galleries/{gallery}`; raises InvalidArgumentError for any other form."""
    collection, _, gallery_id = name.partition("/")
    if collection != "galleries" or not gallery_id or "/" in gallery_id:
        raise InvalidArgumentError.of(field, f"{_shown(name)} is not of the form galleries/GALLERY")
    return check_gallery_id(gallery_id, field=field)


def parse_tracklet_name(name: str, *, field: str = "name") -> tuple[str, str]:
    """Gallery id and tracklet id in `galleries/{gallery}/tracklets/{tracklet}`; raises InvalidArgumentError."""
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "galleries" or parts[2] != "tracklets":
        raise InvalidArgumentError.of(field, f"{_shown(name)} is not of the form galleries/GALLERY/tracklets/TRACKLET")
    return check_gallery_id(parts[1], field=field), check_tracklet_id(parts[3], field=field)


def _check(pattern: re.Pattern[str], value: str, field: str, wanted: str) -> str:
    if not pattern.fullmatch(value):
        raise InvalidArgumentError.of(field, f"{_shown(value)} is not made of {wanted}")
    return value


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:77] + "...")
