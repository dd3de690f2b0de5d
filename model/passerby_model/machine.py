"""What is worked out on a machine for that machine alone, and the folder where it is kept: the cache.

    tuning/     threads, streams and batch size of an encoder (`passerby bundle tune`)
    openvino/   encoders as OpenVINO compiled them
    proofs/     parity reports of runtimes that were compared here (`passerby bundle verify`)
    tensorrt/   engines of TensorRT, and what it has timed
    onnxruntime-tensorrt/   those of ONNX Runtime's TensorRT provider

All of it can be made again, and is used only where its key (content, versions, hardware) says that it fits. None of it
comes from a gallery. It is kept out of bundles, which are the same on every machine and have a checksum for each file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

T = TypeVar("T", bound=BaseModel)
log = logging.getLogger(__name__)


def default_cache(environment: Mapping[str, str]) -> Path | None:
    """`passerby` in the user's cache folder: $XDG_CACHE_HOME, else ~/.cache (on Windows %LOCALAPPDATA%); None when the
    environment names none."""
    for variable, below in (("XDG_CACHE_HOME", ""), ("LOCALAPPDATA", ""), ("HOME", ".cache")):
        if found := environment.get(variable):
            return Path(found) / below / "passerby"
    return None


def processor() -> str:
    """The processor's model as it names itself."""
    info = Path("/proc/cpuinfo")
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine()


def key_id(key: Mapping[str, object] | BaseModel) -> str:
    """A file name for `key`: 16 hex digits of its sha256."""
    content = key.model_dump(mode="json") if isinstance(key, BaseModel) else dict(key)
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def make_folder(folder: Path) -> Path:
    """`folder`, made when missing, for its owner alone. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def mark_used(path: Path) -> None:
    """Notes that `path` was used now: see `least_used`."""
    try:
        os.utime(path)
    except OSError as error:  # somebody else's folder, read-only: it is used all the same
        log.debug("%s: %s", path, error)


def least_used(paths: Iterable[Path], kept: int) -> list[Path]:
    """All but the `kept` latest used (or written) ones of `paths`: what a cache can do without.

    What another process removes meanwhile is left out. Raises OSError.
    """
    used = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            used.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(used, reverse=True)[kept:]]


def write_record(path: Path, record: BaseModel) -> None:
    """Writes `record` as JSON: whole under its name, or not at all. Raises OSError."""
    make_folder(path.parent)
    handle, scratch = tempfile.mkstemp(prefix=".", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(record.model_dump_json(indent=2) + "\n")
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def read_record(path: Path, kind: type[T]) -> T | None:
    """What `write_record` wrote; None when there is nothing, or (said in the log) nothing that can be read."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        log.warning("%s is ignored, it cannot be read: %s", path, " ".join(str(error).split()))
        return None
