from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from passerby_client import Client
from PIL import Image

from tests.encoders import make_bundle
from tests.server.live import running


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a real server with a tiny encoder."""
    bundle = make_bundle(tmp_path_factory.mktemp("indexer-bundle"))
    with running(bundle, tmp_path_factory.mktemp("indexer-data")) as live:
        yield f"127.0.0.1:{live.port}"


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[Client]:
    with Client(address) as made:
        made.wait_until_ready()
        yield made


@pytest.fixture
def gallery(client: Client) -> str:
    """Id of a new, empty gallery."""
    gallery_id = f"g-{uuid.uuid4().hex[:12]}"
    client.create_gallery(gallery_id)
    return gallery_id


def picture(seed: int) -> bytes:
    """A small JPEG; another for each seed."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Plain layout: identities a to d, cameras 1 and 2, one tracklet t1 each of 3 frames: 8 tracklets, 24 frames."""
    root = tmp_path / "data"
    for number, (identity, camera) in enumerate((i, c) for i in "abcd" for c in "12"):
        place = root / identity / camera / "t1"
        place.mkdir(parents=True)
        for frame in range(3):
            (place / f"{frame:03d}.jpg").write_bytes(picture(10 * number + frame))
    return root
