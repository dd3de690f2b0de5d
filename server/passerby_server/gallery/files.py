"""Files and folders that must be there after a power cut, or gone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_in_place(written: Path, path: Path) -> None:
    """Gives a written and synced file or folder its name, in one step and durably; a file replaces what had the name."""
    written.replace(path)
    sync(path.parent)


def discard(path: Path) -> None:
    """Removes a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
