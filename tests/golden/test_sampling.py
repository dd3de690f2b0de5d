"""Clips and snippets by the frame indices of the reference's loader."""

import json

import numpy as np
import pytest
from passerby_model import clips, snippets


@pytest.fixture(scope="module")
def sampling(golden):
    return json.loads((golden / "sampling.json").read_text())


@pytest.mark.parametrize("length", [2, 4, 8])
def test_random_clips(sampling, length):
    """The reference's clips, and the last one that its range misses (off by one)."""
    generator = np.random.default_rng(0)
    for count, reference in sampling["random_start_range"][str(length)].items():
        frames = int(count)
        drawn = {tuple(clips.clip_indices(frames, length, generator)) for _ in range(40 * frames)}
        assert tuple(reference["example"]) in drawn
        assert tuple(reference["last"]) in drawn
        assert len(drawn) - reference["n_distinct"] == (1 if frames > length else 0)
        assert {clip[0] for clip in drawn} == set(range(max(1, frames - length + 1)))


@pytest.mark.parametrize("length", [2, 4, 8])
def test_dense_snippets(sampling, length):
    for count, reference in sampling["dense"][str(length)].items():
        assert snippets.split(int(count), length).tolist() == reference
