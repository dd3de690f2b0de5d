"""A bundle: the folder that export hands to the server.

    bundle/
      bundle.json       what this file describes (`Manifest`)
      encoder.onnx      the encoder; or encoder.xml + encoder.bin (OpenVINO IR)

Nothing else lies there: a runtime loads weights from files beside the encoder by name, and what bundle.json does not
list has no checksum. Caches, reports and notes have their place elsewhere.

The encoder's contract, whatever made it: input `snippets` uint8 (B, N, H, W, 3) RGB with a dynamic B;
output `descriptor` float32 (B, D), and for each COSAM layer `mask_cosam<block>` float32 (B, N, h, w) in [0, 1].
Normalisation is inside the graph; so is the L2 normalisation of a cosine model's descriptors.

The **fingerprint** names the space in which descriptors live: a sha256 over the encoder's files and over
everything else that changes a descriptor (snippet length, input size, metric). Descriptors of two fingerprints
are never compared.

The **calibration** says which distance means the same person (`passerby evaluate --calibrate`). It comes after the
export and changes no descriptor, so the fingerprint does not cover it; a checksum of its own, over its content and the
fingerprint, keeps it from being edited or carried over to another model.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Literal, Self

from passerby.errors import DataLossError, FailedPreconditionError, NotFoundError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA_VERSION = 1
MANIFEST_NAME = "bundle.json"
INPUT_NAME = "snippets"
DESCRIPTOR_NAME = "descriptor"
# What systems put into a folder by themselves: nothing that an encoder could name.
_OF_THE_SYSTEM = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", "lost+found"})
_NAMED = 5  # unlisted files that a message names

Metric = Literal["squared_euclidean", "cosine"]


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
    None without masks. Passed when all are within the limits beside them.
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
    passed: bool

    @property
    def within_limits(self) -> bool:
        """Whether the measured values are within the limits; `passed` has to agree."""
        return (
            self.relative_l2 <= self.max_relative_l2
            and self.cosine >= self.min_cosine
            and (self.mask_error is None or self.mask_error <= (self.max_mask_error or 0.0))
        )

    def describe(self) -> str:
        """Measured values with their limits, on one line."""
        text = (
            f"{self.runtime}, batch {self.snippets} of {self.frames or 'frames'}: "
            f"relative L2 {self.relative_l2:.1e} (at most {self.max_relative_l2:.0e}), "
            f"cosine {self.cosine:.7f} (at least {self.min_cosine})"
        )
        if self.mask_error is not None:
            text += f", masks {self.mask_error:.1e} (at most {self.max_mask_error or 0.0:.0e})"
        return text


class Parity(_Part):
    """The proof that the encoder is the network that was trained. `reference` says what it was compared with."""

    reference: str
    rows: tuple[ParityRow, ...]
    passed: bool

    def failures(self) -> list[str]:
        """One line for each row that failed."""
        return [row.describe() for row in self.rows if not (row.passed and row.within_limits)]


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


class Manifest(_Part):
    """bundle.json. `files` maps each file of the bundle but bundle.json to its checksum."""

    schema_version: Literal[1] = 1
    name: str
    architecture: str
    encoder: str
    """Main file of the encoder, a key of `files`."""
    format: Literal["onnx", "openvino"]
    precision: str
    input: Input
    descriptor_dim: int = Field(ge=1)
    metric: Metric
    masks: tuple[MaskOutput, ...] = ()
    files: dict[str, File]
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    parity: Parity | None = None
    calibration: Calibration | None = None
    training: dict[str, object] = {}
    """Where the weights come from: data, recipe, source files, measured results."""
    tools: dict[str, str] = {}
    """Versions of the tools that made the bundle."""
    created: str = ""
    """UTC, ISO 8601."""


def fingerprint_of(
    *, files: dict[str, File], input: Input, descriptor_dim: int, metric: Metric, architecture: str
) -> str:
    """sha256 in hex over everything that changes a descriptor: the files of the encoder and how it is fed."""
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


class Bundle:
    """A verified bundle on disk: `manifest`, and `encoder_path` for a backend to load."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest

    @property
    def encoder_path(self) -> Path:
        return self.root / self.manifest.encoder

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint


def read_manifest(root: Path) -> Manifest:
    """bundle.json of the bundle at `root`, unverified.

    Raises NotFoundError when there is none, FailedPreconditionError when it is of another schema version,
    DataLossError when it cannot be read.
    """
    path = root / MANIFEST_NAME
    if not path.is_file():
        raise NotFoundError(
            f"{root} is no bundle: it has no {MANIFEST_NAME}; make one with `passerby export` or `passerby bundle wrap`",
            reason="BUNDLE_NOT_FOUND",
        )
    try:
        content = json.loads(path.read_bytes())
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version is None:
            raise DataLossError(f"{path} is damaged: it has no schema_version", reason="BUNDLE_DAMAGED")
        if isinstance(version, int) and version != SCHEMA_VERSION:
            raise FailedPreconditionError(
                f"{path} has schema version {version}, this passerby reads {SCHEMA_VERSION}: export the bundle again",
                reason="BUNDLE_SCHEMA_VERSION",
            )
        return Manifest.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise DataLossError(f"{path} is damaged: {problems}", reason="BUNDLE_DAMAGED") from error
    except ValueError as error:  # not JSON
        raise DataLossError(f"{path} is damaged: {error}", reason="BUNDLE_DAMAGED") from error


def open_bundle(root: str | Path, *, allow_unverified: bool = False) -> Bundle:
    """The bundle at `root`, once its files match their checksums, its fingerprint and a passing parity report.

    Raises NotFoundError for a missing bundle or file, DataLossError for a file or a calibration that differs from its
    checksum, FailedPreconditionError for a file that bundle.json does not list (BUNDLE_UNLISTED_FILE), and for a missing
    or failed parity report unless `allow_unverified`.
    """
    root = Path(root)
    manifest = read_manifest(root)
    for name, wanted in manifest.files.items():
        path = root / name
        if Path(name).name != name:
            raise DataLossError(f"{root}: file name {name!r} leads out of the bundle", reason="BUNDLE_DAMAGED")
        if not path.is_file():
            raise NotFoundError(f"{path} is missing: the bundle is incomplete", reason="BUNDLE_INCOMPLETE")
        if describe_file(path) != wanted:
            raise DataLossError(
                f"{path} differs from its checksum in {MANIFEST_NAME}: it was damaged or changed after export",
                reason="BUNDLE_DAMAGED",
            )
    _check_fingerprint(root, manifest)
    _check_unlisted(root, manifest)
    _check_calibration(root, manifest)
    if not allow_unverified:
        _check_parity(root, manifest)
    return Bundle(root, manifest)


def _check_fingerprint(root: Path, manifest: Manifest) -> None:
    if manifest.encoder not in manifest.files:
        raise DataLossError(f"{root}: the encoder {manifest.encoder!r} has no checksum", reason="BUNDLE_DAMAGED")
    actual = fingerprint_of(
        files=manifest.files,
        input=manifest.input,
        descriptor_dim=manifest.descriptor_dim,
        metric=manifest.metric,
        architecture=manifest.architecture,
    )
    if actual != manifest.fingerprint:
        raise DataLossError(
            f"{root}: fingerprint {manifest.fingerprint[:12]} does not match the content ({actual[:12]}): "
            f"{MANIFEST_NAME} was edited",
            reason="BUNDLE_DAMAGED",
        )


def _check_unlisted(root: Path, manifest: Manifest) -> None:
    unlisted = sorted({path.name for path in root.iterdir()} - {MANIFEST_NAME, *manifest.files} - _OF_THE_SYSTEM)
    if unlisted:
        named = ", ".join(unlisted[:_NAMED]) + (f" and {len(unlisted) - _NAMED} more" if unlisted[_NAMED:] else "")
        raise FailedPreconditionError(
            f"{root}: {MANIFEST_NAME} does not list {named}, so no checksum covers what a runtime might load "
            "from there: move it out of the bundle's folder, or make the bundle again",
            reason="BUNDLE_UNLISTED_FILE",
        )


def _check_calibration(root: Path, manifest: Manifest) -> None:
    found = manifest.calibration
    if found is not None and (found.metric != manifest.metric or found.sha256 != found.checksum(manifest.fingerprint)):
        raise DataLossError(
            f"{root}: the calibration was edited, or is another model's: set `calibration` to null in {MANIFEST_NAME}, "
            "then calibrate with `passerby evaluate --calibrate`",
            reason="BUNDLE_DAMAGED",
        )


def _check_parity(root: Path, manifest: Manifest) -> None:
    if manifest.parity is None or not manifest.parity.rows:
        problem = "has no parity report"
    elif not manifest.parity.passed or manifest.parity.failures():
        problem = "failed its parity check: " + "; ".join(manifest.parity.failures() or ["marked as failed"])
    else:
        return
    raise FailedPreconditionError(
        f"{root} {problem}; export it again, or serve it all the same with --allow-unverified",
        reason="BUNDLE_UNVERIFIED",
    )
