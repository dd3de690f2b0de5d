"""What gRPC is told about connections: how many, how large, and when one that is silent, idle or too busy is closed."""

from __future__ import annotations

from passerby_server.sections import Connections, Limits

HARD_MESSAGE_FACTOR = 4
"""A message above so many times `limits.max_message_bytes` is refused by gRPC before it is read, in gRPC's words."""


def server_options(connections: Connections, limits: Limits) -> list[tuple[str, int]]:
    """Options of the gRPC server."""
    options = [
        ("grpc.max_receive_message_length", limits.max_message_bytes * HARD_MESSAGE_FACTOR),
        # Otherwise a second server on the same port would silently take half of the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_allowed_incoming_connections", connections.max_connections),
        ("grpc.max_concurrent_streams", connections.max_calls),
        ("grpc.server_handshake_timeout_ms", _ms(connections.handshake_seconds)),
        ("grpc.keepalive_time_ms", _ms(connections.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _ms(connections.keepalive_timeout_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(connections.min_ping_seconds)),
        ("grpc.http2.max_ping_strikes", connections.max_ping_strikes),
        ("grpc.max_connection_idle_ms", _ms(connections.idle_seconds)),
    ]
    if connections.age_seconds:
        grace = _ms(connections.age_grace_seconds)
        options += [
            ("grpc.max_connection_age_ms", _ms(connections.age_seconds)),
            ("grpc.max_connection_age_grace_ms", grace),
        ]
    return options


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
