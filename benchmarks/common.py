"""What the benchmarks share: a real server in a process of its own, ranking measured over gRPC, where results go."""

from __future__ import annotations

import json
import os
import platform
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
from passerby_client import Client
from passerby_model.datasets import Tracklet
from passerby_model.metrics import RankingResult, evaluate

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
READY = re.compile(r"^passerby is serving on (\S+)")
START_SECONDS = 180.0


@contextmanager
def running_server(bundle: Path, data: Path, *arguments: str) -> Iterator[str]:
    """`passerby serve` on a free port of loopback; yields HOST:PORT once it serves, ends it with SIGTERM."""
    with server_process(bundle, data, *arguments) as (address, _):
        yield address


@contextmanager
def server_process(bundle: Path, data: Path, *arguments: str) -> Iterator[tuple[str, int]]:
    """As `running_server`; yields HOST:PORT and the number of the process."""
    command = [sys.executable, "-m", "passerby_server", "--bundle", str(bundle), "--data", str(data)]
    command += ["--address", "127.0.0.1:0", *arguments]
    log = data.parent / f"{data.name}.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        try:
            yield _address(server, log), server.pid
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()


def _address(server: subprocess.Popen[str], log: Path) -> str:
    """What the ready line names. Raises RuntimeError with the log's end when the server ends or stays silent."""
    lines: queue.Queue[str | None] = queue.Queue()
    if server.stdout is None:
        raise RuntimeError("the server's standard output is not a pipe")
    threading.Thread(target=_forward, args=(server.stdout, lines), daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=START_SECONDS)
        except queue.Empty:
            line = None
        if line is None:
            raise RuntimeError(f"the server did not start; its log ends:\n{log.read_text()[-2000:]}")
        if ready := READY.match(line):
            return ready[1]


def _forward(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def rank_over_server(
    client: Client, gallery_id: str, queries: Sequence[Tracklet], stored: Sequence[Tracklet], *, by_name: bool = False
) -> RankingResult:
    """Ranks all of `stored`, which the indexer has put into the gallery, for each query.

    `by_name`: the queries are among the stored tracklets and searched as such; otherwise their frames are sent.
    Protocol: gallery items of the query's identity and camera are dropped (Market-1501/MARS); plain AP.
    """
    names = {t.labels["source"]: t.name for t in client.list_tracklets(gallery_id)}
    column = {names[tracklet.key]: i for i, tracklet in enumerate(stored)}
    distances = np.full((len(queries), len(stored)), np.inf, np.float32)
    for row, query in enumerate(queries):
        what: dict[str, Any] = {"tracklet": names[query.key]} if by_name else {"frames": query.frames}
        hits = client.search(gallery_id, top_k=len(stored), **what).hits
        if {hit.tracklet.name for hit in hits} != set(column) - set(what.values() if by_name else ()):
            raise RuntimeError(f"the server ranked {len(hits)} tracklets, not the {len(stored)} stored ones")
        for hit in hits:
            distances[row, column[hit.tracklet.name]] = hit.distance
    return evaluate(
        distances,
        np.array([q.identity for q in queries]),
        np.array([s.identity for s in stored]),
        np.array([q.camera for q in queries]),
        np.array([s.camera for s in stored]),
    )


def machine() -> dict[str, object]:
    """Processor, cores and date, for the head of a result file."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)):
        model = found[1]
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def save(name: str, result: dict[str, object]) -> Path:
    """Writes `result` with the machine and the command line as benchmarks/results/NAME.json; returns the path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    command = " ".join(["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]])
    path.write_text(json.dumps({"command": command, "machine": machine(), **result}, indent=2) + "\n")
    return path
