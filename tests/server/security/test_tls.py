"""TLS: encrypted for those who trust the authority, demanded of clients where asked for, renewed without a restart."""

from __future__ import annotations

import datetime
import logging
import socket
import ssl
import threading
from functools import partial
from pathlib import Path

import grpc
import pytest
import trustme
from passerby.errors import FailedPreconditionError, UnavailableError
from passerby.v1 import model_service_pb2 as model_v1
from passerby_server.security import tls
from passerby_server.security.tls import Certificates

from tests.server.live import LiveServer, Stubs, refused, running
from tests.server.security.conftest import Pair, client_credentials

INFO = model_v1.GetModelInfoRequest()


def _seen(port: int, authority: trustme.CA) -> bytes:
    """The certificate that a new connection is shown."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as encrypted,
    ):
        shown = encrypted.getpeercert(binary_form=True)
        assert shown
        assert encrypted.version() == "TLSv1.3"
        return ssl.DER_cert_to_PEM_cert(shown).encode()


class _Load:
    """Clients that call all the time, on connections that stay and on new ones; what went wrong is in `errors`."""

    def __init__(self, live: LiveServer, trust: grpc.ChannelCredentials) -> None:
        self._live, self._trust = live, trust
        self._stop = threading.Event()
        self.calls, self.connections = 0, 0
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=target) for target in (self._stay, self._stay, self._come_and_go)]

    def __enter__(self) -> _Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _stay(self) -> None:
        stubs = Stubs(self._live.port, self._trust)
        while not self._stop.is_set():
            self._call(stubs)
        stubs.close()

    def _come_and_go(self) -> None:
        while not self._stop.is_set():
            stubs = Stubs(self._live.port, self._trust)
            self._call(stubs)
            stubs.close()
            self.connections += 1

    def _call(self, stubs: Stubs) -> None:
        try:
            stubs.model.GetModelInfo(INFO, timeout=20)
            self.calls += 1
        except grpc.RpcError as error:
            self.errors.append(str(error))


def test_certificates_change_under_load_and_no_call_fails(
    bundle: Path, tmp_path: Path, pair: Pair, authority: trustme.CA, trust: grpc.ChannelCredentials
) -> None:
    with running(bundle, tmp_path / "data", credentials=trust, tls=pair.settings()) as live:
        shown = {_seen(live.port, authority)}
        with _Load(live, trust) as load:
            for _ in range(5):
                new = pair.put()
                assert _seen(live.port, authority) == new
                shown.add(new)
                good, key = pair.certificate.read_bytes(), pair.key.read_bytes()
                pair.certificate.write_bytes(
                    good[: len(good) // 2]
                )  # as a reader may find a file that is being written
                assert _seen(live.port, authority) == new
                pair.key.unlink()
                assert _seen(live.port, authority) == new
                pair.certificate.write_bytes(good)
                pair.key.write_bytes(key)
        assert load.errors == []
        assert len(shown) == 6
        assert load.calls > 20
        assert load.connections > 2


def test_a_new_pair_that_cannot_be_used_is_logged_once_and_tried_again(
    pair: Pair, authority: trustme.CA, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    certificates = Certificates(pair.certificate, pair.key)
    assert certificates.renewed() is None
    first = certificates.expire_time
    pair.put(not_after=datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC))
    assert [certificates.renewed() for _ in range(5)] == [None] * 5
    pair.key.write_text("no key")
    assert certificates.renewed() is None
    pair.key.unlink()
    assert [certificates.renewed() for _ in range(5)] == [None] * 5
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 3
    assert all("the old one stays in use" in error for error in errors)
    assert ["expired" in errors[0], "no key" in errors[1], "No such file" in errors[2]] == [True, False, True]
    assert certificates.expire_time == first
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    pair.put(not_after=soon)
    assert certificates.renewed() is not None
    assert certificates.expire_time == soon.replace(microsecond=0)
    assert caplog.records[-1].levelno == logging.WARNING  # it ends within two weeks

    # Not valid yet: the same files count once it is, without anybody touching them.
    pair.put(not_before=datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1))
    assert certificates.renewed() is None
    with monkeypatch.context() as later:
        later.setattr(tls, "_handshake", lambda *_: soon)
        assert certificates.renewed() is None
        certificates._retry_at = 0.0
        assert certificates.renewed() is not None


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        (None, b"", "No such file"),
        (b"", b"", "are not a valid certificate and its unencrypted key"),
        ("other", "own", "are not a valid certificate and its unencrypted key"),
        ("own", "encrypted", "the key is encrypted"),
    ],
)
def test_the_first_pair_has_to_be_good(
    bundle: Path, tmp_path: Path, pair: Pair, certificate: object, key: object, message: str
) -> None:
    from cryptography.hazmat.primitives import serialization

    own = pair.key.read_bytes()
    if key == "encrypted":
        pair.key.write_bytes(
            serialization.load_pem_private_key(own, None).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
    elif certificate == "other":
        pair.put()
        pair.key.write_bytes(own)
    else:
        pair.certificate.unlink()
        if isinstance(certificate, bytes):
            pair.certificate.write_bytes(certificate)
    with (
        pytest.raises(FailedPreconditionError, match=message),
        running(bundle, tmp_path / "data", tls=pair.settings()),
    ):
        pass


def test_clients_need_a_certificate_where_one_is_asked_for(
    bundle: Path, tmp_path: Path, pair: Pair, authority: trustme.CA, trust: grpc.ChannelCredentials
) -> None:
    other = trustme.CA()
    client_ca = tmp_path / "clients.pem"
    authority.cert_pem.write_to_path(str(client_ca))
    ours = client_credentials(authority, "camera-7.example")
    settings = pair.settings(client_ca=client_ca)
    with running(bundle, tmp_path / "data", credentials=ours, tls=settings) as live:
        assert live.model.GetModelInfo(INFO, timeout=20).model_info.descriptor_dim > 0
        issued = other.issue_cert("camera-7.example")
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        theirs = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), issued.private_key_pem.bytes(), chain)
        for wrong in (trust, theirs, None):
            stubs = Stubs(live.port, wrong)
            assert isinstance(refused(partial(stubs.model.GetModelInfo, INFO, timeout=20)), UnavailableError)
            stubs.close()
        # Another authority is taken as other certificates are: by the next connection.
        other.cert_pem.write_to_path(str(client_ca))
        stubs = Stubs(live.port, theirs)
        assert stubs.model.GetModelInfo(INFO, timeout=20).model_info.descriptor_dim > 0
        stubs.close()


def test_a_client_without_tls_gets_nothing(
    bundle: Path, tmp_path: Path, pair: Pair, trust: grpc.ChannelCredentials
) -> None:
    with running(bundle, tmp_path / "data", credentials=trust, tls=pair.settings()) as live:
        for credentials in (None, grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())):
            stubs = Stubs(live.port, credentials)
            assert isinstance(refused(partial(stubs.model.GetModelInfo, INFO, timeout=20)), UnavailableError)
            stubs.close()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(("127.0.0.1", live.port), timeout=10) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(plain)
