"""OpenVINO without its telemetry.

`import openvino` reports its use to Google Analytics, from a forked process, unless the package `openvino_telemetry` is
absent. A server that watches people tells nobody; and a fork in the middle of gRPC's threads is unsafe besides.
"""

from __future__ import annotations

import sys
from typing import Any


def import_openvino() -> Any:
    """The module `openvino`, imported as if `openvino_telemetry` were not installed. Raises ImportError."""
    # None makes `import openvino_telemetry` fail, and OpenVINO falls back to its own stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
