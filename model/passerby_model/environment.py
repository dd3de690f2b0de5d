"""On what a run was computed: machine and versions, for its record (no torch)."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = ("passerby", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "opencv-python-headless")
_CPU_INFO = Path("/proc/cpuinfo")


def describe(device: str, processes: int = 1) -> dict[str, str]:
    """Date (UTC), machine and versions by name; `device` is what the network runs on, in so many processes."""
    found = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "device": f"{device} ({processes} processes)" if processes > 1 else device,
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _processor() -> str:
    if _CPU_INFO.is_file() and (line := re.search(r"^model name\s*:\s*(.+)$", _CPU_INFO.read_text(), re.MULTILINE)):
        return line[1]
    return platform.processor() or platform.machine()
