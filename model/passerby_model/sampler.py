"""Which tracklets make a batch: P identities x K tracklets.

Source: the reference's `samplers.py` (RandomIdentitySampler of KaiyangZhou/deep-person-reid): every identity once an
epoch in random order, K tracklets each, with replacement where it has fewer; an incomplete last batch is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError


class IdentitySampler:
    """Batches of P x K tracklets. An epoch depends on (seed, epoch) alone, so that a resumed run repeats it."""

    def __init__(
        self,
        labels: Sequence[int] | NDArray[np.int64],
        identities_per_batch: int,
        tracklets_per_identity: int,
        seed: int = 0,
        repeats: Sequence[int] | None = None,
    ) -> None:
        """Prepare.

        Args:
            labels: identity of each tracklet, 0..classes-1, every class present.
            identities_per_batch, tracklets_per_identity: P and K.
            seed: of the random order.
            repeats: how often an epoch visits each class; once when not given.

        Raises:
            InvalidArgumentError: fewer than P identities.
        """
        labels = np.asarray(labels, dtype=np.int64)
        self._members = [np.flatnonzero(labels == label) for label in range(int(labels.max(initial=-1)) + 1)]
        self._p, self._k, self._seed = identities_per_batch, tracklets_per_identity, seed
        if len(self._members) < self._p:
            raise InvalidArgumentError(
                f"a batch takes {self._p} identities, the training set has {len(self._members)}; "
                "lower identities_per_batch or add data"
            )
        self._visits = np.repeat(
            np.arange(len(self._members)), 1 if repeats is None else np.asarray(repeats, dtype=np.int64)
        )

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return len(self.identities(0))

    def identities(self, epoch: int) -> list[NDArray[np.int64]]:
        """The P different identities of each batch of an epoch; each int64 (P,)."""
        return self._group(self._generator(epoch).permutation(self._visits))

    def epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """Tracklet indices of each batch of an epoch: int64 (P*K,), the K of one identity adjacent."""
        generator = self._generator(epoch)
        groups = self._group(generator.permutation(self._visits))
        return [np.concatenate([self._choose(label, generator) for label in group]) for group in groups]

    def _generator(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, epoch])

    def _choose(self, label: int, generator: np.random.Generator) -> NDArray[np.int64]:
        members = self._members[label]
        return generator.choice(members, self._k, replace=len(members) < self._k)

    def _group(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut the order into groups of P different identities; a repeated one waits for the next group."""
        groups: list[NDArray[np.int64]] = []
        waiting = order.tolist()
        while len(waiting) >= self._p:
            group = list(dict.fromkeys(waiting))[: self._p]
            if len(group) < self._p:
                break
            for label in group:
                waiting.remove(label)
            groups.append(np.array(group, dtype=np.int64))
        return groups
