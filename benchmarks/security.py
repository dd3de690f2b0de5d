"""What security costs: knowing a caller, recording a call, and a small call over gRPC with and without all of it.

    python benchmarks/security.py [--calls 500] [--bundle bundles/street-ward-cosam45] [--name NAME]

- Knowing a caller: `Access.identify` with 1,000 callers in the file, the look at the file included; and with it role, gallery
  and what a record says of a search with 10 hits.
- Recording: from `append` to durable, for 1, 16 and 64 calls at a time; beside it a bare `fdatasync` of 300 bytes.
- Calls: GetTracklet, one at a time and 16 at a time, from this process to a server on the same cores: open; with tokens, TLS
  and the audit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import trustme
from common import ROOT, running_server, save
from passerby.v1 import search_service_pb2 as search_v1
from passerby_client import Client
from passerby_server.security import callers
from passerby_server.security.access import Access, Caller
from passerby_server.security.audit import AuditLog
from passerby_server.security.callers import Entry
from passerby_server.security.gate import CallPermit
from passerby_server.security.policy import RULES

SEARCH = "SearchService/SearchTracklets"


def microseconds(function: Callable[[], object], count: int) -> float:
    """Of this thread's processor time for one call, the median of five runs of `count`."""
    runs = []
    for _ in range(5):
        start = time.thread_time()
        for _ in range(count):
            function()
        runs.append((time.thread_time() - start) / count * 1e6)
    return round(statistics.median(runs), 1)


def add_callers(file: Path, count: int) -> str:
    """Writes `count` callers, the last of them an admin; its token."""
    made = [callers.new_token() for _ in range(count)]
    entries = tuple(
        Entry(
            name=f"caller-{number}",
            roles=frozenset({"admin"}),
            galleries=None,
            token_id=token_id,
            token_sha256=digest,
            create_time=callers.now(),
        )
        for number, (_, token_id, digest) in enumerate(made)
    )
    callers.change(file, lambda _: entries)
    return made[-1][0]


def knowing(folder: Path) -> dict[str, float]:
    """Microseconds in the server's event loop for each call."""
    file = folder / "callers.json"
    token = add_callers(file, 1000)
    access, log = Access(file), AuditLog(folder / "audit")
    header = f"Bearer {token}"

    def identify() -> Caller:
        return access.identify(header, list)

    request, answer = search_v1.SearchTrackletsRequest(parent="galleries/station"), search_v1.SearchTrackletsResponse()
    for number in range(10):
        answer.hits.add().tracklet.identity_id = f"person-{number}"

    def whole() -> None:
        permit = CallPermit(log, SEARCH, RULES[SEARCH], identify(), identify, "10.0.0.1", "0" * 32)
        permit.admit(request)
        permit.note(answer)
        permit._content()

    found = {
        "identify": microseconds(identify, 2000),
        "identify, check and describe a search": microseconds(whole, 1000),
    }
    log.close()
    return found


def recording(folder: Path) -> dict[str, Any]:
    """Milliseconds until a record is durable, and how many are in a second."""
    found: dict[str, Any] = {"bare fdatasync, p50 ms": _bare_sync(folder)}
    log = AuditLog(folder / "audit")
    for at_once in (1, 16, 64):
        times: list[float] = []

        def work(_: int, times: list[float] = times) -> None:
            for _ in range(50):
                start = time.perf_counter()
                log.append("SearchTracklets", code="OK", caller="desk", about=["identity:" + "0" * 32] * 5).result()
                times.append(time.perf_counter() - start)

        start = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(work, range(at_once)))
        rate = len(times) / (time.perf_counter() - start)
        found[f"{at_once} at a time"] = {"p50 ms": _p50(times), "records/s": round(rate)}
    log.close()
    return found


def _bare_sync(folder: Path) -> float:
    times = []
    with (folder / "bare").open("wb", buffering=0) as file:
        for _ in range(100):
            file.write(bytes(300))
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return _p50(times)


def calling(client: Client, calls: int) -> dict[str, float]:
    """GetTracklet: p50 of one client, and the rate of 16 at a time."""
    client.create_gallery("station")
    pixels = np.zeros((256, 128, 3), np.uint8)
    name = client.ingest_tracklet("station", [pixels] * 4, camera="1").name
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        client.get_tracklet(name)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: client.get_tracklet(name), range(calls * 2)))
    return {"p50 ms": _p50(times), "16 at a time, calls/s": round(calls * 2 / (time.perf_counter() - start))}


def _p50(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1e3, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundles/street-ward-cosam45")
    parser.add_argument("--name", default="security")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("knowing", "recording"):
            (folder / part).mkdir()
        result: dict[str, object] = {
            "microseconds in the event loop": knowing(folder / "knowing"),
            "recording": recording(folder / "recording"),
        }
        with running_server(options.bundle, folder / "open") as address, Client(address) as client:
            client.wait_until_ready()
            result["GetTracklet, open"] = calling(client, options.calls)
        authority = trustme.CA()
        issued, file = authority.issue_cert("localhost", "127.0.0.1"), folder / "callers.json"
        issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
        token = add_callers(file, 1000)
        settings = {"access.file": file, "tls.certificate": folder / "server.pem", "tls.key": folder / "server.pem"}
        flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        with (
            running_server(options.bundle, folder / "secured", *flags) as address,
            Client(address, credentials=credentials, token=token) as client,
        ):
            client.wait_until_ready()
            result["GetTracklet, TLS, token, audit"] = calling(client, options.calls)
    path = save(options.name, result)
    print(path.read_text())


if __name__ == "__main__":
    main()
