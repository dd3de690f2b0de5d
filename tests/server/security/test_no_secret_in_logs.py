"""Logs at their most talkative hold no token, no key and no name, whatever callers send and wherever they put it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_server.security.callers import new_token

from tests.server.live import Stubs
from tests.server.pictures import crops, sequence
from tests.server.process import serving
from tests.server.security import callers
from tests.server.security.conftest import Pair

PERSON = "Wilhelmina Quackenbush"


def _talk(stubs: Stubs, token: str) -> None:
    """Calls that succeed and calls that fail, with the token where it belongs and where it does not."""
    erase = tracklet_v1.EraseIdentityRequest(parent="galleries/lobby", identity_id=PERSON)
    calls: list[tuple[Any, Any, tuple[tuple[str, str], ...]]] = [
        (stubs.model.GetModelInfo, model_v1.GetModelInfoRequest(), (("x-token", token),)),
        (stubs.galleries.CreateGallery, gallery_v1.CreateGalleryRequest(gallery_id="lobby"), ()),
        (stubs.galleries.GetGallery, gallery_v1.GetGalleryRequest(name=token), ()),
        (stubs.tracklets.EraseIdentity, erase, ()),
    ]
    for method, request, metadata in calls:
        with contextlib.suppress(grpc.RpcError):
            method(request, timeout=20, metadata=metadata)
    with contextlib.suppress(grpc.RpcError):
        stubs.ingest("galleries/lobby", sequence(crops(2)), identity_id=PERSON)


def test_no_secret_in_logs(
    bundle: Path, tmp_path: Path, pair: Pair, trust: grpc.ChannelCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"GRPC_VERBOSITY": "DEBUG", "PYTHONASYNCIODEBUG": "1"}.items():
        monkeypatch.setenv(name, value)
    file, data = tmp_path / "callers.json", tmp_path / "data"
    good = callers.add(file, "boss", "admin")
    unknown, _, _ = new_token()
    flags = [
        "--set",
        f"access.file={file}",
        "--set",
        f"tls.certificate={pair.certificate}",
        "--set",
        f"tls.key={pair.key}",
    ]
    with serving(bundle, data, *flags, "--log-level", "debug") as server:
        for token in (good, unknown):
            stubs = callers.stubs_of(server.port, token, credentials=trust)
            _talk(stubs, token)
            stubs.close()
        # Settings that are wrong are explained without their content.
        file.write_text(f'{{"version": 1, "callers": [{{"name": "{good}", "token": "{good}"}}]}}')
        stubs = callers.stubs_of(server.port, good, credentials=trust)
        with pytest.raises(grpc.RpcError):
            stubs.model.GetModelInfo(model_v1.GetModelInfoRequest(), timeout=20)
        stubs.close()
        pair.key.write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
        stubs = callers.stubs_of(server.port, good, credentials=trust)
        with pytest.raises(grpc.RpcError):
            stubs.model.GetModelInfo(model_v1.GetModelInfoRequest(), timeout=20)
        stubs.close()
        assert server.stop() == 0
    log = data.with_suffix(".log").read_text(errors="replace")
    assert "UNAUTHENTICATED" in log
    assert " client=boss code=OK " in log
    assert "all calls are refused" in log
    assert "the new certificate is refused" in log
    key = (data / "audit" / "key").read_text().strip()
    for secret in (good, unknown, good[22:], unknown[22:], "c2VjcmV0", key, PERSON):
        assert secret not in log
