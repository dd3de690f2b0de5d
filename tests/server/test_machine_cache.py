"""What the server takes from the cache folder: a tuning that fits, what OpenVINO compiled; and what it does not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from passerby_model import machine
from passerby_model.backends.tuning import Setting, Tuning, find_tuning, save_tuning, tuning_key, tuning_path
from passerby_model.bundle import Bundle, open_bundle
from passerby_server.backend import Sized, open_sized
from passerby_server.config import ServerConfig, load_config

from tests.encoders import make_bundle
from tests.server.live import running
from tests.server.pictures import crops, sequence

CHOSEN = Setting(streams=4, threads=2, max_batch=4)


@pytest.fixture(autouse=True)
def _log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(make_bundle(tmp_path / "bundle"))


def tuned(bundle: Bundle, cache: Path, threads: int = 0, **changes: Any) -> Path:
    """Writes a tuning of CHOSEN for the bundle's encoder on OpenVINO."""
    key = tuning_key(bundle, bundle.manifest.artefacts[0], "openvino", threads)
    tuning = Tuning(
        key=key.model_copy(update=changes),
        chosen=CHOSEN,
        default=Setting(streams=2, threads=2, max_batch=8),
        gain=1.2,
        noise=0.03,
        measured=(),
        created="2026-01-01T00:00:00+00:00",
    )
    return save_tuning(cache, tuning)


def opened(bundle: Bundle, folder: Path, **settings: Any) -> Sized:
    config = ServerConfig.model_validate(
        {"bundle": bundle.root, "cache": {"folder": folder, "compiled": False}} | settings
    )
    return open_sized(bundle, config)


def test_a_served_bundle_takes_its_tuning_and_says_so(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuned(bundle, tmp_path / "cache", threads=1)
    with running(bundle.root, tmp_path / "data", cache={"folder": tmp_path / "cache"}) as server:
        assert server.server.runtime.loaded.max_batch == 4
        assert server.server.runtime.loaded.encoder.batcher._worker_count == 4
        server.ingest(server.new_gallery(), sequence(crops(9)))
    line = next(record for record in caplog.records if record.message == "tuned for this machine")
    assert line.fields["workers"] == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (4, 4)),
        ({"cache": {"tuning": False}}, (2, 8)),
        ({"batching": {"workers": 1}}, (1, 8)),
        ({"batching": {"max_snippets": 2}}, (2, 2)),
        ({"batching": {"max_wait_ms": 1}}, (4, 4)),
        ({"threads": 1}, (1, 8)),  # tuned for all cores, asked for one
        ({"backend": "onnxruntime"}, (1, 8)),
    ],
    ids=["fits", "off", "workers", "max_snippets", "max_wait_ms", "threads", "other-runtime"],
)
def test_what_the_configuration_says_wins(
    bundle: Bundle, tmp_path: Path, settings: dict[str, Any], expected: tuple[int, int]
) -> None:
    tuned(bundle, tmp_path)
    settings["cache"] = {"folder": tmp_path, "compiled": False, **settings.get("cache", {})}
    found = opened(bundle, tmp_path, **settings)
    assert (found.workers, found.max_batch) == expected


@pytest.mark.parametrize("changed", ["fingerprint", "runtime", "version", "processor"])
def test_a_tuning_of_anything_else_is_not_taken(
    bundle: Bundle, tmp_path: Path, changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = tuned(bundle, tmp_path, 0, **{changed: "0" * 64})
    assert opened(bundle, tmp_path).workers == 2
    # Not even under the name of the right one.
    own = tuning_path(tmp_path, tuning_key(bundle, bundle.manifest.artefacts[0], "openvino", 0))
    other.rename(own)
    assert opened(bundle, tmp_path).workers == 2
    assert "it is for something else than its name says" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"chosen": {}}', "\xff"], ids=str)
def test_a_damaged_tuning_is_ignored_and_named(
    bundle: Bundle, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tuned(bundle, tmp_path)
    path.write_bytes(text.encode("latin-1"))
    assert find_tuning(tmp_path, bundle, bundle.manifest.artefacts[0], "openvino", 0) is None
    assert opened(bundle, tmp_path).workers == 2
    assert str(path) in caplog.text


def test_the_compiled_encoder_is_kept_unless_switched_off(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    opened(bundle, cache)
    assert not (cache / "openvino").exists()
    for _ in range(2):
        opened(bundle, cache, cache={"folder": cache})
    assert len(list((cache / "openvino").iterdir())) == 2  # for a lone batch, and for two side by side
    assert "compiled encoder taken from" in caplog.text


def test_the_folder_is_the_users_unless_named(tmp_path: Path) -> None:
    assert load_config({"bundle": "b"}).cache.folder is None, "a program says itself where"
    found = load_config({"bundle": "b"}, environment={"HOME": "/home/ann"}).cache.folder
    assert found == Path("/home/ann/.cache/passerby")
    environment = {"HOME": "/home/ann", "XDG_CACHE_HOME": "/fast"}
    assert load_config({"bundle": "b"}, environment=environment).cache.folder == Path("/fast/passerby")
    environment["PASSERBY_CACHE__FOLDER"] = "/elsewhere"
    environment["PASSERBY_CACHE__TUNING"] = "false"
    config = load_config({"bundle": "b"}, environment=environment)
    assert (config.cache.folder, config.cache.tuning, config.cache.compiled) == (Path("/elsewhere"), False, True)
    assert load_config({"bundle": "b", "cache.folder": tmp_path}, environment=environment).cache.folder == tmp_path
    assert machine.default_cache({}) is None
