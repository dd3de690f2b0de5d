"""How fast is the encoder: eager PyTorch, ONNX Runtime and OpenVINO on one network, side by side.

    python benchmarks/encoder.py [--checkpoint best.pt] [--batches 1,4] [--repeats 7]

Without a checkpoint the weights are random: speed does not depend on them. Rounds are interleaved (every backend once,
then again), so that a machine that slows down slows all of them; medians are reported, as snippets/s and relative
to eager PyTorch. Writes benchmarks/results/encoder.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from common import save
from numpy.typing import NDArray
from passerby_export.bundle import tool_versions
from passerby_export.export import torch_reference
from passerby_export.onnx_export import to_onnx
from passerby_export.parity import sample_snippets
from passerby_export.storage import Precision, store_weights
from passerby_model import checkpoint as checkpoints
from passerby_model.backends import BackendName, Encoded, open_encoder
from passerby_model.bundle import Input
from passerby_model.encoder import DEFAULT_NAME, Architecture, TrackletEncoder

EAGER = "pytorch fp32"
Encode = Callable[[NDArray[np.uint8]], Encoded]


@dataclass(frozen=True)
class Figure:
    """One backend at one batch size."""

    backend: str
    batch: int
    """Snippets a call."""
    seconds: float
    """Median time of a call."""
    snippets_per_second: float
    """batch / seconds."""
    ratio: float
    """snippets_per_second divided by that of eager PyTorch at the same batch."""
    cosine: float
    """Least descriptor cosine to eager PyTorch over the batch."""


def backends(encoder: TrackletEncoder, folder: Path, precisions: list[Precision], threads: int) -> dict[str, Encode]:
    """Everything that can be compared, by name; encoder files are written to `folder`."""
    graph = to_onnx(encoder)
    found: dict[str, Encode] = {EAGER: torch_reference(encoder)}
    runtimes: tuple[BackendName, ...] = ("onnxruntime", "openvino")
    for precision in precisions:
        path = folder / f"{precision}.onnx"
        path.write_bytes(store_weights(graph, precision).SerializeToString())
        for runtime in runtimes:
            backend = open_encoder(path, "onnx", runtime, precision=precision, threads=threads)
            found[f"{runtime} {precision}"] = backend.encode
    if _has_bf16():
        backend = open_encoder(folder / "fp32.onnx", "onnx", "openvino", threads=threads, inference_precision="bf16")
        found["openvino bf16"] = backend.encode
    return found


def measure(compared: dict[str, Encode], snippets: NDArray[np.uint8], repeats: int) -> list[Figure]:
    """Medians over `repeats` interleaved rounds, after one round to warm up. snippets: uint8 (B, N, H, W, 3)."""
    expected = {name: encode(snippets).descriptors for name, encode in compared.items()}
    times: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(repeats):
        for name, encode in compared.items():
            start = time.perf_counter()
            encode(snippets)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [
        Figure(
            backend=name,
            batch=len(snippets),
            seconds=round(seconds, 4),
            snippets_per_second=round(len(snippets) / seconds, 3),
            ratio=round(medians[EAGER] / seconds, 3),
            cosine=round(_least_cosine(expected[name], expected[EAGER]), 7),
        )
        for name, seconds in medians.items()
    ]


def main() -> None:
    """Parse flags, measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: random weights")
    parser.add_argument("--architecture", default=DEFAULT_NAME, help="without a checkpoint")
    parser.add_argument("--batches", default="1,4", help="snippets a call")
    parser.add_argument("--precisions", default="fp32,w8", help="storage of the weights; computed in fp32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    encoder = _encoder(options.checkpoint, options.architecture)
    arch = encoder.architecture
    input = Input(snippet_length=arch.snippet_length, height=arch.height, width=arch.width)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        compared = backends(encoder, Path(folder), options.precisions.split(","), options.threads)
        for batch in (int(text) for text in options.batches.split(",")):
            figures += measure(compared, sample_snippets(batch, input, "smooth"), options.repeats)
            for figure in figures[-len(compared) :]:
                print(
                    f"batch {figure.batch:2}  {figure.backend:18} {figure.snippets_per_second:7.2f} snippets/s"
                    f"  {figure.ratio:5.2f}x  cosine {figure.cosine:.7f}"
                )
    result: dict[str, object] = {
        "architecture": arch.name,
        "weights": options.checkpoint.name if options.checkpoint else "random",
        "repeats": options.repeats,
        "tools": tool_versions(),
        "figures": [asdict(figure) for figure in figures],
    }
    print(save("encoder", result))


def _encoder(checkpoint: Path | None, architecture: str) -> TrackletEncoder:
    if checkpoint is not None:
        return checkpoints.load(checkpoint).build().encoder
    torch.manual_seed(0)
    encoder = TrackletEncoder(Architecture.parse(architecture)).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # new residual branches are zero: nothing to be compared in them
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    return encoder


def _has_bf16() -> bool:
    """Whether OpenVINO computes in bf16 on this processor."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _least_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


if __name__ == "__main__":
    main()
