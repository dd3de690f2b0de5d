"""The golden vectors and the weights that they were made with."""

import json
import runpy

import pytest
import torch
from passerby_model import checkpoint
from passerby_model.encoder import Classifier, TrackletEncoder

from tests.golden import variants

CLASSES = 625


@pytest.fixture(scope="session")
def golden(shared):
    return shared / "golden"


@pytest.fixture(scope="session")
def fill_array(golden):
    return runpy.run_path(str(golden / "fill.py"))["fill_array"]


def own_keys(name):
    """[(key, shape)] of the reference's state dict as we would write it, for models without a key list."""
    architecture = variants.architecture(name)
    with torch.device("meta"):
        state = Classifier(TrackletEncoder(architecture), CLASSES).state_dict()
    renamed = checkpoint.export_reference(checkpoint.Checkpoint(architecture, CLASSES, state))
    return [(key, tuple(value.shape)) for key, value in renamed.items()]


@pytest.fixture(scope="session")
def reference_state(golden, fill_array):
    """name -> state dict in the reference's naming, filled by the golden rule."""

    def make(name):
        path = golden / f"keys_{name}.json"
        keys = json.loads(path.read_text()) if path.exists() else own_keys(name)
        return {key: torch.as_tensor(fill_array(key, shape)) for key, shape in keys}

    return make
