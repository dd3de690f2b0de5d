"""Compiled encoders on disk: taken when whole, made anew and said so when not, done without where nothing can be kept."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from passerby_model.backends import Backend, Options, open_artefact, openvino_cache
from passerby_model.bundle import open_bundle

from tests.encoders import expected_descriptor, make_bundle

TAKEN, DAMAGED = "compiled encoder taken from", "is damaged"


@pytest.fixture(autouse=True)
def _log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def load(root: Path, cache: Path, threads: int = 1) -> Backend:
    bundle = open_bundle(root)
    return open_artefact(bundle, bundle.manifest.artefacts[0], "openvino", Options(threads, cache=cache))


def assert_right(backend: Backend, seed: int = 0) -> None:
    snippets = np.random.default_rng(0).integers(0, 256, size=(3, 4, 32, 16, 3), dtype=np.uint8)
    expected = [expected_descriptor(list(snippet), seed=seed) for snippet in snippets]
    np.testing.assert_allclose(backend.encode(snippets).descriptors, expected, rtol=1e-5, atol=1e-5)


def blobs(cache: Path) -> list[Path]:
    return sorted((cache / "openvino").glob("*/*.blob"))


def test_the_second_load_is_from_the_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, cache = make_bundle(tmp_path / "bundle", masks=(4,)), tmp_path / "cache"
    assert_right(load(root, cache))
    assert TAKEN not in caplog.text
    assert len(blobs(cache)) == 1
    again = load(root, cache)
    assert TAKEN in caplog.text
    assert_right(again)
    assert again.spec == load(root, tmp_path / "other").spec
    assert not list((cache / "openvino").glob(".*")), "nothing half-written stays"


def test_other_weights_and_other_settings_have_their_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "cache"
    assert_right(load(make_bundle(tmp_path / "one"), cache))
    assert_right(load(make_bundle(tmp_path / "two", seed=1), cache), seed=1)
    load(tmp_path / "one", cache, threads=2)
    assert TAKEN not in caplog.text
    assert len(blobs(cache)) == 3


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone", "no-checksums", "one-more"])
def test_a_damaged_one_is_made_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    root, cache = make_bundle(tmp_path / "bundle"), tmp_path / "cache"
    load(root, cache)
    blob = blobs(cache)[0]
    data = blob.read_bytes()
    if damage == "flipped":  # OpenVINO itself would load this, and answer with other descriptors
        middle = len(data) // 2
        blob.write_bytes(
            data[:middle] + bytes(255 - value for value in data[middle : middle + 64]) + data[middle + 64 :]
        )
    elif damage == "gone":
        blob.unlink()
    elif damage == "no-checksums":
        (blob.parent / "sha256.json").unlink()
    elif damage == "one-more":
        (blob.parent / "other.blob").write_bytes(data)
    else:
        blob.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    assert_right(load(root, cache))
    assert DAMAGED in caplog.text
    assert TAKEN not in caplog.text
    assert_right(load(root, cache))
    assert TAKEN in caplog.text


@pytest.mark.parametrize("where", ["cache", "cache/openvino"])
def test_a_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_bundle(tmp_path / "bundle")
    file = tmp_path / where
    file.parent.mkdir(exist_ok=True)
    file.write_text("a file in place of the folder")
    assert_right(load(root, tmp_path / "cache"))
    assert "is not kept, the next start compiles again" in caplog.text


def test_a_read_only_one_is_used_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, cache = make_bundle(tmp_path / "bundle"), tmp_path / "cache"
    load(root, cache)
    folders = [cache / "openvino", *(cache / "openvino").iterdir()]
    for folder in folders:
        folder.chmod(0o500)
    try:
        assert_right(load(root, cache))
    finally:
        for folder in folders:
            folder.chmod(0o700)
    assert TAKEN in caplog.text


def test_only_the_latest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_cache, "KEPT", 2)
    cache = tmp_path / "cache"
    for seed in range(4):
        load(make_bundle(tmp_path / str(seed), seed=seed), cache)
    assert len(blobs(cache)) == 2
