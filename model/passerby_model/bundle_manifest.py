"""bundle.json: what a bundle says of itself (`Manifest`). See `bundle.py` for what a bundle is."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 2

Metric = Literal["squared_euclidean", "cosine"]
EncoderFormat = Literal["onnx", "openvino"]
Runtime = Literal["openvino", "onnxruntime"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Part):
    """One file of the bundle: sha256 in hex, size in bytes."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Input(_Part):
    """Snippets of `snippet_length` frames, each `height` x `width` pixels, uint8 RGB."""

    snippet_length: int = Field(ge=1, le=64)
    height: int = Field(ge=16, le=2048)
    width: int = Field(ge=16, le=2048)


class MaskOutput(_Part):
    """Spatial masks of the COSAM after CNN block `block`: output `name`, `height` x `width` values a frame."""

    name: str
    block: int
    height: int
    width: int


class ParityRow(_Part):
    """One comparison of the encoder with the network that it was made from, on `snippets` snippets a batch.

    `frames` says what was compared on: `noise`, `smooth` (blurred, like pictures) or the name of a data set.
    `relative_l2` = max over snippets of |d - r| / |r|; `cosine` = min over snippets; `mask_error` = max |m - r|,
    None without masks; `cost_volume_error` likewise, None where the encoder does not give them. Passed when all are
    within the limits beside them.
    """

    runtime: str
    snippets: int = Field(ge=1)
    frames: str = ""
    relative_l2: float
    cosine: float
    mask_error: float | None = None
    max_relative_l2: float
    min_cosine: float
    max_mask_error: float | None = None
    cost_volume_error: float | None = None
    max_cost_volume_error: float | None = None
    passed: bool

    @property
    def within_limits(self) -> bool:
        """Whether the measured values are within the limits; `passed` has to agree."""
        return (
            self.relative_l2 <= self.max_relative_l2
            and self.cosine >= self.min_cosine
            and (self.mask_error is None or self.mask_error <= (self.max_mask_error or 0.0))
            and (self.cost_volume_error is None or self.cost_volume_error <= (self.max_cost_volume_error or 0.0))
        )

    def describe(self) -> str:
        """Measured values with their limits, on one line."""
        text = (
            f"{self.runtime}, batch {self.snippets} of {self.frames or 'frames'}: "
            f"relative L2 {self.relative_l2:.1e} (at most {_limit(self.max_relative_l2)}), "
            f"cosine {self.cosine:.7f} (at least {self.min_cosine})"
        )
        if self.mask_error is not None:
            text += f", masks {self.mask_error:.1e} (at most {_limit(self.max_mask_error)})"
        if self.cost_volume_error is not None:
            text += f", cost volumes {self.cost_volume_error:.1e} (at most {_limit(self.max_cost_volume_error)})"
        return text


class RankingRow(_Part):
    """One comparison of rankings on the labelled set `data`: what the encoder's descriptors find, and the network's.

    `gallery`: `own` when the encoder's descriptors were also those of the gallery, `network` when the gallery was
    filled by the network itself, as after a change of number format on a running system. Rank-1 and mAP are shares
    of 1; passed when neither loses more than the limit beside it.
    """

    runtime: str
    data: str
    queries: int = Field(ge=1)
    gallery: Literal["own", "network"]
    rank1: float
    network_rank1: float
    mean_average_precision: float
    network_mean_average_precision: float
    max_rank1_loss: float
    max_map_loss: float
    passed: bool

    @property
    def within_limits(self) -> bool:
        """Whether the losses are within the limits; `passed` has to agree."""
        rank1_loss = self.network_rank1 - self.rank1
        map_loss = self.network_mean_average_precision - self.mean_average_precision
        # Shares of a few queries are not exact in binary.
        return rank1_loss <= self.max_rank1_loss + 1e-9 and map_loss <= self.max_map_loss + 1e-9

    def describe(self) -> str:
        """Measured values with their limits, on one line, in per cent."""
        return (
            f"{self.runtime}, {self.queries} queries of {self.data} in a gallery of "
            f"{'its own' if self.gallery == 'own' else 'the network'}: "
            f"rank-1 {100 * self.rank1:.2f} (network {100 * self.network_rank1:.2f}, "
            f"at most {100 * self.max_rank1_loss:.2f} lost), mAP {100 * self.mean_average_precision:.2f} "
            f"(network {100 * self.network_mean_average_precision:.2f}, at most {100 * self.max_map_loss:.2f} lost)"
        )


class Parity(_Part):
    """The proof that the encoder is the network that was trained. `reference` says what it was compared with."""

    reference: str
    rows: tuple[ParityRow, ...]
    ranking: tuple[RankingRow, ...] = ()
    passed: bool

    def failures(self, runtime: str | None = None) -> list[str]:
        """One line for each row (of that runtime alone) that failed."""
        rows: tuple[ParityRow | RankingRow, ...] = (*self.rows, *self.ranking)
        return [
            row.describe() for row in rows if runtime in (None, row.runtime) and not (row.passed and row.within_limits)
        ]


class CalibrationPoint(_Part):
    """One threshold: pairs at most this far apart are called the same person.

    `fmr`: at most this share of impostor pairs (two people) are, `errors` of them were; `fnmr`: share of genuine pairs
    (one person) that are not. With few errors, the rate is a rough one.
    """

    fmr: float = Field(gt=0, lt=1)
    threshold: float = Field(ge=0, allow_inf_nan=False)
    fnmr: float = Field(ge=0, le=1)
    errors: int = Field(ge=1)


class NoMatch(_Part):
    """The distance beyond which a hit is called another person: only a share `fnmr` of genuine pairs lie there."""

    fnmr: float = Field(gt=0, lt=1)
    threshold: float = Field(ge=0, allow_inf_nan=False)


class Calibration(_Part):
    """Which distance means the same person, measured on `data` under `protocol`.

    `points` have ascending rates; a rate that `impostor_pairs` are too few to measure is not among them.
    `no_match` is None where `genuine_pairs` are too few.
    """

    version: Literal[1] = 1
    metric: Metric
    data: tuple[str, ...] = Field(min_length=1)
    protocol: str
    clip_scheme: str
    genuine_pairs: int = Field(ge=1)
    impostor_pairs: int = Field(ge=1)
    points: tuple[CalibrationPoint, ...] = Field(min_length=1)
    no_match: NoMatch | None = None
    created: str = ""
    """UTC, ISO 8601."""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Over everything above and the bundle's fingerprint (`sealed`)."""

    @model_validator(mode="after")
    def _points_in_order(self) -> Self:
        for low, high in itertools.pairwise(self.points):
            if not (low.fmr < high.fmr and low.threshold <= high.threshold and low.fnmr >= high.fnmr):
                raise ValueError(f"the points of rate {low.fmr} and {high.fmr} contradict each other")
        return self

    def checksum(self, fingerprint: str) -> str:
        """sha256 in hex over this calibration and the fingerprint of the bundle that it belongs to."""
        subject = {"fingerprint": fingerprint, "calibration": self.model_dump(exclude={"sha256"}, mode="json")}
        return hashlib.sha256(json.dumps(subject, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def sealed(self, fingerprint: str) -> Calibration:
        """This calibration with its checksum, for the bundle `fingerprint`."""
        return self.model_copy(update={"sha256": self.checksum(fingerprint)})

    def point_for(self, fmr: float) -> CalibrationPoint | None:
        """The point of the largest measured rate that is not above `fmr`; None when all are above."""
        return max((point for point in self.points if point.fmr <= fmr), key=lambda p: p.fmr, default=None)


class Artefact(_Part):
    """An encoder file: the network in one number format, for the runtimes named."""

    precision: str
    """`fp32`, `fp16` (computed so on a GPU), `w8` (weights stored so, computed in float32), `bf16` or `int8`."""
    format: EncoderFormat
    files: tuple[str, ...] = Field(min_length=1)
    """Keys of the manifest's `files`, the main file first."""
    runtimes: tuple[Runtime, ...] = Field(min_length=1)
    parity: Parity | None = None
    quantisation: dict[str, object] | None = None
    """For int8: what it was calibrated on, and which layers were kept in float32."""

    @property
    def file(self) -> str:
        """The main file."""
        return self.files[0]

    def unproven(self, runtime: str) -> str:
        """What is missing for `runtime` to be trusted with this artefact, naming a row that failed; or ""."""
        if self.parity is None or not any(row.runtime == runtime for row in self.parity.rows):
            return f"{self.file} ({self.precision}) has no parity report for {runtime}"
        failures = self.parity.failures(runtime)
        if not self.parity.passed and not failures and not self.parity.failures():
            failures = ["marked as failed"]
        return f"{self.file} ({self.precision}) failed its parity check: {'; '.join(failures)}" if failures else ""


class Manifest(_Part):
    """bundle.json. `files` maps each file of the bundle but bundle.json to its checksum."""

    schema_version: Literal[2] = 2
    name: str
    architecture: str
    artefacts: tuple[Artefact, ...] = Field(min_length=1)
    """The most exact one first."""
    input: Input
    descriptor_dim: int = Field(ge=1)
    metric: Metric
    masks: tuple[MaskOutput, ...] = ()
    files: dict[str, File]
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    reference: str | None = None
    """Key of `files`: made-up snippets with what the network makes of them, for `passerby bundle verify`."""
    calibration: Calibration | None = None
    training: dict[str, object] = {}
    """Where the weights come from: data, recipe, source files, measured results."""
    tools: dict[str, str] = {}
    """Versions of the tools that made the bundle."""
    created: str = ""
    """UTC, ISO 8601."""

    @property
    def encoder(self) -> str:
        """Main file of the first artefact."""
        return self.artefacts[0].file

    @property
    def format(self) -> EncoderFormat:
        """Format of the first artefact."""
        return self.artefacts[0].format

    @property
    def precision(self) -> str:
        """Number format of the first artefact."""
        return self.artefacts[0].precision

    @property
    def parity(self) -> Parity | None:
        """Parity report of the first artefact."""
        return self.artefacts[0].parity

    def unproven(self) -> list[str]:
        """What is missing before every artefact can be trusted on every runtime that it is for."""
        return [text for a in self.artefacts for runtime in a.runtimes if (text := a.unproven(runtime))]


def _limit(value: float | None) -> str:
    """`1e-04`, `1.5e-01`: never rounded below what was allowed."""
    return f"{value or 0.0:.1e}".replace(".0e", "e")


def fingerprint_of(
    *, files: dict[str, File], input: Input, descriptor_dim: int, metric: Metric, architecture: str
) -> str:
    """sha256 in hex over everything that changes a descriptor: the files of the first artefact and how it is fed."""
    subject = {
        "files": {name: file.sha256 for name, file in sorted(files.items())},
        "input": input.model_dump(),
        "descriptor_dim": descriptor_dim,
        "metric": metric,
        "architecture": architecture,
    }
    return hashlib.sha256(json.dumps(subject, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def manifest_bytes(manifest: Manifest) -> bytes:
    """The text of bundle.json."""
    return (manifest.model_dump_json(indent=2) + "\n").encode()


def describe_file(path: Path) -> File:
    """Size and sha256 of `path`."""
    with path.open("rb") as stream:
        return File(sha256=hashlib.file_digest(stream, "sha256").hexdigest(), size=path.stat().st_size)
