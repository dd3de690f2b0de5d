"""One server for the tests of a module; what they store goes into galleries of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.encoders import make_bundle
from tests.server.live import LiveServer, running


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny encoder with masks after blocks 4 and 5."""
    return make_bundle(tmp_path_factory.mktemp("bundle"), masks=(4, 5))


@pytest.fixture(scope="module")
def live(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with running(bundle, tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.fixture
def gallery(live: LiveServer) -> str:
    """Name of a new, empty gallery."""
    return live.new_gallery()
