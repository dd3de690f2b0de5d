"""Errors survive the wire: what the server raises, the client raises again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, status_pb2
from passerby import errors
from passerby.v1.gallery_service_pb2 import GetGalleryRequest
from passerby.v1.gallery_service_pb2_grpc import (
    GalleryServiceServicer,
    GalleryServiceStub,
    add_GalleryServiceServicer_to_server,
)

CLASSES = sorted(errors.PasserbyError.__subclasses__(), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_comes_back_as_itself(cls: type[errors.PasserbyError]) -> None:
    sent = cls(
        "what to do",
        reason="SOME_REASON",
        metadata={"limit": "5"},
        violations=[errors.FieldViolation("frames.frames[3]", "not an image")],
        retry_delay=0.25,
    )
    received = errors.from_status(status_pb2.Status.FromString(sent.to_status().SerializeToString()))
    assert type(received) is cls
    assert (received.message, received.reason, received.metadata) == ("what to do", "SOME_REASON", {"limit": "5"})
    assert received.violations == sent.violations
    assert received.retry_delay == pytest.approx(0.25)


def test_no_two_errors_share_a_code() -> None:
    assert len(errors.BY_CODE) == len(CLASSES)


def test_codes_that_we_never_raise_still_become_an_error() -> None:
    ours = set(errors.BY_CODE)
    foreign = {code.value[0] for code in grpc.StatusCode} - ours - {grpc.StatusCode.OK.value[0]}
    assert {code_pb2.Code.Name(code) for code in foreign} == {"UNKNOWN", "ABORTED", "OUT_OF_RANGE"}
    assert type(errors.from_status(status_pb2.Status(code=code_pb2.ABORTED))) is errors.PasserbyError


def test_error_about_a_field_names_it_in_message_and_details() -> None:
    error = errors.InvalidArgumentError.of("top_k", "0 is not at least 1")
    assert error.message == "top_k: 0 is not at least 1"
    assert error.violations == (errors.FieldViolation("top_k", "0 is not at least 1"),)


def test_failed_connection_is_unavailable() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(grpc.RpcError) as caught:
        GalleryServiceStub(channel).GetGallery(GetGalleryRequest(name="galleries/g"), timeout=10)
    assert type(errors.from_rpc_error(caught.value)) is errors.UnavailableError


def _with_broken_detail() -> bytes:
    status = errors.NotFoundError("no such gallery", reason="GONE", retry_delay=2).to_status()
    status.details.insert(0, any_pb2.Any(type_url=status.details[1].type_url, value=b"\xff\xff"))
    return bytes(status.SerializeToString())


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        (b"\xff\xff\xff", "NOT_FOUND"),
        (errors.InternalError("something else", reason="ELSE").to_status().SerializeToString(), "NOT_FOUND"),
        (_with_broken_detail(), "GONE"),
    ],
    ids=["no-status", "status-of-another-code", "one-detail-broken"],
)
def test_details_mangled_on_the_way_leave_code_and_text(details: bytes, reason: str) -> None:
    class Mangled(GalleryServiceServicer):
        def GetGallery(self, request: object, context: Any) -> Any:  # noqa: N802
            context.set_trailing_metadata(((errors.STATUS_METADATA_KEY, details),))
            context.abort(grpc.StatusCode.NOT_FOUND, "no such gallery")

    server = grpc.server(ThreadPoolExecutor(1))
    add_GalleryServiceServicer_to_server(Mangled(), server)  # type: ignore[abstract]  # the others are left out
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as caught:
            GalleryServiceStub(channel).GetGallery(GetGalleryRequest(name="galleries/g"), timeout=10)
        error = errors.from_rpc_error(caught.value)
    finally:
        server.stop(0).wait()
    assert type(error) is errors.NotFoundError
    assert (error.message, error.reason) == ("no such gallery", reason)
