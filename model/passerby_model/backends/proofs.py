"""Parity reports of runtimes that only the serving machine has.

A bundle is made on any machine, and carries the proof for the runtimes of a CPU. What a GPU computes depends on its
model, its driver and the runtime's version: `passerby bundle verify --backend tensorrt` compares it with the network where it
is to serve and keeps the report in the cache folder, under everything that it depends on. Without one, nothing is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from passerby_model.backends.gpu import Gpu
from passerby_model.bundle import Parity
from passerby_model.machine import key_id, read_record, write_record


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProofKey(_Part):
    """What was compared, and on what."""

    files: Mapping[str, str]
    """The artefact's files and their sha256."""
    runtime: str
    version: str
    """Of the runtime."""
    gpus: tuple[Gpu, ...]
    cuda_graphs: bool = False
    engine: str = ""
    """sha256 of TensorRT's engine: another build of the same network may choose other kernels."""


class Proof(_Part):
    """A parity report that passed."""

    key: ProofKey
    parity: Parity
    created: str
    """UTC, ISO 8601."""


def proof_path(cache: Path, key: ProofKey) -> Path:
    """Where the proof for `key` lies in the cache folder."""
    return cache / "proofs" / f"{key.runtime}-{key_id(key)}.json"


def save_proof(cache: Path, key: ProofKey, parity: Parity) -> Path:
    """Keeps a report that passed; returns the file. Raises OSError, ValueError for one that did not pass."""
    if not _passed(parity, key.runtime):
        raise ValueError(f"the report does not prove {key.runtime}")
    path = proof_path(cache, key)
    write_record(path, Proof(key=key, parity=parity, created=datetime.now(UTC).isoformat(timespec="seconds")))
    return path


def find_proof(cache: Path, key: ProofKey) -> Proof | None:
    """The proof that holds for `key`; None when there is none."""
    proof = read_record(proof_path(cache, key), Proof)
    return proof if proof is not None and proof.key == key and _passed(proof.parity, key.runtime) else None


def _passed(parity: Parity, runtime: str) -> bool:
    return parity.passed and any(row.runtime == runtime for row in parity.rows) and not parity.failures()
