"""The package `openvino` as every room uses it: without its telemetry, and with one `Core` for the process.

`import openvino` reports its use to Google Analytics, from a forked process, unless the package `openvino_telemetry` is
absent. A server that watches people tells nobody; and a fork in the middle of gRPC's threads is unsafe besides.

A `Core` that is let go crashes the process later: its CPU plugin gives the thread that loads it a stack for signals, and
takes that back when the last compiled model of that `Core` goes. With several, in any order but last in first out, the
thread is left with a stack that is freed, and dies of the next signal (seen with 2026.4: SIGTERM, then SIGSEGV).
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any


def import_openvino() -> Any:
    """The module `openvino`, imported as if `openvino_telemetry` were not installed. Raises ImportError."""
    # None makes `import openvino_telemetry` fail, and OpenVINO falls back to its own stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """The process's `openvino.Core`, for any thread. Raises ImportError."""
    return import_openvino().Core()
