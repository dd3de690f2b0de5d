import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from passerby.errors import InvalidArgumentError
from passerby_model.sampler import IdentitySampler

COUNTS = st.lists(st.integers(1, 6), min_size=4, max_size=20)


@given(COUNTS, st.integers(2, 4), st.integers(1, 4), st.integers(0, 3))
def test_every_identity_at_most_once_and_k_tracklets_of_it(counts, p, k, epoch):
    labels = np.repeat(np.arange(len(counts)), counts)
    batches = IdentitySampler(labels, p, k, seed=1).epoch(epoch)
    assert len(batches) == len(counts) // p
    seen: list[int] = []
    for batch in batches:
        people = labels[batch].reshape(p, k)
        assert (people == people[:, :1]).all()
        seen.extend(people[:, 0])
        for row in batch.reshape(p, k):
            if counts[labels[row[0]]] >= k:
                assert len(set(row)) == k
    assert len(seen) == len(set(seen)) == len(batches) * p


def test_all_identities_of_an_epoch_when_they_fill_the_batches():
    labels = np.repeat(np.arange(8), 3)
    batches = IdentitySampler(labels, 4, 2).epoch(0)
    assert sorted(labels[np.concatenate(batches)]) == sorted(np.repeat(np.arange(8), 2))


def test_epochs_differ_and_repeat_with_the_seed():
    labels = np.repeat(np.arange(10), 4)
    first, again, other = (IdentitySampler(labels, 4, 2, seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(first.epoch(3), again.epoch(3))
    assert not np.array_equal(first.epoch(3), first.epoch(4))
    assert not np.array_equal(first.epoch(3), other.epoch(3))


def test_repeated_identities_never_share_a_batch():
    labels = np.repeat(np.arange(6), 4)
    sampler = IdentitySampler(labels, 3, 2, repeats=[3, 3, 1, 1, 1, 1])
    for epoch in range(20):
        for group in sampler.identities(epoch):
            assert len(set(group)) == 3
    visits = np.bincount(np.concatenate([g for epoch in range(50) for g in sampler.identities(epoch)]))
    assert visits[0] > 2 * visits[5]


def test_too_few_identities():
    with pytest.raises(InvalidArgumentError, match="takes 8 identities, the training set has 2"):
        IdentitySampler([0, 1], 8, 4)
