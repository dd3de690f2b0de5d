from __future__ import annotations

from collections.abc import Iterator

import pytest
from passerby_client import Client, RetryPolicy

from tests.clients.faulty import Faults, faulty_server

QUICK = RetryPolicy(attempts=4, initial_backoff=0.01, max_backoff=0.05)


@pytest.fixture
def faulty() -> Iterator[tuple[Client, Faults]]:
    """A client with short pauses, and the faults of the server that it talks to."""
    with faulty_server() as (address, faults), Client(address, retry=QUICK, timeout=10) as client:
        yield client, faults
