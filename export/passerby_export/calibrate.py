"""From open-set figures to the calibration block of a bundle, and into bundle.json: whole, or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from passerby.errors import FailedPreconditionError
from passerby_model.bundle import (
    MANIFEST_NAME,
    Calibration,
    CalibrationPoint,
    Manifest,
    Metric,
    NoMatch,
    manifest_bytes,
    open_bundle,
)
from passerby_model.openset import OpenSetResult

from .bundle import clear_errors

CALIBRATION_RATES = (1e-6, 1e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
"""False-match rates that are looked at; those that the data cannot support are left out."""

NO_MATCH_FNMR = 0.01
"""Beyond the distance that all but this share of genuine pairs keep, a hit is called another person."""

RULE_OF_30 = 30
"""Errors that it takes to be 90 % sure of a rate within 30 % of itself (ISO/IEC 19795-1)."""


def calibration_of(
    result: OpenSetResult, *, metric: Metric, data: tuple[str, ...], protocol: str, clip_scheme: str
) -> Calibration:
    """The block that says what `result` measured, without its checksum.

    Args:
        result: with rates among CALIBRATION_RATES, ascending.
        metric: of the distances; has to be the bundle's.
        data: names of the data. protocol, clip_scheme: which pairs, and how their descriptors were made.

    Raises:
        FailedPreconditionError: too few impostor pairs for any rate.
    """
    points = tuple(
        CalibrationPoint(
            fmr=point.target, threshold=point.threshold, fnmr=point.false_negative_rate, errors=point.errors
        )
        for point in result.verification
        if point.threshold is not None and point.false_negative_rate is not None
    )
    if not points:
        raise FailedPreconditionError(
            f"{result.impostor_pairs} pairs of two people are too few to calibrate on, even for a false-match rate of "
            f"{max(CALIBRATION_RATES):g}: take more data",
            reason="CALIBRATION_TOO_FEW_PAIRS",
        )
    return Calibration(
        metric=metric,
        data=data,
        protocol=protocol,
        clip_scheme=clip_scheme,
        genuine_pairs=result.genuine_pairs,
        impostor_pairs=result.impostor_pairs,
        points=points,
        no_match=_no_match(result),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def write_calibration(root: Path, calibration: Calibration) -> Manifest:
    """Put a calibration into the bundle at `root` in place of any other; its fingerprint stays.

    Raises:
        FailedPreconditionError: the calibration is in another metric, or the bundle cannot be written.
        ResourceExhaustedError: the disk is full.
        DataLossError, NotFoundError: the bundle is not whole.
    """
    manifest = open_bundle(root, allow_unverified=True).manifest
    if manifest.metric != calibration.metric:
        raise FailedPreconditionError(f"{root} compares by {manifest.metric}, the calibration by {calibration.metric}")
    sealed = calibration.sealed(manifest.fingerprint)
    changed = manifest.model_copy(update={"calibration": sealed})
    _replace(root / MANIFEST_NAME, manifest_bytes(changed))
    return changed


def calibration_lines(calibration: Calibration) -> list[str]:
    """A calibration for people, a line each."""
    lines = [
        f"on {', '.join(calibration.data)} ({calibration.protocol}; {calibration.clip_scheme}): "
        f"{calibration.genuine_pairs:,} pairs of one person, {calibration.impostor_pairs:,} of two"
    ]
    for point in calibration.points:
        rough = f", fewer than {RULE_OF_30}: rough" if point.errors < RULE_OF_30 else ""
        lines.append(
            f"FMR {point.fmr:g}: distance <= {point.threshold:.6g}, FNMR {100 * point.fnmr:.1f} % "
            f"(false matches counted: {point.errors:,}{rough})"
        )
    if calibration.no_match is not None:
        lines.append(
            f"no match: distance > {calibration.no_match.threshold:.6g}, beyond which at most "
            f"{100 * calibration.no_match.fnmr:g} % of the pairs of one person lie"
        )
    return lines


def _no_match(result: OpenSetResult) -> NoMatch | None:
    """From the histogram, at the upper edge of a bin: never nearer than the share asks for."""
    if result.genuine_pairs * NO_MATCH_FNMR < 1:
        return None
    beyond = 1 - np.cumsum(result.genuine_counts) / result.genuine_pairs
    place = int(np.argmax(beyond <= NO_MATCH_FNMR))
    return NoMatch(fnmr=NO_MATCH_FNMR, threshold=float(result.edges[place + 1]))


def _replace(path: Path, content: bytes) -> None:
    """Write `path` anew: a reader sees the old content or the new one. The partial file lies beside the bundle, for
    a bundle with a file that bundle.json does not list is refused."""
    folder = path.parent.resolve()
    with clear_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.chmod(path.stat().st_mode & 0o777)  # mkstemp makes it private; the server may be another user
            partial.replace(folder / path.name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise FailedPreconditionError(
                f"{path} cannot be written: the bundle is a mount of its own: calibrate a copy",
                reason="TARGET_NOT_WRITABLE",
            ) from error
        finally:
            partial.unlink(missing_ok=True)
        entry = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)
