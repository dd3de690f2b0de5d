"""The HTTP port of the monitoring: `/metrics` for Prometheus, `/healthz` for probes that speak no gRPC over TLS.

prometheus-client's own small server, in threads of its own: it answers although the event loop is busy.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from passerby.errors import FailedPreconditionError
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from passerby_server.config import split_address


class Endpoint:
    """Serves a registry at `http://HOST:PORT/metrics`; leaving the block closes it."""

    def __init__(
        self, address: str, registry: CollectorRegistry, serving: Callable[[], bool], unwritable: Callable[[], str]
    ) -> None:
        """`serving`: whether the server answers calls, for `/healthz`: 200 when it does, else 503. `unwritable`: why it
        stores nothing, which `/healthz` says too, and no reason to restart it; empty when it does.

        Raises FailedPreconditionError (ADDRESS) when the port is taken, or the address is not this machine's."""
        host, port = split_address(address)
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            kind: Any = type("Server", (ThreadingWSGIServer,), {"address_family": family})
            self._server: WSGIServer = make_server(
                host, port, _app(registry, serving, unwritable), kind, handler_class=_Quiet
            )
        except OSError as error:
            raise FailedPreconditionError(
                f"cannot serve metrics on {address}: {error.strerror or error}; choose another metrics.address "
                "(port 0 takes a free one)",
                reason="ADDRESS",
            ) from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="passerby-metrics", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Quiet(WSGIRequestHandler):
    """Writes no line for each request."""

    timeout = 30
    """Seconds after which a caller that sends nothing is left."""

    def log_message(self, format: str, *arguments: Any) -> None:
        del format, arguments


def _app(registry: CollectorRegistry, serving: Callable[[], bool], unwritable: Callable[[], str]) -> Any:
    metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)

    def answer(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environment["PATH_INFO"] == "/metrics":
            return metrics(environment, start_response)
        if environment["PATH_INFO"] != "/healthz":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"there are /metrics and /healthz\n"]
        good = serving()
        start_response("200 OK" if good else "503 Service Unavailable", [("Content-Type", "text/plain")])
        reason = unwritable()
        said = f"nothing can be stored: {reason}\n" if reason else ""
        return [b"SERVING\n" if good else b"NOT_SERVING\n", said.encode()]

    return answer
