"""Opening an encoder on a GPU: the engine, the hardware, and the proof that this machine made for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from passerby.errors import FailedPreconditionError

from passerby_model.backends.base import Backend, BackendName
from passerby_model.backends.gpu import Gpu, find_gpus
from passerby_model.backends.proofs import ProofKey, find_proof
from passerby_model.backends.versions import runtime_version
from passerby_model.bundle import Artefact, Bundle

if TYPE_CHECKING:
    from passerby_model.backends import Options
    from passerby_model.backends.onnxruntime_gpu import GpuRuntime

ENGINE_MISSING, PROOF_MISSING = "ENGINE_MISSING", "PROOF_MISSING"
"""Reasons that `passerby bundle verify` does away with."""


@dataclass(frozen=True)
class OnGpu:
    """A loaded encoder, and what its proof has to be for."""

    backend: Backend
    key: ProofKey


def open_on_gpu(
    bundle: Bundle, artefact: Artefact, runtime: BackendName, options: Options, *, proven: bool = True
) -> OnGpu:
    """Loads that artefact on that runtime of a GPU.

    Args:
        proven: only if the cache folder has its proof; `passerby bundle verify`, which makes it, passes False.

    Raises:
        FailedPreconditionError: there is no cache folder (CACHE_FOLDER), no GPU (GPU_MISSING), the runtime is not
            installed (BACKEND_MISSING) or cannot run the encoder (BACKEND_LOAD), TensorRT has no engine and may not
            build one (ENGINE_MISSING), or nothing proves it on this machine (PROOF_MISSING).
    """
    cache = options.cache
    if cache is None:
        raise FailedPreconditionError(
            f"{runtime} needs the folder of what is worked out on a machine, which a server has (cache.folder)",
            reason="CACHE_FOLDER",
        )
    version = _installed(runtime)
    gpus = find_gpus()
    files = {name: bundle.manifest.files[name].sha256 for name in artefact.files}
    if runtime == "tensorrt":
        found = _tensorrt(bundle, artefact, files, gpus, version, cache, build=options.build_engine)
    else:
        found = _onnxruntime(bundle, artefact, runtime, files, cache, cuda_graphs=options.cuda_graphs)
    engine = str(getattr(found, "engine_sha256", ""))
    graphs = options.cuda_graphs and runtime != "tensorrt"
    key = ProofKey(files=files, runtime=runtime, version=version, gpus=gpus, engine=engine, cuda_graphs=graphs)
    if proven and find_proof(cache, key) is None and not bundle.allow_unverified:
        raise FailedPreconditionError(
            f"{artefact.file} has not been compared with the network on {runtime} {version} and {gpus[0].name}: "
            + _verify(bundle, runtime),
            reason=PROOF_MISSING,
        )
    return OnGpu(found, key)


def _installed(runtime: BackendName) -> str:
    try:
        version = runtime_version(runtime)
        if runtime == "tensorrt":
            import polygraphy.backend.trt  # noqa: F401
    except ImportError as error:
        extra = "tensorrt" if runtime == "tensorrt" else "server-gpu"
        raise FailedPreconditionError(
            f"{runtime} is not installed ({error}): pip install 'passerby[{extra}]'", reason="BACKEND_MISSING"
        ) from error
    return version


def _tensorrt(
    bundle: Bundle,
    artefact: Artefact,
    files: dict[str, str],
    gpus: tuple[Gpu, ...],
    version: str,
    cache: Path,
    *,
    build: bool,
) -> Backend:
    from passerby_model.backends.tensorrt import TensorRtBackend, build_engine, engine_key, load_engine

    key = engine_key(files, bundle.manifest.input, gpus, version, artefact.precision)
    plan = load_engine(cache, key)
    if plan is None and not build:
        raise FailedPreconditionError(
            f"TensorRT {version} has no engine of {artefact.file} for {gpus[0].name} and driver {gpus[0].driver} yet: "
            + _verify(bundle, "tensorrt"),
            reason=ENGINE_MISSING,
        )
    plan = plan or build_engine(bundle.root / artefact.file, key, cache)
    return TensorRtBackend(plan, key, manifest=bundle.manifest, precision=artefact.precision)


def _onnxruntime(
    bundle: Bundle,
    artefact: Artefact,
    runtime: BackendName,
    files: dict[str, str],
    cache: Path,
    *,
    cuda_graphs: bool,
) -> Backend:
    from passerby_model.backends.onnxruntime_gpu import OnnxRuntimeGpuBackend

    path: Any = bundle.root / artefact.file
    try:
        return OnnxRuntimeGpuBackend(
            path,
            cast("GpuRuntime", runtime),
            manifest=bundle.manifest,
            precision=artefact.precision,
            cache=cache,
            files=files,
            cuda_graphs=cuda_graphs,
        )
    except FailedPreconditionError:
        raise
    except Exception as error:  # ONNX Runtime's errors share no base but Exception
        raise FailedPreconditionError(f"{runtime} cannot load {path}: {error}", reason="BACKEND_LOAD") from error


def _verify(bundle: Bundle, runtime: str) -> str:
    return f"run `passerby bundle verify {bundle.root} --backend {runtime}` on this machine"
