from pathlib import Path
from typing import get_args

import pytest
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_model import augmentation, encoder, presets, train_config


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_defaults_are_the_recipe_of_the_authors_code():
    config = train_config.load(None, ["data.0.path=street"])
    assert config.architecture == "se_resnet50+cosam45+tp"
    assert (config.identities_per_batch, config.tracklets_per_identity, config.snippet_length) == (8, 4, 4)
    assert (config.lr, config.weight_decay, config.epochs, config.step_epochs) == (3e-4, 5e-4, 800, 200)
    assert (config.label_smoothing, config.margin, config.warmup_iterations) == (0.1, 0.3, 0)
    assert (config.augmentation.crop, config.augmentation.flip, config.augmentation.erase) == (0.5, 0.5, 0)


def test_paths_of_a_file_start_at_its_folder_and_overrides_where_one_is(tmp_path):
    recipe = write(
        tmp_path,
        "data:\n  - {path: street, part: train}\n  - {path: /abs, identities: ids.txt}\ninit: first.pt\npretrained: hub\n",
    )
    config = train_config.load(recipe, ["data.0.repeat=2", "augmentation.erase=0.5", "data.1.path=here"])
    assert config.data[0].path == tmp_path / "street"
    assert (config.data[0].part, config.data[0].repeat) == ("train", 2)
    assert str(config.data[1].path) == "here"
    assert config.data[1].identities == tmp_path / "ids.txt"
    assert (config.init, config.pretrained) == (tmp_path / "first.pt", "hub")
    assert config.augmentation.erase == 0.5


def test_presets_are_known_by_name_and_valid():
    assert set(get_args(presets.PresetName)) == set(presets.PRESETS)
    for name, preset in presets.PRESETS.items():
        config = train_config.load(None, ["data.0.path=street", f"preset={name}"])
        assert config.preset == name
        shown = config.model_dump(mode="json")
        for key, value in preset.values.items():
            assert {**shown[key], **value} == shown[key] if isinstance(value, dict) else shown[key] == value


def test_the_bag_of_tricks_as_its_sources_have_it():
    config = train_config.load(None, ["data.0.path=street", "preset=bag-of-tricks"])
    assert (config.lr, config.weight_decay, config.label_smoothing, config.neck) == (3.5e-4, 5e-4, 0.1, True)
    assert (config.warmup_epochs, config.milestones, config.step_factor, config.schedule) == (10, (40, 70), 0.1, "step")
    assert (config.augmentation.erase, config.augmentation.flip) == (0.5, 0.5)
    assert encoder.Architecture.parse(config.architecture).last_stride == 1
    assert (augmentation.ERASED_AREA, augmentation.ERASED_ASPECT) == ((0.02, 0.4), 3.3)


def test_the_recipe_of_the_paper():
    config = train_config.load(None, ["data.0.path=street", "preset=cosam-paper"])
    assert (config.lr, config.label_smoothing, config.triplet_weight, config.margin) == (1e-4, 0, 1, 0.3)
    assert (config.step_iterations, config.step_factor, config.iterations) == (15_000, 0.1, 60_000)


def test_override_wins_over_file_and_file_over_preset(tmp_path):
    recipe = write(
        tmp_path,
        "preset: bag-of-tricks\ndata: [{path: street}]\nlr: 1.0e-3\nepochs: 60\naugmentation: {colour: 0.3}\n",
    )
    config = train_config.load(recipe, ["epochs=7", "augmentation.flip=0"])
    assert (config.lr, config.epochs, config.weight_decay) == (1e-3, 7, 5e-4)
    assert (config.augmentation.erase, config.augmentation.colour, config.augmentation.flip) == (0.5, 0.3, 0)
    assert train_config.load(recipe, ["preset=cosam"]).neck is False


@pytest.mark.parametrize(
    ("preset", "given", "without"),
    [
        ("cosam-paper", "epochs=3", "iterations"),
        ("cosam-paper", "step_epochs=3", "step_iterations"),
        ("bag-of-tricks", "warmup_iterations=5", "warmup_epochs"),
        ("bag-of-tricks", "step_iterations=5", "milestones"),
    ],
)
def test_another_way_to_say_it_replaces_the_presets(preset, given, without):
    config = train_config.load(None, ["data.0.path=street", f"preset={preset}", given])
    assert getattr(config, without) == train_config.TrainConfig.model_fields[without].default
    key, _, value = given.partition("=")
    assert getattr(config, key) == int(value)


def test_a_resumed_run_keeps_its_preset():
    base = train_config.load(None, ["data.0.path=street", "preset=bag-of-tricks"]).model_dump(mode="json")
    assert train_config.load(None, ["lr=1e-5"], base).neck is True
    with pytest.raises(InvalidArgumentError, match="keeps the recipe it began with"):
        train_config.load(None, ["preset=cosam"], base)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=1", "unknown key 'learning_rate'"),
        ("label_smooting=0", "did you mean 'label_smoothing'"),
        ("augmentation.erasing=1", "did you mean 'erase'"),
        ("data.0.identitys=x", "did you mean 'identities'"),
        ("lr=-1", "lr: Input should be greater than 0"),
        ("freeze=[layer1]", "only leading stages"),
        ("data.5.path=x", "no place in a list"),
        ("preset=tricks", "preset: Input should be 'cosam', 'cosam-paper' or 'bag-of-tricks'"),
        ("milestones=[40, 20]", "milestones are epochs in ascending order"),
        ("milestones=[0]", "from 1 on"),
        ("lr", "write key=value"),
        ("lr={", "not valid YAML"),
    ],
)
def test_wrong_keys_and_values_are_explained(override, message):
    with pytest.raises(InvalidArgumentError) as caught:
        train_config.load(None, ["data.0.path=street", override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["data.0.path=x"], "needs a data source with masks"),
        (["data.0.path=x", "data.0.masks=y", "architecture=se_resnet50+none+tp"], "se_resnet50+none+tp has none"),
    ],
)
def test_masks_can_only_be_learned_where_there_are_some(others, message):
    with pytest.raises(InvalidArgumentError) as caught:
        train_config.load(None, [*others, "mask_weight=1"])
    assert message in str(caught.value)
    assert train_config.load(None, ["data.0.path=x", "data.0.masks=y", "mask_weight=1"]).mask_weight == 1


@pytest.mark.parametrize("first", ["milestones=[3]", "warmup_epochs=3"])
def test_two_ways_at_once_are_refused(first):
    second = "step_iterations=5" if first.startswith("milestones") else "warmup_iterations=5"
    with pytest.raises(InvalidArgumentError, match="say different things about the same"):
        train_config.load(None, ["data.0.path=street", first, second])


def test_a_loss_of_zero_is_refused():
    nothing = ["data.0.path=x", "cross_entropy_weight=0", "triplet_weight=0"]
    with pytest.raises(InvalidArgumentError, match="the loss is zero"):
        train_config.load(None, nothing)
    with pytest.raises(InvalidArgumentError, match="the loss is zero"):
        train_config.load(None, [*nothing, "teacher=t", "teacher_weight=0"])
    assert train_config.load(None, [*nothing, "teacher=t"]).cross_entropy_weight == 0


@pytest.mark.parametrize(("text", "message"), [("- a", "top level"), ("a: [", "not valid YAML"), ("", "top level")])
def test_broken_files_are_refused(tmp_path, text, message):
    with pytest.raises(InvalidArgumentError, match=message):
        train_config.load(write(tmp_path, text))


def test_no_file_and_no_data():
    with pytest.raises(NotFoundError):
        train_config.load(Path("absent.yaml"))
    with pytest.raises(InvalidArgumentError, match="data"):
        train_config.load(None)


def test_config_cannot_be_changed():
    config = train_config.load(None, ["data.0.path=street"])
    with pytest.raises(ValueError, match="frozen"):
        config.lr = 1  # type: ignore[misc]
