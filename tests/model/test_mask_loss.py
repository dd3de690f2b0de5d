"""COSAM's masks learn from silhouettes where a data source has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from passerby_model import train_config
from passerby_model.augmentation import UNKNOWN
from passerby_model.losses import BACKGROUND_MASK, PERSON_MASK, silhouette
from PIL import Image

from tests.training_runs import log, run, settings, write_people


def test_loss_is_least_at_the_share_of_the_person() -> None:
    truth = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    truth[..., :2, :2] = 1  # a whole place of a 2 x 2 mask,
    truth[..., 3, 2] = 1  # and a quarter of another
    best = torch.tensor(
        [[PERSON_MASK, BACKGROUND_MASK], [BACKGROUND_MASK, 0.75 * BACKGROUND_MASK + 0.25 * PERSON_MASK]]
    )
    mask = best.reshape(1, 1, 2, 2).clone().requires_grad_()
    loss = silhouette({4: mask, 5: mask}, truth)
    (gradient,) = torch.autograd.grad(loss, mask)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)
    entropy = -(best * best.log() + (1 - best) * (1 - best).log()).mean()
    torch.testing.assert_close(loss, entropy)
    assert silhouette({4: 1 - mask}, truth) > loss


def test_clips_without_silhouette_do_not_count() -> None:
    truth = torch.full((2, 1, 2, 2), UNKNOWN, dtype=torch.uint8)
    mask = torch.rand(2, 1, 2, 2)
    assert silhouette({5: mask}, truth) == 0
    truth[1] = 1
    torch.testing.assert_close(silhouette({5: mask}, truth), silhouette({5: mask[1:]}, truth[1:]))


@pytest.fixture
def people(tmp_path: Path) -> list[str]:
    """Eight people, each said to be the lower half of the picture."""
    root = write_people(tmp_path / "people", count=8, frames=2)
    for frame in root.rglob("*.png"):
        with Image.open(frame) as picture:
            labels = np.zeros(picture.size[::-1], np.uint8)
        labels[labels.shape[0] // 2 :] = 1
        target = tmp_path / "masks" / frame.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(target)
    return settings(
        root, f"data.0.masks={tmp_path / 'masks'}", "architecture=test_resnet+cosam45+tp", "snippet_length=2"
    )


def test_a_run_brings_the_masks_to_the_silhouettes(people: list[str], tmp_path: Path) -> None:
    with_masks = train_config.load(
        None, [*people, "mask_weight=20", "iterations=60", "lr=3e-3", "report=false", "augmentation.crop=0"]
    )
    run(with_masks, tmp_path / "out")
    rows = log(tmp_path / "out")
    floor = -sum(p * np.log(p) for p in (BACKGROUND_MASK, PERSON_MASK))  # of places that are one or the other
    assert rows[0]["mask"] > floor
    assert rows[-1]["mask"] < rows[0]["mask"] - 0.5 * (rows[0]["mask"] - floor)
