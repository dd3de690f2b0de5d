"""docs/security.md is run: from making certificates to the first authenticated search, and what the page says of roles."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from passerby_model.street import StreetConfig, write
from passerby_server.security.policy import RULES

from tests.e2e import test_readme
from tests.e2e.test_readme import blocks
from tests.encoders import make_bundle

PAGE = (Path(__file__).resolve().parents[2] / "docs/security.md").read_text()
LISTEN, CONNECT = "0.0.0.0:50051", "localhost:50051"


def test_roles_are_those_of_the_table() -> None:
    said = {
        name: {
            role for role, mark in zip(("reader", "ingester", "admin"), marks.split("|"), strict=True) if mark.strip()
        }
        for name, marks in re.findall(r"^\| `(\w+)` \|([^|\n]*\|[^|\n]*\|[^|\n]*)\|$", PAGE, re.MULTILINE)
    }
    assert said == {method.partition("/")[2]: set(rule.roles) for method, rule in RULES.items()}


def test_tests_that_the_page_names_exist() -> None:
    root = Path(__file__).resolve().parents[1]
    named = set(re.findall(r"`(?:tests/[\w/]+/)?(test_\w+\.py)`", PAGE))
    assert len(named) > 8
    assert named <= {path.name for path in root.rglob("test_*.py")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page takes for granted: a bundle, a folder of tracklets, a query."""
    if shutil.which("openssl") is None:
        reason = "no openssl, with which the page makes its certificates"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    made = tmp_path_factory.mktemp("security-page")
    make_bundle(made / "my-bundle")
    write(StreetConfig(identities=2, cameras=2, frames=2, height=128, width=64, seed=3), made / "cameras")
    seen = next((made / "cameras").glob("*/c1/*"))
    shutil.copytree(seen, made / "query")
    return made


def _run(script: str, folder: Path, port: str = "") -> str:
    return test_readme.run(script.replace(CONNECT, f"localhost:{port}"), folder)


@contextmanager
def _serving(folder: Path, settings: str) -> Iterator[str]:
    """The page's server, on a free port of loopback; the port."""
    (serve,) = [block for block in blocks("sh", PAGE) if "passerby serve" in block]
    (folder / "server.yaml").write_text(settings.replace(LISTEN, "127.0.0.1:0"))
    with test_readme.server(serve, folder) as address:
        yield address.rpartition(":")[2]


def test_the_page_from_certificates_to_the_audit(folder: Path) -> None:
    scripts, (settings, tls), (program,) = blocks("sh", PAGE), blocks("yaml", PAGE), blocks("python", PAGE)
    certificates, tokens, _, first, renew, trust, with_certificate, turn, audit = scripts
    _run(certificates, folder)
    listed = _run(tokens, folder)
    assert listed.count("token:") == 3
    assert (folder / "pki/server.key").stat().st_mode & 0o077 == 0
    assert LISTEN in settings
    with _serving(folder, settings) as port:
        printed = _run(first, folder, port)
        assert "stored in galleries/station" in printed
        assert "rank" in printed
        python = program.replace(CONNECT, f"localhost:{port}")
        found = subprocess.run(
            [test_readme.BINARIES / "python", "-c", python], cwd=folder, capture_output=True, text=True, check=True
        )
        assert "galleries/station/tracklets/" in found.stdout
        assert "station" in _run(
            f"{first.splitlines()[0]}\nPASSERBY_TOKEN_FILE=desk.token passerby gallery list", folder, port
        )
        printed = _run(turn, folder)
        assert "the token is in entrance-2.token" in printed
        assert "of desk" in printed
        denied = subprocess.run(
            [test_readme.BINARIES / "passerby", "gallery", "list"],
            cwd=folder,
            env={**os.environ, "PASSERBY_SERVER": f"localhost:{port}", "PASSERBY_CA_FILE": "pki/ca.pem"}
            | {"PASSERBY_TOKEN_FILE": "desk.token"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert denied.returncode == 1
        assert "the token is not one that this server knows" in denied.stderr
        shown = _run(audit, folder)
        assert "SearchTracklets" in shown
        assert "TOKEN_INVALID" in shown
        assert "sound: " in shown
    assert "not the server's end" not in _run(audit.splitlines()[-1], folder)
    assert "the certificate desk.example is workstation now" in _run(trust, folder)
    old = (folder / "pki/server.pem").read_bytes()
    _run(renew, folder)
    assert (folder / "pki/server.pem").read_bytes() != old
    # The block stands in the place of the one without a client CA.
    mutual = settings.replace(tls.replace("  client_ca: pki/ca.pem\n", ""), tls)
    assert mutual != settings
    with _serving(folder, mutual) as port:
        export = f"export PASSERBY_SERVER=localhost:{port}\n"
        assert "station" in _run(export + with_certificate, folder)
