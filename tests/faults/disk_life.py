"""A server whose disk turns read-only, fills up or goes away under it. A program of its own, for a mount namespace of its own:

unshare --mount python -m tests.faults.disk_life TROUBLE FOLDER
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from passerby.errors import from_rpc_error
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1

from tests.encoders import make_bundle
from tests.server.live import LiveServer, running
from tests.server.pictures import crops, sequence

SHUTDOWN = 0x8004587D
"""ext4's ioctl after which it reads and writes nothing any more, as if the disk had been pulled out."""
WITHOUT_FLUSHING = 2
SECONDS = 20.0
FIRST, LAST = ["1", "2", "3"], "last"


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr}")


@dataclass(frozen=True)
class Trouble:
    """How it begins and ends (None: not before the disk is unmounted), and which reasons callers are given."""

    begin: Callable[[Path], object]
    end: Callable[[Path], object] | None
    reasons: frozenset[str]
    searches: bool = True
    some_room: bool = False
    """Some writes go on for a while, into room that is there already; and the file system is none that turns read-only."""


def abort(folder: Path) -> None:
    """What the kernel does by itself after errors (errors=remount-ro)."""
    run("mount", "-o", "remount,abort", folder / "disk")


def freeze(folder: Path, sign: str = "+i") -> None:
    data = folder / "disk" / "data"
    run("chattr", sign, data / "gallery.db", data / "gallery.db-wal", data)


def fill(folder: Path) -> None:
    """A disk with room in a store behind it that has none: what it is told to write fails."""
    with (folder / "behind" / "others").open("wb") as file:
        try:
            while True:
                os.write(file.fileno(), bytes(2**16))
        except OSError:
            return


def shut(folder: Path) -> None:
    fd = os.open(folder / "disk", os.O_RDONLY)
    fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING))
    os.close(fd)


TROUBLES = {
    "read-only": Trouble(abort, None, frozenset({"STORE_NOT_WRITABLE"})),
    "immutable": Trouble(freeze, lambda folder: freeze(folder, "-i"), frozenset({"STORE_NOT_WRITABLE"})),
    "no-room-behind": Trouble(
        fill,
        lambda folder: (folder / "behind" / "others").unlink(),
        frozenset({"STORAGE_FULL", "DISK_FAILED"}),
        some_room=True,
    ),
    "gone": Trouble(shut, None, frozenset({"DISK_FAILED"}), searches=False),
}


class Disk:
    """An ext4 of its own, in a file on a small tmpfs of its own."""

    def __init__(self, folder: Path, *, journal: bool) -> None:
        self._point, self._image = folder / "disk", folder / "behind" / "image"
        for path in (folder / "disk", folder / "behind"):
            path.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=24m", "none", folder / "behind")
        with self._image.open("wb") as file:
            file.truncate(64 * 2**20)
        run("mkfs.ext4", "-q", "-F", *([] if journal else ["-O", "^has_journal"]), self._image)
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop", self._image, self._point)

    def remount(self) -> None:
        """What only was in memory is lost."""
        run("umount", self._point)
        self.mount()


class Caller:
    """Stores tracklets and looks for them, and remembers what was acknowledged."""

    def __init__(self, live: LiveServer, gallery: str, stored: Sequence[str] = ()) -> None:
        self.live, self.gallery, self.stored = live, gallery, list(stored)

    def ingest(self, name: str) -> None:
        frames = sequence(crops(2))
        self.live.ingest(self.gallery, frames, tracklet_id=name, request_id=str(uuid.uuid5(uuid.NAMESPACE_OID, name)))
        self.stored.append(name)

    def search(self) -> list[str]:
        request = search_v1.SearchTrackletsRequest(parent=self.gallery, top_k=50, frames=sequence(crops(2)))
        answer = self.live.search.SearchTracklets(request, timeout=SECONDS)
        return sorted(hit.tracklet.name.rsplit("/", 1)[1] for hit in answer.hits)

    def found(self, _: int) -> str:
        """What a search finds, or the reason why it does not: what is in memory can be read without the disk."""
        try:
            return str(self.search())
        except grpc.RpcError as error:
            return from_rpc_error(error).reason

    def listed(self) -> list[str]:
        request = tracklet_v1.ListTrackletsRequest(parent=self.gallery, page_size=100)
        answer = self.live.tracklets.ListTracklets(request, timeout=SECONDS)
        return sorted(one.name.rsplit("/", 1)[1] for one in answer.tracklets)

    def told(self, reasons: frozenset[str] = frozenset()) -> None:
        """Waits until health and metrics say that nothing can be stored, for one of these reasons (none: that it can)."""
        at = f"http://127.0.0.1:{self.live.server.metrics_port}"
        wanted = {f"SERVING\nnothing can be stored: {reason}\n" for reason in reasons} or {"SERVING\n"}
        end = time.monotonic() + SECONDS
        while (found := read(f"{at}/healthz")) not in wanted:
            assert time.monotonic() < end, found
            time.sleep(0.1)
        assert f"\npasserby_data_writable {0 if reasons else 1}.0\n" in read(f"{at}/metrics")


def read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=SECONDS) as answer:  # noqa: S310
        return str(answer.read().decode())


def live_through(trouble: Trouble, folder: Path, caller: Caller) -> None:
    for name in FIRST:
        caller.ingest(name)
    caller.told()
    assert caller.search() == caller.stored
    trouble.begin(folder)
    caller.told(trouble.reasons)  # before anybody tried to store
    refusals = 0
    for number in range(4, 300):
        try:
            caller.ingest(str(number))
        except grpc.RpcError as raised:
            error = from_rpc_error(raised)
            assert error.reason in trouble.reasons, (error.reason, error.message)
            refused = str(number)
            if (refusals := refusals + 1) == 3:
                break
    assert refusals == 3
    assert trouble.some_room or caller.stored == FIRST
    with ThreadPoolExecutor(12) as pool:  # more than the connections that are kept open
        found = list(pool.map(caller.found, range(24)))
    right = str(sorted(caller.stored))
    assert set(found) <= ({right} if trouble.searches else {right, *trouble.reasons}), found
    if trouble.end is not None:
        trouble.end(folder)
        caller.ingest(refused)  # the same request
        caller.told()
        assert caller.search() == sorted(caller.stored)


def main(name: str, folder: Path) -> None:
    trouble = TROUBLES[name]
    bundle = make_bundle(folder / "bundle")
    disk = Disk(folder, journal=not trouble.some_room)
    settings: dict[str, Any] = {"metrics": {"address": "127.0.0.1:0"}, "upkeep": {"sweep_seconds": 0.2}}
    data = folder / "disk" / "data"
    with running(bundle, data, **settings) as live:
        caller = Caller(live, live.new_gallery())
        live_through(trouble, folder, caller)
    disk.remount()
    with running(bundle, data, **settings) as live:
        after = Caller(live, caller.gallery, caller.stored)
        assert after.listed() == after.search() == sorted(after.stored)
        after.ingest(LAST)
        after.told()
    print("fine")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
