"""Certificates made for the test, and files that hold them."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
import trustme

from tests.encoders import make_bundle


class Pair:
    """A certificate and its key in two files, as a server's settings name them."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        self._authority = authority

    def put(self, **issue: object) -> bytes:
        """Writes a new pair for this machine; the certificate."""
        issued = self._authority.issue_cert("localhost", "127.0.0.1", **issue)  # type: ignore[arg-type]
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        return issued.cert_chain_pems[0].bytes()

    def settings(self, **more: Path) -> dict[str, Path]:
        """The section `tls`."""
        return {"certificate": self.certificate, "key": self.key} | more


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def pair(tmp_path: Path, authority: trustme.CA) -> Pair:
    made = Pair(tmp_path, authority)
    made.put()
    return made


@pytest.fixture(scope="module")
def trust(authority: trustme.CA) -> grpc.ChannelCredentials:
    """A client that trusts the authority."""
    return grpc.ssl_channel_credentials(authority.cert_pem.bytes())


def client_credentials(authority: trustme.CA, *names: str, common_name: str | None = None) -> grpc.ChannelCredentials:
    """A client that trusts the authority and shows a certificate of it."""
    issued = authority.issue_cert(*names, common_name=common_name)
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    return grpc.ssl_channel_credentials(authority.cert_pem.bytes(), issued.private_key_pem.bytes(), chain)
