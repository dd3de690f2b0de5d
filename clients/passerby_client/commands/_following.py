"""Frames of a folder as they are written: the crops of a person whom a tracker is following."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from passerby_client.commands.common import last_part

if TYPE_CHECKING:
    from passerby.v1.search_service_pb2 import SearchTrackletsResponse, StreamSearchTrackletsResponse

    from passerby_client import Client
    from passerby_client._requests import SearchOptions

POLL_SECONDS = 0.2
SHOWN_HITS = 3


def follow(
    client: Client, gallery: str, images: Callable[[], list[Path]], quiet: float, options: SearchOptions
) -> tuple[SearchTrackletsResponse, list[Path]]:
    """Searches with the frames that `images` lists, also with those that come, until none has come for `quiet` seconds.

    Says the nearest hits on standard error as they are found. Returns the last answer, which always comes, and all
    frames. Raises NotFoundError when no frame comes.
    """
    sent: list[Path] = []
    for answer in client.stream_search(gallery, written(images, quiet, sent), **options):
        if not answer.last:
            typer.echo(_line(answer), err=True)
    return answer.search, sent


def written(images: Callable[[], list[Path]], quiet: float, sent: list[Path]) -> Iterator[Path]:
    """The listed files in order of their names, each once and once it no longer grows; `sent` notes them.

    Raises NotFoundError when there is none.
    """
    from passerby.errors import NotFoundError

    sizes: dict[Path, int] = {}
    given: set[Path] = set()
    news = time.monotonic()
    while time.monotonic() - news < quiet:
        for path in images():
            size = path.stat().st_size
            if path in given or not size or sizes.get(path) != size:
                sizes[path] = size
                continue
            given.add(path)
            sent.append(path)
            news = time.monotonic()
            yield path
        time.sleep(POLL_SECONDS)
    if not sent:
        raise NotFoundError(f"no frame came for {quiet:g} s")


def _line(answer: StreamSearchTrackletsResponse) -> str:
    best = [
        f"{hit.tracklet.identity_id or last_part(hit.tracklet.name)} {hit.distance:.4f}"
        for hit in answer.search.hits[:SHOWN_HITS]
    ]
    return f"{answer.frame_count} frames: {', '.join(best) or 'no hits'}"
