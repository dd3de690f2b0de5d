"""The server's configuration: one frozen, validated object.

Precedence: flags > environment (`PASSERBY_ADDRESS`, `PASSERBY_LIMITS__MAX_FRAMES`) > file (YAML) > default.
An unknown key is an error that suggests the nearest name. Only the command reads the environment; everything else is
given a `ServerConfig`.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_model.backends.base import BackendKind
from passerby_model.machine import default_cache
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ENVIRONMENT_PREFIX = "PASSERBY_"
CONFIG_VARIABLE = "PASSERBY_CONFIG"
# Read by the client's commands, which often share an environment with the server.
CLIENT_VARIABLES = frozenset({"PASSERBY_SERVER", "PASSERBY_CA_FILE"})
# What Kubernetes (and Docker's links) set in every container beside a service named "passerby".
_SERVICE_LINK = re.compile(r"PASSERBY_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
MIB = 1024 * 1024


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Section):
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
    max_streams: int = Field(32, ge=1, description="Of these, streams (StreamTracklet, BulkIngestTracklets).")
    max_bulk_in_flight: int = Field(
        16, ge=1, description="Tracklets of one BulkIngestTracklets stream that are worked on at the same time."
    )
    stream_idle_seconds: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Longest silence of a stream's caller while the server waits for it, in seconds: a connection whose "
        "other end is gone would keep its place among the streams until TCP gives up.",
    )


class Batching(_Section):
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
        description="Snippets that are being decoded, waiting or computing; beyond that a request gets "
        "RESOURCE_EXHAUSTED at once. 512 snippets of 4 frames at 256 x 128 are 192 MiB.",
    )
    workers: int = Field(1, ge=1, le=64, description="Batches that compute at the same time, sharing the threads.")


class Cache(_Section):
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


class Upkeep(_Section):
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


class ServerConfig(_Section):
    """Everything that the server can be told."""

    bundle: Path = Field(description="Folder of the bundle (`passerby export` or `passerby bundle wrap` makes one).")
    data: Path = Field(Path("data"), description="Folder of the galleries; made when missing.")
    address: str = Field("127.0.0.1:50051", description="HOST:PORT to listen on; port 0 takes a free one.")
    insecure_listen: bool = Field(
        False,
        description="Listen beyond this machine although there is neither encryption nor authentication yet: whoever "
        "reaches the port can read and delete everything.",
    )
    backend: BackendKind = Field(
        "auto",
        description="What runs the encoder; auto takes the faster one on the CPU. A GPU (tensorrt, onnxruntime-tensorrt, "
        "onnxruntime-cuda) is taken by name only, once `passerby bundle verify` has proven it here; until then, the next.",
    )
    cuda_graphs: bool = Field(
        False, description="Let ONNX Runtime on a GPU launch the whole network at once (CUDA graphs)."
    )
    precision: Literal["auto", "fp32", "fp16", "w8", "bf16", "int8"] = Field(
        "auto",
        description="Which of the bundle's artefacts runs; auto takes bf16 where the bundle has it and the processor "
        "too, else the most exact one; int8 is taken by name only.",
    )
    index: str = Field(
        "auto",
        description="Kind of index: auto (by size), exact, fp16, int8, or a FAISS factory string, with parameters after "
        "a semicolon: `IVF4096,SQ8;nprobe=32`. docs/search.md explains the choice.",
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of the encoder; 0 for all cores.")
    decode_threads: int = Field(0, ge=0, le=256, description="Threads that decode frames; 0 for one per core.")
    allow_unverified: bool = Field(False, description="Serve a bundle whose parity report is missing or failed.")
    drain_seconds: float = Field(30.0, ge=0, le=3600, description="How long running calls may go on after SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least serious log line.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines for people or for programs.")
    batching: Batching = Batching()
    limits: Limits = Limits()
    cache: Cache = Cache()
    upkeep: Upkeep = Upkeep()

    @model_validator(mode="after")
    def _checked(self) -> Self:
        host, _ = split_address(self.address)
        if not self.insecure_listen and not is_loopback(host):
            raise ValueError(
                f"address {self.address!r} can be reached from other machines, and this server has neither TLS nor "
                "authentication yet; listen on 127.0.0.1, or pass --insecure-listen if the network itself is closed"
            )
        if self.limits.max_frame_bytes > self.limits.max_message_bytes:
            raise ValueError(
                "limits.max_frame_bytes is larger than limits.max_message_bytes: no such frame could arrive"
            )
        return self


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[HOST]:PORT`; raises ValueError for any other form."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"address {address!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine alone; a name other than `localhost` counts as outside."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_config(
    flags: Mapping[str, Any], *, environment: Mapping[str, str] | None = None, file: Path | None = None
) -> ServerConfig:
    """Merges flags > environment > file > defaults. `cache.folder` has a default only where there is an environment.

    Args:
        flags: values by dotted key (`limits.max_frames`); None means not given.
        environment: variables; those that begin with `PASSERBY_` count, `__` separates the parts of a key.
        file: YAML.

    Raises:
        NotFoundError: no such file.
        InvalidArgumentError: an unknown key (with the nearest name), or a value that is not allowed.
    """
    folder = default_cache(environment or {})
    merged: dict[str, Any] = {} if folder is None else {"cache": {"folder": folder}}
    sources = [_from_file(file) if file else {}, _from_environment(environment or {}), _from_flags(flags)]
    for source in sources:
        _merge(merged, source)
    try:
        return ServerConfig.model_validate(merged)
    except ValidationError as error:
        raise InvalidArgumentError(_explain(error), reason="CONFIG_INVALID") from error


def keys(model: type[BaseModel] = ServerConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key, for example `limits.max_frames`."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _from_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}", reason="CONFIG_NOT_FOUND") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{path} is no YAML: {error}", reason="CONFIG_INVALID") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidArgumentError(f"{path} holds no mapping of keys to values", reason="CONFIG_INVALID")
    return _nested(dict(_flat(content)), str(path))


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    given = {}
    for name, value in environment.items():
        ours = name != CONFIG_VARIABLE and name not in CLIENT_VARIABLES and not _SERVICE_LINK.fullmatch(name)
        if name.startswith(ENVIRONMENT_PREFIX) and ours:
            given[name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")] = value
    return _nested(given, "the environment", shown=lambda key: ENVIRONMENT_PREFIX + key.upper().replace(".", "__"))


def _from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    return _nested({key: value for key, value in flags.items() if value is not None}, "the flags")


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(flat: Mapping[str, Any], source: str, shown: Any = str) -> dict[str, Any]:
    known = list(keys())
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {shown(near[0])}?" if near else ""
            raise InvalidArgumentError(f"{source}: unknown key {shown(key)}{hint}", reason="CONFIG_UNKNOWN_KEY")
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return nested


def _merge(into: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            text = f"is required: give --{where}, {ENVIRONMENT_PREFIX}{where.upper()} or `{where}:` in the file"
        lines.append(f"{where}: {text}" if where else text)
    return "; ".join(lines)
