"""The one mapping of errors to statuses: nothing is unmapped, nothing of the inside leaks out."""

from __future__ import annotations

import logging

import pytest
from passerby import errors
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_server.gallery import search
from passerby_server.interceptors import bounded_status, explain

from tests.server.live import LiveServer, refused
from tests.server.pictures import crops, sequence

FRAMES = sequence(crops(1))


@pytest.fixture
def failing(live: LiveServer):
    """Lets the server's encoder raise whatever the test says."""
    encoder = live.server.runtime.loaded.encoder
    original = encoder.encode

    def fail_with(error: BaseException) -> None:
        async def fail(*_: object, **__: object) -> None:
            raise error

        live.on_loop(lambda: setattr(encoder, "encode", fail))

    yield fail_with
    live.on_loop(lambda: setattr(encoder, "encode", original))


def embed(live: LiveServer):
    return live.model.EmbedTracklet(model_v1.EmbedTrackletRequest(frames=FRAMES), timeout=20)


def test_every_error_has_a_status_of_its_own() -> None:
    codes = [cls.code for cls in errors.PasserbyError.__subclasses__()]
    assert len(set(codes)) == len(codes)
    assert errors.PasserbyError.code not in codes


@pytest.mark.parametrize("cls", errors.PasserbyError.__subclasses__(), ids=lambda cls: cls.__name__)
def test_every_error_arrives_as_it_was_raised(live: LiveServer, failing, cls: type[errors.PasserbyError]) -> None:
    sent = cls("what to do", reason="SOME_REASON", metadata={"key": "value"}, retry_delay=1.5)
    failing(sent)
    arrived = refused(lambda: embed(live))
    assert type(arrived) is cls
    assert arrived.reason == "SOME_REASON"
    if cls is errors.InternalError:
        assert "error_id" in arrived.metadata
        assert "what to do" not in arrived.message
    else:
        assert (arrived.message, arrived.metadata, arrived.retry_delay) == ("what to do", {"key": "value"}, 1.5)


def test_an_unknown_exception_is_internal_and_logged_with_its_id(live: LiveServer, failing, caplog) -> None:
    failing(ZeroDivisionError("secret of the inside"))
    with caplog.at_level(logging.ERROR):
        error = refused(lambda: embed(live))
    assert error.code.name == "INTERNAL"
    assert "secret" not in error.message
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error.metadata["error_id"] in record.getMessage()
    assert record.exc_info is not None
    assert "secret of the inside" in str(record.exc_info[1])


def test_an_unknown_exception_in_a_bulk_stream_ends_one_item(live: LiveServer, gallery: str, failing) -> None:
    failing(ZeroDivisionError("secret of the inside"))
    requests = [
        tracklet_v1.BulkIngestTrackletsRequest(
            request=tracklet_v1.IngestTrackletRequest(
                parent=gallery,
                tracklet=resources.Tracklet(camera_id="1"),
                frames=FRAMES,
                request_id=f"00000000-0000-0000-0000-00000000000{index}",
            )
        )
        for index in range(3)
    ]
    answers = list(live.tracklets.BulkIngestTracklets(iter(requests), timeout=20))
    assert [answer.status.code for answer in answers] == [13, 13, 13]
    assert "secret" not in str(answers)


def test_a_backend_that_fails_is_internal_and_the_next_request_is_served(live: LiveServer, monkeypatch) -> None:
    backend = type(live.server.runtime.loaded.backend)

    def fail(*_: object) -> None:
        raise RuntimeError("secret of the inside")

    with monkeypatch.context() as patch:
        patch.setattr(backend, "encode", fail)
        error = refused(lambda: embed(live))
        assert (error.code.name, error.reason) == ("INTERNAL", "ENCODER_FAILED")
        assert "secret" not in error.message
    assert embed(live).snippet_count == 1


def test_long_errors_are_cut_to_what_grpc_carries() -> None:
    violations = [errors.FieldViolation(f"frames[{index}]", "x" * 5000) for index in range(500)]
    error = errors.InvalidArgumentError("é" * 100_000, violations=violations)
    assert len(bounded_status(error).SerializeToString()) < 5000
    assert len(errors.from_status(bounded_status(error)).violations) == 10


def test_known_errors_stay_themselves() -> None:
    error = errors.NotFoundError("no such gallery")
    assert explain(error) is error


def test_logs_hold_no_payloads_and_no_names(live: LiveServer, gallery: str, caplog) -> None:
    with caplog.at_level(logging.DEBUG, logger="passerby_server"):
        live.ingest(gallery, FRAMES, camera="secret-camera", identity_id="secret-person")
        refused(lambda: live.ingest(gallery, FRAMES, camera="secret-camera" * 100))
    text = " ".join(record.getMessage() + str(getattr(record, "fields", "")) for record in caplog.records)
    assert "IngestTracklet" in text
    assert "secret" not in text
    assert gallery.removeprefix("galleries/") not in text


def test_a_fault_of_a_search_is_logged_without_names(live: LiveServer, gallery: str, caplog, monkeypatch) -> None:
    def moved(*_: object) -> None:
        raise search.StateMovedError

    live.ingest(gallery, FRAMES, camera="secret-camera")
    monkeypatch.setattr(search, "run", moved)
    with caplog.at_level(logging.DEBUG, logger="passerby_server"):
        error = refused(
            lambda: live.search.SearchTracklets(search_v1.SearchTrackletsRequest(parent=gallery, frames=FRAMES))
        )
    assert type(error) is errors.InternalError
    assert error.metadata["error_id"] in caplog.text
    assert "disagree" in caplog.text
    assert gallery.removeprefix("galleries/") not in caplog.text + "".join(str(vars(r)) for r in caplog.records)


def test_every_method_is_guarded() -> None:
    """The guard knows every kind of method but that of one request and many answers, which the API does not have."""
    modules = (gallery_v1, tracklet_v1, search_v1, model_v1)
    services = [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]
    methods = [method for service in services for method in service.methods]
    assert len(methods) > 20
    assert [method.name for method in methods if method.server_streaming and not method.client_streaming] == []


def test_details_in_any_script_fit_into_the_trailers(live: LiveServer, failing) -> None:
    text = "\N{CAMERA}" * 300
    violations = [errors.FieldViolation(f"tracklet.labels['{text}']", text) for _ in range(30)]
    sent = errors.InvalidArgumentError(text * 5, reason="LABELS", metadata={"camera": text}, violations=violations)
    status = bounded_status(sent)
    encoded = 4 / 3 * status.ByteSize() + 3 * len(status.message.encode())  # base64, percent-encoding
    assert encoded < 8192
    failing(sent)
    arrived = refused(lambda: embed(live))
    assert (type(arrived), arrived.reason) == (errors.InvalidArgumentError, "LABELS")
    assert arrived.message.startswith("\N{CAMERA}")
    assert arrived.message.endswith("...")
    assert len(arrived.violations) == 10
