"""A batch and the work that it is made of: what is noted when it begins, and who gets which of its rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from passerby_model.backends import Encoded

from passerby_server.queueing import Piece


def note_start(pieces: Sequence[Piece], now: float) -> None:
    """Work whose first snippets these are has waited until `now`, on the event loop's clock."""
    for work, start, _ in pieces:
        if start == 0:
            work.started = now
            if work.call is not None:
                work.call.took("queue", now - work.arrival)


def deliver(pieces: Sequence[Piece], encoded: Encoded, now: float) -> None:
    """Gives each work its rows of `encoded`, which are in the order of `pieces`; whoever has all of them is answered."""
    row = 0
    for work, start, stop in pieces:
        own = slice(row, row + stop - start)
        row = own.stop
        work.parts[start] = Encoded(
            encoded.descriptors[own], {block: mask[own] for block, mask in encoded.masks.items()}
        )
        if not work.future.done() and sum(len(part.descriptors) for part in work.parts.values()) == len(work.snippets):
            work.future.set_result(_joined([work.parts[at] for at in sorted(work.parts)]))
            if work.call is not None:
                work.call.took("encode", now - work.started)


def rows(pieces: Sequence[Piece]) -> int:
    """Snippets of the batch."""
    return sum(piece.stop - piece.start for piece in pieces)


def _joined(parts: Sequence[Encoded]) -> Encoded:
    if len(parts) == 1:
        return parts[0]
    return Encoded(
        np.concatenate([part.descriptors for part in parts]),
        {block: np.concatenate([part.masks[block] for part in parts]) for block in parts[0].masks},
    )
