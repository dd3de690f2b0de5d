# Made of _async/bulk.py by clients/unasync.py: edit that one.
"""Many tracklets over one stream: bounded, lazy, and resumed when the connection breaks.

    caller's iterable --feeder, waits for a free slot--> events --> outbox --gRPC--> server
    caller's loop    <--results, in completion order---- events <-- receiver <------ server
                                    (a tracklet too large for one message: a worker of its own, StreamTracklet)

All state is touched where the caller iterates alone; the workers (tasks or threads) only put events. A tracklet holds its
slot from before it is taken from the iterable until its result is given to the caller, so at most `max_in_flight` are in
memory. When the stream breaks with UNAVAILABLE, what is unanswered is sent again under the same request ids: a tracklet
that the server had stored in the meantime is answered again, not stored again. A server ends a stream that is silent for
long: when the iterable pauses, the next item opens a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from google.rpc import status_pb2
from passerby.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    PasserbyError,
    UnavailableError,
    from_status,
)
from passerby.v1 import resources_pb2, tracklet_service_pb2

from passerby_client._channel import answers
from passerby_client._concurrency import (
    CANCELLED,
    Mailbox,
    Semaphore,
    Source,
    Worker,
    Workers,
    each,
    sleep,
)
from passerby_client._requests import fits, new_request_id
from passerby_client._retry import RetryPolicy

Request = tracklet_service_pb2.IngestTrackletRequest
Result = tracklet_service_pb2.BulkIngestTrackletsResponse
# How long the end of a stream is awaited after its last answer.
CLOSING_SECONDS = 2.0
Message = tracklet_service_pb2.BulkIngestTrackletsRequest


@dataclass(slots=True)
class _Taken:
    """An item was taken from the caller's iterable."""

    request: Request


@dataclass(slots=True)
class _Exhausted:
    """The caller's iterable has ended, or raised `error`."""

    error: BaseException | None = None


@dataclass(slots=True)
class _Answered:
    result: Result


@dataclass(slots=True)
class _Resend:
    """The delay that the server asked for one tracklet has passed."""

    request_id: str


@dataclass(slots=True)
class _StreamEnded:
    """Stream number `stream` is over: in order, or with `error`."""

    stream: int
    error: PasserbyError | None = None


_Event = _Taken | _Exhausted | _Answered | _Resend | _StreamEnded


@dataclass(slots=True)
class _Pending:
    request: Request
    large: bool
    attempts: int = 1


@dataclass(slots=True)
class _Stream:
    number: int = 0
    outbox: Mailbox[Message | None] = field(default_factory=Mailbox)
    call: Any = None
    receiver: Worker | None = None
    failures: int = 0  # in a row, without an answer in between


class BulkIngest:
    """One run of bulk ingest; iterate over `results()` once.

    Args:
        open_stream: the stub's BulkIngestTracklets: takes an iterator of requests, gives an iterable call.
        ingest_large: ingests one tracklet by StreamTracklet, with its retries; raises PasserbyError.
        max_in_flight: tracklets taken from `requests` and not yet given back as results; at least 1.
        quiet_timeout: seconds without any news while the stream owes results, after which DeadlineExceededError is raised.
    """

    def __init__(
        self,
        requests: Source[Request],
        *,
        open_stream: Callable[[Iterator[Message]], Any],
        ingest_large: Callable[[Request], resources_pb2.Tracklet],
        retry: RetryPolicy,
        max_message_bytes: int,
        max_in_flight: int,
        quiet_timeout: float,
    ) -> None:
        if max_in_flight < 1 or quiet_timeout <= 0:
            raise InvalidArgumentError("bulk_ingest needs max_in_flight >= 1 and quiet_timeout > 0")
        self._requests = requests
        self._open_stream = open_stream
        self._ingest_large = ingest_large
        self._retry = retry
        self._max_message_bytes = max_message_bytes
        self._quiet_timeout = quiet_timeout
        self._slots = Semaphore(max_in_flight)
        self._events: Mailbox[_Event] = Mailbox()
        self._workers = Workers()
        self._stopped = False
        self._pending: dict[str, _Pending] = {}
        self._exhausted: _Exhausted | None = None
        self._stream = _Stream()

    def results(self) -> Iterator[Result]:
        """Results in completion order. Raises PasserbyError when the stream cannot go on, and whatever the caller's
        iterable raised, after the results of what had been taken from it."""
        self._workers.start(self._feed)
        try:
            while self._exhausted is None or self._pending:
                result = self._handle(self._next_event())
                if result is not None:
                    self._slots.release()
                    yield result
            if self._exhausted.error is not None:
                raise self._exhausted.error
        finally:
            self._stop()

    def _next_event(self) -> _Event:
        # A source that takes its time is no fault of the server's, and a tracklet too large for the stream has a
        # deadline of its own, by its length: only silence over what was sent on the stream counts.
        while True:
            try:
                return self._events.get(timeout=self._quiet_timeout)
            except TimeoutError:
                waiting = sum(not pending.large for pending in self._pending.values())
                if waiting:
                    raise DeadlineExceededError(
                        f"the server has not answered for {self._quiet_timeout:g} s; {waiting} tracklets "
                        "are unanswered: repeat them, which is harmless under the same request ids"
                    ) from None

    def _handle(self, event: _Event) -> Result | None:
        if isinstance(event, _Taken):
            self._take(event.request)
        elif isinstance(event, _Exhausted):
            self._exhausted = event
        elif isinstance(event, _Resend):
            if event.request_id in self._pending:  # else answered on a later stream
                self._send(self._pending[event.request_id])
        elif isinstance(event, _StreamEnded):
            self._recover(event)
        else:
            return self._settle(event.result)
        return None

    def _take(self, request: Request) -> None:
        if not request.request_id:
            request.request_id = new_request_id()
        if request.request_id in self._pending:
            raise InvalidArgumentError.of("request_id", f"{request.request_id} is given to two tracklets")
        pending = _Pending(request, large=not fits(request.ByteSize(), self._max_message_bytes))
        self._pending[request.request_id] = pending
        self._send(pending)

    def _send(self, pending: _Pending) -> None:
        if pending.large:
            self._workers.start(self._send_large, pending.request)
            return
        if self._stream.call is None:
            self._open()
        self._stream.outbox.put(Message(request=pending.request))

    def _settle(self, result: Result) -> Result | None:
        pending = self._pending.get(result.request_id)
        if pending is None:  # answered twice: once on a stream that broke, once on the next
            return None
        self._stream.failures = 0
        if result.HasField("status") and not pending.large:
            delay = self._retry.delay(from_status(result.status), pending.attempts)
            if delay is not None:
                pending.attempts += 1
                resend = _Resend(result.request_id)
                self._workers.later(delay, lambda: self._events.put(resend))
                return None
        del self._pending[result.request_id]
        return result

    def _open(self) -> None:
        """A new stream, with everything in it that is unanswered (of the first stream: nothing)."""
        self._stream = _Stream(self._stream.number + 1, failures=self._stream.failures)
        self._stream.call = self._open_stream(_outgoing(self._stream.outbox))
        self._stream.receiver = self._workers.start(self._receive, self._stream)

    def _recover(self, ended: _StreamEnded) -> None:
        if ended.stream != self._stream.number:
            return
        self._stream.outbox.put(None)  # frees what waits for requests to send
        self._stream.call = None
        unanswered = [pending for pending in self._pending.values() if not pending.large]
        if not unanswered:
            return
        self._stream.failures += 1
        error = ended.error or UnavailableError("the server ended the stream before it had answered everything")
        if error.reason == "STREAM_IDLE":  # after a pause of the source, a request crossed the server's goodbye
            error = UnavailableError(error.message, reason=error.reason)
        delay = self._retry.delay(error, self._stream.failures)
        if delay is None:
            raise error
        sleep(delay)
        for pending in unanswered:
            self._send(pending)

    def _feed(self) -> None:
        """Feeder: takes the next item only when there is a slot for it."""
        error: BaseException | None = None
        try:
            source = each(self._requests)
            while True:
                self._slots.acquire()
                if self._stopped:
                    return
                self._events.put(_Taken(next(source)))
        except StopIteration:
            pass
        except CANCELLED:
            raise
        except BaseException as raised:  # noqa: BLE001 (raised again where the caller iterates)
            error = raised
        self._events.put(_Exhausted(error))

    def _receive(self, stream: _Stream) -> None:
        """Receiver of one stream."""
        error: PasserbyError | None = None
        try:
            for result in answers(stream.call):
                self._events.put(_Answered(result))
        except PasserbyError as raised:
            error = raised
        self._events.put(_StreamEnded(stream.number, error))

    def _send_large(self, request: Request) -> None:
        """Worker for one tracklet that does not fit into a message of the stream."""
        result = Result(request_id=request.request_id)
        try:
            result.tracklet.CopyFrom(self._ingest_large(request))
        except PasserbyError as error:
            result.status.CopyFrom(error.to_status())
        except Exception as error:  # noqa: BLE001 (must become a result, or the caller would wait for ever)
            result.status.CopyFrom(_internal(error))
        self._events.put(_Answered(result))

    def _stop(self) -> None:
        """Frees every worker: the feeder waits for a slot, gRPC for the outbox, the receiver for an answer."""
        self._stopped = True
        self._slots.release()
        self._stream.outbox.put(None)
        if self._stream.call is not None and self._stream.receiver is not None:
            if self._pending or self._exhausted is None:
                self._stream.call.cancel()
            else:
                # Let the server end the stream in order: a channel closed right now would count as a broken call there.
                self._workers.wait(self._stream.receiver, CLOSING_SECONDS)
        self._workers.stop()


def _outgoing(outbox: Mailbox[Message | None]) -> Iterator[Message]:
    while (message := outbox.get()) is not None:
        yield message


def _internal(error: Exception) -> status_pb2.Status:
    return InternalError(f"the client failed while it sent a tracklet: {error!r}").to_status()
