"""The passerby client: `Client` for programs, `passerby` for the command line.

    from passerby_client import Client

    with Client("127.0.0.1:50051") as client:
        client.create_gallery("station")
        client.ingest_tracklet("station", ["1.jpg", "2.jpg"], camera="entrance")
        for hit in client.search("station", frames=["q1.jpg", "q2.jpg"], top_k=5).hits:
            print(hit.distance, hit.tracklet.name)

`passerby_client.aio.AsyncClient` has the same methods as coroutines.

Everything public is named in `__all__`; it is loaded when first used, so that `passerby --help` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from passerby_client._channel import DEFAULT_TARGET
    from passerby_client._frames import FrameInput
    from passerby_client._requests import tracklet_header, tracklet_request
    from passerby_client._retry import RetryPolicy
    from passerby_client._sync.client import Client

__all__ = ["DEFAULT_TARGET", "Client", "FrameInput", "RetryPolicy", "tracklet_header", "tracklet_request"]

_HOMES = {
    "Client": "passerby_client._sync.client",
    "DEFAULT_TARGET": "passerby_client._channel",
    "FrameInput": "passerby_client._frames",
    "RetryPolicy": "passerby_client._retry",
    "tracklet_header": "passerby_client._requests",
    "tracklet_request": "passerby_client._requests",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
