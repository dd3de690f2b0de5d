"""One training step of SE-ResNet50 + COSAM_4,5 with golden weights against the reference's: losses and gradients.

The names inside the file are not relied on, only its content: a mapping from each parameter's reference name to the norm of
its gradient, and the four losses among its numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from passerby_model import checkpoint, losses

NAME = "se_resnet50_cosam45_tp"
LABELS = [3, 3, 17, 17]
LR, DECAY = 3e-4, 5e-4


def tables(value: Any) -> Iterator[Mapping[str, Any]]:
    """All mappings within a JSON value."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from tables(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from tables(inner)


def numbers(value: Any) -> list[float]:
    found = [v for table in tables(value) for v in table.values()]
    found += [v for values in found if isinstance(values, list) for v in values]
    return [float(v) for v in found if isinstance(v, int | float)]


@pytest.fixture(scope="module")
def expected(golden) -> Any:
    path = golden / f"train_step_{NAME}.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the golden vectors here")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def stepped(expected, reference_state):
    """(losses before and after one step of Adam, gradients by the reference's names)."""
    model = checkpoint.import_reference(reference_state(NAME)).build().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=DECAY)
    frames = torch.from_numpy(np.random.RandomState(4).standard_normal((4, 4, 3, 256, 128)).astype(np.float32))
    labels = torch.tensor(LABELS)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        descriptors, logits, _ = model(frames)
        return losses.cross_entropy(logits, labels, 0.1), losses.batch_hard_triplet(descriptors, labels, 0.3)

    before = both()
    (before[0] + before[1]).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    saved = checkpoint.Checkpoint(model.encoder.architecture, 625, gradients)
    named = checkpoint.export_reference(saved)
    optimizer.step()
    with torch.no_grad():
        after = both()
    return [value.item() for value in (*before, *after)], named


def test_losses_before_and_after_the_step(expected, stepped):
    known = np.array(numbers(expected))
    # Before: to float32's precision. After: a step of Adam enlarges what rounding does to tiny gradients.
    for value, tolerance in zip(stepped[0], (1e-5, 1e-4, 1e-3, 5e-3), strict=True):
        assert np.abs(known - value).min() <= tolerance * max(abs(value), 1), value


def test_norm_of_every_gradient(expected, stepped):
    ours = {name: value.norm().item() for name, value in stepped[1].items()}
    found = [table for table in tables(expected) if ours.keys() <= table.keys()]
    assert found, "no table of gradient norms by parameter"
    norms = [{name: float(np.ravel(table[name])[0]) for name in ours} for table in found]
    largest = max(norms[0].values())
    for name, value in ours.items():
        if norms[0][name] > 1e-6 * largest:  # biases before a batch norm have none
            assert min(abs(table[name] - value) / table[name] for table in norms) <= 5e-3, name
