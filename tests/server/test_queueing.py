"""Who is next: policy alone, with made-up clients and no clock."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from passerby_model.backends import Encoded
from passerby_server.lanes import Lane, client_of_peer, is_bulk
from passerby_server.queueing import BatchQueue, Turns, Work, batch_size, warm_up_sizes


def work(client: str, count: int, *, bulk: bool = False, arrival: float = 0.0) -> Work:
    future: asyncio.Future[Encoded] = asyncio.Future(loop=LOOP)
    return Work(np.zeros((count, 1, 1, 1, 3), np.uint8), future, arrival, None, Lane(client, bulk))


LOOP = asyncio.new_event_loop()
LOOP.close()  # futures only have to belong to one


def batches(queue: BatchQueue, now: float = 0.0) -> list[list[tuple[str, int]]]:
    """All batches until the queue is empty: client and snippets of each piece."""
    taken = []
    while (plan := queue.plan(now)) is not None:
        pieces = queue.take(plan)
        taken.append([(piece.work.lane.client, piece.stop - piece.start) for piece in pieces])
    return taken


def test_a_busy_client_does_not_shut_out_the_others() -> None:
    queue = BatchQueue(8, 0.1)
    for _ in range(20):
        queue.add(work("busy", 2))
    queue.add(work("one", 2))
    queue.add(work("two", 1))
    assert batches(queue)[0] == [("busy", 2), ("one", 2), ("two", 1), ("busy", 2), ("busy", 1)]


def test_long_work_pays_for_what_it_was_given_at_once() -> None:
    turns: Turns[tuple[str, int]] = Turns(2)
    for _ in range(4):
        turns.add("long", ("long", 8))
    for _ in range(40):
        turns.add("short", ("short", 2))
    given_to = {"long": 0, "short": 0}
    order = []
    for _ in range(24):
        item = turns.next()
        assert item is not None
        given_to[item[0]] += item[1]
        order.append(item[0])
        turns.charge(item[1], done=True)
        assert abs(given_to["long"] - given_to["short"]) <= 8
    assert order[:3] == ["long", "short", "short"]


def test_a_debt_outlives_an_empty_line() -> None:
    """A client that hands in one long work after the other, each when the last one is done, has no larger share."""
    turns: Turns[tuple[str, int]] = Turns(2)
    turns.add("long", ("long", 8))
    given_to = {"long": 0, "short": 0}
    for _ in range(50):
        turns.add("short", ("short", 2))
    for _ in range(50):
        item = turns.next()
        assert item is not None
        given_to[item[0]] += item[1]
        turns.charge(item[1], done=True)
        if item[0] == "long":
            turns.add("long", ("long", 8))
    assert 0.8 < given_to["long"] / given_to["short"] < 1.25


def test_newcomers_never_push_back_who_waits() -> None:
    turns: Turns[str] = Turns(4)
    turns.add("patient", "patient")
    turns.add("patient", "patient again")
    served = []
    for number in range(6):
        turns.add(f"new{number}", f"new{number}")
        item = turns.next()
        served.append(item)
        turns.charge(4, done=True)
    assert served == ["patient", "new0", "new1", "patient again", "new2", "new3"]  # new1 came before its turn ended


def test_bulk_keeps_to_small_batches_for_a_minute_after_a_query() -> None:
    queue = BatchQueue(8, 0.1)
    queue.add(work("desk", 1, arrival=100.0))
    assert batches(queue, 100.0) == [[("desk", 1)]]
    for now, size in ((130.0, 2), (161.0, 8)):
        queue.add(work("camera", 8, bulk=True, arrival=now))
        plan = queue.plan(now)
        assert plan is not None
        assert sum(piece.stop - piece.start for piece in queue.take(plan)) == size
        queue.keep(lambda _: False)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_bulk_gets_its_share_while_interactive_work_never_ends(share: float) -> None:
    queue = BatchQueue(8, share)
    bulk = total = 0
    for step in range(2000):
        while sum(one.left for one in queue if not one.lane.bulk) < 16:
            queue.add(work(f"desk{step % 3}", 2))
        if sum(one.left for one in queue if one.lane.bulk) < 8:
            queue.add(work("camera", 8, bulk=True))
        plan = queue.plan(0.0)
        assert plan is not None
        count = sum(piece.stop - piece.start for piece in queue.take(plan))
        total += count
        bulk += count if plan.bulk else 0
    assert bulk / total == pytest.approx(share, rel=0.05)


WORKS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 20), st.booleans(), st.floats(0, 200)), max_size=30
)


@given(works=WORKS, max_batch=st.integers(1, 40), share=st.floats(0.01, 0.9))
def test_everything_is_taken_once_in_batches_that_were_warmed_up(works, max_batch: int, share: float) -> None:
    queue = BatchQueue(max_batch, share)
    added = [work(client, count, bulk=bulk, arrival=arrival) for client, count, bulk, arrival in works]
    for one in added:
        queue.add(one)
    rows: dict[int, list[tuple[int, int]]] = {id(one): [] for one in added}
    while (plan := queue.plan(200.0)) is not None:
        pieces = queue.take(plan)
        assert sum(piece.stop - piece.start for piece in pieces) in warm_up_sizes(max_batch)
        assert {piece.work.lane.bulk for piece in pieces} == {plan.bulk}
        for piece in pieces:
            rows[id(piece.work)].append((piece.start, piece.stop))
    for one in added:
        starts, stops = zip(*rows[id(one)], strict=True)
        assert starts == (0, *stops[:-1])
        assert stops[-1] == len(one.snippets)


@pytest.mark.parametrize(("waiting", "size"), [(0, 0), (1, 1), (2, 2), (3, 2), (7, 4), (11, 8), (12, 12), (99, 12)])
def test_batches_have_few_sizes(waiting: int, size: int) -> None:
    assert batch_size(waiting, 12) == size
    assert warm_up_sizes(12) == [1, 2, 4, 8, 12]


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:10.1.2.3:5000", "10.1.2.3"),
        ("ipv6:%5B2001:db8::7%5D:5000", "2001:db8::7"),
        ("ipv4:127.0.0.1:5000", "ipv4:127.0.0.1:5000"),
        ("ipv6:%5B::1%5D:5000", "ipv6:%5B::1%5D:5000"),
        ("unix:", "unix:"),
    ],
)
def test_clients_are_told_apart_by_address_and_on_this_machine_by_connection(peer: str, client: str) -> None:
    assert client_of_peer(peer) == client


def test_priority_of_a_call() -> None:
    embed, bulk = "/passerby.v1.ModelService/EmbedTracklet", "/passerby.v1.TrackletService/BulkIngestTracklets"
    assert not is_bulk(embed, [])
    assert is_bulk(embed, [("x-passerby-priority", "bulk")])
    assert is_bulk(bulk, [("x-passerby-priority", "interactive")])
    with pytest.raises(Exception, match="send interactive or bulk") as raised:
        is_bulk(embed, [("x-passerby-priority", "urgent")])
    assert raised.value.reason == "PRIORITY_UNKNOWN"  # type: ignore[attr-defined]
