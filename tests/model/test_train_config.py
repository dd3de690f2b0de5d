from pathlib import Path

import pytest
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_model import train_config


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
        ("lr", "write key=value"),
        ("lr={", "not valid YAML"),
    ],
)
def test_wrong_keys_and_values_are_explained(override, message):
    with pytest.raises(InvalidArgumentError) as caught:
        train_config.load(None, ["data.0.path=street", override])
    assert message in str(caught.value)


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
