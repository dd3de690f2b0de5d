"""Which GPUs there are, as the driver's own tool says: an engine, and a proof, hold for these alone."""

from __future__ import annotations

import shutil
import subprocess

from passerby.errors import FailedPreconditionError
from pydantic import BaseModel, ConfigDict

_FIELDS = ("name", "compute_cap", "driver_version")
_TIMEOUT_SECONDS = 30


class Gpu(BaseModel):
    """A GPU: its name, compute capability (`9.0`) and the version of its driver."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    compute_capability: str
    driver: str


def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine, at least one.

    Raises:
        FailedPreconditionError: there is none, or its driver does not answer (GPU_MISSING).
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise _missing("there is no nvidia-smi, which comes with NVIDIA's driver")
    command = [tool, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _missing(f"nvidia-smi does not answer: {error}") from error
    if done.returncode != 0:
        raise _missing(f"nvidia-smi says: {' '.join((done.stdout + done.stderr).split())}")
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """What `nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader` prints, a GPU a line.

    Raises:
        FailedPreconditionError: it is something else, or names none (GPU_MISSING).
    """
    rows = [[part.strip() for part in line.split(",")] for line in text.splitlines() if line.strip()]
    if not rows or any(len(row) != len(_FIELDS) or not all(row) for row in rows):
        raise _missing(f"nvidia-smi names no GPU: {text.strip()!r}")
    return tuple(Gpu(name=name, compute_capability=capability, driver=driver) for name, capability, driver in rows)


def _missing(problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"no NVIDIA GPU can be used here: {problem}", reason="GPU_MISSING")
