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
from pydantic import BaseModel, Field, ValidationError, model_validator

from passerby_server.sections import (
    Access,
    Audit,
    Batching,
    Cache,
    Connections,
    Limits,
    Metrics,
    Section,
    Tls,
    Tracing,
    Upkeep,
)

ENVIRONMENT_PREFIX = "PASSERBY_"
CONFIG_VARIABLE = "PASSERBY_CONFIG"
# Read by the client's commands, which often share an environment with the server.
CLIENT_VARIABLES = frozenset(
    f"PASSERBY_{name}" for name in ("SERVER", "CA_FILE", "TOKEN", "TOKEN_FILE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
)
# What Kubernetes (and Docker's links) set in every container beside a service named "passerby".
_SERVICE_LINK = re.compile(r"PASSERBY_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")


class ServerConfig(Section):
    """Everything that the server can be told."""

    bundle: Path = Field(description="Folder of the bundle (`passerby export` or `passerby bundle wrap` makes one).")
    data: Path = Field(Path("data"), description="Folder of the galleries; made when missing.")
    address: str = Field("127.0.0.1:50051", description="HOST:PORT to listen on; port 0 takes a free one.")
    insecure_listen: bool = Field(
        False,
        description="Listen beyond this machine although TLS (`tls.certificate`) or authentication (`access.file`) is not "
        "set up: without the first everything can be read on its way, tokens too; without the second whoever reaches the "
        "port can read and delete everything.",
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
    tls: Tls = Tls()
    access: Access = Access()
    audit: Audit = Audit()
    batching: Batching = Batching()
    connections: Connections = Connections()
    limits: Limits = Limits()
    cache: Cache = Cache()
    upkeep: Upkeep = Upkeep()
    metrics: Metrics = Metrics()
    tracing: Tracing = Tracing()

    @model_validator(mode="after")
    def _checked(self) -> Self:
        host, _ = split_address(self.address)
        missing = [
            what
            for what, setting in (
                ("TLS (tls.certificate, tls.key)", self.tls.certificate),
                ("authentication (access.file)", self.access.file),
            )
            if setting is None
        ]
        if missing and not self.insecure_listen and not is_loopback(host):
            raise ValueError(
                f"address {self.address!r} can be reached from other machines, and there is no {' and no '.join(missing)}: "
                "set that up (docs/security.md), listen on 127.0.0.1, or pass --insecure-listen if the network itself is "
                "closed"
            )
        if (self.tls.certificate is None) != (self.tls.key is None):
            raise ValueError("tls.certificate and tls.key belong together: set both or none")
        if self.tls.client_ca is not None and self.tls.certificate is None:
            raise ValueError("tls.client_ca needs tls.certificate and tls.key: client certificates exist in TLS alone")
        if self.audit != Audit() and self.access.file is None:
            raise ValueError("audit.* needs access.file: without callers there is nobody to record")
        if self.metrics.address and not self.metrics.insecure_listen:
            metrics_host, _ = split_address(self.metrics.address)
            if not is_loopback(metrics_host):
                raise ValueError(
                    f"metrics.address {self.metrics.address!r} can be reached from other machines: listen on 127.0.0.1, or "
                    "set metrics.insecure_listen if only the monitoring can reach it"
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
    for source in layers(flags, environment=environment, file=file).values():
        _merge(merged, source)
    try:
        return ServerConfig.model_validate(merged)
    except ValidationError as error:
        raise InvalidArgumentError(_explain(error), reason="CONFIG_INVALID") from error


def layers(
    flags: Mapping[str, Any], *, environment: Mapping[str, str] | None = None, file: Path | None = None
) -> dict[str, dict[str, Any]]:
    """What `file`, `environment` and `flags` give, nested by section, the stronger ones later; raises as `load_config`
    for unknown keys."""
    return {
        "file": _from_file(file) if file else {},
        "environment": _from_environment(environment or {}),
        "flag": _from_flags(flags),
    }


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
