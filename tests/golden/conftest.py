"""The golden vectors and the weights that they were made with."""

import json
import runpy

import pytest
import torch


@pytest.fixture(scope="session")
def golden(shared):
    return shared / "golden"


@pytest.fixture(scope="session")
def fill_array(golden):
    return runpy.run_path(str(golden / "fill.py"))["fill_array"]


@pytest.fixture(scope="session")
def reference_state(golden, fill_array):
    """name -> state dict in the reference's naming, filled by the golden rule."""

    def make(name):
        keys = json.loads((golden / f"keys_{name}.json").read_text())
        return {key: torch.as_tensor(fill_array(key, shape)) for key, shape in keys}

    return make
