"""Sections of the server's configuration: each setting with its default, range, unit and reason."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(Section):
    """What one caller may ask for. Every limit is checked before the work that it limits."""

    max_message_bytes: int = Field(
        4 * MIB,
        ge=64 * 1024,
        description="Largest message, in bytes, either way: gRPC's own default, so that any client reads our answers; "
        "longer tracklets go through StreamTracklet.",
    )
    max_frames: int = Field(
        10_000,
        ge=1,
        description="Frames of one tracklet: the longest of the public sets has 9,324 (DukeMTMC-VideoReID).",
    )
    max_frame_bytes: int = Field(
        2 * MIB, ge=1024, description="Bytes of one frame as sent: a crop of 512 x 1024 pixels is 1.5 MiB even raw."
    )
    max_pixels: int = Field(
        16 * MIB,
        ge=1024,
        description="Width x height of one frame, read from its header before any pixel is decoded: 16 megapixels are "
        "48 MiB once decoded, far above any crop of a person.",
    )
    max_top_k: int = Field(1000, ge=1, description="Hits of one search.")
    max_shortlist: int = Field(
        2000,
        ge=1,
        le=2000,
        description="Candidates of one re-ranking, whose cost grows with their square (2000: about 16 MiB).",
    )
    max_page_size: int = Field(
        1000, ge=1, le=1000, description="Entries of one page; larger pages are lowered to this."
    )
    max_filter_values: int = Field(1000, ge=1, description="Cameras, identities or labels named in one filter.")
    max_requests: int = Field(
        256, ge=1, description="Calls in progress at the same time; further ones get RESOURCE_EXHAUSTED at once."
    )
    max_streams: int = Field(
        32, ge=1, description="Of these, streams (StreamTracklet, BulkIngestTracklets, StreamSearchTracklets)."
    )
    max_requests_per_client: int = Field(
        64,
        ge=1,
        description="Calls of one client in progress at the same time. A client is who it has shown to be; without "
        "access control its address, and on this machine its connection.",
    )
    max_streams_per_client: int = Field(16, ge=1, description="Of these, streams.")
    max_bulk_in_flight: int = Field(
        16, ge=1, description="Tracklets of one BulkIngestTracklets stream that are worked on at the same time."
    )
    max_bulk_bytes: int = Field(
        256 * MIB,
        ge=MIB,
        description="Bytes of the tracklets that all BulkIngestTracklets streams together work on; what comes beyond "
        "waits in its sender.",
    )
    stream_idle_seconds: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Longest silence of a caller while the server waits for it, in seconds, for a message, which has to be "
        "whole by then, or for an answer to be read: a connection whose other end is gone would keep its place among the "
        "calls until TCP gives up.",
    )


class Tls(Section):
    """Encryption of the connections. New files are taken without a restart."""

    certificate: Path | None = Field(
        None, description="Certificate of the server in PEM, followed by those between it and its authority."
    )
    key: Path | None = Field(None, description="Its private key in PEM, not encrypted.")
    client_ca: Path | None = Field(
        None,
        description="Certificates in PEM: every client has to show one that these authorities signed (mTLS). Without "
        "this setting none is asked for.",
    )


class Access(Section):
    """Who may call."""

    file: Path | None = Field(
        None,
        description="File of the callers, which `passerby token` writes: their roles and galleries, and digests of their "
        "tokens. Read again when it changes. Without this setting whoever reaches the port may do everything.",
    )


class Audit(Section):
    """The record of who searched, changed, erased and was refused; kept where `access.file` is set."""

    folder: Path | None = Field(
        None, description="Where it is kept; made when missing. Default: `audit` in the data folder."
    )
    key: Path | None = Field(
        None,
        description="File with the key that seals the records; made when missing. Default: `key` in the folder of the "
        "records. Elsewhere is better: whoever has both can forge them.",
    )
    keep_days: float = Field(
        0.0, ge=0, le=36_500, description="Records older than this are deleted, a day's file at a time; 0 keeps all."
    )


class Connections(Section):
    """Connections of clients: how many, and when the server closes one."""

    max_connections: int = Field(
        1024,
        ge=1,
        description="Connections at the same time; a further one is closed at once. A silent one holds about 17 KiB.",
    )
    max_calls: int = Field(
        256,
        ge=1,
        description="Calls of one connection at the same time; further ones wait in the client. Well above "
        "limits.max_requests_per_client, so that what is too much is refused and does not wait.",
    )
    handshake_seconds: float = Field(
        20.0,
        gt=0,
        le=600,
        description="Longest time from a connection's begin to the end of its handshake, in seconds.",
    )
    keepalive_seconds: float = Field(
        60.0,
        ge=1,
        le=86_400,
        description="Silence of a connection after which the server asks whether the other end is still there (a ping of "
        "HTTP/2), in seconds.",
    )
    keepalive_timeout_seconds: float = Field(
        20.0, gt=0, le=600, description="How long it waits for the answer, in seconds; then the connection is closed."
    )
    min_ping_seconds: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="Clients may ask the same of the server, but no more often than this, in seconds; see "
        "max_ping_strikes.",
    )
    max_ping_strikes: int = Field(
        2, ge=1, le=1000, description="Pings that came too early, after which a connection is closed."
    )
    idle_seconds: float = Field(
        600.0, gt=0, le=86_400, description="A connection without any call is closed after this, in seconds."
    )
    age_seconds: float = Field(
        0.0,
        ge=0,
        le=864_000,
        description="A connection is closed after this, in seconds, so that clients come back to whatever a load balancer "
        "has by then; 0: never.",
    )
    age_grace_seconds: float = Field(
        300.0, gt=0, le=86_400, description="How long calls of a connection that grew too old may go on, in seconds."
    )


class Batching(Section):
    """How snippets of many requests become one batch."""

    max_snippets: int = Field(
        0,
        ge=0,
        le=1024,
        description="Snippets in the largest batch; 0 takes as many as hold 32 frames, beyond which a CPU gains nothing.",
    )
    max_wait_ms: float = Field(
        5.0,
        ge=0,
        le=1000,
        description="How long a batch that is not full waits, in milliseconds, while another request is being decoded. "
        "A batch never waits when nothing else is on its way.",
    )
    max_queued_snippets: int = Field(
        512,
        ge=1,
        description="Snippets that are being decoded, waiting or computing; beyond that a stream waits and any other "
        "request gets RESOURCE_EXHAUSTED at once. One client gets at most half, and so do all streams together. 512 snippets "
        "of 4 frames at 256 x 128 are 192 MiB.",
    )
    workers: int = Field(
        0,
        ge=0,
        le=64,
        description="Batches that compute at the same time, sharing the threads; another one than the first begins when it "
        "is full, or has waited for a second. 0: two with OpenVINO on two threads or more, else one. Two need the weights "
        "in memory twice.",
    )
    bulk_share: float = Field(
        0.1,
        ge=0.01,
        le=0.9,
        description="Least share of the snippets that bulk ingest gets while interactive requests wait; all of it when "
        "none does.",
    )
    watchdog_seconds: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Time after which a batch counts as hanging, in seconds: it is given up with INTERNAL, the health is "
        "NOT_SERVING until a new thread gets an answer. A batch of 32 frames takes about a second on one slow core.",
    )


class Cache(Section):
    """What is worked out on this machine for this machine, and reused at the next start. Nothing of a gallery."""

    folder: Path | None = Field(
        None,
        description="Where it is kept; made when missing. Default: `passerby` in the user's cache folder "
        "($XDG_CACHE_HOME, else ~/.cache).",
    )
    tuning: bool = Field(
        True,
        description="Take threads, workers and largest batch from `passerby bundle tune`, where it measured this "
        "encoder on this machine and the configuration does not set them.",
    )
    compiled: bool = Field(True, description="Keep the encoder as OpenVINO compiled it, for the next start.")


class Upkeep(Section):
    """What the server does by itself with the galleries."""

    sweep_seconds: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="How often the server looks for tracklets that are older than their retention: none outlives it by more.",
    )
    rewrite_seconds: float = Field(
        600.0,
        ge=0,
        le=86_400,
        description="How long the slack of the database file may hold pieces of a deleted tracklet before the whole file "
        "is written anew, which deletions in that time share. EraseIdentity does not wait.",
    )
    audit_days: float = Field(
        365.0,
        ge=0,
        le=36_500,
        description="What a gallery's audit says of tracklets that retention erased is deleted, and counted, when it is older "
        "than this; 0 keeps it. All else that is in the audit stays.",
    )


class Metrics(Section):
    """What Prometheus may read, over HTTP."""

    address: str = Field(
        "",
        description="HOST:PORT of /metrics, for example 127.0.0.1:9464; port 0 takes a free one. Empty: none, since a "
        "port that nobody asked for is one more to defend.",
    )
    insecure_listen: bool = Field(
        False,
        description="Serve metrics beyond this machine. They are neither encrypted nor asked for a token; they hold counts "
        "and times, and no names but those of galleries, if `metrics.gallery_labels` is on.",
    )
    gallery_labels: bool = Field(
        False,
        description="Give each gallery series of its own, labelled with its id, instead of one sum: ids leave the server "
        "then. At most 200 galleries.",
    )


class Tracing(Section):
    """OpenTelemetry traces of calls and their stages."""

    endpoint: str = Field(
        "",
        pattern=r"^$|^https?://[^/\s]+$",
        description="Collector that takes OTLP over gRPC, for example http://127.0.0.1:4317, or https://... with TLS. "
        "Empty: no traces.",
    )
    sample: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of calls that are traced, of those whose caller did not decide that itself (`traceparent`).",
    )
