import json
import os

import numpy as np
import pytest
import torch
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_model import checkpoint
from passerby_model.checkpoint import Checkpoint
from passerby_model.encoder import Architecture, Classifier, TrackletEncoder

SMALL = Architecture.parse("resnet18+cosam5+tp", snippet_length=2, height=64, width=32)


def reference_state(shared, name):
    keys = json.loads((shared / "golden" / f"keys_{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in keys}


@pytest.fixture(scope="module")
def small():
    model = Classifier(TrackletEncoder(SMALL), 5)
    return Checkpoint(SMALL, 5, model.state_dict(), {"epoch": 3}, {"step": torch.tensor(7)})


def test_import_into_another_architecture_names_the_one_that_fits(shared):
    state = reference_state(shared, "se_resnet50_cosam45_tp_N8")
    with pytest.raises(InvalidArgumentError, match=r"would fit se_resnet50\+cosam45\+tp with 8 frames"):
        checkpoint.import_reference(state, Architecture.parse("se_resnet50+cosam45+tp"))
    with pytest.raises(InvalidArgumentError, match=r"do not fit resnet50\+cosam45\+ta .*; they would fit se_resnet50"):
        checkpoint.import_reference(state, Architecture.parse("resnet50+cosam45+ta"))


def test_what_the_authors_code_does_not_have_is_neither_imported_nor_exported(shared, small):
    state = reference_state(shared, "resnet50_cosam45_ta")
    message = r"weights are of resnet50\+cosam45\+ta .*, not of resnet18.*se_resnet50 and resnet50 only"
    with pytest.raises(InvalidArgumentError, match=message):
        checkpoint.import_reference(state, SMALL)
    with pytest.raises(InvalidArgumentError, match="authors' code has no resnet18"):
        checkpoint.export_reference(small)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-torch-1.6"])
def test_a_file_as_the_authors_code_writes_it(shared, tmp_path, legacy):
    """Every 200 epochs their rank-1 lies beside the weights, as a number of numpy."""
    shapes = {key: value.shape for key, value in reference_state(shared, "se_resnet50_cosam45_rnn").items()}
    state = {f"module.{key}": torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    path = tmp_path / "best_model.pth.tar"
    content = {"state_dict": state, "rank1": np.float32(0.849), "epoch": 199}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = checkpoint.load(path)
    assert loaded.architecture == Architecture.parse("se_resnet50+cosam45+rnn")
    assert checkpoint.load(path, architecture=loaded.architecture).state.keys() == loaded.state.keys()
    with pytest.raises(InvalidArgumentError, match=r"do not fit se_resnet50\+cosam45\+tp"):
        checkpoint.load(path, architecture=Architecture.parse("se_resnet50+cosam45+tp"))


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


def test_our_own_checkpoint_knows_its_architecture(tmp_path, small):
    checkpoint.save(tmp_path / "last.pt", small)
    assert checkpoint.load(tmp_path / "last.pt", architecture=SMALL).architecture == SMALL
    other = Architecture.parse("resnet18+cosam5+tp", snippet_length=3, height=64, width=32)
    with pytest.raises(
        InvalidArgumentError, match=r"last\.pt was trained as resnet18\+cosam5\+tp with 2 .* with 3 frames"
    ):
        checkpoint.load(tmp_path / "last.pt", architecture=other)


@pytest.mark.parametrize("change", [{"architecture": {"backbone": "resnet18"}}, {"architecture": {"depth": 3}}, {}])
def test_a_checkpoint_of_another_version_is_refused(tmp_path, small, change):
    torch.save({"format": checkpoint.FORMAT, **change}, tmp_path / "newer.pt")
    with pytest.raises(InvalidArgumentError, match=r"newer\.pt: .* written by a newer version"):
        checkpoint.load(tmp_path / "newer.pt")


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
    with pytest.raises(InvalidArgumentError, match=r"evil\.pt.*unsupported GLOBAL") as raised:
        checkpoint.load(tmp_path / "evil.pt")
    assert "weights_only" not in raised.value.message  # no advice to load it all the same
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
