"""One update of the learner against plain arithmetic, and what keeps it from doing harm."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from passerby.errors import FailedPreconditionError, InvalidArgumentError
from passerby_model import checkpoint, clips, learner
from passerby_model.checkpoint import Checkpoint
from passerby_model.clips import ClipBatch
from passerby_model.encoder import Architecture, Classifier, TrackletEncoder
from passerby_model.sampler import IdentitySampler
from passerby_model.train_config import TrainConfig
from passerby_model.training_data import gather
from torch import Tensor

from tests.training_runs import config, run, write_people

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LR, DECAY, SMOOTHING, MARGIN = 3e-4, 5e-4, 0.1, 5.0  # a margin that these people do not fulfil


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"), count=8)


# The reference's step, written down anew: no accelerate, no channels-last, no fused optimiser, losses by their sums.


def plain_losses(descriptors: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy with smoothed labels, and the hinge of the hardest pairs, clip by clip."""
    classes = logits.shape[1]
    entropy = triplet = torch.zeros(())
    for i, label in enumerate(labels):
        log_probabilities = logits[i] - logits[i].exp().sum().log()
        wanted = torch.full((classes,), SMOOTHING / classes)
        wanted[label] += 1 - SMOOTHING
        entropy = entropy - (wanted * log_probabilities).sum() / len(labels)
        distance = [(descriptors[i] - other).square().sum().clamp(min=1e-12).sqrt() for other in descriptors]
        positive = max(d for d, other in zip(distance, labels, strict=True) if other == label)
        negative = min(d for d, other in zip(distance, labels, strict=True) if other != label)
        triplet = triplet + (positive - negative + MARGIN).clamp(min=0) / len(labels)
    return entropy, triplet


class PlainAdam:
    """Adam as its paper has it (Kingma and Ba, arXiv 1412.6980, algorithm 1), weight decay added to the gradient."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.parameters, self.steps = parameters, 0
        self.first = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def step(self) -> None:
        self.steps += 1
        for name, p in self.parameters.items():
            assert p.grad is not None
            gradient = p.grad + DECAY * p.detach()
            self.first[name] = 0.9 * self.first[name] + 0.1 * gradient
            self.second[name] = 0.999 * self.second[name] + 0.001 * gradient**2
            m = self.first[name] / (1 - 0.9**self.steps)
            v = self.second[name] / (1 - 0.999**self.steps)
            p.data = p.data - LR * m / (v.sqrt() + 1e-8)
            p.grad = None


def plain_run(made: TrainConfig, begin: Classifier) -> tuple[list[tuple[float, float]], PlainAdam]:
    """As many steps as `made` has iterations, within its first epoch, from the weights of `begin`."""
    data = gather(made)
    batches = IdentitySampler(data.labels, made.identities_per_batch, made.tracklets_per_identity, made.seed).epoch(0)
    store = clips.FrameStore(made.height, made.width, 0)
    size = (made.height, made.width)
    builder = clips.ClipBuilder(data.tracklets, store, made.augmentation, made.snippet_length, size, made.seed)
    optimiser = PlainAdam(dict(begin.named_parameters()))
    begin.train()
    found = []
    for iteration in range(made.iterations or 0):
        pixels = torch.from_numpy(builder.batch(batches[iteration], iteration).frames).double().permute(0, 1, 4, 2, 3)
        frames = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        descriptors, logits, _ = begin(frames.float().contiguous())
        entropy, triplet = plain_losses(descriptors, logits, torch.from_numpy(data.labels[batches[iteration]]))
        (entropy + triplet).backward()
        optimiser.step()
        found.append((entropy.item(), triplet.item()))
    return found, optimiser


def test_steps_equal_a_plain_transcription(people: Path, tmp_path: Path) -> None:
    options = ["architecture=test_resnet+cosam5+tp", "snippet_length=2", "identities_per_batch=4", "iterations=2"]
    torch.manual_seed(5)
    model = Classifier(TrackletEncoder(Architecture.parse(options[0][13:], snippet_length=2, height=64, width=32)), 8)
    names = [f"0/p{number}" for number in range(8)]
    start = Checkpoint(model.encoder.architecture, 8, model.state_dict(), {"identities": names})
    checkpoint.save(tmp_path / "start.pt", start)
    made = config(people, *options, f"margin={MARGIN}", f"init={tmp_path / 'start.pt'}")
    assert (made.lr, made.weight_decay, made.label_smoothing) == (LR, DECAY, SMOOTHING)
    _, recorder = run(made, tmp_path / "out")
    plain = start.build()
    losses, adam = plain_run(made, plain)
    got = [(step.cross_entropy, step.triplet) for step in recorder.steps]
    np.testing.assert_allclose(got, losses, rtol=2e-5)
    assert all(step.loss == pytest.approx(step.cross_entropy + step.triplet, rel=1e-6) for step in recorder.steps)
    assert min(triplet for _, triplet in losses) > 0

    ended = checkpoint.load(tmp_path / "out" / "last.pt")
    assert ended.training is not None
    moments = list(ended.training["optimizer"]["state"].values())
    # Adam forgets the size of a gradient, so the moments are compared too, and parameters without one left out.
    for (name, first), moment in zip(adam.first.items(), moments, strict=True):
        scale = first.abs().max()
        torch.testing.assert_close(moment["exp_avg"], first, rtol=0, atol=float(1e-4 * scale + 1e-6), msg=name)
        moved = ended.state[name] - start.state[name]
        expected = adam.parameters[name].detach() - start.state[name]
        clear = adam.second[name].sqrt() > 1e-5
        torch.testing.assert_close(moved[clear], expected[clear], rtol=0, atol=0.02 * LR, msg=name)
    for name in plain.state_dict().keys() - adam.parameters.keys():
        torch.testing.assert_close(ended.state[name], plain.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def learner_of(made: TrainConfig, seed: int = 0) -> learner.Learner:
    torch.manual_seed(seed)
    arch = Architecture.parse(made.architecture, snippet_length=made.snippet_length, height=64, width=32)
    found = learner.Learner(made, learner.make_accelerator(), Classifier(TrackletEncoder(arch), 6, neck=made.neck), ())
    found.set_mode()
    return found


def batch(count: int, whole: bool = True) -> tuple[ClipBatch, np.ndarray[Any, Any]]:
    frames = np.random.default_rng(0).integers(0, 256, (count, 1, 64, 32, 3), dtype=np.uint8)
    silhouettes = np.zeros(frames.shape[:4], np.uint8)
    return ClipBatch(frames, np.full(count, whole), silhouettes), np.arange(count, dtype=np.int64) // 2 % 3


def weights(found: learner.Learner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in found.plain.named_parameters()}


def test_accumulated_batches_have_the_mean_of_their_gradients(people: Path) -> None:
    drawn, labels = batch(12)
    twice = learner_of(config(people, "accumulate=2", "weight_decay=0"))
    figures = twice.update(drawn, labels, 1e-3)
    once = learner_of(config(people, "weight_decay=0"))
    parts = []
    for rows in (slice(0, 6), slice(6, 12)):
        single = learner_of(config(people, "weight_decay=0"))
        parts.append(
            single.update(ClipBatch(drawn.frames[rows], drawn.whole[rows], drawn.silhouettes[rows]), labels[rows], 1e-3)
        )
        for p, other in zip(once.plain.parameters(), single.plain.parameters(), strict=True):
            assert other.grad is not None
            p.grad = other.grad / 2 if p.grad is None else p.grad + other.grad / 2
    for key in ("loss", "cross_entropy", "triplet", "accuracy"):
        assert getattr(figures, key) == pytest.approx(np.mean([getattr(part, key) for part in parts]), rel=1e-5)
    for (name, p), other in zip(once.plain.named_parameters(), twice.plain.parameters(), strict=True):
        torch.testing.assert_close(other.grad, p.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_loss_that_is_not_finite_changes_nothing(people: Path) -> None:
    found = learner_of(config(people))
    with torch.no_grad():
        found.plain.classifier.weight[0, 0] = math.inf
    before = weights(found)
    with pytest.raises(FailedPreconditionError, match="lower lr"):
        found.update(*batch(6), 1e-3)
    assert all(torch.equal(before[name], value) for name, value in weights(found).items())


def test_a_batch_of_joined_people_alone_has_no_loss_and_no_gradient_is_missing(people: Path) -> None:
    found = learner_of(config(people))
    figures = found.update(*batch(6, whole=False), 1e-3)
    assert (figures.loss, figures.cross_entropy, figures.accuracy) == (0, 0, 0)
    assert found.plain.classifier.weight.grad is not None


def test_the_gradient_is_clipped_to_its_norm(people: Path) -> None:
    found = learner_of(config(people, "gradient_clip=0.01"))
    found.update(*batch(6), 1e-3)
    norm = torch.stack([p.grad.norm() for p in found.plain.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_near_full_precision(people: Path, precision: str) -> None:
    full = learner_of(config(people)).update(*batch(6), 1e-3)
    half = learner_of(config(people, f"amp={precision}"))
    figures = half.update(*batch(6), 1e-3)
    assert figures.cross_entropy == pytest.approx(full.cross_entropy, rel=0.02)
    assert figures.cross_entropy != full.cross_entropy
    assert all(value.dtype == torch.float32 for value in weights(half).values())
    assert bool(half.state()["scaler"]) == (precision == "fp16")


@pytest.fixture
def no_graphs_left() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("no_graphs_left")
def test_compiled_updates_equal_eager_ones(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is captured as always; only kernels are not generated from it, which takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    compiled, eager = (learner_of(config(people, f"compile={on}")) for on in ("true", "false"))
    for _ in range(2):
        first, second = (found.update(*batch(6), 1e-3) for found in (compiled, eager))
        assert first.loss == pytest.approx(second.loss, rel=1e-4)
    assert weights(compiled).keys() == weights(eager).keys()


@pytest.mark.usefixtures("no_graphs_left")
def test_without_a_compiler_the_message_says_what_to_do(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no working compiler")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    with pytest.raises(FailedPreconditionError, match=r"needs a C\+\+ compiler.*set compile to false"):
        learner_of(config(people, "compile=true")).update(*batch(6), 1e-3)


def test_the_launchers_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told:
        mixed_precision = "bf16"

    monkeypatch.setattr(learner, "Accelerator", lambda **_: Told())
    with pytest.raises(InvalidArgumentError, match="set amp in the recipe"):
        learner.make_accelerator()


def test_dropout_would_be_drawn_anew_for_each_iteration(people: Path, tmp_path: Path) -> None:
    """What the network draws depends on the iteration alone, so a resumed run draws the same."""
    drawn: list[float] = []
    update = learner.Learner.update

    def noted(self: learner.Learner, *arguments: Any) -> learner.Figures:
        drawn.append(torch.rand(()).item())
        return update(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.Learner, "update", noted)
        answers = iter([False, False, True])
        training_run = functools.partial(run, config(people))
        training_run(tmp_path / "whole")
        training_run(tmp_path / "parts", stop=lambda: next(answers))
        training_run(tmp_path / "parts", resume=True)
    assert len(set(drawn)) == 4
    assert drawn[:4] == drawn[4:]
