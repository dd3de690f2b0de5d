"""Calibration: what the pairs support and nothing else, into bundle.json as a whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from passerby.errors import FailedPreconditionError, ResourceExhaustedError
from passerby_export.calibrate import (
    CALIBRATION_RATES,
    NO_MATCH_FNMR,
    calibration_lines,
    calibration_of,
    write_calibration,
)
from passerby_model.bundle import Calibration, open_bundle
from passerby_model.openset import open_set
from passerby_model.street import StreetConfig, write

from tests.commands import Run
from tests.encoders import make_bundle


def measured(people: int, cameras: int = 2) -> tuple[Calibration, np.ndarray, np.ndarray]:
    """A calibration, and the distances of genuine and impostor pairs (of two cameras) that it stands on."""
    random = np.random.default_rng(people)
    centres = random.normal(size=(people, 6))
    ids = np.repeat(np.arange(1, people + 1), cameras)
    seen = np.tile(np.arange(cameras), people)
    descriptors = (centres[ids - 1] + 0.7 * random.normal(size=(len(ids), 6))).astype(np.float32)
    first, second = np.triu_indices(len(ids), 1)
    kept = seen[first] != seen[second]
    first, second = first[kept], second[kept]
    distances = ((descriptors[first] - descriptors[second]) ** 2).sum(axis=1)
    same = ids[first] == ids[second]
    result = open_set(descriptors, ids, seen, rates=CALIBRATION_RATES)
    block = calibration_of(result, metric="squared_euclidean", data=("street",), protocol="pairs", clip_scheme="dense")
    return block, distances[same], distances[~same]


def test_points_keep_their_promise() -> None:
    block, genuine, impostor = measured(150)
    assert (block.genuine_pairs, block.impostor_pairs) == (len(genuine), len(impostor)) == (150, 150 * 149)
    assert [point.fmr for point in block.points] == [rate for rate in CALIBRATION_RATES if rate * len(impostor) >= 1]
    for point in block.points:
        errors = int((impostor <= point.threshold * (1 + 1e-6)).sum())
        assert errors == point.errors
        assert errors / len(impostor) <= point.fmr
        assert point.fnmr == pytest.approx((genuine > point.threshold * (1 + 1e-6)).mean())


def test_no_match_loses_few_friends() -> None:
    block, genuine, impostor = measured(150)
    assert block.no_match is not None
    beyond = (genuine > block.no_match.threshold).mean()
    assert beyond <= NO_MATCH_FNMR
    assert block.no_match.threshold <= genuine.max() * 1.05
    assert (impostor > block.no_match.threshold).any()
    assert measured(20)[0].no_match is None  # 20 genuine pairs cannot tell 1 %


def test_rates_that_the_data_cannot_support_are_left_out() -> None:
    block, _, impostor = measured(20)
    assert len(impostor) == 380
    assert [point.fmr for point in block.points] == [0.005, 0.01, 0.02, 0.05, 0.1]
    assert "fewer than 30: rough" in "\n".join(calibration_lines(block))
    with pytest.raises(FailedPreconditionError, match="6 pairs of two people are too few") as caught:
        measured(3)
    assert caught.value.reason == "CALIBRATION_TOO_FEW_PAIRS"


def test_a_failed_write_leaves_the_bundle_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = measured(20)[0]
    root = make_bundle(tmp_path / "bundle")
    before = (root / "bundle.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceExhaustedError, match=r"no room for .*bundle\.json: No space left"):
            write_calibration(root, block)
    assert (root / "bundle.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    write_calibration(root, block)
    assert open_bundle(root).manifest.calibration == block.sealed(open_bundle(root).fingerprint)
    assert (root / "bundle.json").stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_another_metric_is_refused(tmp_path: Path) -> None:
    root = make_bundle(tmp_path / "bundle", metric="cosine")
    with pytest.raises(FailedPreconditionError, match="compares by cosine"):
        write_calibration(root, measured(20)[0])


def test_the_command_calibrates_a_bundle(run: Run, tmp_path: Path) -> None:
    root = make_bundle(tmp_path / "bundle")
    before = open_bundle(root).fingerprint
    write(StreetConfig(identities=8, cameras=3, frames=2, height=64, width=32, seed=1), tmp_path / "street")
    done = run("evaluate", root, "--data", tmp_path / "street", "--calibrate")
    assert done.code == 0, done.err
    assert "calibration written" in done.out
    bundle = open_bundle(root)
    assert bundle.fingerprint == before
    calibration = bundle.manifest.calibration
    assert calibration is not None
    assert (calibration.data, calibration.genuine_pairs, calibration.impostor_pairs) == (("street",), 24, 168)
    assert "not supported" in done.out  # 1e-4, with 168 pairs
    shown = run("bundle", "show", root).out
    assert f"FMR {calibration.points[0].fmr:g}: distance <= {calibration.points[0].threshold:.6g}" in shown
    again = run("evaluate", root, "--data", tmp_path / "street", "--calibrate", "--json")
    assert json.loads(again.out)["calibration"]["points"] == calibration.model_dump(mode="json")["points"]


def test_what_cannot_be_calibrated(run: Run, tmp_path: Path) -> None:
    root = make_bundle(tmp_path / "bundle")
    write(StreetConfig(identities=3, cameras=2, frames=1, height=64, width=32, seed=1), tmp_path / "street")
    (tmp_path / "model.pt").write_bytes(b"")
    data = ["--data", tmp_path / "street", "--calibrate"]
    assert "writes into a bundle" in run("evaluate", tmp_path / "model.pt", *data).err
    assert "give --data once" in run("evaluate", root, *data, "--data", tmp_path / "street").err
    assert "6 pairs of two people are too few" in run("evaluate", root, *data).err
    assert open_bundle(root).manifest.calibration is None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
