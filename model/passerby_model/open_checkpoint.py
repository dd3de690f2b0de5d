"""A checkpoint, ready to run in eager PyTorch and full precision: what `passerby evaluate` and `passerby attention` open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from passerby_model.checkpoint import Checkpoint
    from passerby_model.encoder import TrackletEncoder


@dataclass(frozen=True)
class OpenCheckpoint:
    """A loaded checkpoint and its encoder, in eval mode on `device` (`cpu` or `cuda`). torch: the version that computes."""

    checkpoint: Checkpoint
    encoder: TrackletEncoder
    device: str
    torch: str

    def encode(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Mapping[int, NDArray[np.float32]]]:
        """uint8 (B, N, H, W, 3) -> descriptors float32 (B, D) and, by CNN block, masks float32 (B, N, h, w)."""
        import torch

        from passerby_model.embed import normalised

        with torch.inference_mode():
            found, masks = self.encoder(normalised(torch.from_numpy(pixels).to(self.device)))
        return _numpy(found), {block: _numpy(mask) for block, mask in masks.items()}


def open_checkpoint(path: Path, *, threads: int = 0, device: str = "cpu") -> OpenCheckpoint:
    """The encoder in a checkpoint of ours, or in a state dict of the COSAM authors' code.

    Args:
        threads: CPU threads; 0 for all cores.
        device: "cpu", "cuda", or "auto" for cuda where there is one.

    Raises:
        NotFoundError, InvalidArgumentError: no checkpoint, or an unknown device.
        FailedPreconditionError: PyTorch is not installed (EXTRA_MISSING), or has no such device.
    """
    try:
        import torch
    except ImportError as error:
        raise FailedPreconditionError(
            f"a checkpoint needs {error.name}: pip install 'passerby[train]', or give a bundle", reason="EXTRA_MISSING"
        ) from error
    from passerby_model import checkpoint

    if threads:
        torch.set_num_threads(threads)
    loaded = checkpoint.load(path)
    where = _device(device)
    return OpenCheckpoint(loaded, loaded.build().encoder.to(where), where, torch.__version__)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise InvalidArgumentError(f"unknown device {name!r}; there are auto, cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise FailedPreconditionError("PyTorch sees no CUDA device here: take --device cpu")
    return name


def _numpy(tensor: Any) -> NDArray[np.float32]:
    return np.asarray(tensor.float().cpu().numpy(), np.float32)
