"""`passerby config show` and `check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trustme
from passerby_client.cli import main
from passerby_server import config_cli
from passerby_server.config import keys, load_config
from passerby_server.settings import settings

from tests.encoders import make_bundle


class Printed:
    """Runs `passerby config ...` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["config", *map(str, arguments)])
        captured = self._capsys.readouterr()
        assert (ended.value.code or 0) == code, captured.err
        return captured.err if code else captured.out


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return Printed(capsys)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "server.yaml"
    made.write_text("bundle: my-bundle\nlimits:\n  max_frames: 7\n  max_top_k: 7\n")
    return made


def test_every_setting_with_its_value_and_where_it_comes_from(
    printed: Printed, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSERBY_LIMITS__MAX_TOP_K", "8")
    monkeypatch.setenv("PASSERBY_LIMITS__MAX_STREAMS", "8")
    rows = json.loads(printed("show", "--config", file, "--set", "limits.max_streams=9", "--format", "json"))
    by_key = {row["key"]: (row["value"], row["source"]) for row in rows}
    assert list(by_key) == list(keys())
    assert by_key["bundle"] == ("my-bundle", "file")
    assert by_key["limits.max_frames"] == (7, "file")
    assert by_key["limits.max_top_k"] == (8, "environment")
    assert by_key["limits.max_streams"] == (9, "flag")
    assert by_key["limits.max_message_bytes"] == (4194304, "default")
    (row,) = (row for row in rows if row["key"] == "limits.stream_idle_seconds")
    assert (row["unit"], row["allowed"], row["default"]) == ("seconds", "> 0, <= 86400", 60.0)
    assert "silence" in row["description"]


def test_the_yaml_says_the_same_as_the_file_that_it_came_from(printed: Printed, file: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.yaml"
    made.write_text(printed("show", "--config", file, "--format", "yaml"))
    config = load_config({}, file=made)
    assert config == load_config({}, file=file)
    # What only a default says must stay open to what was measured on the machine.
    assert config.batching.model_fields_set == set()
    assert config.limits.model_fields_set == {"max_frames", "max_top_k"}
    assert all(f"{key.rpartition('.')[2]}: " in made.read_text() for key in keys())


def test_without_a_bundle_it_is_shown_as_missing(printed: Printed) -> None:
    rows = json.loads(printed("show", "--format", "json"))
    assert (rows[0]["key"], rows[0]["value"], rows[0]["source"]) == ("bundle", None, "missing")


def test_the_table_names_every_setting(printed: Printed, file: Path) -> None:
    table = printed("show", "--config", file)
    first = {line.split()[0] for line in table.splitlines() if line and not line.startswith(" ")}
    assert set(keys()) <= first


@pytest.mark.parametrize(("columns", "meanings"), [(80, False), (200, True)])
def test_a_terminal_shows_keys_and_values_whole(
    printed: Printed, file: Path, monkeypatch: pytest.MonkeyPatch, columns: int, meanings: bool
) -> None:
    monkeypatch.setattr(config_cli, "PIPED_WIDTH", columns)
    table = printed("show", "--config", file, "--set", "cuda_graphs=true")
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line and not line.startswith(" ")}
    assert rows["limits.max_message_bytes"][:3] == ["limits.max_message_bytes", "4194304", "default"]
    assert rows["cuda_graphs"][1:3] == ["true", "flag"]
    assert rows["metrics.address"][1:3] == ["empty", "default"]
    assert ("Folder of the bundle" in table) == meanings


def test_files_that_the_server_could_not_read_are_named(printed: Printed, tmp_path: Path) -> None:
    made = tmp_path / "server.yaml"
    (tmp_path / "data").write_text("no folder")
    (tmp_path / "folder").mkdir()
    made.write_text(
        f"bundle: {tmp_path}/folder\ndata: {tmp_path}/data\naccess: {{file: {tmp_path}/callers.json}}\n"
        f"tls: {{certificate: {tmp_path}/server.pem, key: {tmp_path}/folder}}\n"
    )
    error = printed("check", made, code=1)
    assert f"bundle: {tmp_path}/folder holds no bundle (no bundle.json)" in error
    assert f"data: {tmp_path}/data is no folder" in error
    assert f"access.file: {tmp_path}/callers.json does not exist" in error
    assert f"tls.certificate: {tmp_path}/server.pem does not exist" in error
    assert f"tls.key: {tmp_path}/folder: Is a directory" in error


def test_files_that_the_server_would_not_start_with_are_named(printed: Printed, tmp_path: Path) -> None:
    made, callers = tmp_path / "server.yaml", tmp_path / "callers.json"
    authority = trustme.CA()
    pair = authority.issue_cert("localhost")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    pair.private_key_pem.write_to_path(tmp_path / "server.key")
    callers.write_text('{"version": 1, "callers": []}')
    made.write_text(
        f"bundle: {make_bundle(tmp_path / 'bundle')}\naccess: {{file: {callers}}}\n"
        f"tls: {{certificate: {tmp_path}/server.pem, key: {tmp_path}/server.key}}\n"
    )
    assert "4 settings, all valid" in printed("check", made)
    callers.write_text("junk")
    assert f"{callers} is no file of callers" in printed("check", made, code=1)
    authority.issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "server.key")
    assert "are not a valid certificate and its unencrypted key" in printed("check", made, code=1)


def test_what_is_wrong_is_named(printed: Printed, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "my-bundle")
    monkeypatch.chdir(tmp_path)
    assert printed("check", file) == f"{file}: 3 settings, all valid\n"
    for text, wanted in {
        "limits: {max_frame: 3}": "unknown key limits.max_frame; did you mean limits.max_frames?",
        "limits: {max_frames: 0}": "limits.max_frames: Input should be greater than or equal to 1",
        "address: 1": "address",
        "metrics: {address: '0.0.0.0:1'}": "metrics.insecure_listen",
        "limits: [": "is no YAML",
    }.items():
        file.write_text(text)
        error = printed("check", file, code=1)
        assert wanted in error
        assert str(file) in error
        assert error.count("\n") == 1
    assert "absent.yaml" in printed("check", file.with_name("absent.yaml"), code=1)
    assert "max_frames" in printed("show", "--set", "limits.max_frames=0", code=1)


def test_every_setting_is_described() -> None:
    found = list(settings())
    assert [one.key for one in found] == list(keys())
    assert [one.key for one in found if len(one.description) < 15] == []
    assert {one.variable for one in found if one.key == "limits.max_frames"} == {"PASSERBY_LIMITS__MAX_FRAMES"}
    # A number that is a size or a time says its unit in its name, where the table takes it from.
    assert {one.key: one.unit for one in found if one.key.endswith("_ms")} == {"batching.max_wait_ms": "milliseconds"}
