"""The watch over waiting for clips."""

from __future__ import annotations

from passerby_model.progress import WAIT_STEPS, Step, WaitWatch


def step(number: int, wait: float) -> Step:
    return Step(
        iteration=number,
        epoch=0,
        lr=1.0,
        loss=1.0,
        cross_entropy=1.0,
        triplet=0.0,
        distillation=0.0,
        mask=0.0,
        accuracy=0.0,
        clips=1,
        seconds=1.0,
        wait_seconds=wait,
    )


def told(waits: list[float]) -> list[tuple[int, str]]:
    watch = WaitWatch(workers=2, cache_gib=4)
    advice = [(number, watch.advice(step(number, wait))) for number, wait in enumerate(waits, start=1)]
    return [(number, text) for number, text in advice if text is not None]


def test_more_than_a_tenth_of_the_last_hundred_iterations_is_told_once() -> None:
    found = told([0.0] * WAIT_STEPS + [0.5] * 60)
    assert [number for number, _ in found] == [WAIT_STEPS + 21]
    assert "10 % of the last 100 iterations" in found[0][1]
    assert "raise workers (now 2), and cache_gib (now 4)" in found[0][1]


def test_a_tenth_is_not_told_and_the_first_iterations_neither() -> None:
    assert told([0.1] * 300) == []
    assert told([0.9] * (WAIT_STEPS - 1)) == []


def test_it_is_told_again_after_it_was_better() -> None:
    assert len(told([0.5] * 150 + [0.0] * 150 + [0.5] * 150)) == 2
