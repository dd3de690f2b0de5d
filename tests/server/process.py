"""`python -m passerby_server` as a process of its own."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.server.live import Stubs

READY = re.compile(r"passerby is serving on 127\.0\.0\.1:(\d+) \(.*\)\n")


class Process(Stubs):
    """A serving process, and the stubs to talk to it."""

    def __init__(self, process: subprocess.Popen[str], port: int, ready_line: str) -> None:
        super().__init__(port)
        self.process = process
        self.ready_line = ready_line

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 30) -> int:
        """Sends a signal and waits; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout)


def command(bundle: Path, data: Path, *flags: str) -> list[str]:
    """The command line of a server on a free port."""
    address = ["--address", "127.0.0.1:0", "--threads", "1"]
    return [sys.executable, "-m", "passerby_server", "--bundle", str(bundle), "--data", str(data), *address, *flags]


@contextlib.contextmanager
def serving(bundle: Path, data: Path, *flags: str) -> Iterator[Process]:
    """Starts a server and waits for its ready line; kills it when the block ends and it still runs."""
    log = data.with_suffix(".log").open("a+")
    process = subprocess.Popen(command(bundle, data, *flags), stdout=subprocess.PIPE, stderr=log, text=True)
    killer = threading.Timer(90, process.kill)
    killer.start()
    server = None
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = READY.fullmatch(line)
        assert match, f"{line!r} is no ready line; log: {Path(log.name).read_text()}"
        server = Process(process, int(match[1]), line)
        yield server
    finally:
        killer.cancel()
        if server:
            server.close()
        if process.poll() is None:
            process.kill()
        process.wait(10)
        if process.stdout:
            process.stdout.close()
        log.close()
