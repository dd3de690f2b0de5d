"""The clients and the command over TLS, with tokens and certificates: from files and the environment, never arguments."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from passerby.errors import FailedPreconditionError, InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from passerby_client import Client
from passerby_client._token import on_this_machine
from passerby_client.aio import AsyncClient
from passerby_client.commands.common import connect

from tests.clients.conftest import crop
from tests.commands import Run
from tests.encoders import make_bundle
from tests.server.live import running
from tests.server.security import callers
from tests.server.security.conftest import Pair

UNKNOWN = "psby_x"


class Secured:
    """A server with TLS and callers."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self.folder, self.authority = folder, authority
        self.ca, self.file, self.pair = folder / "ca.pem", folder / "callers.json", Pair(folder, authority)
        self.pair.put()
        authority.cert_pem.write_to_path(str(self.ca))
        self.admin = callers.add(self.file, "boss", "admin")
        self.reader = callers.add(self.file, "desk", "reader", galleries=["lobby"])
        self.address = ""

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca.read_bytes())


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    made = Secured(folder, trustme.CA())
    bundle = make_bundle(folder / "bundle")
    with running(bundle, folder / "data", tls=made.pair.settings(), access={"file": made.file}) as live:
        made.address = f"localhost:{live.port}"
        yield made


def test_a_client_with_its_token(secured: Secured) -> None:
    with Client(secured.address, credentials=secured.credentials, token=secured.admin) as boss:
        boss.wait_until_ready()
        assert boss.health() == "SERVING"
        boss.create_gallery("lobby")
        stored = boss.ingest_tracklet("lobby", [crop((9, 9, 9))] * 2, camera="1", tracklet_id="t1")
        assert stored.name == "galleries/lobby/tracklets/t1"
    with Client(secured.address, credentials=secured.credentials, token=secured.reader) as desk:
        assert len(desk.search("lobby", tracklet="galleries/lobby/tracklets/t1").hits) == 0
        with pytest.raises(PermissionDeniedError, match="takes admin"):
            desk.delete_gallery("lobby")
    with (
        Client(secured.address, credentials=secured.credentials) as nobody,
        pytest.raises(UnauthenticatedError, match="PASSERBY_TOKEN_FILE"),
    ):
        nobody.model_info()


def test_an_asynchronous_client_with_its_token(secured: Secured) -> None:
    async def ask(token: str | None) -> list[str]:
        async with AsyncClient(secured.address, credentials=secured.credentials, token=token) as client:
            return [gallery.name async for gallery in client.list_galleries()]

    assert asyncio.run(ask(secured.reader)) in ([], ["galleries/lobby"])
    with pytest.raises(UnauthenticatedError):
        asyncio.run(ask(None))


@pytest.mark.parametrize("target", ["passerby.example:50051", "10.0.0.1:1", "[2001:db8::1]:1", "dns:///127.0.0.1:1"])
def test_a_token_does_not_leave_the_machine_unprotected(target: str) -> None:
    with pytest.raises(FailedPreconditionError, match="would travel to") as raised:
        Client(target, token=UNKNOWN)
    assert UNKNOWN not in str(raised.value)
    assert not on_this_machine(target)


def test_a_token_may_stay_on_the_machine_without_tls() -> None:
    for target in ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/run/passerby"):
        Client(target, token=UNKNOWN).close()


@pytest.mark.parametrize("token", ["", "with space", "line\nbreak", "é"])
def test_what_can_be_no_token_is_refused_without_repeating_it(token: str) -> None:
    with pytest.raises(InvalidArgumentError, match="the token is empty, or has characters"):
        Client("127.0.0.1:1", token=token)


def test_the_command_takes_files_and_the_environment(
    secured: Secured, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PASSERBY_SERVER", secured.address)
    monkeypatch.setenv("PASSERBY_CA_FILE", str(secured.ca))
    assert run("health").out == "SERVING\n"
    done = run("gallery", "list")
    assert done.code == 1
    assert "the call says not who makes it" in done.err
    monkeypatch.setenv("PASSERBY_TOKEN", secured.admin)
    assert run("gallery", "create", "desk-1").code == 0
    # The server was reached, and knew the caller: what is missing is the data.
    assert "no-data" in run("evaluate", secured.address, "--data", tmp_path / "no-data").err
    token = tmp_path / "token"
    token.write_text(f"{secured.admin}\n")
    monkeypatch.setenv("PASSERBY_TOKEN_FILE", str(token))
    assert "PASSERBY_TOKEN and PASSERBY_TOKEN_FILE are both set" in run("gallery", "list").err
    monkeypatch.delenv("PASSERBY_TOKEN")
    assert "desk-1" in run("gallery", "list").out
    token.unlink()
    assert "token: cannot be read: No such file" in run("gallery", "list").err


def test_what_is_wrong_with_tls_is_said(
    secured: Secured, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def said(**environment: object) -> str:
        with monkeypatch.context() as patch:
            patch.setenv("PASSERBY_SERVER", secured.address.replace("localhost", "127.0.0.1"))
            for name, value in environment.items():
                patch.setenv(f"PASSERBY_{name}", str(value))
            done = run("health", "--timeout", "2")
        assert done.code == 1
        return done.err

    other, key, text = tmp_path / "other.pem", tmp_path / "other.key", tmp_path / "desk.token"
    authority, issued = trustme.CA(), secured.authority.issue_cert("camera-8.example")
    authority.cert_pem.write_to_path(str(other))
    issued.private_key_pem.write_to_path(str(key))
    text.write_text(UNKNOWN)
    assert "PASSERBY_CA_FILE" in said()
    assert "PASSERBY_CLIENT_CERTIFICATE" in said()
    assert "is not in the trusted file" in said(CA_FILE=other)
    assert f"{text} holds no PEM certificate" in said(CA_FILE=text)
    assert "are not a certificate and its" in said(CA_FILE=secured.ca, CLIENT_CERTIFICATE=other, CLIENT_KEY=key)
    with running(secured.folder / "bundle", tmp_path / "data") as plain:
        assert "speaks no TLS" in said(CA_FILE=secured.ca, SERVER=f"127.0.0.1:{plain.port}")
    elsewhere, named = Pair(tmp_path, secured.authority), secured.authority.issue_cert("elsewhere.example")
    named.private_key_pem.write_to_path(str(elsewhere.key))
    named.cert_chain_pems[0].write_to_path(str(elsewhere.certificate))
    with running(secured.folder / "bundle", tmp_path / "data", tls=elsewhere.settings()) as live:
        assert "does not name this host" in said(CA_FILE=secured.ca, SERVER=f"127.0.0.1:{live.port}")


def test_grpc_writes_no_lines_of_its_own(secured: Secured, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    flags = ["--server", secured.address, "--ca-file", str(tmp_path / "other.pem"), "--timeout", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "passerby_client.cli", "health", *flags],
        env={name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.startswith("passerby: no passerby server answers")
    assert done.stderr.count("\n") == 1


def test_the_command_shows_a_client_certificate(
    secured: Secured, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    callers.add(secured.file, "camera", "admin", certificate="camera-7.example")
    issued = secured.authority.issue_cert("camera-7.example")
    certificate, key = tmp_path / "client.pem", tmp_path / "client.key"
    certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    settings = secured.pair.settings(client_ca=secured.ca)
    bundle = secured.folder / "bundle"
    with running(bundle, tmp_path / "data", tls=settings, access={"file": secured.file}) as live:
        monkeypatch.setenv("PASSERBY_SERVER", f"localhost:{live.port}")
        monkeypatch.setenv("PASSERBY_CA_FILE", str(secured.ca))
        monkeypatch.setenv("PASSERBY_CLIENT_CERTIFICATE", str(certificate))
        assert "belong together" in run("gallery", "list").err
        monkeypatch.setenv("PASSERBY_CLIENT_KEY", str(key))
        assert run("gallery", "create", "yard").code == 0
    callers.remove(secured.file, "camera")


def test_no_command_has_an_option_for_a_token() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from passerby_client.cli import main; main(['search', '--help'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--ca-file" in done.stdout
    assert "token" not in done.stdout.lower()


def test_connect_takes_nothing_from_an_empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PASSERBY_TOKEN", "PASSERBY_TOKEN_FILE"):
        monkeypatch.setenv(name, "")
    connect("passerby.example:1").close()  # with a token it would be refused
