"""The HTTP port on which Prometheus finds the metrics: prometheus-client's own small server, in threads of its own."""

from __future__ import annotations

import threading
from typing import Self

from passerby.errors import FailedPreconditionError
from prometheus_client import CollectorRegistry, start_http_server

from passerby_server.config import split_address


class Endpoint:
    """Serves a registry at `http://HOST:PORT/metrics`; leaving the block closes it."""

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        """Raises FailedPreconditionError (ADDRESS) when the port is taken, or the address is not this machine's."""
        self.host, port = split_address(address)
        try:
            self._server, self._thread = start_http_server(port, self.host, registry)
        except OSError as error:
            raise FailedPreconditionError(
                f"cannot serve metrics on {address}: {error.strerror or error}; choose another metrics.address "
                "(port 0 takes a free one)",
                reason="ADDRESS",
            ) from error
        self.port: int = self._server.server_port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        if isinstance(self._thread, threading.Thread):
            self._thread.join()
