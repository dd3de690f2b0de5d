"""What the network makes of a few made-up snippets, kept in the bundle: the proof can be repeated without the network.

Tracklets of real people are never among them.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from passerby.errors import DataLossError
from passerby_model.backends import Encoded

from .parity import Trial
from .samples import DRAWN, SYNTHETIC

NAME = "reference.npz"
KEPT = 4
"""Snippets of each kind: enough that batches mix them, and small beside the encoder."""
# No file, no archive, a damaged one, a single array, or other arrays.
_NOT_OURS = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)
_MASKS = re.compile(r"(?P<frames>\w+)/mask(?P<block>\d+)")


def write_reference(folder: Path, trials: Iterable[Trial]) -> str:
    """Write the made-up ones of `trials` to `folder`; returns the file's name. The same trials give the same bytes."""
    arrays: dict[str, Any] = {}
    for trial in trials:
        if trial.frames not in (DRAWN, *SYNTHETIC):
            continue
        arrays[f"{trial.frames}/snippets"] = trial.snippets[:KEPT]
        arrays[f"{trial.frames}/descriptors"] = trial.expected.descriptors[:KEPT]
        arrays |= {f"{trial.frames}/mask{block}": mask[:KEPT] for block, mask in trial.expected.masks.items()}
    np.savez_compressed(folder / NAME, **arrays)
    return NAME


def read_reference(path: Path) -> list[Trial]:
    """What `write_reference` wrote. Raises DataLossError when the file is something else."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        kinds = [name.removesuffix("/snippets") for name in arrays if name.endswith("/snippets")]
        if not kinds:
            raise ValueError("it holds no snippets")  # which would prove anything
        found = [(name, match) for name in arrays if (match := _MASKS.fullmatch(name))]
        return [
            Trial(
                frames=kind,
                snippets=arrays[f"{kind}/snippets"],
                expected=Encoded(
                    arrays[f"{kind}/descriptors"],
                    {int(match["block"]): arrays[name] for name, match in found if match["frames"] == kind},
                ),
            )
            for kind in kinds
        ]
    except _NOT_OURS as error:
        raise DataLossError(f"{path} is no reference: {error}", reason="BUNDLE_DAMAGED") from error
