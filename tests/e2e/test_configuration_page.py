"""docs/configuration.md: its commands run, and its tables are the settings that there are."""

from __future__ import annotations

from pathlib import Path

import pytest
from passerby_server.config import keys, load_config
from passerby_server.settings import as_markdown

from tests.e2e.test_readme import blocks, run
from tests.encoders import make_bundle

PAGE = (Path(__file__).resolve().parents[2] / "docs/configuration.md").read_text()


def test_tables_are_the_settings() -> None:
    missing = [key for key in keys() if f"| `{key}` |" not in PAGE]
    assert not missing, "run `passerby config show --format markdown` and put it below the page's marker"
    assert PAGE.partition("<!-- settings -->\n")[2] == as_markdown(), (
        "the tables are not those of the settings any more"
    )


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PASSERBY_THREADS", raising=False)  # it would be written into full.yaml
    (tmp_path / "server.yaml").write_text(blocks("yaml", PAGE)[0])
    make_bundle(tmp_path / "my-bundle")
    (commands,) = blocks("sh", PAGE)
    printed = run(commands, tmp_path)
    assert "server.yaml: 5 settings, all valid" in printed
    assert "limits.max_requests" in printed
    assert load_config({}, file=tmp_path / "full.yaml") == load_config({}, file=tmp_path / "server.yaml")
