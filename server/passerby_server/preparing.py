"""Preparing an encoder on a GPU while the server runs on something else.

Building an engine takes minutes and much memory, and ends in a proof: all that is `passerby bundle verify`, which runs
as a process of its own, so that nothing which happens there touches the server.
"""

from __future__ import annotations

import subprocess
import sys
import threading

from passerby.errors import FailedPreconditionError
from passerby_model.backends import BackendName, Options
from passerby_model.bundle import Artefact, Bundle


class Preparation:
    """`passerby bundle verify` for one artefact on one runtime, in a process that can be stopped."""

    def __init__(self, bundle: Bundle, artefact: Artefact, runtime: BackendName, options: Options) -> None:
        self.command = [sys.executable, "-m", "passerby_client.cli", "bundle", "verify", str(bundle.root)]
        self.command += ["--backend", runtime, "--precision", artefact.precision, "--cache", str(options.cache)]
        self.command += ["--cuda-graphs"] if options.cuda_graphs else []
        self._runtime = runtime
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def run(self) -> None:
        """Runs it to its end. Raises FailedPreconditionError (PREPARATION) when it fails, or was stopped."""
        with self._lock:
            if self._stopped:
                raise self._failed("the server is shutting down")
            self._process = subprocess.Popen(  # noqa: S603
                self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        printed, _ = self._process.communicate()
        if self._process.returncode != 0:
            lines = printed.strip().splitlines()
            raise self._failed(lines[-1] if lines else f"exit status {self._process.returncode}")

    def stop(self) -> None:
        """Ends the process, if it runs."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                self._process.kill()

    def _failed(self, why: str) -> FailedPreconditionError:
        return FailedPreconditionError(f"{self._runtime} was not prepared: {why}", reason="PREPARATION")
