"""What the bundle's calibration says of a distance: the same person, another one, or that a person should look."""

from __future__ import annotations

from dataclasses import dataclass

from passerby.errors import FailedPreconditionError
from passerby.v1 import search_service_pb2 as v1
from passerby_model.bundle import Calibration, Manifest

DEFAULT_FALSE_MATCH_RATE = 1e-3
"""Where a search names no rate: of a thousand comparisons of two people, one is called a match."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A match up to `match`; no match beyond `no_match`, where the calibration knows one; uncertain between."""

    match: float
    no_match: float | None

    def decide(self, distance: float) -> v1.Decision.ValueType:
        """What a hit at `distance` (in the metric of the calibration) is called."""
        if distance <= self.match:
            return v1.DECISION_MATCH
        if self.no_match is not None and distance > self.no_match:
            return v1.DECISION_NO_MATCH
        return v1.DECISION_UNCERTAIN


def thresholds(
    manifest: Manifest, fingerprint: str, false_match_rate: float | None, usual: float | None = None
) -> Thresholds | None:
    """The thresholds of a search in a gallery of the model `fingerprint`; None when nothing is calibrated.

    Args:
        manifest: of the loaded bundle; its calibration says nothing about another model's gallery.
        false_match_rate: the wanted one, in (0, 1). None stands for `usual`.
        usual: the gallery's. None stands for 1e-3 or, where the calibration does not go so low, for the lowest rate
            that it knows.

    Raises:
        FailedPreconditionError: a rate was asked for, and there is no calibration (NOT_CALIBRATED) or it was measured
            on too few pairs for a rate so low (CALIBRATION_TOO_COARSE).
    """
    calibration = manifest.calibration if manifest.fingerprint == fingerprint else None
    if calibration is None:
        if false_match_rate is None:
            return None
        raise FailedPreconditionError(
            "the gallery's model carries no calibration, so hits get no decision: leave false_match_rate unset, or "
            "calibrate the bundle with `passerby evaluate --calibrate` and restart the server",
            reason="NOT_CALIBRATED",
        )
    wanted = usual if false_match_rate is None else false_match_rate
    return _at(calibration, max(DEFAULT_FALSE_MATCH_RATE, calibration.points[0].fmr) if wanted is None else wanted)


def _at(calibration: Calibration, wanted: float) -> Thresholds:
    # A float of the wire is a little off the double that was meant: 0.001 arrives as 0.0010000000474974513.
    point = calibration.point_for(wanted * (1 + 1e-6))
    if point is None:
        raise FailedPreconditionError(
            f"the model was calibrated on {calibration.impostor_pairs:,} pairs of two people, too few for a "
            f"false-match rate of {wanted:g}: ask for {calibration.points[0].fmr:g} or more, or calibrate on more data",
            reason="CALIBRATION_TOO_COARSE",
        )
    return Thresholds(point.threshold, calibration.no_match.threshold if calibration.no_match else None)
