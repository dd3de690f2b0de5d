"""Who may do what, against a real server: roles, galleries, expiry, revocation, and files that cannot be trusted."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from passerby.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    PasserbyError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    from_rpc_error,
)
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_server.security.policy import ALL_GALLERIES, RULES

from tests.server.live import LiveServer, Stubs, refused, running
from tests.server.pictures import crops, sequence
from tests.server.security import callers
from tests.server.security.conftest import Pair, client_credentials
from tests.server.security.test_policy import METHODS

INFO = model_v1.GetModelInfoRequest()


class Guarded:
    """A server with callers; `of(name)` are the stubs of one."""

    def __init__(self, live: LiveServer, file: Path, tokens: dict[str, str]) -> None:
        self.live, self.file, self.tokens = live, file, tokens
        self._closing = contextlib.ExitStack()

    def of(self, name: str) -> Stubs:
        return self.with_tokens(self.tokens[name])

    def with_tokens(self, *tokens: str) -> Stubs:
        stubs = callers.stubs_of(self.live.port, *tokens)
        self._closing.callback(stubs.close)
        return stubs

    def close(self) -> None:
        self._closing.close()


@pytest.fixture(scope="module")
def guarded(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "callers.json"
    tokens = {
        "boss": callers.add(file, "boss", "admin"),
        "desk": callers.add(file, "desk", "reader", galleries=["station", "absent"]),
        "camera": callers.add(file, "camera", "ingester", galleries=["station"]),
        "both": callers.add(file, "both", "reader", "ingester", galleries=["station"]),
        "local": callers.add(file, "local", "admin", galleries=["station"]),
    }
    with running(bundle, folder / "data", access={"file": file}) as live:
        server = Guarded(live, file, tokens)
        boss = server.of("boss")
        for name in ("station", "vault"):
            boss.galleries.CreateGallery(gallery_v1.CreateGalleryRequest(gallery_id=name), timeout=20)
            boss.ingest(f"galleries/{name}", sequence(crops(3)), tracklet_id="t1", identity_id="ann")
        yield server
        server.close()


def _call(stubs: Stubs, method: str, **fields: Any) -> PasserbyError | None:
    """Calls a method; the error that it ends with."""
    description = METHODS[method]
    path = f"/passerby.v1.{method}"
    request = GetMessageClass(description.input_type)()
    for name, value in fields.items():
        part, _, field = name.rpartition(".")
        setattr(getattr(request, part) if part else request, field, value)
    codec = {
        "request_serializer": lambda message: message.SerializeToString(),
        "response_deserializer": GetMessageClass(description.output_type).FromString,
    }
    try:
        if description.client_streaming and description.server_streaming:
            list(stubs.channel.stream_stream(path, **codec)(iter([request]), timeout=20))
        elif description.client_streaming:
            stubs.channel.stream_unary(path, **codec)(iter([request]), timeout=20)
        else:
            stubs.channel.unary_unary(path, **codec)(request, timeout=20)
    except grpc.RpcError as error:
        return from_rpc_error(error)
    return None


def test_a_stranger_is_refused_before_the_message_is_there(guarded: Guarded) -> None:
    over = threading.Event()

    def never() -> Iterator[bytes]:
        over.wait(20)
        yield from ()

    call: Any = guarded.with_tokens().channel.stream_unary("/passerby.v1.SearchService/SearchTracklets")
    assert refused(lambda: call(never(), timeout=10)).reason == "TOKEN_MISSING"
    over.set()


@pytest.mark.parametrize("method", METHODS)
def test_nobody_calls_anything_without_a_good_token(guarded: Guarded, method: str) -> None:
    good = guarded.tokens["boss"]
    wrong = {
        (): "TOKEN_MISSING",
        ("psby_0000000000000000_" + "A" * 43,): "TOKEN_INVALID",
        (good[:-1] + ("A" if good[-1] != "A" else "B"),): "TOKEN_INVALID",
        (good[:22] + guarded.tokens["desk"][22:],): "TOKEN_INVALID",
        (good, good): "TOKEN_INVALID",
        ("",): "TOKEN_INVALID",
    }
    for tokens, reason in wrong.items():
        error = _call(guarded.with_tokens(*tokens), method)
        assert isinstance(error, UnauthenticatedError)
        assert error.reason == reason
        assert not tokens or not tokens[0] or tokens[0] not in str(error)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["desk", "camera", "both"])
def test_roles(guarded: Guarded, method: str, name: str) -> None:
    roles = {"desk": {"reader"}, "camera": {"ingester"}, "both": {"reader", "ingester"}}[name]
    error = _call(guarded.of(name), method)
    if RULES[method].roles & roles:
        # The empty request is refused for what it lacks, if at all: the role was no obstacle.
        assert not isinstance(error, (PermissionDeniedError, UnauthenticatedError)), error
    else:
        assert isinstance(error, PermissionDeniedError)
        assert error.reason == "ROLE"


FOREIGN = {
    "name": "galleries/{}/tracklets/t1",
    "parent": "galleries/{}",
    "gallery_id": "{}",
}


@pytest.mark.parametrize("method", [name for name, rule in RULES.items() if rule.gallery not in ("", ALL_GALLERIES)])
def test_another_gallery_is_refused_alike_whether_it_exists_or_not(guarded: Guarded, method: str) -> None:
    field = RULES[method].gallery
    form = FOREIGN[field.rpartition(".")[2]]
    if field == "name" and "Tracklet" not in method.partition("/")[2] and "Identity" not in method:
        form = FOREIGN["parent"]
    caller = guarded.of(
        "desk" if "reader" in RULES[method].roles else "local" if "admin" in RULES[method].roles else ""
    )
    there, absent = (_call(caller, method, **{field: form.format(name)}) for name in ("vault", "nowhere"))
    assert isinstance(there, PermissionDeniedError)
    assert there.reason == "GALLERY"
    assert (str(there), there.metadata) == (str(absent), absent and absent.metadata)
    own = _call(caller, method, **{field: form.format("station")}) if "Delete" not in method else None
    assert not isinstance(own, PermissionDeniedError)


def test_what_changes_all_galleries_takes_all_of_them(guarded: Guarded) -> None:
    error = _call(guarded.of("local"), "ModelService/ReloadBundle")
    assert isinstance(error, PermissionDeniedError)
    assert error.reason == "GALLERY"
    error = _call(guarded.of("boss"), "ModelService/ReloadBundle", model_fingerprint="0" * 64)
    assert isinstance(error, FailedPreconditionError)  # it came as far as that


def test_what_a_caller_may_see_is_not_found_when_it_is_absent(guarded: Guarded) -> None:
    error = _call(guarded.of("desk"), "GalleryService/GetGallery", name="galleries/absent")
    assert isinstance(error, NotFoundError)


def test_lists_have_the_callers_galleries_alone(guarded: Guarded) -> None:
    def listed(name: str, size: int = 50) -> list[list[str]]:
        request, pages = gallery_v1.ListGalleriesRequest(page_size=size), []
        while True:
            page = guarded.of(name).galleries.ListGalleries(request, timeout=20)
            pages.append([gallery.name for gallery in page.galleries])
            if not page.next_page_token:
                return pages
            request.page_token = page.next_page_token

    assert listed("boss", 1) == [["galleries/station"], ["galleries/vault"]]
    assert listed("desk", 1) == [["galleries/station"]]  # and no further page, which would tell that there is more
    assert listed("both") == [["galleries/station"]]


def test_the_gallery_that_is_followed_is_named_to_those_who_may_see_it(guarded: Guarded) -> None:
    boss = guarded.of("boss").galleries
    request = gallery_v1.CreateGalleryRequest(gallery_id="vault-next")
    request.gallery.follows = "galleries/vault"
    boss.CreateGallery(request, timeout=20)
    one = callers.stubs_of(guarded.live.port, callers.add(guarded.file, "one", "reader", galleries=["vault-next"]))
    two = callers.stubs_of(
        guarded.live.port, callers.add(guarded.file, "two", "reader", galleries=["vault", "vault-next"])
    )
    get = gallery_v1.GetGalleryRequest(name="galleries/vault-next")
    try:
        for stubs, expected in ((one, ""), (two, "galleries/vault"), (guarded.of("boss"), "galleries/vault")):
            assert stubs.galleries.GetGallery(get, timeout=20).gallery.follows == expected
            listed = stubs.galleries.ListGalleries(gallery_v1.ListGalleriesRequest(), timeout=20).galleries
            (found,) = [gallery for gallery in listed if gallery.name == "galleries/vault-next"]
            assert found.follows == expected
    finally:
        one.close()
        two.close()
        boss.DeleteGallery(gallery_v1.DeleteGalleryRequest(name="galleries/vault-next"), timeout=20)


def test_streams_check_each_tracklet(guarded: Guarded) -> None:
    camera = guarded.of("camera")

    def item(gallery: str, number: int) -> tracklet_v1.BulkIngestTrackletsRequest:
        request = tracklet_v1.IngestTrackletRequest(
            parent=f"galleries/{gallery}",
            frames=sequence(crops(2, seed=number)),
            request_id=f"00000000-0000-4000-8000-{number:012}",
        )
        request.tracklet.camera_id = "1"
        return tracklet_v1.BulkIngestTrackletsRequest(request=request)

    stored = item("station", 1)
    answers = camera.tracklets.BulkIngestTracklets(
        iter([stored, item("vault", 2), item("nowhere", 3), item("station", 4)]), timeout=30
    )
    outcome = {answer.request_id[-1]: (answer.WhichOneof("result"), answer.status.code) for answer in answers}
    denied = ("status", grpc.StatusCode.PERMISSION_DENIED.value[0])
    assert outcome == {"1": ("tracklet", 0), "2": denied, "3": denied, "4": ("tracklet", 0)}

    def stream(gallery: str) -> Iterator[tracklet_v1.StreamTrackletRequest]:
        header = tracklet_v1.StreamTrackletRequest.Header(parent=f"galleries/{gallery}")
        header.tracklet.camera_id = "1"
        yield tracklet_v1.StreamTrackletRequest(header=header)
        for frame in sequence(crops(2)).frames:
            yield tracklet_v1.StreamTrackletRequest(frame=frame)

    assert camera.tracklets.StreamTracklet(stream("station"), timeout=20).tracklet.name
    for gallery in ("vault", "nowhere"):
        error = refused(partial(camera.tracklets.StreamTracklet, stream(gallery), timeout=20))
        assert (type(error), error.reason) == (PermissionDeniedError, "GALLERY")

    def track(gallery: str) -> Iterator[search_v1.StreamSearchTrackletsRequest]:
        header = search_v1.StreamSearchTrackletsRequest.Header()
        header.search.parent = f"galleries/{gallery}"
        yield search_v1.StreamSearchTrackletsRequest(header=header)

    desk = guarded.of("desk")
    errors = [
        refused(lambda name=name: list(desk.search.StreamSearchTracklets(track(name), timeout=20)))  # type: ignore[misc]
        for name in ("vault", "nowhere")
    ]
    assert {(type(error), error.reason, str(error)) for error in errors} == {
        (PermissionDeniedError, "GALLERY", "the caller desk may not use this gallery")
    }


def test_erasing_everywhere_takes_every_gallery(guarded: Guarded) -> None:
    fields = {"parent": "galleries/-", "identity_id": "nobody"}
    error = _call(guarded.of("local"), "TrackletService/EraseIdentity", **fields)
    assert isinstance(error, PermissionDeniedError)
    assert _call(guarded.of("boss"), "TrackletService/EraseIdentity", **fields) is None


def test_a_query_of_another_gallery_is_refused(guarded: Guarded) -> None:
    request = search_v1.SearchTrackletsRequest(parent="galleries/station", tracklet="galleries/vault/tracklets/t1")
    error = refused(partial(guarded.of("desk").search.SearchTracklets, request, timeout=20))
    absent = search_v1.SearchTrackletsRequest(parent="galleries/station", tracklet="galleries/nowhere/tracklets/t1")
    assert str(error) == str(refused(partial(guarded.of("desk").search.SearchTracklets, absent, timeout=20)))


def test_galleries_named_beside_the_first_are_checked_too(guarded: Guarded) -> None:
    local, vault = guarded.of("local"), "galleries/vault"
    following = {"gallery_id": "station", "gallery.follows": vault}
    assert isinstance(_call(local, "GalleryService/CreateGallery", **following), PermissionDeniedError)
    for other, retired in ((vault, "station"), ("galleries/station", "vault")):
        fields = {"name": "galleries/station", "replacement": other, "retired_gallery_id": retired}
        assert isinstance(_call(local, "GalleryService/ReplaceGallery", **fields), PermissionDeniedError)
    assert isinstance(_call(guarded.of("boss"), "GalleryService/ReplaceGallery", **fields), AlreadyExistsError)


def test_kept_frames_are_for_admins(guarded: Guarded) -> None:
    fields = {"name": "galleries/station/tracklets/t1", "include_frames": True}
    assert isinstance(_call(guarded.of("desk"), "TrackletService/GetTracklet", **fields), PermissionDeniedError)
    assert _call(guarded.of("local"), "TrackletService/GetTracklet", **fields) is None


def test_changes_of_the_file_count_from_the_next_call_on(guarded: Guarded) -> None:
    token = callers.add(guarded.file, "guest", "reader")
    guest = guarded.with_tokens(token)
    assert guest.model.GetModelInfo(INFO, timeout=20).model_info.descriptor_dim > 0
    callers.remove(guarded.file, "guest")
    assert refused(partial(guest.model.GetModelInfo, INFO, timeout=20)).reason == "TOKEN_INVALID"


def test_a_stream_does_not_outlive_its_token(guarded: Guarded) -> None:
    token = callers.add(guarded.file, "guest", "ingester")
    steps: list[tuple[str | None, int]] = []

    def requests() -> Iterator[tracklet_v1.BulkIngestTrackletsRequest]:
        for number in (11, 12):
            request = tracklet_v1.IngestTrackletRequest(
                parent="galleries/station",
                frames=sequence(crops(2, seed=number)),
                request_id=f"00000000-0000-4000-8000-{number:012}",
            )
            request.tracklet.camera_id = "1"
            yield tracklet_v1.BulkIngestTrackletsRequest(request=request)
            while len(steps) < number - 10:
                pass
            callers.remove(guarded.file, "guest")

    for answer in guarded.with_tokens(token).tracklets.BulkIngestTracklets(requests(), timeout=30):
        steps.append((answer.WhichOneof("result"), answer.status.code))  # noqa: PERF401 - the requests wait for it
    assert steps == [("tracklet", 0), ("status", grpc.StatusCode.UNAUTHENTICATED.value[0])]


def test_tokens_expire(guarded: Guarded) -> None:
    from passerby_server.security.callers import now

    late = callers.add(guarded.file, "late", "reader", expire_time=now() - timedelta(seconds=1))
    soon = callers.add(guarded.file, "soon", "reader", expire_time=now() + timedelta(hours=1))
    assert (
        refused(partial(guarded.with_tokens(late).model.GetModelInfo, INFO, timeout=20)).reason == "CREDENTIAL_EXPIRED"
    )
    assert guarded.with_tokens(soon).model.GetModelInfo(INFO, timeout=20)
    callers.remove(guarded.file, "late")
    callers.remove(guarded.file, "soon")


def test_nobody_comes_in_while_the_file_cannot_be_trusted(guarded: Guarded) -> None:
    boss, good = guarded.of("boss"), guarded.file.read_bytes()
    info = partial(boss.model.GetModelInfo, INFO, timeout=20)
    hidden = guarded.file.with_suffix(".hidden")
    try:
        for spoil in (
            lambda: guarded.file.rename(hidden),
            lambda: guarded.file.write_bytes(good[:-20]),
            lambda: guarded.file.write_text(json.dumps({"version": 1, "callers": [{"name": "x"}]})),
            lambda: guarded.file.write_text(json.dumps({"version": 2, "callers": []})),
            lambda: (guarded.file.write_bytes(good), os.chmod(guarded.file, 0o666)),  # type: ignore[func-returns-value]  # noqa: S103
        ):
            spoil()
            error = refused(info)
            assert isinstance(error, UnavailableError)
            assert error.reason == "CALLERS_UNREADABLE"
            assert str(guarded.file) not in str(error)  # that is the operator's business
            refused(info)
    finally:
        guarded.file.write_bytes(good)
        guarded.file.chmod(0o600)
    assert info()


def test_health_is_open_and_reflection_is_not(guarded: Guarded) -> None:
    nobody, desk = guarded.with_tokens(), guarded.of("desk")
    check = health_pb2_grpc.HealthStub(nobody.channel).Check  # type: ignore[attr-defined]  # stubs lack it
    assert check(health_pb2.HealthCheckRequest(), timeout=20).status == health_pb2.HealthCheckResponse.SERVING

    def services(stubs: Stubs) -> list[str]:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        reflect: Any = reflection_pb2_grpc.ServerReflectionStub(stubs.channel).ServerReflectionInfo
        (answer,) = reflect(iter([request]), timeout=20)
        return [service.name for service in answer.list_services_response.service]

    assert "passerby.v1.SearchService" in services(desk)
    assert isinstance(refused(partial(services, nobody)), UnauthenticatedError)


def test_the_server_does_not_start_without_its_callers(bundle: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(FailedPreconditionError, match=r"callers\.json: No such file.*passerby token create"),
        running(bundle, tmp_path / "data", access={"file": tmp_path / "callers.json"}),
    ):
        pass
    secret = "psby_0123456789abcdef_" + "x" * 43
    (tmp_path / "callers.json").write_text(json.dumps({"version": 1, "callers": [{"name": "a", "token": secret}]}))
    os.chmod(tmp_path / "callers.json", 0o600)
    with (
        pytest.raises(FailedPreconditionError, match="is no file of callers") as raised,
        running(bundle, tmp_path / "data", access={"file": tmp_path / "callers.json"}),
    ):
        pass
    assert secret not in raised.value.message


def test_listening_beyond_this_machine_without_protection_is_logged(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callers.add(tmp_path / "callers.json", "boss", "admin")
    for more, missing in (({}, ["TLS", "authentication"]), ({"access": {"file": tmp_path / "callers.json"}}, ["TLS"])):
        caplog.clear()
        with running(bundle, tmp_path / "data", address="0.0.0.0:0", insecure_listen=True, **more):  # type: ignore[arg-type]
            pass
        said = [record.getMessage() for record in caplog.records if "beyond this machine" in record.getMessage()]
        assert said == [f"listening beyond this machine without {what}, as insecure_listen allows" for what in missing]


def test_client_certificates_name_callers(bundle: Path, tmp_path: Path, pair: Pair, authority: trustme.CA) -> None:
    file, client_ca = tmp_path / "callers.json", tmp_path / "clients.pem"
    authority.cert_pem.write_to_path(str(client_ca))
    callers.add(file, "desk", "reader", certificate="desk.example")
    callers.add(file, "camera", "ingester", certificate="camera-7.example")
    callers.add(file, "person", "reader", certificate="Ann Example")
    token = callers.add(file, "boss", "admin")

    def role(*names: str, common_name: str | None = None, tokens: tuple[str, ...] = ()) -> PasserbyError | None:
        credentials = client_credentials(authority, *names, common_name=common_name)
        stubs = callers.stubs_of(live.port, *tokens, credentials=credentials)
        try:
            return _call(stubs, "GalleryService/ListGalleries")
        finally:
            stubs.close()

    with running(bundle, tmp_path / "data", tls=pair.settings(client_ca=client_ca), access={"file": file}) as live:
        assert role("desk.example") is None
        assert role("other.example", "desk.example") is None
        assert isinstance(role("camera-7.example"), PermissionDeniedError)
        for names in (("unknown.example",), ("desk.example", "camera-7.example")):
            error = role(*names)
            assert isinstance(error, UnauthenticatedError)
            assert error.reason == "CERTIFICATE_UNKNOWN"
        # A common name counts only where there is nothing better.
        assert isinstance(role("unknown.example", common_name="Ann Example"), UnauthenticatedError)
        assert role(common_name="Ann Example") is None
        # A token decides where there is one, a wrong one too.
        assert role("camera-7.example", tokens=(token,)) is None
        assert isinstance(role("desk.example", tokens=("psby_wrong",)), UnauthenticatedError)
        callers.remove(file, "desk")
        assert isinstance(role("desk.example"), UnauthenticatedError)
