"""Distillation: the teacher's descriptors, the loss, and a run that follows a real teacher bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from passerby.errors import NotFoundError
from passerby_model import checkpoint, train_config, training
from passerby_model.datasets import read
from passerby_model.distillation import Imitation, teacher_descriptors
from PIL import Image

from tests.encoders import expected_descriptor, make_bundle


class Recorder:
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[training.Step] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step(self, step: training.Step, total: int) -> None:
        self.steps.append(step)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight people, each of one colour, two cameras, a tracklet of five frames in each."""
    root = tmp_path_factory.mktemp("people")
    generator = np.random.default_rng(0)
    for person in range(8):
        colour = generator.integers(0, 256, 3)
        for camera in ("c1", "c2"):
            folder = root / f"p{person}" / camera / "t1"
            folder.mkdir(parents=True)
            for frame in range(5):
                pixels = np.clip(colour + generator.integers(-20, 20, (64, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{frame}.png")
    return root


def config(people: Path, teacher: Path, *overrides: str) -> train_config.TrainConfig:
    settings = ["architecture=resnet18+none+tp", "snippet_length=1", "height=64", "width=32", "threads=1", "workers=1"]
    settings += ["identities_per_batch=8", "tracklets_per_identity=1", "triplet_weight=0", "augmentation.flip=0"]
    settings += ["augmentation.crop=0", "lr=1e-3", "teacher_weight=10", f"teacher={teacher}"]
    return train_config.load(None, [f"data.0.path={people}", *settings, *overrides])


def test_teacher_sees_evenly_spread_frames_once(people: Path, tmp_path: Path) -> None:
    teacher = make_bundle(tmp_path / "teacher")
    tracklets = read(people).tracklets
    said: list[str] = []
    found = teacher_descriptors(teacher, tracklets, 4, tmp_path / "t.npz", said.append)
    frames = [np.asarray(Image.open(tracklets[3].frames[i])) for i in (0, 1, 3, 4)]
    wanted = expected_descriptor(frames)
    assert np.allclose(found[3], wanted / np.linalg.norm(wanted), atol=1e-5)
    assert len(said) == 1
    assert np.array_equal(found, teacher_descriptors(teacher, tracklets, 4, tmp_path / "t.npz", said.append))
    assert len(said) == 1, "the second time the descriptors come from the cache"
    teacher_descriptors(teacher, tracklets, 2, tmp_path / "t.npz", said.append)
    assert len(said) == 2, "another number of frames makes the cache stale"


def test_a_torn_cache_is_made_anew(people: Path, tmp_path: Path) -> None:
    teacher = make_bundle(tmp_path / "teacher")
    (tmp_path / "t.npz").write_bytes(b"PK\x03\x04 torn")
    assert teacher_descriptors(teacher, read(people).tracklets, 4, tmp_path / "t.npz", print).shape == (16, 8)


def test_loss_is_zero_for_the_teacher_itself_and_two_for_its_opposite() -> None:
    targets = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    loss = Imitation(8, targets.numpy())
    with torch.no_grad():
        loss.projection.weight.copy_(torch.eye(8))
        loss.projection.bias.zero_()
    members = torch.tensor([4, 0, 2])
    assert loss(3 * targets[members], members).item() == pytest.approx(0, abs=1e-6)
    assert loss(-targets[members], members).item() == pytest.approx(2, abs=1e-6)


def test_a_run_follows_its_teacher_resumes_exactly_and_hands_the_map_on(people: Path, tmp_path: Path) -> None:
    teacher = make_bundle(tmp_path / "teacher")
    whole, halves = Recorder(), Recorder()
    training.train(config(people, teacher, "iterations=12"), tmp_path / "whole", reporter=whole)
    assert whole.steps[-1].distillation < 0.5 * whole.steps[0].distillation
    training.train(
        config(people, teacher, "iterations=12"),
        tmp_path / "halves",
        reporter=halves,
        stop=lambda: len(halves.steps) == 6,
    )
    training.train(config(people, teacher, "iterations=12"), tmp_path / "halves", reporter=halves, resume=True)
    assert [step.loss for step in halves.steps] == [step.loss for step in whole.steps]
    last = tmp_path / "whole/last.pt"
    saved = checkpoint.load(last)
    assert saved.training is not None
    assert saved.training["imitation"]["projection.weight"].shape == (8, 512)
    onward = Recorder()
    training.train(config(people, teacher, "iterations=1", f"init={last}"), tmp_path / "on", reporter=onward)
    assert onward.steps[0].distillation < 0.5 * whole.steps[0].distillation
    assert "0 fresh" in " ".join(onward.messages), "the same identities keep their classifier"


def test_a_missing_teacher_is_named(people: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        training.train(config(people, tmp_path / "nowhere"), tmp_path / "out", reporter=Recorder())
