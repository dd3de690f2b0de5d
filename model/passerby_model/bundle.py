"""A bundle: the folder that export hands to the server.

    bundle/
      bundle.json       what this file describes (`Manifest`)
      encoder.onnx      the encoder; or encoder.xml + encoder.bin (OpenVINO IR)
      encoder.bf16.xml  and so on: the same network in other number formats (`Artefact`)

Nothing else lies there: a runtime loads weights from files beside the encoder by name, and what bundle.json does not
list has no checksum. Caches, reports and notes have their place elsewhere.

The encoder's contract, whatever made it: input `snippets` uint8 (B, N, H, W, 3) RGB with a dynamic B;
output `descriptor` float32 (B, D), and for each COSAM layer `mask_cosam<block>` float32 (B, N, h, w) in [0, 1].
Normalisation is inside the graph; so is the L2 normalisation of a cosine model's descriptors.

The **fingerprint** names the space in which descriptors live: a sha256 over the files of the first artefact, the most
exact one, and over everything else that changes a descriptor (snippet length, input size, metric). Descriptors of two
fingerprints are never compared. The other artefacts share the space: each is proven, within the limits that its parity
report states, to compute what the network computes, and `files` has the checksums of them all.

The **calibration** says which distance means the same person (`passerby evaluate --calibrate`). It comes after the
export and changes no descriptor, so the fingerprint does not cover it; a checksum of its own, over its content and the
fingerprint, keeps it from being edited or carried over to another model.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from passerby.errors import DataLossError, FailedPreconditionError, NotFoundError
from pydantic import ValidationError

from passerby_model.bundle_manifest import (
    SCHEMA_VERSION,
    Artefact,
    Calibration,
    CalibrationPoint,
    EncoderFormat,
    File,
    Input,
    Manifest,
    MaskOutput,
    Metric,
    NoMatch,
    Parity,
    ParityRow,
    RankingRow,
    Runtime,
    describe_file,
    fingerprint_of,
    manifest_bytes,
)

__all__ = [
    "DESCRIPTOR_NAME",
    "INPUT_NAME",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Artefact",
    "Bundle",
    "Calibration",
    "CalibrationPoint",
    "EncoderFormat",
    "File",
    "Input",
    "Manifest",
    "MaskOutput",
    "Metric",
    "NoMatch",
    "Parity",
    "ParityRow",
    "RankingRow",
    "Runtime",
    "describe_file",
    "fingerprint_of",
    "manifest_bytes",
    "open_bundle",
    "read_manifest",
]

MANIFEST_NAME = "bundle.json"
INPUT_NAME = "snippets"
DESCRIPTOR_NAME = "descriptor"
# What systems put into a folder by themselves: nothing that an encoder could name.
_OF_THE_SYSTEM = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", "lost+found"})
_AGAIN = "; copy the bundle again from where it is whole, or export it again"
_VERSION = re.compile(r"\d+(\.\w+)*")
_NAMED = 5  # unlisted files that a message names
_RUNTIMES_OF = {"onnx": ["onnxruntime", "openvino"], "openvino": ["openvino"]}


class Bundle:
    """A verified bundle on disk: `manifest`, and the paths of its artefacts for a backend to load.

    `allow_unverified`: whether artefacts may run without a passing parity report.
    """

    def __init__(self, root: Path, manifest: Manifest, *, allow_unverified: bool = False) -> None:
        self.root = root
        self.manifest = manifest
        self.allow_unverified = allow_unverified

    @property
    def encoder_path(self) -> Path:
        return self.root / self.manifest.encoder

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint


def read_manifest(root: Path) -> Manifest:
    """bundle.json of the bundle at `root`, unverified; one of schema version 1 is read as if it were of 2.

    Nothing that version 1 lacks is needed: it is the same bundle with the same fingerprint, and whatever writes its
    bundle.json anew (`passerby evaluate --calibrate`) writes version 2.

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
            raise DataLossError(f"{path} is damaged: it has no schema_version{_AGAIN}", reason="BUNDLE_DAMAGED")
        _check_version(path, content)
        if version == 1:
            content = _from_version_1(content)
        return Manifest.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise DataLossError(f"{path} is damaged: {problems}{_AGAIN}", reason="BUNDLE_DAMAGED") from error
    except (ValueError, KeyError, TypeError) as error:  # not JSON, or other JSON
        raise DataLossError(f"{path} is damaged: {error}{_AGAIN}", reason="BUNDLE_DAMAGED") from error


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
            raise NotFoundError(f"{path} is missing: the bundle is incomplete{_AGAIN}", reason="BUNDLE_INCOMPLETE")
        _check_file(path, wanted)
    _check_fingerprint(root, manifest)
    _check_unlisted(root, manifest)
    _check_calibration(root, manifest)
    if not allow_unverified:
        _check_parity(root, manifest)
    return Bundle(root, manifest, allow_unverified=allow_unverified)


def _check_file(path: Path, wanted: File) -> None:
    size = path.stat().st_size
    if size != wanted.size:
        problem = f"it has {size} bytes instead of {wanted.size}, {'cut short' if size < wanted.size else 'too many'}"
    elif describe_file(path) != wanted:
        problem = "it was damaged or changed after export"
    else:
        return
    raise DataLossError(
        f"{path} differs from its checksum in {MANIFEST_NAME}: {problem}{_AGAIN}", reason="BUNDLE_DAMAGED"
    )


def _check_version(path: Path, content: dict[str, Any]) -> None:
    """Raises FailedPreconditionError for a schema that is not read here, with the command that helps."""
    version = content["schema_version"]
    if not isinstance(version, int) or 1 <= version <= SCHEMA_VERSION:
        return
    problem = f"{path} has schema version {version}, this passerby reads 1 to {SCHEMA_VERSION}"
    tools = content.get("tools")
    maker = tools.get("passerby") if isinstance(tools, dict) else None
    if version < 1:
        advice = f"make it again with `passerby export CHECKPOINT {path.parent} --force`"
    elif isinstance(maker, str) and _VERSION.fullmatch(maker):
        advice = f"it was made by passerby {maker}: pip install --upgrade 'passerby>={maker}'"
    else:
        advice = "it was made by a newer one: pip install --upgrade passerby"
    raise FailedPreconditionError(f"{problem}; {advice}", reason="BUNDLE_SCHEMA_VERSION")


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had one encoder, and said at the top what an artefact says now. The fingerprint is the same."""
    content = {**content, "schema_version": SCHEMA_VERSION}
    moved = {key: content.pop(key, None) for key in ("encoder", "format", "precision", "parity")}
    rows = moved["parity"]["rows"] if isinstance(moved["parity"], dict) else ()
    runtimes = sorted({row["runtime"] for row in rows}) or _RUNTIMES_OF[moved["format"]]
    others = sorted(set(content.get("files", ())) - {moved["encoder"]})
    content["artefacts"] = [
        {
            "precision": moved["precision"],
            "format": moved["format"],
            "files": [moved["encoder"], *others],
            "runtimes": runtimes,
            "parity": moved["parity"],
        }
    ]
    return content


def _check_fingerprint(root: Path, manifest: Manifest) -> None:
    for name in (name for artefact in manifest.artefacts for name in artefact.files):
        if name not in manifest.files:
            raise DataLossError(f"{root}: the encoder file {name!r} has no checksum", reason="BUNDLE_DAMAGED")
    actual = fingerprint_of(
        files={name: manifest.files[name] for name in manifest.artefacts[0].files},
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
    problems = manifest.unproven()
    if problems:
        raise FailedPreconditionError(
            f"{root}: {'; '.join(problems)}; export it again, or serve it all the same with --allow-unverified",
            reason="BUNDLE_UNVERIFIED",
        )
