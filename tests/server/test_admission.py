"""Who is let in, in what order, and who is refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passerby.errors import ResourceExhaustedError
from passerby_server.admission import Room
from passerby_server.lanes import Lane

DESK, OTHER, CAMERA = Lane("desk"), Lane("other"), Lane("camera", bulk=True)


def run(test: Callable[[Room], Awaitable[Any]], most: int = 16) -> Any:
    return asyncio.run(asyncio.wait_for(test(Room(most)), 20))


def test_one_client_holds_at_most_half() -> None:
    async def test(room: Room) -> None:
        room.enter(8, DESK, None)
        with pytest.raises(ResourceExhaustedError, match="8 of them this client's") as raised:
            room.enter(1, DESK, None)
        assert raised.value.reason == "QUEUE_FULL"
        room.enter(8, OTHER, None)
        assert room.used == 16

    run(test)


def test_a_patient_request_is_not_overtaken_for_ever_by_impatient_ones() -> None:
    async def test(room: Room) -> None:
        clients = [Lane(f"client{number}") for number in range(8)]
        for client in clients:
            room.enter(2, client, None)
        patient = asyncio.create_task(room.wait(8, CAMERA))
        await asyncio.sleep(0)
        for client in clients[:4]:
            with pytest.raises(ResourceExhaustedError):
                room.enter(2, client, None)  # as it would without the patient one
            room.leave(2, client, patient=False)
            if client is not clients[3]:
                with pytest.raises(ResourceExhaustedError):
                    room.enter(2, client, None)  # there is room, and it is promised
                await asyncio.sleep(0)
                assert not patient.done()
        assert await patient == 8

    run(test)


def test_patient_ones_leave_half_to_the_impatient() -> None:
    async def test(room: Room) -> None:
        streams = [asyncio.create_task(room.wait(4, CAMERA)) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert [stream.done() for stream in streams] == [True, True, False, False, False]
        room.enter(8, DESK, None)
        room.leave(4, CAMERA, patient=True)
        await asyncio.sleep(0.01)
        assert streams[2].done()
        for stream in streams[3:]:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        assert room.used == 16

    run(test)


def test_waiting_goes_by_clients_in_turn_and_interactive_before_bulk() -> None:
    async def test(room: Room) -> None:
        order: list[str] = []

        async def one(lane: Lane, name: str) -> None:
            held = await room.wait(8, lane)
            order.append(name)
            await asyncio.sleep(0.001)
            room.leave(held, lane, patient=True)

        first = await room.wait(8, CAMERA)
        tasks = [asyncio.create_task(one(CAMERA, f"camera{number}")) for number in range(4)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(one(Lane("second", bulk=True), "second"))]
        tasks += [asyncio.create_task(one(DESK, "desk"))]
        await asyncio.sleep(0)
        room.leave(first, CAMERA, patient=True)
        await asyncio.gather(*tasks)
        assert order[0] == "desk"
        assert order.index("second") <= 3
        assert room.used == 0

    run(test)


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "wait", "leave", "cancel"]), st.integers(1, 12), st.integers(0, 5)), max_size=60
)


@settings(max_examples=200)
@given(steps=STEPS, most=st.integers(1, 20))
def test_whatever_comes_the_bound_holds_and_all_is_given_back(steps, most: int) -> None:
    async def test(room: Room) -> None:
        lanes = [Lane(f"c{number // 2}", bool(number % 2)) for number in range(6)]
        held: list[tuple[int, Lane, bool]] = []
        waiting: list[tuple[asyncio.Task[int], Lane]] = []
        for action, count, number in steps:
            lane = lanes[number]
            if action == "enter":
                with contextlib.suppress(ResourceExhaustedError):
                    held.append((room.enter(count, lane, None), lane, False))
            elif action == "wait":
                waiting.append((asyncio.create_task(room.wait(count, lane)), lane))
            elif action == "leave" and held:
                snippets, owner, patient = held.pop(number % len(held))
                room.leave(snippets, owner, patient=patient)
            elif action == "cancel" and waiting:
                waiting[number % len(waiting)][0].cancel()
                if count % 2:
                    continue  # and something else happens before its task runs
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            held += [(task.result(), owner, True) for task, owner in waiting if task.done() and not task.cancelled()]
            waiting = [(task, owner) for task, owner in waiting if not task.done()]
            assert 0 <= room.used <= most
        for task, _ in waiting:
            task.cancel()
        await asyncio.gather(*(task for task, _ in waiting), return_exceptions=True)
        held += [(task.result(), owner, True) for task, owner in waiting if not task.cancelled()]
        for snippets, owner, patient in held:
            room.leave(snippets, owner, patient=patient)
        assert room.used == 0

    run(test, most)
