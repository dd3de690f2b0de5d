"""Fixtures shared by all tests. What takes long to import is imported by the fixture that needs it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.commands import Done, Run

if TYPE_CHECKING:
    from passerby_client import Client

# A machine may be busy: an example that takes long is no failure. The test's own timeout still holds.
settings.register_profile("passerby", deadline=None)
settings.load_profile("passerby")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers and commands keep what they work out for the machine in a folder of this run, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a real server with a tiny encoder that has masks after blocks 4 and 5."""
    from tests.encoders import make_bundle
    from tests.server.live import running

    bundle = make_bundle(tmp_path_factory.mktemp("session-bundle"), masks=(4, 5))
    with running(bundle, tmp_path_factory.mktemp("session-data")) as live:
        yield f"127.0.0.1:{live.port}"


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[Client]:
    """A client of the server at `address`."""
    from passerby_client import Client

    with Client(address) as made:
        made.wait_until_ready()
        yield made


@pytest.fixture
def gallery(client: Client) -> str:
    """Id of a new, empty gallery of `client`."""
    gallery_id = f"g-{uuid.uuid4().hex[:12]}"
    client.create_gallery(gallery_id)
    return gallery_id


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], address: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `passerby ...` in this process, against the real server at `address`."""
    from passerby_client.cli import main

    monkeypatch.setenv("PASSERBY_SERVER", address)

    def call(*arguments: object) -> Done:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return call
