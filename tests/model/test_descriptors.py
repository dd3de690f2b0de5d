"""Descriptors of tracklets equal the plain loop over the definition, however the snippets fall into batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from passerby.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from passerby_model import preprocess, snippets
from passerby_model.datasets import Tracklet
from passerby_model.descriptors import ClipScheme, embed
from PIL import Image

LENGTHS = (1, 4, 7, 30, 2)
HEIGHT, WIDTH = 12, 6


def encode(pixels: np.ndarray) -> np.ndarray:
    """Frames count by their place in the snippet, so that any mix-up shows: float32 (B, 3)."""
    assert pixels.shape[1:] == (4, HEIGHT, WIDTH, 3)
    colours = pixels.mean(axis=(2, 3))
    return np.asarray(np.einsum("bnc,n->bc", colours, np.array([1, 10, 100, 1000])), np.float32)


@pytest.fixture(scope="module")
def tracklets(tmp_path_factory: pytest.TempPathFactory) -> list[Tracklet]:
    folder = tmp_path_factory.mktemp("frames")
    random = np.random.default_rng(0)
    found = []
    for number, length in enumerate(LENGTHS):
        paths = []
        for frame in range(length):
            paths.append(folder / f"{number}-{frame:03d}.png")
            Image.fromarray(random.integers(0, 256, (20, 10, 3), np.uint8)).save(paths[-1])
        found.append(Tracklet(f"p{number}", "c1", "t1", tuple(paths)))
    return found


def by_hand(tracklet: Tracklet, frames: list[int]) -> np.ndarray:
    pixels = [preprocess.resize(preprocess.read_image(tracklet.frames[i]), HEIGHT, WIDTH) for i in frames]
    chunks = snippets.split(len(frames), 4)
    parts = [encode(np.stack([pixels[i] for i in chunk])[None])[0] for chunk in chunks]
    return np.asarray(np.mean(parts, axis=0))


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_equals_the_definition_at_every_batch_size(tracklets: list[Tracklet], batch: int) -> None:
    sizes = []
    found = embed(
        lambda pixels: sizes.append(len(pixels)) or encode(pixels),  # type: ignore[func-returns-value]
        tracklets,
        ClipScheme(4),
        height=HEIGHT,
        width=WIDTH,
        batch_snippets=batch,
        decode_threads=2,
    )
    expected = [by_hand(tracklet, list(range(len(tracklet.frames)))) for tracklet in tracklets]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    total = sum(-(-length // 4) for length in LENGTHS)
    assert sizes == [batch] * (total // batch) + [total % batch] * bool(total % batch)


def test_limits_spread_evenly(tracklets: list[Tracklet]) -> None:
    few = embed(encode, tracklets, ClipScheme(4, max_frames=8), height=HEIGHT, width=WIDTH)
    np.testing.assert_allclose(few[3], by_hand(tracklets[3], [0, 4, 8, 12, 17, 21, 25, 29]), rtol=1e-6)
    np.testing.assert_allclose(few[2], by_hand(tracklets[2], list(range(7))), rtol=1e-6)
    assert ClipScheme(4, max_snippets=2).snippets(30).tolist() == [[0, 1, 2, 3], [28, 29, 28, 29]]
    assert str(ClipScheme(4, 8, 2)) == "dense, snippets of 4, at most 8 frames, at most 2 snippets"
    with pytest.raises(InvalidArgumentError, match="max_frames must be at least 1"):
        ClipScheme(4, max_frames=0)


def test_progress_ends_at_the_whole(tracklets: list[Tracklet]) -> None:
    seen: list[tuple[int, int]] = []
    embed(
        encode,
        tracklets,
        ClipScheme(4),
        height=HEIGHT,
        width=WIDTH,
        batch_snippets=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (len(LENGTHS), len(LENGTHS))
    assert len(seen) > 3


def test_broken_input_is_named(tracklets: list[Tracklet]) -> None:
    absent = Tracklet("p", "c", "t", (*tracklets[1].frames, Path("absent.png")))
    with pytest.raises(NotFoundError, match=r"absent\.png"):
        embed(encode, [*tracklets, absent], ClipScheme(4), batch_snippets=1, height=HEIGHT, width=WIDTH)
    with pytest.raises(InvalidArgumentError, match="no tracklets"):
        embed(encode, [], ClipScheme(4), height=HEIGHT, width=WIDTH)

    def broken(pixels: np.ndarray) -> np.ndarray:
        found = encode(pixels)
        found[-1] = np.nan
        return found

    with pytest.raises(FailedPreconditionError, match="1 of 5 tracklets, first p4/c1/t1") as caught:
        embed(broken, tracklets, ClipScheme(4), height=HEIGHT, width=WIDTH)
    assert caught.value.reason == "DESCRIPTOR_NOT_FINITE"
