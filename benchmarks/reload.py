"""A bundle loaded anew under load: calls that fail, how long calls take meanwhile, the memory before, at its peak and after.

    python benchmarks/reload.py bundles/street-ward-cosam45 --clients 4 --reloads 4 --seconds 20 --save reload

Clients embed tracklets of 8 JPEG frames without a pause, in this process, on the same cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from common import save, server_process
from passerby.errors import PasserbyError
from passerby_client import Client, RetryPolicy
from passerby_model.street import StreetConfig, write

POLL_SECONDS = 0.02
SETTLE_SECONDS = 5.0
"""After a reload: by then the last calls of the model before have ended."""


class Load:
    """Clients that call without a pause; each call with its end and how long it took, both in seconds."""

    def __init__(self, address: str, frames: list[Path], clients: int) -> None:
        self.calls: list[tuple[float, float]] = []
        self.failures: list[str] = []
        self._address, self._frames = address, frames
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def between(self, start: float, end: float) -> dict[str, float]:
        """Of the calls that ended from `start` to `end`: how many a second, and their times in milliseconds."""
        took = [seconds * 1e3 for at, seconds in self.calls if start <= at < end]
        p50, p99 = np.percentile(took, [50, 99]) if took else (float("nan"), float("nan"))
        return {
            "calls": len(took),
            "per_second": round(len(took) / (end - start), 2),
            "p50_ms": round(p50, 1),
            "p99_ms": round(p99, 1),
        }

    def _run(self) -> None:
        with Client(self._address, retry=RetryPolicy(attempts=1)) as client:
            while not self._ended.is_set():
                start = time.monotonic()
                try:
                    client.embed(self._frames)
                except PasserbyError as error:
                    self.failures.append(str(error))
                self.calls.append((time.monotonic(), time.monotonic() - start))


class Memory:
    """Watches the resident memory of a process, in MiB."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def now(self) -> int:
        (line,) = (line for line in self._status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) // 1024

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self.peak = max(self.peak, self.now())


def measure(bundle: Path, clients: int, reloads: int, seconds: float) -> dict[str, object]:
    """Half of the time without reloads, then the reloads one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        people = Path(folder) / "people"
        write(StreetConfig(identities=1, cameras=2, frames=8, height=256, width=128, seed=1), people)
        frames = sorted(next(people.glob("*/c1/*")).glob("*.jpg"))
        with server_process(bundle, Path(folder) / "data") as (address, pid), Client(address) as admin:
            memory, load = Memory(pid), Load(address, frames, clients)
            try:
                time.sleep(seconds / 2)
                start = time.monotonic()
                time.sleep(seconds / 2)
                quiet, before, took, after = load.between(start, time.monotonic()), memory.now(), [], []
                start = time.monotonic()
                for _ in range(reloads):
                    began = time.monotonic()
                    admin.reload_bundle(timeout=600)
                    took.append(round(time.monotonic() - began, 2))
                    time.sleep(SETTLE_SECONDS)
                    after.append(memory.now())
                during = load.between(start, time.monotonic())
            finally:
                load.stop()
                memory.stop()
    return {
        "bundle": bundle.name,
        "clients": clients,
        "failed_calls": len(load.failures),
        "without_reloads": quiet,
        "during_reloads": during,
        "reload_seconds": took,
        "memory_mib": {"before": before, "peak": memory.peak, "after_each": after},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--reloads", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0, help="Of load before the first reload.")
    parser.add_argument("--save", help="Name of the result file in benchmarks/results.")
    arguments = parser.parse_args()
    result = measure(arguments.bundle, arguments.clients, arguments.reloads, arguments.seconds)
    print(json.dumps(result, indent=2))
    if arguments.save:
        save(arguments.save, result)


if __name__ == "__main__":
    main()
