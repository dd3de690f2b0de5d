from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from passerby_client import Client, RetryPolicy
from PIL import Image

from tests.clients.blocking import Blocking, Loop, running_loop
from tests.clients.faulty import Faults, faulty_server

QUICK = RetryPolicy(attempts=4, initial_backoff=0.01, max_backoff=0.05)
Crop = Callable[..., bytes]


MakeClient = Callable[..., Client]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whatever uses a client is tested with both kinds; the command line has the synchronous one."""
    if "kind" in metafunc.fixturenames and "run" not in metafunc.fixturenames:
        metafunc.parametrize("kind", ["sync", "async"], indirect=True, scope="session")


@pytest.fixture(scope="session")
def kind(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "sync")


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    with running_loop() as made:
        yield made


@pytest.fixture(scope="session")
def make_client(kind: str, loop: Loop) -> MakeClient:
    """Makes a client of the kind under test; its methods block in either case."""
    return Client if kind == "sync" else partial(Blocking, loop)  # type: ignore[return-value]


@pytest.fixture(scope="session")
def client(make_client: MakeClient, address: str) -> Iterator[Client]:
    """A client of the server at `address`."""
    with make_client(address) as made:
        made.wait_until_ready()
        yield made


@pytest.fixture
def faulty(make_client: MakeClient) -> Iterator[tuple[Client, Faults]]:
    """A client with short pauses, and the faults of the server that it talks to."""
    with faulty_server() as (address, faults), make_client(address, retry=QUICK, timeout=10) as client:
        yield client, faults


@pytest.fixture
def left_behind(kind: str, loop: Loop) -> Callable[[], list[str]]:
    """Names of the client's threads or tasks that still run."""

    def names() -> list[str]:
        running: Any = loop.tasks() if kind == "async" else [thread.name for thread in threading.enumerate()]
        return [name for name in running if name.startswith("passerby-client-")]

    return names


def crop(colour: tuple[int, int, int], size: tuple[int, int] = (32, 64)) -> bytes:
    """A PNG of one colour with some texture: size (width, height)."""
    pixels = np.full((size[1], size[0], 3), colour, dtype=np.uint8)
    pixels[::4] //= 2
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


PEOPLE = {"ann": (200, 30, 30), "bob": (30, 200, 30), "cleo": (30, 30, 200)}


@pytest.fixture
def people(client: Client, gallery: str) -> str:
    """A gallery of three people, each seen by cameras 1 and 2; tracklets `ann-1`, `ann-2`, ..."""
    from datetime import UTC, datetime, timedelta

    for number, (name, colour) in enumerate(PEOPLE.items()):
        for camera in (1, 2):
            start = datetime(2026, 11, 21, 9 + number, camera, tzinfo=UTC)
            shade = tuple(min(255, value + 5 * camera) for value in colour)
            client.ingest_tracklet(
                gallery,
                [crop(shade)] * 5,  # type: ignore[arg-type]
                camera=str(camera),
                tracklet_id=f"{name}-{camera}",
                identity=name,
                start_time=start,
                end_time=start + timedelta(seconds=5),
                labels={"coat": "red" if name == "ann" else "other"},
            )
    return gallery


@pytest.fixture
def query(tmp_path: Path) -> Path:
    """A folder of four frames of ann."""
    folder = tmp_path / "query"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(crop((205, 30, 30)))
        (folder / f"{number}.mask.png").write_bytes(b"a sidecar")
    return folder
