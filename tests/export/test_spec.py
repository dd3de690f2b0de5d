"""The YAML of `bundle wrap`: flags on top of it, unknown keys and wrong values named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_export.spec import load_spec

SPECS = sorted((Path(__file__).resolve().parents[2] / "bundles/specs").glob("*.yaml"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_checked_in_specs_are_valid(path: Path) -> None:
    assert load_spec(path, {}).name == path.stem
    assert len(SPECS) >= 2


def test_flags_override_the_file(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: a\ncolour: BGR\nmetric: euclidean\n")
    spec = load_spec(tmp_path / "s.yaml", {"metric": "cosine", "name": None})
    assert (spec.name, spec.colour, spec.metric, spec.unit_length) == ("a", "BGR", "cosine", True)
    assert load_spec(tmp_path / "s.yaml", {}).unit_length is False
    assert load_spec(tmp_path / "s.yaml", {"normalise": True}).unit_length is True


def test_scale_and_shift_is_the_arithmetic_of_the_docstring() -> None:
    spec = load_spec(None, {"name": "a", "range": (-1, 1), "mean": (0.1, 0.2, 0.3), "std": (1, 2, 4)})
    scale, shift = spec.scale_and_shift()
    for pixel in (0, 100, 255):
        wanted = (-1 + 2 * pixel / 255 - np.array([0.1, 0.2, 0.3])) / np.array([1, 2, 4])
        np.testing.assert_allclose(pixel * scale + shift, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: a\ncolor: BGR", "unknown key 'color'; did you mean 'colour'"),
        ("name: a\nlayout: HWC", "layout"),
        ("name: a\nstd: [1, 0, 1]", "std must be above 0"),
        ("name: a\nrange: [1, 0]", "range must rise"),
        ("name: a\nmean: [0, 0]", "mean"),
        ("name: a\nheight: tall", "height"),
        ("layout: NCHW", "name"),
        ("- 1\n- 2", "must hold keys and values"),
        ("a: [", "not YAML"),
    ],
)
def test_wrong_specs_are_explained(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(InvalidArgumentError, match=problem):
        load_spec(tmp_path / "s.yaml", {})


def test_missing_spec(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such spec"):
        load_spec(tmp_path / "s.yaml", {})
