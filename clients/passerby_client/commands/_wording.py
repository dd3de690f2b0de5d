"""Errors of the API in the words of the command line: options for fields, files for frames, near names of galleries."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from passerby_client.commands.common import last_part

if TYPE_CHECKING:
    from passerby_client import Client

# Fields of the API, and the options that set them.
FLAGS: Mapping[str, str] = {
    "query_camera_id": "--query-camera",
    "exclude_query_camera": "--exclude-query-camera",
    "travel_windows": "--travel",
    "query_time": "--query-time",
    "query_start_time": "--query-time",
    "query_end_time": "--query-time",
    "false_match_rate": "--false-match-rate",
    "top_k": "--top-k",
    "tracklet_descriptor": "--descriptor",
    "filter.camera_ids": "--camera",
    "filter.exclude_camera_ids": "--exclude-camera",
    "filter.identity_ids": "--identity",
    "filter.labels": "--label",
    "filter.start_time": "--after",
    "filter.end_time": "--before",
    "rerank.k1": "--rerank-option k1",
    "rerank.k2": "--rerank-option k2",
    "rerank.original_weight": "--rerank-option original_weight",
    "rerank.shortlist_size": "--rerank-option shortlist_size",
    "rerank.time_budget": "--rerank-option time_budget",
    "index_kind": "--index",
    "display_name": "--display-name",
}


def in_flags(message: str, frames: Sequence[Path] = ()) -> str:
    """`message` with the options of the command line in place of the API's fields, with files in place of frames."""

    def file(found: re.Match[str]) -> str:
        number = int(found[1])
        return str(frames[number]) if number < len(frames) else found[0]

    message = re.sub(r"\bframes\.frames\[(\d+)\](?:\.\w+)*", file, message)
    fields = "|".join(map(re.escape, sorted(FLAGS, key=len, reverse=True)))
    said = re.sub(
        rf"(?<![\w.-])(?:(?:header|search|gallery)\.)*({fields})(?:\[\d+\])?(?:\.\w+)*(?![\w-])",
        lambda found: FLAGS[found[1]],
        message,
    )
    return re.sub(r"(--[\w-]+) and \1\b(?: both)?", r"\1", said)


def no_gallery(client: Client, message: str, create: str) -> str:
    """The server's message about a gallery that is missing, with near names, or with how to `create` it."""
    from passerby.errors import PasserbyError

    found = re.search(r"galleries/([\w-]+)", message)
    if found is None:
        return message
    said = f'there is no gallery "{found[1]}"'
    if create:
        return f"{said}: create it first, {create}"
    try:
        names = [last_part(gallery.name) for gallery in client.list_galleries()]
    except PasserbyError:  # who may not list them is told no names
        return said
    near = difflib.get_close_matches(found[1], names, n=3)
    return f"{said}; there is {', '.join(near)}" if near else f"{said}; `passerby gallery list` shows what there is"
