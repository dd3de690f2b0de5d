"""Whatever the API can be asked in a search, the client and the command line can ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from passerby.errors import InvalidArgumentError
from passerby.v1.search_service_pb2 import RerankOptions, SearchTrackletsRequest
from passerby_client import Client

from tests.clients.faulty import Faults, faulty_server
from tests.commands import Run

TEN = datetime(2026, 11, 21, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)
# One value each, whatever is in it.
WHOLE = {"FrameSequence", "TrackletDescriptor", "Timestamp", "Duration"}


def _is_whole(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is None or kind.name in WHOLE or bool(kind.GetOptions().map_entry)


def fields_of(kind: Descriptor | None, prefix: str = "") -> Iterator[str]:
    for field in kind.fields if kind else ():
        if _is_whole(field):
            yield prefix + field.name
        else:
            yield from fields_of(field.message_type, f"{prefix}{field.name}.")


def fields_set(message: Message, prefix: str = "") -> Iterator[str]:
    for field, value in message.ListFields():
        if _is_whole(field):
            yield prefix + field.name
        else:
            for one in [value] if isinstance(value, Message) else value:
                yield from fields_set(one, f"{prefix}{field.name}.")


EVERYTHING: dict[str, Any] = {
    "top_k": 7,
    "cameras": ["1"],
    "exclude_cameras": ["2"],
    "start_time": TEN,
    "end_time": TEN + HOUR,
    "labels": {"coat": "red"},
    "identities": ["ann"],
    "rerank": RerankOptions(k1=5, k2=2, original_weight=0.5, shortlist_size=50, time_budget=Duration(seconds=2)),
    "group_by_identity": True,
    "query_camera": "3",
    "exclude_query_camera": True,
    "query_time": (TEN, TEN + timedelta(seconds=4)),
    "travel_windows": {"c2": (timedelta(seconds=30), timedelta(minutes=5))},
    "false_match_rate": 0.01,
    "thumbnails": True,
}
FLAGS = [
    "--top-k",
    "7",
    "--camera",
    "1",
    "--exclude-camera",
    "2",
    "--after",
    "2026-11-21T10:00Z",
    "--before",
    "2026-11-21T11:00Z",
    "--label",
    "coat=red",
    "--identity",
    "ann",
    "--rerank-option",
    "k1=5",
    "--rerank-option",
    "k2=2",
    "--rerank-option",
    "original_weight=0.5",
    "--rerank-option",
    "shortlist_size=50",
    "--rerank-option",
    "time_budget=2s",
    "--group",
    "--query-camera",
    "3",
    "--exclude-query-camera",
    "--query-time",
    "2026-11-21T10:00:00Z..2026-11-21T10:00:04Z",
    "--travel",
    "c2=30s..5m",
    "--false-match-rate",
    "0.01",
]


def expected() -> set[str]:
    found = set(fields_of(SearchTrackletsRequest.DESCRIPTOR))
    assert {"rerank.time_budget", "filter.labels", "travel_windows.max_time", "tracklet"} <= found
    return found


def test_the_client_reaches_every_field(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    client.search("g", frames=[b"x"], **EVERYTHING)
    client.search("g", tracklet="galleries/g/tracklets/t")
    client.search("g", descriptor=([1.0, 2.0], "f" * 64))
    reached = {path for request in faults.requests("SearchTracklets") for path in fields_set(request)}
    assert reached == expected()


def test_the_command_line_reaches_every_field_with_the_clients_values(run: Run, tmp_path: Path, query: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps({"values": [1.0, 2.0], "model_fingerprint": "f" * 64}))
    with faulty_server() as (address, faults), Client(address) as client:
        picture = tmp_path / "p.png"
        command = ("search", "--gallery", "g", "--server", address)
        for done in (
            run(*command, "--frames", query, "--picture", picture, *FLAGS),
            run(*command, "--tracklet", "t"),
            run(*command, "--descriptor", tmp_path / "d.json"),
        ):
            assert done.code == 0, done.err
        client.search("g", frames=sorted(query.glob("?.png")), **EVERYTHING)
    by_flags, by_name, by_values, by_client = faults.requests("SearchTracklets")
    assert {*fields_set(by_flags), *fields_set(by_name), *fields_set(by_values)} == expected()
    assert by_flags == by_client
    assert list(by_values.tracklet_descriptor.values) == [1.0, 2.0]


def test_a_saved_descriptor_finds_its_tracklet(run: Run, people: str, tmp_path: Path) -> None:
    saved = tmp_path / "ann.json"
    assert run("tracklet", "show", f"galleries/{people}/tracklets/ann-1", "--descriptor", saved).code == 0
    done = run("search", "--gallery", people, "--descriptor", saved, "--json")
    best = json.loads(done.out)["hits"][0]
    assert best["tracklet"]["name"].endswith("/ann-1")
    assert best["distance"] == pytest.approx(0, abs=1e-6)


def test_travel_windows_leave_out_who_was_too_quick(client: Client, people: str) -> None:
    # ann at 9 o'clock, bob at 10, cleo at 11; each by camera 1 one minute before camera 2.
    name = f"galleries/{people}/tracklets/ann-1"
    found = client.search(people, tracklet=name, travel_windows={"2": (timedelta(minutes=30), 2 * HOUR)})
    cameras = {hit.tracklet.name.rpartition("/")[2] for hit in found.hits}
    assert cameras == {"bob-1", "cleo-1", "bob-2"}


def test_a_query_time_needs_a_zone(client: Client) -> None:
    naive = datetime(2026, 11, 21, 10)
    with pytest.raises(InvalidArgumentError, match=r"query_time: .* has no time zone"):
        client.search("g", frames=[b"x"], query_time=(naive, naive))


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--travel c2", "is not CAMERA=MIN..MAX"),
        ("--travel c2=1s..2s --travel c2=2s..3s", "two travel windows"),
        ("--travel c2=1..2", "is not a time such as"),
        ("--rerank-option k3=1", "is none of k1, k2"),
        ("--rerank-option k1=many", "k1=many is no whole number"),
        ("--query-time noon", "is not a time"),
    ],
)
def test_flags_that_cannot_be_meant(run: Run, flags: str, problem: str) -> None:
    done = run("search", "-g", "g", "--tracklet", "t", *flags.split())
    assert done.code == 2
    assert problem in " ".join(done.err.replace("│", " ").split())


def test_a_file_that_is_no_descriptor_is_named(run: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[1, 2]")
    done = run("search", "-g", "g", "--descriptor", wrong)
    assert done.code == 1
    assert done.err.startswith(f"passerby: {wrong}: no descriptor;")
