import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from passerby.errors import InvalidArgumentError
from passerby_model import snippets


def test_split_equals_reference_loader(shared):
    golden = json.loads((shared / "golden" / "sampling.json").read_text())["dense"]
    for snippet_length, by_count in golden.items():
        for frame_count, expected in by_count.items():
            assert snippets.split(int(frame_count), int(snippet_length)).tolist() == expected


@given(st.integers(1, 300), st.integers(1, 9))
def test_split_keeps_every_frame_once_before_the_padding(frame_count, snippet_length):
    indices = snippets.split(frame_count, snippet_length)
    assert indices.dtype == np.int64
    assert indices.shape == (-(-frame_count // snippet_length), snippet_length)
    assert indices.reshape(-1)[:frame_count].tolist() == list(range(frame_count))
    assert set(indices[-1]) == set(range((len(indices) - 1) * snippet_length, frame_count))


@pytest.mark.parametrize(("frame_count", "snippet_length"), [(0, 4), (-1, 4), (4, 0)])
def test_split_refuses_nothing(frame_count, snippet_length):
    with pytest.raises(InvalidArgumentError):
        snippets.split(frame_count, snippet_length)


def test_mean_descriptor_is_the_plain_mean():
    descriptors = np.array([[1, 2, 3], [3, 2, 1]], dtype=np.float32)
    mean = snippets.mean_descriptor(descriptors)
    assert mean.dtype == np.float32
    assert mean.tolist() == [2, 2, 2]
    with pytest.raises(InvalidArgumentError):
        snippets.mean_descriptor(np.zeros((0, 3), dtype=np.float32))
