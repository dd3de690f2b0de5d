"""Distillation: the teacher's descriptors, the loss, and a run that follows a real teacher bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from passerby.errors import NotFoundError
from passerby_model import checkpoint, train_config, training
from passerby_model.clips import ClipBuilder, FrameStore
from passerby_model.datasets import read
from passerby_model.distillation import Imitation, TaughtClipBuilder, Teacher, distance_relation
from passerby_model.train_config import Augmentation
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


def taught(people: Path, teacher: Path, *, cache: int = 10**8, views: int = 3) -> TaughtClipBuilder:
    """Clips of 64 x 32 pixels, five frames; the teacher's are 32 x 16."""
    options = Augmentation(crop=0.5, flip=0.5, colour=0.5, join=0.3)
    builder = ClipBuilder(read(people).tracklets, FrameStore(64, 32, 10**8), options, 5, (64, 32), seed=1)
    return TaughtClipBuilder(builder, Teacher(teacher, threads=1), views, cache)


def test_teacher_gives_the_mean_of_the_snippets_of_each_clip(tmp_path: Path) -> None:
    teacher = Teacher(make_bundle(tmp_path / "teacher"), threads=1)
    clips = np.random.default_rng(0).integers(0, 256, (7, 5, *teacher.size, 3), dtype=np.uint8)
    wanted = np.stack([expected_descriptor(list(clip)) for clip in clips])
    found = teacher.descriptors(clips)
    assert np.allclose(found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)
    assert np.array_equal(teacher.descriptors(clips[2:4]), found[2:4]), "what else is asked for changes nothing"


def test_each_view_is_seen_once_and_comes_back_the_same(people: Path, tmp_path: Path, monkeypatch) -> None:
    teacher = make_bundle(tmp_path / "teacher")
    builder = taught(people, teacher)
    seen: list[int] = []
    original = Teacher.descriptors

    def counted(self: Teacher, clips):
        seen.append(len(clips))
        return original(self, clips)

    monkeypatch.setattr(Teacher, "descriptors", counted)
    members = np.arange(16).repeat(4)
    batches = [builder.batch(members, iteration) for iteration in range(12)]
    assert sum(seen) == 16 * 3, "three views of sixteen tracklets, all of them drawn by now"
    again = taught(people, teacher, cache=0).batch(members, 7)
    for field in ("frames", "whole", "targets"):
        assert np.array_equal(getattr(again, field), getattr(batches[7], field)), f"{field} depend on what is kept"
    assert batches[0].frames.shape == (64, 5, 64, 32, 3)
    assert 0 < batches[0].whole.mean() < 1
    assert not np.array_equal(batches[0].frames, batches[1].frames)


def test_silhouettes_are_mirrored_with_the_student_s_view(tmp_path: Path) -> None:
    picture, labels = np.zeros((64, 32, 3), np.uint8), np.zeros((64, 32), np.uint8)
    picture[:, 4:12], labels[:, 4:12] = 200, 1
    (tmp_path / "frames/p0/c1/t1").mkdir(parents=True)
    for number in range(5):
        Image.fromarray(picture).save(tmp_path / f"frames/p0/c1/t1/{number}.png")
    Image.fromarray(labels).save(tmp_path / "mask.png")
    tracklets, options = read(tmp_path / "frames").tracklets, Augmentation(crop=0.5, flip=0.5)
    mask_of = lambda frame: tmp_path / "mask.png"  # noqa: E731
    plain = ClipBuilder(tracklets, FrameStore(64, 32, 10**8), options, 5, (64, 32), 1, mask_of)
    teacher = Teacher(make_bundle(tmp_path / "teacher"), threads=1)
    drawn = TaughtClipBuilder(plain, teacher, 3, 10**8).batch(np.zeros(12, int), 0)
    assert drawn.silhouettes.shape == (12, 5, 64, 32)
    assert (drawn.silhouettes != (drawn.frames[..., 0] > 100)).mean() < 0.06, "but for the edges, since sizes differ"
    left = drawn.silhouettes[..., :16].sum(axis=(1, 2, 3)) > drawn.silhouettes[..., 16:].sum(axis=(1, 2, 3))
    assert 0 < left.mean() < 1, "some are mirrored"


def test_loss_is_zero_for_the_teacher_itself_and_two_for_its_opposite() -> None:
    targets = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    loss = Imitation(8, 8)
    with torch.no_grad():
        loss.projection.weight.copy_(torch.eye(8))
        loss.projection.bias.zero_()
    assert loss(3 * targets, targets).item() == pytest.approx(0, abs=1e-6)
    assert loss(-targets, targets).item() == pytest.approx(2, abs=1e-6)


def test_relation_is_zero_for_any_scale_and_shift_of_the_teacher() -> None:
    targets = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    assert distance_relation(5 * targets + 3, targets).item() == pytest.approx(0, abs=1e-9)
    assert distance_relation(targets[:1], targets[:1]).item() == 0
    # Points 0, 1, 4 against 0, 2, 4: distances 1, 4, 3 and 2, 4, 2, all in units of 8/3.
    student, teacher = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[0.0], [2.0], [4.0]])
    ours, theirs = np.array([1, 4, 3]) / (8 / 3), np.array([2, 4, 2]) / (8 / 3)
    wanted = (0.5 * (ours - theirs) ** 2).mean()
    assert distance_relation(student, teacher).item() == pytest.approx(wanted, rel=1e-5)


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


def test_by_the_teacher_alone_the_classifier_stays_as_it_was(people: Path, tmp_path: Path) -> None:
    teacher, steps = make_bundle(tmp_path / "teacher"), Recorder()
    for count in (1, 4):
        settings = (f"iterations={count}", "cross_entropy_weight=0", "weight_decay=0")
        training.train(config(people, teacher, *settings), tmp_path / str(count), reporter=steps)
    first, *_, last = steps.steps
    assert last.loss == pytest.approx(10 * last.distillation, rel=1e-5)
    assert last.distillation < first.distillation
    short, long = (checkpoint.load(tmp_path / str(count) / "last.pt").state["classifier.weight"] for count in (1, 4))
    assert torch.equal(short, long)


def test_a_missing_teacher_is_named(people: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        training.train(config(people, tmp_path / "nowhere"), tmp_path / "out", reporter=Recorder())
