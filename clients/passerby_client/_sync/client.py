# Made of _async/client.py by clients/unasync.py: edit that one.
"""The synchronous client: arguments -> request (`_requests`) -> call with deadline and retries -> protocol buffers.

Errors are those of `passerby.errors`: what the server raised is raised here again.
"""

from __future__ import annotations

from passerby_client._sync.galleries import GalleryMethods
from passerby_client._sync.searches import SearchMethods
from passerby_client._sync.tracklets import TrackletMethods


class Client(GalleryMethods, TrackletMethods, SearchMethods):
    """A connection to a passerby server. Use it in a `with`, or `close` it. Threads may share it.

    Args:
        target: HOST:PORT of the server.
        timeout: seconds for each call with all its retries, unless the call is given its own; calls that carry frames
            get 0.25 s more for each frame.
        credentials: for TLS, `grpc.ssl_channel_credentials(...)`; None connects without encryption.
        token: an API token, sent with every call; only over TLS, or to this machine.
        retry: when and how often a failed call is repeated, see `RetryPolicy`.
        max_message_bytes: largest message to send. Keep it at the server's limit: longer tracklets are streamed.
        max_receive_bytes: largest answer to accept.
        options: further gRPC channel options.

    Methods take a gallery by its id (`station`) or name (`galleries/station`), tracklets by name. Each raises
    passerby.errors.PasserbyError: InvalidArgumentError and NotFoundError (also for what is wrong on this side),
    FailedPreconditionError, UnavailableError after the last retry, DeadlineExceededError, and so on.
    Writes take a `request_id` (UUID); without one, each call makes its own and keeps it over its retries.
    """
