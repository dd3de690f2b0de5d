"""Every log line that is written within a call carries the call's id, from whatever thread or task it comes."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import search_service_pb2 as search_v1
from passerby_server import convert
from passerby_server.logs import JsonFormatter, TextFormatter

from tests.server.live import LiveServer, refused
from tests.server.pictures import crops, sequence

log = logging.getLogger("tests.within")


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The log lines of the server in this process so far, as programs read them."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.setLevel(level)
    root.removeHandler(handler)


def test_lines_of_a_call_carry_its_id(
    live: LiveServer, gallery: str, lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    galleries = live.server.runtime.loaded.galleries
    search, windows = galleries.search, convert.travel_windows

    def searching(*arguments: Any) -> Any:
        log.warning("in a thread")
        return search(*arguments)

    def converting(*arguments: Any) -> Any:
        log.warning("on the loop")
        return windows(*arguments)

    monkeypatch.setattr(galleries, "search", searching)
    monkeypatch.setattr(convert, "travel_windows", converting)
    request = search_v1.SearchTrackletsRequest(parent=gallery, top_k=1, frames=sequence(crops(2)))
    live.search.SearchTracklets(request, metadata=(("x-request-id", "call-1"),), timeout=20)
    found = {line["message"]: line.get("request_id") for line in lines()}
    assert found["in a thread"] == found["on the loop"] == "call-1"


def test_an_internal_error_and_the_line_about_its_call_carry_the_id(
    live: LiveServer, lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("broken inside")

    monkeypatch.setattr(live.server.runtime.loaded.galleries, "get_gallery", broken)
    request = gallery_v1.GetGalleryRequest(name="galleries/any")
    refused(lambda: live.galleries.GetGallery(request, metadata=(("x-request-id", "call-2"),), timeout=20))
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 5
    while len(found) < 2 and time.monotonic() < deadline:  # the answer leaves before the line about its call is written
        found = [line for line in lines() if line.get("request_id") == "call-2"]
    error, call = found
    assert "broken inside" in error["exception"]
    assert (call["message"], call["code"]) == ("call", "INTERNAL")
    assert float(call["ms"]) > 0
    assert call["client"].startswith("ipv4:127.0.0.1:")


def test_lines_outside_of_calls_carry_none() -> None:
    record = logging.LogRecord("any", logging.INFO, __file__, 1, "outside", None, None)
    assert "request_id" not in JsonFormatter().format(record)
    assert TextFormatter().format(record).endswith("INFO outside")
