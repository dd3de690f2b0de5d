"""The asynchronous client: the methods of `passerby_client.Client` as coroutines and asynchronous iterators.

    from passerby_client.aio import AsyncClient

    async with AsyncClient("127.0.0.1:50051") as client:
        answer = await client.search("station", frames=["q1.jpg", "q2.jpg"])
        async for tracklet in client.list_tracklets("station"):
            ...

Both clients have one source, `_async`, of which `clients/unasync.py` makes `_sync`. A synchronous client on a hidden
event loop would bring a thread, fork and interrupt trouble into every program; a core without input and output would leave
each signature and its explanation to be written twice. What is left for both to be written by hand is in
`_concurrency` and `_channel`, pair by pair.
"""

from __future__ import annotations

from passerby_client._async.client import AsyncClient

__all__ = ["AsyncClient"]
