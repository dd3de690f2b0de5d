"""Retries: only where they help, never where they harm, always within the deadline."""

from __future__ import annotations

import threading
import time

import grpc
import numpy as np
import pytest
from passerby.errors import (
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PasserbyError,
    ResourceExhaustedError,
    UnavailableError,
)
from passerby_client import Client, RetryPolicy

from tests.clients.conftest import MakeClient
from tests.clients.faulty import Faults, faulty_server

CROP = np.zeros((8, 4, 3), dtype=np.uint8)


def test_unavailable_is_retried_under_one_request_id(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.errors["IngestTracklet"].extend([UnavailableError("restarting")] * 2)
    stored = client.ingest_tracklet("g", [CROP], camera="1")
    ids = [request.request_id for request in faults.requests("IngestTracklet")]
    assert stored.frame_count == 1
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert len(ids[0]) == 36


def test_two_calls_have_two_request_ids(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    for _ in range(2):
        client.create_gallery("g")
    first, second = faults.requests("CreateGallery")
    assert first.request_id != second.request_id


def test_a_streamed_tracklet_is_retried_from_its_header(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.errors["StreamTracklet"].append(UnavailableError("restarting"))
    large = np.zeros((1024, 1024, 3), dtype=np.uint8)
    assert client.ingest_tracklet("g", [large, large], camera="1").frame_count == 2
    first, second = faults.requests("StreamTracklet")
    assert first.request_id == second.request_id
    assert not faults.requests("IngestTracklet")


def test_retries_are_bounded(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.errors["GetModelInfo"].extend([UnavailableError("down")] * 10)
    with pytest.raises(UnavailableError, match="down"):
        client.model_info()
    assert len(faults.requests("GetModelInfo")) == 4


@pytest.mark.parametrize(
    "error",
    [NotFoundError("x"), InternalError("x"), InvalidArgumentError("x"), ResourceExhaustedError("a limit")],
    ids=lambda error: type(error).__name__,
)
def test_nothing_else_is_retried(faulty: tuple[Client, Faults], error: PasserbyError) -> None:
    client, faults = faulty
    faults.errors["GetModelInfo"].append(error)
    with pytest.raises(type(error)):
        client.model_info()
    assert len(faults.requests("GetModelInfo")) == 1


def test_a_full_server_that_says_when_is_asked_again_then(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.errors["GetModelInfo"].append(ResourceExhaustedError("full queue", retry_delay=0.3))
    start = time.monotonic()
    client.model_info()
    assert 0.3 <= time.monotonic() - start < 5
    assert len(faults.requests("GetModelInfo")) == 2


def test_the_deadline_holds_over_all_retries(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.errors["GetModelInfo"].append(ResourceExhaustedError("full queue", retry_delay=60.0))
    start = time.monotonic()
    with pytest.raises(ResourceExhaustedError, match="full queue"):
        client.model_info(timeout=1.0)
    assert time.monotonic() - start < 1.0


def test_a_slow_answer_is_deadline_exceeded_and_not_retried(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    faults.delay = 1.0
    with pytest.raises(DeadlineExceededError):
        client.model_info(timeout=0.2)
    assert len(faults.requests("GetModelInfo")) == 1


def test_an_error_arrives_as_it_was_raised(faulty: tuple[Client, Faults]) -> None:
    client, faults = faulty
    raised = InvalidArgumentError.of("camera_id", "is empty", reason="CAMERA_MISSING")
    raised.metadata["limit"] = "3"
    faults.errors["GetModelInfo"].append(raised)
    with pytest.raises(InvalidArgumentError, match="camera_id: is empty") as caught:
        client.model_info()
    assert caught.value.reason == "CAMERA_MISSING"
    assert caught.value.metadata == {"limit": "3"}
    assert caught.value.violations == (FieldViolation("camera_id", "is empty"),)


def test_no_server_at_the_address_says_what_to_do(make_client: MakeClient) -> None:
    retry = RetryPolicy(attempts=2, initial_backoff=0.01)
    with (
        make_client("127.0.0.1:1", retry=retry) as client,
        pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1; start one with `passerby serve`"),
    ):
        client.model_info()


def test_wait_until_ready_waits_for_a_server_that_starts_later(make_client: MakeClient) -> None:
    with faulty_server() as (address, _):
        pass  # the port was free a moment ago
    with make_client(address) as client:
        with pytest.raises(UnavailableError, match=r"after 0\.3 s"):
            client.wait_until_ready(timeout=0.3)
        with faulty_server(address) as (_, faults):
            faults.errors["GetModelInfo"].append(UnavailableError("still loading"))
            assert client.wait_until_ready(timeout=20).server_version == "0"


@pytest.mark.parametrize("call", ["model_info", "wait_until_ready"])
def test_a_client_that_is_closed_between_two_attempts_says_so(make_client: MakeClient, call: str) -> None:
    with faulty_server() as (address, faults):
        faults.errors["GetModelInfo"].extend([UnavailableError("restarting", retry_delay=0.5)] * 20)
        client = make_client(address)
        threading.Timer(0.25, client.close).start()
        with pytest.raises((FailedPreconditionError, CancelledError)):
            getattr(client, call)()


def test_tls_credentials_are_used(make_client: MakeClient) -> None:
    with (
        faulty_server() as (address, _),
        make_client(
            address, credentials=grpc.ssl_channel_credentials(), retry=RetryPolicy(attempts=1), timeout=5
        ) as client,
        pytest.raises(UnavailableError),
    ):
        client.model_info()  # the server speaks no TLS


@pytest.mark.parametrize("values", [{"attempts": 0}, {"initial_backoff": -1.0}, {"max_backoff": 0.01}], ids=str)
def test_a_policy_that_cannot_be_meant_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError, match="RetryPolicy"):
        RetryPolicy(**values)  # type: ignore[arg-type]


def test_backoff_doubles_up_to_its_limit() -> None:
    policy = RetryPolicy(attempts=9, initial_backoff=1.0, max_backoff=4.0)
    for attempt, backoff in ((1, 1.0), (2, 2.0), (3, 4.0), (8, 4.0)):
        delay = policy.delay(UnavailableError("x"), attempt)
        assert delay is not None
        assert backoff / 2 <= delay <= backoff
    assert policy.delay(UnavailableError("x"), 9) is None
