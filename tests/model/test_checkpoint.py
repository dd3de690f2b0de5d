import json
import os

import pytest
import torch
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_model import checkpoint
from passerby_model.checkpoint import Checkpoint
from passerby_model.encoder import Architecture, Classifier, TrackletEncoder

SMALL = Architecture.parse("resnet18+cosam5+tp", snippet_length=2, height=64, width=32)
NAMES = {
    "se_resnet50_cosam45_tp": ("se_resnet50+cosam45+tp", 4),
    "se_resnet50_cosam45_ta": ("se_resnet50+cosam45+ta", 4),
    "se_resnet50_cosam45_rnn": ("se_resnet50+cosam45+rnn", 4),
    "se_resnet50_cosam45_tp_N2": ("se_resnet50+cosam45+tp", 2),
    "se_resnet50_cosam45_tp_N8": ("se_resnet50+cosam45+tp", 8),
    "se_resnet50_nocosam_tp": ("se_resnet50+none+tp", 4),
    "resnet50_cosam45_tp": ("resnet50+cosam45+tp", 4),
    "resnet50_cosam45_ta": ("resnet50+cosam45+ta", 4),
    "resnet50_cosam45_rnn": ("resnet50+cosam45+rnn", 4),
    "resnet50_nocosam_tp": ("resnet50+none+tp", 4),
}


def reference_state(shared, name):
    keys = json.loads((shared / "golden" / f"keys_{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in keys}


@pytest.fixture(scope="module")
def small():
    model = Classifier(TrackletEncoder(SMALL), 5)
    return Checkpoint(SMALL, 5, model.state_dict(), {"epoch": 3}, {"step": torch.tensor(7)})


@pytest.mark.parametrize("name", NAMES)
def test_reference_keys_import_and_round_trip(shared, name):
    state = reference_state(shared, name)
    imported = checkpoint.import_reference({f"module.{key}": value for key, value in state.items()})
    assert (imported.architecture.name, imported.architecture.snippet_length) == NAMES[name]
    assert imported.class_count == 625
    back = checkpoint.export_reference(imported)
    assert {key: value.shape for key, value in back.items()} == {k: v.shape for k, v in state.items()}


def test_import_into_another_architecture_names_the_one_that_fits(shared):
    state = reference_state(shared, "se_resnet50_cosam45_tp_N8")
    with pytest.raises(InvalidArgumentError, match=r"would fit se_resnet50\+cosam45\+tp with 8 frames"):
        checkpoint.import_reference(state, Architecture.parse("se_resnet50+cosam45+tp"))


@pytest.mark.parametrize("problem", ["unknown", "missing", "wrong shape"])
def test_import_lists_what_is_wrong(shared, problem):
    state = reference_state(shared, "resnet50_nocosam_tp")
    if problem == "unknown":
        state["base.9.weight"] = torch.empty(3)
    elif problem == "missing":
        del state["base.0.weight"]
    else:
        state["base.0.weight"] = torch.empty(1, 3, 7, 7)
    with pytest.raises(InvalidArgumentError, match=problem):
        checkpoint.import_reference(state)


def test_save_and_load(tmp_path, small):
    path = tmp_path / "deep" / "last.pt"
    checkpoint.save(path, small)
    loaded = checkpoint.load(path)
    assert loaded.architecture == SMALL
    assert (loaded.class_count, loaded.metadata) == (5, {"epoch": 3})
    assert loaded.training == {"step": torch.tensor(7)}
    assert loaded.fingerprint == small.fingerprint
    assert os.listdir(path.parent) == ["last.pt"]
    model, original = loaded.build(), small.build()
    frames = torch.randn(1, 2, 3, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(frames)[1], original(frames)[1])


def test_fingerprint_follows_the_encoder_only(small):
    other_head = {**small.state, "classifier.bias": small.state["classifier.bias"] + 1}
    assert Checkpoint(SMALL, 5, other_head).fingerprint == small.fingerprint
    key = "encoder.cosam.5.reduce.0.bias"
    assert Checkpoint(SMALL, 5, {**small.state, key: small.state[key] + 1}).fingerprint != small.fingerprint


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("was-here",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Hostile()}, tmp_path / "evil.pt")
    with pytest.raises(InvalidArgumentError, match=r"evil\.pt"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"], ids=["empty", "text", "cut-zip"])
def test_broken_files_are_refused(tmp_path, content):
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=r"broken\.pt"):
        checkpoint.load(path)


def test_missing_file_and_foreign_content(tmp_path):
    with pytest.raises(NotFoundError):
        checkpoint.load(tmp_path / "absent.pt")
    torch.save({"a": 1}, tmp_path / "foreign.pt")
    with pytest.raises(InvalidArgumentError, match="neither"):
        checkpoint.load(tmp_path / "foreign.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(InvalidArgumentError, match="naming"):
        checkpoint.load(tmp_path / "weights.pt")
