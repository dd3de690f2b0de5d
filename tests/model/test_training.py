import json
import math

import numpy as np
import pytest
import torch
from passerby.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, UnavailableError
from passerby_model import checkpoint, train_config, training, warm_start
from passerby_model.encoder import Architecture, Classifier, TrackletEncoder
from passerby_model.schedule import learning_rate
from PIL import Image


class Recorder:
    def __init__(self):
        self.messages, self.steps = [], []

    def message(self, text):
        self.messages.append(text)

    def step(self, step, total):
        self.steps.append(step)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Six people, each of one colour with a little noise, two cameras, one tracklet of three frames in each."""
    root = tmp_path_factory.mktemp("people")
    generator = np.random.default_rng(0)
    for person in range(6):
        colour = generator.integers(0, 256, 3)
        for camera in ("c1", "c2"):
            folder = root / f"p{person}" / camera / "t1"
            folder.mkdir(parents=True)
            for frame in range(3):
                noise = generator.integers(-20, 20, (64, 32, 3))
                Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(folder / f"{frame}.png")
    return root


def config(people, *overrides):
    return train_config.load(
        None,
        [
            f"data.0.path={people}",
            "architecture=resnet18+none+tp",
            "snippet_length=1",
            "height=64",
            "width=32",
            "identities_per_batch=3",
            "tracklets_per_identity=2",
            "iterations=4",
            "threads=1",
            "workers=1",
            *overrides,
        ],
    )


def run(config, out, **options):
    recorder = Recorder()
    result = training.train(config, out, reporter=recorder, **options)
    return result, recorder


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_learns_to_tell_colours_apart(people, tmp_path):
    result, recorder = run(config(people, "iterations=30", "lr=1e-3", "val_identities=0.34", "val_every=5"), tmp_path)
    first, last = recorder.steps[0], recorder.steps[-1]
    assert last.cross_entropy < 0.7 * first.cross_entropy
    assert last.accuracy == 1
    assert result.finished
    assert result.iterations == 30
    assert result.checkpoint == tmp_path / "final.pt"
    assert result.validation is not None
    assert result.validation.queries == 4
    assert "2 identities held out" in recorder.messages[0]
    final = checkpoint.load(result.checkpoint)
    assert final.training is None
    assert final.metadata["iteration"] == 30
    assert final.metadata["data"]["identities"] == final.class_count == 4
    best = checkpoint.load(tmp_path / "best.pt")
    assert best.metadata["best"] == max(
        row["validation"]["mean_average_precision"] for row in log(tmp_path) if "validation" in row
    )


def test_resumed_run_equals_an_uninterrupted_one(people, tmp_path):
    options = [
        "iterations=5",
        "augmentation.colour=0.5",
        "augmentation.erase=0.5",
        "schedule=cosine",
        "optimizer=adamw",
    ]
    whole, _ = run(config(people, *options), tmp_path / "whole")
    answers = iter([False, False, False, True])
    stopped, _ = run(config(people, *options), tmp_path / "parts", stop=lambda: next(answers))
    assert (stopped.iterations, stopped.finished) == (3, False)
    with (tmp_path / "parts" / "log.jsonl").open("a") as stream:  # done after the last checkpoint, before a kill
        stream.write(json.dumps({"iteration": 4, "loss": -1}) + "\n")
    resumed, recorder = run(config(people, *options), tmp_path / "parts", resume=True)
    assert resumed.iterations == 5
    assert "resumed at iteration 3 of 5" in recorder.messages
    losses = [[row["loss"] for row in log(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert same(checkpoint.load(whole.checkpoint).state, checkpoint.load(resumed.checkpoint).state)


def test_frozen_stages_keep_weights_and_batch_statistics(people, tmp_path):
    run(config(people, "iterations=1"), tmp_path / "a")
    first = checkpoint.load(tmp_path / "a" / "final.pt").state
    frozen = f"init={tmp_path / 'a' / 'final.pt'}"
    run(config(people, frozen, "freeze=[stem, layer1, layer2]", "iterations=2", "lr=0.01"), tmp_path / "b")
    second = checkpoint.load(tmp_path / "b" / "final.pt").state
    for key, value in first.items():
        if key.startswith(tuple(f"encoder.backbone.{stage}." for stage in ("stem", "layer1", "layer2"))):
            assert torch.equal(value, second[key]), key
    for key in ("layer3.0.conv1.weight", "layer4.1.bn2.running_mean"):
        assert not torch.equal(first[f"encoder.backbone.{key}"], second[f"encoder.backbone.{key}"])


def test_single_small_frames_warm_start_cosam_on_larger_clips(people, tmp_path):
    run(config(people, "iterations=1"), tmp_path / "small")
    larger = ["architecture=resnet18+cosam5+tp", "snippet_length=2", "height=96", "width=64", "iterations=1"]
    result, recorder = run(
        config(people, *larger, f"init={tmp_path / 'small' / 'final.pt'}", "new_layers_lr_factor=10"),
        tmp_path / "large",
    )
    report = next(message for message in recorder.messages if "taken" in message)
    assert "encoder.cosam.5" in report
    assert "encoder.backbone" not in report
    assert result.finished


def test_warm_start_from_another_backbone_is_refused(people, tmp_path):
    model = Classifier(TrackletEncoder(Architecture.parse("resnet18+none+tp")), 3)
    with pytest.raises(InvalidArgumentError, match="another architecture"):
        warm_start.take_matching(model, {"encoder.backbone.layer1.0.conv9.weight": torch.zeros(1)})


def test_imagenet_weights_from_a_file(people, tmp_path):
    import timm

    net = timm.create_model("resnet18")
    torch.save(net.state_dict(), tmp_path / "imagenet.pth")
    result, recorder = run(
        config(people, f"pretrained={tmp_path / 'imagenet.pth'}", "freeze=[stem]", "iterations=1"), tmp_path / "out"
    )
    state = checkpoint.load(result.checkpoint).state
    assert torch.equal(state["encoder.backbone.stem.0.weight"], net.state_dict()["conv1.weight"])
    assert "2 fresh (classifier.bias, classifier.weight), 0 unused" in recorder.messages[1]


def test_imagenet_weights_that_cannot_be_had_say_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UnavailableError, match="give the file: pretrained=PATH"):
        warm_start.imagenet_state("resnet18", "hub")


def test_out_folder_and_resume_are_checked(people, tmp_path):
    with pytest.raises(FailedPreconditionError, match="nothing to resume"):
        run(config(people), tmp_path, resume=True)
    run(config(people, "iterations=1"), tmp_path)
    with pytest.raises(AlreadyExistsError, match="--resume"):
        run(config(people), tmp_path)
    with pytest.raises(FailedPreconditionError, match="resume with that"):
        run(config(people, "snippet_length=2"), tmp_path, resume=True)
    with pytest.raises(FailedPreconditionError, match="other identities"):
        run(config(people, "val_identities=0.34"), tmp_path, resume=True)
    _, recorder = run(config(people, "iterations=2", "lr=1e-5"), tmp_path, resume=True)
    assert "differs from the run so far: iterations, lr" in recorder.messages


def test_divergence_is_reported_with_advice(people, tmp_path):
    with pytest.raises(FailedPreconditionError, match="lower lr"):
        run(config(people, "iterations=20", "lr=1e30"), tmp_path)


def test_training_data_that_cannot_work_is_refused(people, tmp_path):
    with pytest.raises(InvalidArgumentError, match="takes 8 identities, the training set has 6"):
        run(config(people, "identities_per_batch=8"), tmp_path)
    with pytest.raises(InvalidArgumentError, match="none of them seen by two"):
        run(config(people, "val_identities=0.01"), tmp_path)
    single = tmp_path / "single"
    for person in ("a", "b", "c"):
        (single / person / "c1" / "t1").mkdir(parents=True)
        Image.new("RGB", (32, 64)).save(single / person / "c1" / "t1" / "1.png")
    with pytest.raises(InvalidArgumentError, match="single tracklet"):
        run(config(single), tmp_path)


def test_mixed_precision_trains(people, tmp_path):
    _, recorder = run(config(people, "iterations=2", "amp=bf16"), tmp_path)
    assert all(math.isfinite(step.loss) for step in recorder.steps)


@pytest.mark.parametrize(
    ("schedule", "iteration", "epoch", "expected"),
    [
        ("step", 500, 199, 1.0),
        ("step", 500, 200, 0.1),
        ("step", 500, 400, 0.01),
        ("constant", 999, 999, 1.0),
        ("cosine", 100, 0, 1.0),
        ("cosine", 550, 0, 0.5),
        ("cosine", 1000, 0, 0.0),
    ],
)
def test_schedules(people, schedule, iteration, epoch, expected):
    made = config(people, f"schedule={schedule}", "lr=1.0", "warmup_iterations=100")
    assert learning_rate(made, iteration, epoch, 1000) == pytest.approx(expected)


def test_warm_up_is_linear_from_one_percent(people):
    made = config(people, "schedule=constant", "lr=1.0", "warmup_iterations=100")
    rates = [learning_rate(made, i, 0, 1000) for i in (0, 50, 99, 100)]
    assert rates == pytest.approx([0.01, 0.505, 0.9901, 1.0])
