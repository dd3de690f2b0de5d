"""What is evaluated: a checkpoint, a bundle or a running server, each a way from tracklets to descriptors.

    checkpoint (.pt)    PyTorch, in this process
    bundle (folder)     OpenVINO, ONNX Runtime or TensorRT, in this process
    server (HOST:PORT)  its EmbedTracklet, through the public client, frames as they lie on disk

All three cut tracklets by one `ClipScheme` and average snippets alike, so that they give the same figures.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, PasserbyError
from passerby_model import descriptors
from passerby_model.datasets import Tracklet
from passerby_model.descriptors import ClipScheme, Progress

if TYPE_CHECKING:
    from passerby_client import Client
    from passerby_model.backends import BackendKind, PrecisionKind

Masks = Mapping[int, NDArray[np.float32]]
Metric = Literal["squared_euclidean", "cosine"]

# Calls that a server works on at once: enough to fill its batches, few enough not to fill its queue.
SERVER_CALLS = 4
# Frames of one message; the rest of gRPC's 4 MiB is for what is around them.
MESSAGE_BYTES = 4 * 1024 * 1024 - 64 * 1024
_ADDRESS = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:]+\]):\d{1,5}")


@dataclass(frozen=True)
class ModelDescription:
    """What was evaluated.

    kind, source: what MODEL was, and its file name, folder name or address. runtime: what computed, with precision.
    trained_on: names of the training data, where known.
    """

    kind: Literal["checkpoint", "bundle", "server"]
    source: str
    name: str
    architecture: str
    fingerprint: str
    metric: Metric
    descriptor_dim: int
    snippet_length: int
    height: int
    width: int
    runtime: str
    trained_on: tuple[str, ...] = ()


class EvaluatedModel(Protocol):
    """A way from tracklets to descriptors; a context manager that closes connections."""

    @property
    def description(self) -> ModelDescription: ...

    def embed(
        self, tracklets: Sequence[Tracklet], scheme: ClipScheme, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """float32 (T, D); errors as `descriptors.embed`, or those of the server."""
        ...

    def encode(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Masks]:
        """uint8 (B, N, H, W, 3) -> descriptors (B, D) and, by CNN block, masks float32 (B, N, h, w)."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def open_model(
    target: str,
    *,
    threads: int = 0,
    device: str = "auto",
    backend: BackendKind = "auto",
    precision: PrecisionKind = "auto",
    allow_unverified: bool = False,
    machine_cache: Path | None = None,
    ca_file: Path | None = None,
    timeout: float = 60.0,
) -> EvaluatedModel:
    """The model behind `target`: a checkpoint's file, a bundle's folder, or HOST:PORT of a server.

    Args:
        threads: CPU threads of the encoder, 0 for all cores (no effect on a server).
        device: of a checkpoint: "cpu", "cuda", or "auto" for cuda where there is one.
        backend, precision: of a bundle: what computes, and which of its number formats.
        allow_unverified: also a bundle without a passing parity report.
        machine_cache: of a bundle on a GPU: the server's cache folder (`passerby_model.machine`).
        ca_file: certificates to trust; connects to a server with TLS.
        timeout: seconds for each call of a server; long tracklets get more.

    Raises:
        NotFoundError: there is nothing by that name.
        PasserbyError: what is there cannot be opened.
    """
    path = Path(target)
    if path.is_dir():
        return BundleModel(
            path,
            backend=backend,
            precision=precision,
            threads=threads,
            allow_unverified=allow_unverified,
            machine_cache=machine_cache,
        )
    if path.is_file():
        return CheckpointModel(path, threads=threads, device=device)
    if _ADDRESS.fullmatch(target):
        return ServerModel(target, ca_file=ca_file, timeout=timeout)
    raise NotFoundError(
        f"{target}: no checkpoint, no bundle, and not HOST:PORT of a server either", reason="MODEL_NOT_FOUND"
    )


class _InProcess(ABC):
    """What the two models that compute here share: `encode` is all that they add."""

    description: ModelDescription

    @abstractmethod
    def encode(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Masks]:
        """See `EvaluatedModel.encode`."""

    def embed(
        self, tracklets: Sequence[Tracklet], scheme: ClipScheme, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """See `EvaluatedModel.embed`."""
        return descriptors.embed(
            lambda pixels: self.encode(pixels)[0],
            tracklets,
            scheme,
            height=self.description.height,
            width=self.description.width,
            progress=progress,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return


class CheckpointModel(_InProcess):
    """A checkpoint of ours, or a state dict of the COSAM authors' code, in eager PyTorch and full precision."""

    def __init__(self, path: Path, *, threads: int = 0, device: str = "auto") -> None:
        from passerby_model.open_checkpoint import open_checkpoint

        opened = open_checkpoint(path, threads=threads, device=device)
        loaded, self._encode = opened.checkpoint, opened.encode
        arch = loaded.architecture
        self.description = ModelDescription(
            kind="checkpoint",
            source=path.name,
            name=path.stem,
            architecture=arch.name,
            fingerprint=loaded.fingerprint,
            metric="squared_euclidean",
            descriptor_dim=opened.encoder.descriptor_size,
            snippet_length=arch.snippet_length,
            height=arch.height,
            width=arch.width,
            runtime=f"PyTorch {opened.torch}, {opened.device}, fp32",
            trained_on=trained_on(loaded.metadata),
        )

    def encode(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Masks]:
        """See `EvaluatedModel.encode`."""
        return self._encode(pixels)


class BundleModel(_InProcess):
    """A bundle, in the runtime that a server would load it with."""

    def __init__(
        self,
        path: Path,
        *,
        backend: BackendKind = "auto",
        precision: PrecisionKind = "auto",
        threads: int = 0,
        allow_unverified: bool = False,
        machine_cache: Path | None = None,
    ) -> None:
        from passerby_model.backends import open_backend
        from passerby_model.backends.base import GPU_RUNTIMES
        from passerby_model.bundle import open_bundle

        bundle = open_bundle(path, allow_unverified=allow_unverified)
        manifest = bundle.manifest
        if backend in GPU_RUNTIMES and machine_cache is not None:
            from .verify_gpu import open_proven

            self._backend = open_proven(bundle, backend, precision, machine_cache)
        else:
            self._backend = open_backend(bundle, backend, precision=precision, threads=threads)
        self.description = ModelDescription(
            kind="bundle",
            source=path.resolve().name,
            name=manifest.name,
            architecture=manifest.architecture,
            fingerprint=manifest.fingerprint,
            metric=manifest.metric,
            descriptor_dim=manifest.descriptor_dim,
            snippet_length=manifest.input.snippet_length,
            height=manifest.input.height,
            width=manifest.input.width,
            runtime=f"{self._backend.name}, {self._backend.precision}",
            trained_on=trained_on(manifest.training),
        )

    def encode(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Masks]:
        """See `EvaluatedModel.encode`."""
        encoded = self._backend.encode(pixels)
        return encoded.descriptors, encoded.masks


class ServerModel:
    """A running server. Whole snippets go into each message, so that a tracklet in parts gives what it gives whole."""

    def __init__(self, address: str, *, ca_file: Path | None = None, timeout: float = 60.0) -> None:
        from passerby.v1.model_service_pb2 import Backend
        from passerby.v1.resources_pb2 import Metric as MetricNumber
        from passerby_client.commands.common import connect

        self._client: Client = connect(address, ca_file, timeout)
        info = self._client.model_info()
        metric = MetricNumber.Name(info.metric).removeprefix("METRIC_").lower()
        if metric not in ("squared_euclidean", "cosine"):
            raise FailedPreconditionError(f"{address}: its model has the metric {metric!r}, which this passerby lacks")
        self.description = ModelDescription(
            kind="server",
            source=address,
            name=info.bundle_name,
            architecture=info.architecture,
            fingerprint=info.model_fingerprint,
            metric="cosine" if metric == "cosine" else "squared_euclidean",
            descriptor_dim=info.descriptor_dim,
            snippet_length=info.snippet_length,
            height=info.input_height,
            width=info.input_width,
            runtime=f"{Backend.Name(info.backend).removeprefix('BACKEND_').lower()}, {info.precision}",
        )

    def embed(
        self, tracklets: Sequence[Tracklet], scheme: ClipScheme, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """See `EvaluatedModel.embed`; the server's errors name the tracklet."""
        if not tracklets:
            raise InvalidArgumentError("there are no tracklets to embed")
        rows = []
        with ThreadPoolExecutor(SERVER_CALLS, thread_name_prefix="embed") as pool:
            futures = [pool.submit(self._embed_one, tracklet, scheme) for tracklet in tracklets]
            try:
                for done, future in enumerate(futures, start=1):
                    rows.append(future.result())
                    if progress is not None:
                        progress(done, len(tracklets))
            finally:
                for future in futures:
                    future.cancel()
        found = np.stack(rows)
        descriptors.check_finite(found, tracklets)
        return found

    def encode(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Masks]:
        """Masks alone, from ExplainTracklet; the descriptors come back with no columns, float32 (B, 0)."""
        parts: dict[int, list[NDArray[np.float32]]] = {}
        for snippet in pixels:
            answer = self._client.explain(list(snippet))
            for block in {mask.block for mask in answer.masks}:
                frames = sorted((m for m in answer.masks if m.block == block), key=lambda mask: mask.frame_index)
                maps = [np.array(m.values, np.float32).reshape(m.height, m.width) for m in frames]
                parts.setdefault(block, []).append(np.stack(maps))
        return np.zeros((len(pixels), 0), np.float32), {block: np.stack(found) for block, found in parts.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def _embed_one(self, tracklet: Tracklet, scheme: ClipScheme) -> NDArray[np.float32]:
        total = np.zeros(self.description.descriptor_dim)
        count = 0
        for frames in _messages(tracklet, scheme):
            try:
                answer = self._client.embed(frames)
            except PasserbyError as error:
                raise type(error)(f"{tracklet.key}: {error.message}", reason=error.reason) from error
            found = answer.tracklet_descriptor
            if found.model_fingerprint != self.description.fingerprint:
                raise FailedPreconditionError(
                    f"{self.description.source} changed its model during the evaluation: run it again",
                    reason="MODEL_CHANGED",
                )
            total += np.array(found.values, np.float64) * answer.snippet_count
            count += answer.snippet_count
        return np.asarray(total / count, np.float32)


def trained_on(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the data that a checkpoint's or a bundle's training record lists; empty where it lists none."""
    config = record.get("config")
    listed = config.get("data") if isinstance(config, dict) else None
    entries = listed if isinstance(listed, list) else []
    return tuple(PurePath(str(entry["path"])).name for entry in entries if isinstance(entry, dict) and "path" in entry)


def _messages(tracklet: Tracklet, scheme: ClipScheme) -> Iterator[list[bytes]]:
    """The frames of whole snippets, as encoded on disk, in messages that gRPC carries."""
    message: list[bytes] = []
    size = 0
    for row in scheme.snippets(len(tracklet.frames)):
        snippet = [_read(tracklet.frames[index]) for index in row]
        more = sum(map(len, snippet))
        if message and size + more > MESSAGE_BYTES:
            yield message
            message, size = [], 0
        message += snippet
        size += more
    yield message


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror or error}") from error
