"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A machine may be busy: an example that takes long is no failure. The test's own timeout still holds.
settings.register_profile("passerby", deadline=None)
settings.load_profile("passerby")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden vectors and real data beside the repository, which a user's clone does not have."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        reason = f"no {folder.name}/ beside the repository: golden vectors and real data are not distributed with it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
