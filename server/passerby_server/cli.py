"""`passerby serve`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer


def serve(
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle with the encoder.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the galleries; made when missing. [default: data]")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT; port 0 takes a free one. [default: 127.0.0.1:50051]")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="auto, openvino, onnxruntime; on a GPU tensorrt, onnxruntime-tensorrt, onnxruntime-cuda."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, or one that the bundle has: fp32, fp16, w8, bf16, int8. [default: auto]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the encoder; 0 for all cores.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of what is worked out for this machine. [default: passerby in the user's cache]"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with any of the settings.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, for example limits.max_frames=500; repeatable.")
    ] = None,
    allow_unverified: Annotated[
        bool | None, typer.Option("--allow-unverified", help="Serve a bundle without a passing parity report.")
    ] = None,
    insecure_listen: Annotated[
        bool | None,
        typer.Option("--insecure-listen", help="Listen beyond this machine without TLS or authentication."),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [default: info]")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json. [default: text]")] = None,
) -> None:
    """Serve a bundle: galleries, ingest and search over gRPC.

    Settings come from flags, then from the environment (PASSERBY_ADDRESS, PASSERBY_LIMITS__MAX_FRAMES, ...), then from
    the file, then from the defaults.
    """
    from passerby_server import logs
    from passerby_server.config import CONFIG_VARIABLE, load_config

    flags: dict[str, object] = {
        "bundle": bundle,
        "data": data,
        "address": address,
        "backend": backend,
        "precision": precision,
        "threads": threads,
        "cache.folder": cache,
        "allow_unverified": allow_unverified,
        "insecure_listen": insecure_listen,
        "log_level": log_level,
        "log_format": log_format,
    }
    flags |= assignments(set_ or ())
    file = config or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    settings = load_config(flags, environment=os.environ, file=file)
    from passerby_server.app import serve as serve_forever  # takes seconds: only once the settings are right

    logs.configure(settings.log_level, settings.log_format)
    serve_forever(settings)


def assignments(given: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` as values by key; raises typer.BadParameter for anything else."""
    found = {}
    for assignment in given:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise typer.BadParameter(f"{assignment!r} is not KEY=VALUE", param_hint="--set")
        found[key] = value
    return found
