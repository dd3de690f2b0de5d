import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from passerby.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, UnavailableError
from passerby_model import checkpoint, progress, training, warm_start
from passerby_model.encoder import Architecture, Classifier, TrackletEncoder
from passerby_model.schedule import learning_rate
from PIL import Image

from tests.encoders import make_bundle
from tests.training_runs import config, log, run, same, write_people


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people"))


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


RECIPES = {
    "everything random": ["augmentation.colour=0.5", "augmentation.erase=0.5", "schedule=cosine", "optimizer=adamw"],
    "bag of tricks": ["preset=bag-of-tricks", "lr=1e-3", "accumulate=2", "identities_per_batch=2", "gradient_clip=1"],
    "fp16": ["amp=fp16"],
    "teacher": ["teacher_weight=3", "teacher_relation_weight=1"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_resumed_run_equals_an_uninterrupted_one(people, tmp_path, recipe):
    options = ["iterations=6", "val_identities=0.34", "val_every=2", *RECIPES[recipe]]
    if recipe == "teacher":
        options.append(f"teacher={make_bundle(tmp_path / 'teacher')}")
    options.append("identities_per_batch=2")
    whole, _ = run(config(people, *options), tmp_path / "whole")
    answers = iter([False, False, False, True])
    stopped, _ = run(config(people, *options), tmp_path / "parts", stop=lambda: next(answers))
    assert (stopped.iterations, stopped.finished) == (3, False)
    with (tmp_path / "parts" / "log.jsonl").open("a") as stream:  # done after the last checkpoint, before a kill
        stream.write(json.dumps({"iteration": 4, "loss": -1}) + "\n" + '{"iteration": 5, "lo')
    resumed, recorder = run(config(people, *options), tmp_path / "parts", resume=True)
    assert resumed.iterations == 6
    assert "resumed at iteration 3 of 6" in recorder.messages
    assert not any("differs" in message for message in recorder.messages)
    records = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in log(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert records[0] == records[1]
    assert resumed.validation == whole.validation is not None
    assert same(checkpoint.load(whole.checkpoint).state, checkpoint.load(resumed.checkpoint).state)
    ends = [checkpoint.load(tmp_path / name / "last.pt").training or {} for name in ("whole", "parts")]
    assert ends[0]["scaler"] == ends[1]["scaler"]
    assert bool(ends[0]["scaler"]) == (recipe == "fp16")
    if recipe == "teacher":
        assert same(ends[0]["imitation"], ends[1]["imitation"])


def test_resuming_a_finished_run_changes_nothing(people, tmp_path):
    done, _ = run(config(people, "val_identities=0.34"), tmp_path)
    before, record = checkpoint.load(done.checkpoint).state, log(tmp_path)
    again, _ = run(config(people, "val_identities=0.34"), tmp_path, resume=True)
    assert (again.iterations, again.validation) == (done.iterations, done.validation)
    assert same(before, checkpoint.load(again.checkpoint).state)
    assert log(tmp_path) == record


def test_a_resumed_run_is_known_by_its_new_settings(people, tmp_path):
    run(config(people, "iterations=1"), tmp_path)
    run(config(people, "iterations=2"), tmp_path, resume=True)
    assert json.loads((tmp_path / "config.json").read_text())["iterations"] == 2
    sessions = json.loads((tmp_path / "sessions.json").read_text())
    assert [session["iteration"] for session in sessions] == [0, 1]
    assert sessions[0]["torch"] == torch.__version__.partition("+")[0]


def test_several_batches_make_one_step(people, tmp_path):
    """An epoch of three batches has one step of two of them, and each step sees twice the clips."""
    _, recorder = run(config(people, "identities_per_batch=2", "accumulate=2", "iterations=2"), tmp_path / "a")
    assert [step.clips for step in recorder.steps] == [8, 8]
    assert [step.epoch for step in recorder.steps] == [0, 1]
    with pytest.raises(InvalidArgumentError, match=r"an epoch has 2 batches, one step takes 3 \(1 processes x acc"):
        run(config(people, "accumulate=3"), tmp_path / "b")


def test_the_neck_is_saved_and_its_bias_stays_zero(people, tmp_path):
    result, _ = run(config(people, "neck=true", "lr=1e-2"), tmp_path)
    saved = checkpoint.load(result.checkpoint)
    assert saved.neck
    assert "classifier.bias" not in saved.state
    assert saved.state["neck.bias"].eq(0).all()
    assert not saved.state["neck.weight"].eq(1).all()
    model = saved.build()
    frames = torch.rand(2, 1, 3, 64, 32)
    descriptors, logits, _ = model(frames)
    assert torch.equal(descriptors, model.encoder(frames)[0])
    centred = (descriptors - saved.state["neck.running_mean"]) / (saved.state["neck.running_var"] + 1e-5).sqrt()
    expected = centred * saved.state["neck.weight"] @ saved.state["classifier.weight"].T
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidArgumentError, match=r"neck\.weight"):
        run(config(people), tmp_path, resume=True)


def test_waiting_for_clips_is_told(people, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "WAIT_STEPS", 3)
    clock = SimpleNamespace(monotonic=map(float, itertools.count()).__next__)  # every wait is a second
    monkeypatch.setattr(training, "time", clock)
    _, recorder = run(config(people), tmp_path)
    assert len([message for message in recorder.messages if "raise workers (now 1)" in message]) == 1


def test_frozen_stages_keep_weights_and_batch_statistics(people, tmp_path):
    run(config(people, "iterations=1"), tmp_path / "a")
    first = checkpoint.load(tmp_path / "a" / "final.pt").state
    frozen = f"init={tmp_path / 'a' / 'final.pt'}"
    run(config(people, frozen, "freeze=[stem, layer1, layer2]", "iterations=2", "lr=0.01"), tmp_path / "b")
    second = checkpoint.load(tmp_path / "b" / "final.pt").state
    for key, value in first.items():
        if key.startswith(tuple(f"encoder.backbone.{stage}." for stage in ("stem", "layer1", "layer2"))):
            assert torch.equal(value, second[key]), key
    for key in ("layer3.0.conv1.weight", "layer4.0.bn2.running_mean"):
        assert not torch.equal(first[f"encoder.backbone.{key}"], second[f"encoder.backbone.{key}"])


def test_single_small_frames_warm_start_cosam_on_larger_clips(people, tmp_path):
    run(config(people, "iterations=1"), tmp_path / "small")
    larger = ["architecture=test_resnet+cosam5+tp", "snippet_length=2", "height=96", "width=64", "iterations=1"]
    result, recorder = run(
        config(people, *larger, f"init={tmp_path / 'small' / 'final.pt'}", "new_layers_lr_factor=10"),
        tmp_path / "large",
    )
    report = next(message for message in recorder.messages if "taken" in message)
    assert "encoder.cosam.5" in report
    assert "encoder.backbone" not in report
    assert result.finished


def test_cosam_from_elsewhere_learns_at_a_rate_of_its_own(people, tmp_path):
    attentive = ["architecture=test_resnet+cosam5+tp", "snippet_length=2", "optimizer=adamw"]
    run(config(people, *attentive, "iterations=1"), tmp_path / "a")
    start = tmp_path / "a" / "final.pt"
    slow = ["lr=1e-9", "cosam_lr_factor=1e7", "iterations=1", "weight_decay=0"]
    run(config(people, *attentive, f"init={start}", *slow), tmp_path / "b")
    before, after = (checkpoint.load(path).state for path in (start, tmp_path / "b" / "final.pt"))
    moved = {key: float((after[key] - before[key]).abs().max()) for key in before if key.endswith("weight")}
    assert min(value for key, value in moved.items() if ".cosam.5.attend" in key) > 1e-3
    assert max(value for key, value in moved.items() if ".layer4." in key) < 1e-7


def test_warm_start_from_another_backbone_is_refused(people, tmp_path):
    model = Classifier(TrackletEncoder(Architecture.parse("resnet18+none+tp")), 3)
    with pytest.raises(InvalidArgumentError, match="another architecture"):
        warm_start.take_matching(model, {"encoder.backbone.layer1.0.conv9.weight": torch.zeros(1)})


def test_warm_start_from_the_references_checkpoint(tmp_path):
    """All of the encoder, by the reference's names and behind its data-parallel prefix; the classifier means others."""
    architecture = Architecture.parse("resnet50+none+tp", height=64, width=32)
    theirs = Classifier(TrackletEncoder(architecture), 625)
    named = checkpoint.export_reference(checkpoint.Checkpoint(architecture, 625, theirs.state_dict()))
    torch.save({"state_dict": {f"module.{key}": value for key, value in named.items()}}, tmp_path / "theirs.pth.tar")
    begin = warm_start.checkpoint_start(tmp_path / "theirs.pth.tar", ["0/ann", "0/bob"])
    ours = Classifier(TrackletEncoder(architecture), 2)
    report = warm_start.take_matching(ours, begin.state)
    assert report.fresh == ("classifier.weight", "classifier.bias")
    assert report.unused == ()
    assert same(theirs.encoder.state_dict(), ours.encoder.state_dict())
    assert "2 fresh (classifier.bias, classifier.weight), 0 unused" in str(report)
    torch.save({"state_dict": {"module.base.conv9.weight": torch.zeros(1)}}, tmp_path / "other.pth.tar")
    with pytest.raises(InvalidArgumentError, match=r"no classifier\.weight"):
        warm_start.checkpoint_start(tmp_path / "other.pth.tar", [])


def test_imagenet_weights_from_a_file(people, tmp_path):
    import timm

    net = timm.create_model("resnet18")
    torch.save(net.state_dict(), tmp_path / "imagenet.pth")
    weights = f"pretrained={tmp_path / 'imagenet.pth'}"
    options = ["architecture=resnet18+none+tp", weights, "freeze=[stem]", "iterations=1"]
    result, recorder = run(config(people, *options), tmp_path / "out")
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


@pytest.mark.parametrize(
    ("setting", "at", "expected"),
    [
        ("milestones=[40, 70]", (9999, 39), 1.0),
        ("milestones=[40, 70]", (9999, 40), 0.1),
        ("milestones=[40, 70]", (9999, 70), 0.01),
        ("step_iterations=15000", (14_999, 900), 1.0),
        ("step_iterations=15000", (15_000, 0), 0.1),
        ("step_iterations=15000", (45_000, 0), 1e-3),
        ("warmup_epochs=10", (50, 0), 0.01),
        ("warmup_epochs=10", (50, 5), 0.505),
        ("warmup_epochs=10", (50, 10), 1.0),
    ],
)
def test_steps_and_warm_up_of_the_presets(people, setting, at, expected):
    iteration, epoch = at
    assert learning_rate(config(people, "lr=1.0", setting), iteration, epoch, 100_000) == pytest.approx(expected)


def test_warm_up_is_linear_from_one_percent(people):
    made = config(people, "schedule=constant", "lr=1.0", "warmup_iterations=100")
    rates = [learning_rate(made, i, 0, 1000) for i in (0, 50, 99, 100)]
    assert rates == pytest.approx([0.01, 0.505, 0.9901, 1.0])
