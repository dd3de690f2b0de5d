"""The batcher alone, on a backend that computes with numpy and can be slowed down or broken."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from passerby.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from passerby_model.backends import BackendName, Encoded, EncoderSpec
from passerby_server import batcher as batcher_module
from passerby_server.batcher import MAX_LEFT_BEHIND, Batcher
from passerby_server.encoder_thread import EncoderThread
from passerby_server.lanes import Lane, entered


class Adder:
    """A backend: descriptor = sums over two halves of the snippet; remembers its batch sizes."""

    name: BackendName = "onnxruntime"
    precision = "fp32"
    spec = EncoderSpec(1, 2, 1, 2, (4,))

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Callable[[np.ndarray], None] | None = None
        self.rows = 0

    def encode(self, snippets: np.ndarray) -> Encoded:
        self.gate.wait(10)
        self.batches.append(len(snippets))
        self.threads.add(threading.current_thread().name)
        if self.failure:
            self.failure(snippets)
        values = snippets.astype(np.float32)
        count = len(snippets) + self.rows
        return Encoded(
            np.resize(values.sum(axis=(1, 3, 4)), (count, 2)), {4: np.resize(values.mean(axis=4), (count, 1, 2, 1))}
        )


def snippets(*values: int) -> np.ndarray:
    """uint8 (len(values), 1, 2, 1, 3): snippet i is full of values[i]."""
    return np.stack([np.full((1, 2, 1, 3), value, dtype=np.uint8) for value in values])


def run(test: Callable[[Adder, Batcher], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        backend = Adder()
        async with Batcher(backend, **{"max_batch": 4, "max_wait": 0.5} | options) as batcher:
            return await asyncio.wait_for(test(backend, batcher), 20)

    return asyncio.run(main())


@contextlib.asynccontextmanager
async def admit(batcher: Batcher, client: str, count: int, **options: Any) -> AsyncIterator[None]:
    with entered(Lane(client)):
        room = batcher.admit(count, **options)
        async with room:
            yield


async def blocked(backend: Adder, batcher: Batcher) -> asyncio.Future[Encoded]:
    """Fills the encoder with one batch that ends when the gate opens."""
    backend.gate.clear()
    first = batcher.submit(snippets(99))
    while batcher.waiting:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    return first


def test_requests_share_batches_and_get_their_own_rows() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        first = await blocked(backend, batcher)
        waiting = [batcher.submit(snippets(value, value + 1)) for value in (1, 11, 21, 31)]
        backend.gate.set()
        results = await asyncio.gather(*waiting)
        assert (await first).descriptors.tolist() == [[297, 297]]
        assert backend.batches == [1, 4, 4]
        for value, result in zip((1, 11, 21, 31), results, strict=True):
            assert result.descriptors[:, 0].tolist() == [3 * value, 3 * value + 3]
            assert result.masks[4][:, 0, 0, 0].tolist() == [value, value + 1]

    run(test)


def test_long_work_is_cut_and_comes_back_in_order() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        result = await batcher.submit(snippets(*range(11)))
        assert result.descriptors[:, 0].tolist() == [3 * value for value in range(11)]
        assert result.masks[4].shape == (11, 1, 2, 1)
        assert backend.batches == [4, 4, 2, 1]

    run(test)


def test_the_backend_never_runs_on_the_event_loop() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        first = await blocked(backend, batcher)
        start = time.perf_counter()
        await asyncio.sleep(0.01)  # the loop goes on while the encoder is busy
        assert time.perf_counter() - start < 5
        backend.gate.set()
        await first
        assert all(name.startswith("passerby-encoder") for name in backend.threads)

    run(test)


def test_a_lone_request_does_not_wait_for_others() -> None:
    async def test(backend: Adder, batcher: Batcher) -> float:
        start = time.perf_counter()
        await batcher.submit(snippets(1))
        return time.perf_counter() - start

    assert run(test, max_wait=1.0) < 0.5


def test_a_batch_waits_for_a_request_that_is_being_decoded() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        with batcher.announce():
            early = batcher.submit(snippets(1))
            await asyncio.sleep(0.02)
            late = batcher.submit(snippets(2))
        await asyncio.gather(early, late)
        assert backend.batches == [2]

    run(test, max_wait=5.0)


def test_a_batch_waits_no_longer_than_max_wait() -> None:
    async def test(backend: Adder, batcher: Batcher) -> float:
        start = time.perf_counter()
        with batcher.announce():
            await batcher.submit(snippets(1))
        return time.perf_counter() - start

    assert 0.05 <= run(test, max_wait=0.05) < 2


def test_cancelled_and_expired_work_is_never_computed() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        first = await blocked(backend, batcher)
        cancelled = batcher.submit(snippets(1, 2))
        expired = batcher.submit(snippets(3), deadline=asyncio.get_running_loop().time() + 0.01)
        wanted = batcher.submit(snippets(4))
        cancelled.cancel()
        await asyncio.sleep(0.02)
        backend.gate.set()
        assert (await wanted).descriptors[0, 0] == 12
        with pytest.raises(DeadlineExceededError):
            await expired
        await first
        assert backend.batches == [1, 1]

    run(test)


def test_work_that_would_be_late_leaves_its_place_to_others() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        first = await blocked(backend, batcher)
        batcher._room.seconds_a_snippet = 2.0
        late = batcher.submit(snippets(1, 2), deadline=asyncio.get_running_loop().time() + 5)
        wanted = batcher.submit(snippets(3, 4))
        backend.gate.set()
        assert (await wanted).descriptors[0, 0] == 9
        with pytest.raises(DeadlineExceededError):
            await late
        await first
        assert backend.batches == [1, 2]

    run(test)


def test_work_that_would_be_late_is_tried_when_nothing_else_waits() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        first = await blocked(backend, batcher)
        batcher._room.seconds_a_snippet = 20.0
        late = [batcher.submit(snippets(1), deadline=asyncio.get_running_loop().time() + 5) for _ in range(2)]
        backend.gate.set()
        await asyncio.gather(first, *late)
        assert backend.batches == [1, 2]

    run(test)


def test_a_failure_ends_with_its_batch() -> None:
    def fail(batch: np.ndarray) -> None:
        if (batch == 13).any():
            raise RuntimeError("the runtime broke")

    async def test(backend: Adder, batcher: Batcher) -> None:
        backend.failure = fail
        first = await blocked(backend, batcher)
        doomed = [batcher.submit(snippets(13)), batcher.submit(snippets(1, 2, 3))]
        safe = batcher.submit(snippets(4))
        backend.gate.set()
        for work in doomed:
            with pytest.raises(InternalError, match="the runtime broke"):
                await work
        assert (await safe).descriptors[0, 0] == 12
        await first

    run(test)


def test_a_batch_with_another_number_of_rows_is_refused() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        backend.rows = 1
        with pytest.raises(InternalError, match=r"gave back \[3, 3\] rows for 2 snippets"):
            await batcher.submit(snippets(1, 2))
        backend.rows = 0
        assert len((await batcher.submit(snippets(1, 2))).descriptors) == 2

    run(test)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        async with batcher.admit(4), admit(batcher, "other", 3):
            with pytest.raises(ResourceExhaustedError) as raised:
                await admit(batcher, "third", 2).__aenter__()
            assert raised.value.reason == "QUEUE_FULL"
            assert 0.1 <= (raised.value.retry_delay or 0) <= 30
            async with admit(batcher, "other", 1):
                assert batcher.admitted == 8
        assert batcher.admitted == 0
        async with batcher.admit(100):  # more than one client may hold: counted as that
            assert batcher.admitted == 4

    run(test, max_admitted=8)


def test_a_patient_request_waits_for_its_turn() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        order = []

        async def patient(name: str, count: int) -> None:
            async with batcher.admit(count, patient=True):
                order.append(name)

        async with batcher.admit(4), admit(batcher, "other", 4):
            tasks = [asyncio.create_task(patient("large", 8)), asyncio.create_task(patient("small", 1))]
            gone = asyncio.create_task(patient("gone", 1))
            await asyncio.sleep(0.01)
            gone.cancel()
            await asyncio.sleep(0.01)
            assert order == []
        await asyncio.gather(*tasks)
        assert order == ["large", "small"]
        assert batcher.admitted == 0

    run(test, max_admitted=8)


def test_no_snippets_is_an_error() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        with pytest.raises(InvalidArgumentError):
            batcher.submit(np.empty((0, 1, 2, 1, 3), dtype=np.uint8))

    run(test)


def test_stopping_answers_whoever_waits() -> None:
    async def main() -> None:
        backend = Adder()
        batcher = Batcher(backend, max_batch=1)
        await batcher.__aenter__()
        first = await blocked(backend, batcher)
        second = batcher.submit(snippets(2))
        threading.Timer(0.05, backend.gate.set).start()
        await batcher.__aexit__()
        for work in (first, second):
            with pytest.raises(UnavailableError):
                await work
        with pytest.raises(UnavailableError):
            batcher.submit(snippets(3))

    asyncio.run(main())


def test_bulk_gives_way_to_interactive_work_and_gets_its_share() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        first = await blocked(backend, batcher)
        with entered(Lane("camera", bulk=True)):
            bulk = [batcher.submit(snippets(1, 1)) for _ in range(3)]
        interactive = [batcher.submit(snippets(2, 2)) for _ in range(6)]
        ends: list[str] = []
        for work in bulk:
            work.add_done_callback(lambda _: ends.append("bulk"))
        for work in interactive:
            work.add_done_callback(lambda _: ends.append("interactive"))
        backend.gate.set()
        await asyncio.gather(first, *bulk, *interactive)
        # A bulk batch of one snippet for every four others: a fifth of what is computed.
        assert backend.batches == [1, 4, 1, 4, 1, 4, 1, 1, 1, 1]
        assert ends == ["interactive"] * 4 + ["bulk"] + ["interactive"] * 2 + ["bulk", "bulk"]

    run(test, bulk_share=0.2)


def test_bulk_leaves_the_encoder_to_a_query_that_is_being_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "BULK_HOLD", 0.5)

    async def test(backend: Adder, batcher: Batcher) -> None:
        with batcher.announce():
            with entered(Lane("camera", bulk=True)):
                bulk = [batcher.submit(snippets(1, 1, 1, 1)) for _ in range(2)]
            await asyncio.sleep(0.02)
            assert backend.batches == []
            query = batcher.submit(snippets(2, 2))
        await asyncio.gather(query, *bulk)
        assert backend.batches[0] == 2
        with batcher.announce(), entered(Lane("camera", bulk=True)):  # no longer than that
            start = time.perf_counter()
            await batcher.submit(snippets(3))
            assert 0.3 < time.perf_counter() - start < 5

    run(test)


def test_a_request_whose_deadline_the_queue_would_miss_is_refused_at_once() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        batcher._room.seconds_a_snippet = 2.0
        now = asyncio.get_running_loop().time()
        async with batcher.admit(4):
            with pytest.raises(
                ResourceExhaustedError, match=r"takes about 8.0 s, the call's deadline is in [45]\.\d s"
            ) as raised:
                await batcher.admit(4, deadline=now + 5).__aenter__()
            assert raised.value.reason == "QUEUE_TOO_LONG"
            assert 2 < (raised.value.retry_delay or 0) < 4
            async with batcher.admit(4, deadline=now + 60), admit(batcher, "other", 1, deadline=now + 5):
                assert batcher.admitted == 9  # another client is served in turn: it waits for little of what is queued
        assert batcher.admitted == 0

    run(test, max_admitted=64)


def hanging(monkeypatch: pytest.MonkeyPatch, test: Callable[..., Awaitable[Any]], **options: Any) -> list[bool]:
    """Runs `test` with a watchdog of 50 ms; what the batcher said of its health."""
    monkeypatch.setattr(batcher_module, "_RETRY_SECONDS", 0.01)
    said: list[bool] = []
    run(test, **({"watchdog": 0.05, "on_health": said.append} | options))
    return said


def test_a_batch_that_hangs_is_given_up_and_the_encoder_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        first = await blocked(backend, batcher)
        behind = batcher.submit(snippets(1))
        for work in (first, behind):
            with pytest.raises(InternalError, match=r"gave no answer in 0\.05 s") as raised:
                await work
            assert raised.value.reason == "ENCODER_HUNG"
        assert not batcher.healthy
        with pytest.raises(UnavailableError) as refused:
            batcher.submit(snippets(2))
        assert refused.value.retry_delay is not None
        backend.gate.set()
        while not batcher.healthy or batcher.left_behind:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert (await batcher.submit(snippets(3))).descriptors[0, 0] == 9
        assert len(backend.threads) >= 2

    assert hanging(monkeypatch, test) == [False, True]


def test_threads_are_not_left_behind_without_end(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        first = await blocked(backend, batcher)
        with pytest.raises(InternalError):
            await first
        while not any(record.levelno == logging.CRITICAL for record in caplog.records):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert batcher.left_behind == MAX_LEFT_BEHIND
        assert not batcher.healthy
        backend.gate.set()
        while not batcher.healthy:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (await batcher.submit(snippets(3))).descriptors[0, 0] == 9

    hanging(monkeypatch, test)
    assert "restart the server" in caplog.text


def test_one_hanging_worker_of_two_does_not_stop_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        stuck = threading.Event()

        def hang(batch: np.ndarray) -> None:
            if (batch == 13).any():
                stuck.wait(10)

        backend.failure = hang
        doomed = batcher.submit(snippets(13))
        with pytest.raises(InternalError):
            await doomed
        assert (await batcher.submit(snippets(4))).descriptors[0, 0] == 12
        stuck.set()

    assert hanging(monkeypatch, test, workers=2) == []


def test_stopping_does_not_wait_for_a_batch_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Adder()

    async def main() -> float:
        async with Batcher(backend, max_batch=1, watchdog=0.05) as batcher:
            first = await blocked(backend, batcher)
            with pytest.raises(InternalError):
                await first
            start = time.perf_counter()
        return time.perf_counter() - start

    assert asyncio.run(main()) < 5
    backend.gate.set()


def test_stopping_does_not_wait_for_a_hanging_encoder_that_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Adder()
    joined: list[float] = []

    async def main() -> None:
        async with Batcher(backend, max_batch=1, watchdog=0.05) as batcher:
            first = await blocked(backend, batcher)
            with pytest.raises(InternalError):
                await first
            batcher._watchdog = 60.0  # from the next try on
            while len(batcher._threads) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    monkeypatch.setattr(EncoderThread, "join", lambda _, seconds: joined.append(seconds))
    asyncio.run(main())
    assert joined == [0.0] * 3
    backend.gate.set()


def test_several_workers_compute_side_by_side() -> None:
    async def test(backend: Adder, batcher: Batcher) -> None:
        values = list(range(60))
        results = await asyncio.gather(*(batcher.submit(snippets(value, value)) for value in values))
        assert [int(result.descriptors[0, 0]) for result in results] == [3 * value for value in values]

    run(test, workers=3, max_batch=5)


def test_another_batch_begins_beside_one_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "BESIDE_WAIT", 60.0)

    async def test(backend: Adder, batcher: Batcher) -> None:
        first = await blocked(backend, batcher)
        waiting = [batcher.submit(snippets(value)) for value in (1, 2, 3)]
        await asyncio.sleep(0.05)
        assert batcher.waiting == 3
        waiting.append(batcher.submit(snippets(4)))
        while batcher.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert not first.done()
        backend.gate.set()
        assert [int((await work).descriptors[0, 0]) for work in waiting] == [3, 6, 9, 12]
        await first
        assert sorted(backend.batches) == [1, 4]

    run(test, workers=2)


def test_work_waits_for_the_batch_that_computes_no_longer_than_beside_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "BESIDE_WAIT", 0.05)

    async def test(backend: Adder, batcher: Batcher) -> None:
        first = await blocked(backend, batcher)
        work = batcher.submit(snippets(1))
        while batcher.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert not first.done()
        backend.gate.set()
        await asyncio.gather(first, work)

    run(test, workers=2)


def test_small_bulk_batches_never_go_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "BESIDE_WAIT", 0.01)

    async def test(backend: Adder, batcher: Batcher) -> None:
        first = await blocked(backend, batcher)  # interactive: from here on bulk batches are small
        with entered(Lane("camera", bulk=True)):
            bulk = [batcher.submit(snippets(value)) for value in range(8)]
        await asyncio.sleep(0.1)
        assert batcher.waiting == 8
        backend.gate.set()
        await asyncio.gather(first, *bulk)

    run(test, workers=2)
