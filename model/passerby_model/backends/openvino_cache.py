"""Encoders as OpenVINO compiled them, kept in the cache folder: a start need not compile again.

OpenVINO does the keeping (its property CACHE_DIR) and decides whether a file fits the model, its own version and the
settings. It does not notice a file whose bytes have changed (2026.4 loads one with damaged weights and answers with
wrong descriptors), so a checksum lies beside it; and it stays silent when it cannot write, so that is said here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from passerby_model.machine import key_id, least_used, make_folder, mark_used, processor

log = logging.getLogger(__name__)

KEPT = 8
"""Compiled encoders that are kept, the latest used ones; each is about as large as the encoder's file."""
_CHECKSUMS = "sha256.json"


def compile_cached(core: Any, model: Any, settings: Mapping[str, Any], cache: Path, key: Mapping[str, object]) -> Any:
    """`core.compile_model(model, "CPU", settings)`, from the cache when it is there, else kept for the next time.

    Args:
        cache: the cache folder; one that cannot be written is as good as none.
        key: what the encoder's files hold, and the version of OpenVINO; processor and settings are added here.

    Raises:
        RuntimeError: OpenVINO cannot compile the model.
    """
    entry = cache / "openvino" / key_id({**key, "processor": processor(), "settings": dict(settings)})
    if entry.is_dir():
        if _whole(entry):
            compiled = core.compile_model(model, "CPU", {**settings, "CACHE_DIR": str(entry)})
            if compiled.get_property("LOADED_FROM_CACHE"):
                log.info("OpenVINO's compiled encoder taken from %s", entry)
                mark_used(entry)
                return compiled
            log.warning("OpenVINO compiled the encoder anew: it does not take what is in %s", entry)
            shutil.rmtree(entry, ignore_errors=True)
            return compiled
        log.warning("OpenVINO compiles the encoder anew: %s is damaged", entry)
        shutil.rmtree(entry, ignore_errors=True)
    return _compile_and_keep(core, model, settings, entry)


def _compile_and_keep(core: Any, model: Any, settings: Mapping[str, Any], entry: Path) -> Any:
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=make_folder(entry.parent)))
    except OSError as error:
        log.warning("the compiled encoder is not kept, the next start compiles again: %s", error)
        return core.compile_model(model, "CPU", dict(settings))
    try:
        compiled = core.compile_model(model, "CPU", {**settings, "CACHE_DIR": str(scratch)})
        _keep(scratch, entry)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return compiled


def _keep(scratch: Path, entry: Path) -> None:
    """Puts what OpenVINO wrote in place, with its checksums; another process may have done so meanwhile."""
    try:
        checksums = _checksums(scratch)
        if not checksums:
            log.warning("the compiled encoder is not kept: OpenVINO could not write to %s", scratch.parent)
            return
        (scratch / _CHECKSUMS).write_text(json.dumps(checksums))
        scratch.rename(entry)
        others = [path for path in entry.parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
        for old in least_used(others, KEPT):
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        log.warning("the compiled encoder is not kept, the next start compiles again: %s", error)


def _whole(entry: Path) -> bool:
    try:
        found: object = json.loads((entry / _CHECKSUMS).read_bytes())
        return found == _checksums(entry)
    except (OSError, ValueError):
        return False


def _checksums(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != _CHECKSUMS:
            with path.open("rb") as stream:
                found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
