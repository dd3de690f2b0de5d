"""The one error tree of passerby, and its mapping to and from gRPC statuses (AIP-193).

    PasserbyError
    |- InvalidArgumentError     the caller's input is wrong; `violations` name the fields
    |- NotFoundError            no such gallery, tracklet, bundle or file
    |- AlreadyExistsError       the name is taken
    |- FailedPreconditionError  right input, wrong state: another model's descriptor, a gallery that is not empty
    |- PermissionDeniedError    the caller may not do this
    |- UnauthenticatedError     the caller has not said who it is
    |- ResourceExhaustedError   a limit or a full queue; may carry `retry_delay` seconds
    |- CancelledError           the caller went away
    |- DeadlineExceededError    not done in time
    |- UnavailableError         cannot be reached, or is going down: safe to retry
    |- UnimplementedError       the method is in the API, but not in this server
    |- DataLossError            stored data is damaged: a checksum does not match
    `- InternalError            a fault of ours; the log has the details under `metadata["error_id"]`

Server and client raise the same classes: what the server raises, the client raises again. `reason` is a
constant in UPPER_SNAKE_CASE that programs can switch on; it travels as `google.rpc.ErrorInfo`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import ClassVar, NamedTuple, Self

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "passerby"
STATUS_METADATA_KEY = "grpc-status-details-bin"


class FieldViolation(NamedTuple):
    """One wrong field of a request: its path (`frames.frames[3]`) and what is wrong with it."""

    field: str
    description: str


class PasserbyError(Exception):
    """Base of all expected failures. The message says what to do; `reason` and `metadata` are for programs."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    default_reason: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[FieldViolation] = (),
        retry_delay: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_delay = retry_delay

    @classmethod
    def of(cls, field: str, description: str, *, reason: str = "") -> Self:
        """An error about one field of a request."""
        return cls(f"{field}: {description}", reason=reason, violations=[FieldViolation(field, description)])

    def to_status(self) -> status_pb2.Status:
        """This error as google.rpc.Status with ErrorInfo, BadRequest and RetryInfo details (AIP-193)."""
        details = [error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)]
        packed = [_pack(detail) for detail in details]
        if self.violations:
            bad_request = error_details_pb2.BadRequest()
            for field, description in self.violations:
                bad_request.field_violations.add(field=field, description=description)
            packed.append(_pack(bad_request))
        if self.retry_delay is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(int(self.retry_delay * 1e9))
            packed.append(_pack(retry))
        return status_pb2.Status(code=self.code.value[0], message=self.message, details=packed)


class InvalidArgumentError(PasserbyError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_ARGUMENT"


class NotFoundError(PasserbyError):
    code = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"


class AlreadyExistsError(PasserbyError):
    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


class FailedPreconditionError(PasserbyError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class PermissionDeniedError(PasserbyError):
    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"


class UnauthenticatedError(PasserbyError):
    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class ResourceExhaustedError(PasserbyError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"


class CancelledError(PasserbyError):
    code = grpc.StatusCode.CANCELLED
    default_reason = "CANCELLED"


class DeadlineExceededError(PasserbyError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class UnavailableError(PasserbyError):
    code = grpc.StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class UnimplementedError(PasserbyError):
    code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = "UNIMPLEMENTED"


class DataLossError(PasserbyError):
    code = grpc.StatusCode.DATA_LOSS
    default_reason = "DATA_LOSS"


class InternalError(PasserbyError):
    code = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"


# OUT_OF_RANGE, ABORTED and UNKNOWN are never raised by us; from elsewhere they arrive as plain PasserbyError.
BY_CODE: Mapping[int, type[PasserbyError]] = {cls.code.value[0]: cls for cls in PasserbyError.__subclasses__()}


def from_status(status: status_pb2.Status) -> PasserbyError:
    """The error that `status` carries; PasserbyError itself for a code that has no class here.

    Details that cannot be read are left out: code and text stand without them.
    """
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    for detail in status.details:
        for message in (info, bad_request, retry):
            try:
                detail.Unpack(message)
            except DecodeError:
                message.Clear()
    return BY_CODE.get(status.code, PasserbyError)(
        status.message or code_pb2.Code.Name(status.code),
        reason=info.reason,
        metadata=dict(info.metadata),
        violations=[FieldViolation(v.field, v.description) for v in bad_request.field_violations],
        retry_delay=retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
    )


def from_rpc_error(error: grpc.RpcError) -> PasserbyError:
    """The error behind a failed call: from its AIP-193 details, or from its bare code and text.

    `error` is what a gRPC stub raised: also a `grpc.Call`, or an `AioRpcError`. Details that were mangled on the way,
    or that are of another code than the call's, are left out.
    """
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return PasserbyError(str(error))
    plain = status_pb2.Status(code=error.code().value[0], message=error.details() or "")
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_METADATA_KEY:
            with suppress(DecodeError):
                detailed = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
                if detailed.code == plain.code:
                    return from_status(detailed)
    return from_status(plain)


def _pack(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
