"""Encoder throughput and what it costs in accuracy: every precision and runtime against eager PyTorch in float32.

    python benchmarks/encoder.py --checkpoint runs/s4/last.pt --data runs/data/ward \
        --calibrated-on bundles/recipes/ward-train-identities.txt --ranked-on bundles/recipes/ward-test-identities.txt

One run on one machine: calls are interleaved, so that all of them meet the same conditions, and medians are printed.
Frames are real tracklets with --data (int8 is calibrated on one part of the people and ranked on another), else made
up. GFLOP/s stands beside what a plain matrix product in PyTorch reaches, measured in the same run.
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
from passerby_export.artefacts import Precision, Work, make_artefacts, parse_precisions
from passerby_export.bundle import tool_versions
from passerby_export.export import METRIC, torch_reference
from passerby_export.onnx_export import to_onnx
from passerby_export.parity import LIMITS, compare_rankings, make_ranking_trial
from passerby_export.quantise import Calibration, calibration_of, least_cosine
from passerby_export.samples import Tracklets, read_tracklets, sample_snippets
from passerby_model import checkpoint as checkpoints
from passerby_model import datasets
from passerby_model.backends import Backend, Encoded, open_encoder
from passerby_model.backends.choice import processor_has_bf16
from passerby_model.bundle import Input
from passerby_model.encoder import DEFAULT_NAME, Architecture, TrackletEncoder
from passerby_model.preprocess import normalise
from torch.utils.flop_counter import FlopCounterMode

EAGER = "pytorch fp32"
Encode = Callable[[NDArray[np.uint8]], Encoded]
GEMM_SIDE = 2048
# Another peer: what PyTorch does with bf16 by itself, without an export.
AUTOCAST = "pytorch bf16 autocast"


@dataclass(frozen=True)
class Figure:
    """One encoder at one batch size."""

    encoder: str
    batch: int
    """Snippets a call."""
    seconds: float
    """Median time of a call."""
    snippets_per_second: float
    """batch / seconds."""
    ratio: float
    """snippets_per_second divided by that of eager PyTorch at the same batch."""
    gflops: float
    """Arithmetic of the network (multiplications and additions) a second, 10^9."""
    cosine: float
    """Least descriptor cosine to eager PyTorch over the batch."""


def open_artefacts(
    encoder: TrackletEncoder,
    folder: Path,
    precisions: tuple[Precision, ...],
    calibration: Calibration | None,
    threads: int,
) -> dict[str, Backend]:
    """Every precision on every runtime that it is for, by name; encoder files are written to `folder`."""
    work = Work(to_onnx(encoder), folder, calibration)
    return {
        f"{runtime} {precision}": open_encoder(
            folder / artefact.file, artefact.format, runtime, precision=precision, threads=threads
        )
        for precision in precisions
        for artefact in make_artefacts(work, precision)
        for runtime in artefact.runtimes
    }


def measure(compared: dict[str, Encode], snippets: NDArray[np.uint8], repeats: int, flop: float) -> list[Figure]:
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
            encoder=name,
            batch=len(snippets),
            seconds=round(seconds, 4),
            snippets_per_second=round(len(snippets) / seconds, 3),
            ratio=round(medians[EAGER] / seconds, 3),
            gflops=round(flop * len(snippets) / seconds / 1e9, 1),
            cosine=round(least_cosine(expected[name], expected[EAGER]), 7),
        )
        for name, seconds in medians.items()
    ]


def gemm_rates() -> dict[str, float]:
    """What one product of square matrices reaches in PyTorch, GFLOP/s: the best of ten, in float32 and bf16."""
    rates = {}
    for name, kind in (("fp32", torch.float32), *((("bf16", torch.bfloat16),) if processor_has_bf16() else ())):
        a, b = torch.randn(2, GEMM_SIDE, GEMM_SIDE).to(kind)
        times = []
        for _ in range(11):
            start = time.perf_counter()
            torch.mm(a, b)
            times.append(time.perf_counter() - start)
        rates[name] = round(2 * GEMM_SIDE**3 / min(times) / 1e9, 1)
    return rates


def flop_of(encoder: TrackletEncoder) -> float:
    """Multiplications and additions of one snippet."""
    arch = encoder.architecture
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        encoder(torch.zeros(1, arch.snippet_length, 3, arch.height, arch.width))
    return float(counter.get_total_flops())


def rankings(backends: dict[str, Backend], encoder: TrackletEncoder, ranked: Tracklets) -> list[dict[str, object]]:
    """Rank-1 and mAP of each encoder beside the network's."""
    trial = make_ranking_trial(torch_reference(encoder), ranked, METRIC)
    rows: list[dict[str, object]] = []
    for name, backend in backends.items():
        row = compare_rankings(backend, trial, LIMITS["fp32"], 8)[0]
        print(
            f"{name:18} rank-1 {100 * row.rank1:5.2f} ({100 * (row.rank1 - row.network_rank1):+.2f})  "
            f"mAP {100 * row.mean_average_precision:5.2f} "
            f"({100 * (row.mean_average_precision - row.network_mean_average_precision):+.2f})"
        )
        rows.append({"encoder": name, **row.model_dump(include={"data", "queries", "rank1", "network_rank1"})})
        rows[-1] |= {"mAP": row.mean_average_precision, "network_mAP": row.network_mean_average_precision}
    return rows


def main() -> None:
    """Parse flags, measure, print a table, write the result."""
    options = arguments()
    torch.set_num_threads(options.threads)
    encoder = _encoder(options.checkpoint, options.architecture)
    arch = encoder.architecture
    input = Input(snippet_length=arch.snippet_length, height=arch.height, width=arch.width)
    calibration, ranked = _data(options, input)
    flop = flop_of(encoder)
    rates = gemm_rates()
    print(
        f"{flop / 1e9:.1f} GFLOP a snippet; matrix products: " + ", ".join(f"{k} {v} GFLOP/s" for k, v in rates.items())
    )
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        backends = open_artefacts(encoder, Path(folder), options.precisions, calibration, options.threads)
        compared = _peers(encoder) | {name: backend.encode for name, backend in backends.items()}
        for batch in options.batches:
            frames = sample_snippets(batch, input, "smooth") if ranked is None else ranked.snippets[:batch]
            figures += measure(compared, frames, options.repeats, flop)
            for figure in figures[-len(compared) :]:
                print(
                    f"batch {figure.batch:2}  {figure.encoder:22} {figure.snippets_per_second:7.2f} snippets/s"
                    f"  {figure.ratio:5.2f}x  {figure.gflops:6.1f} GFLOP/s  cosine {figure.cosine:.7f}"
                )
        ranking = [] if ranked is None else rankings(backends, encoder, ranked)
    result: dict[str, object] = {
        "architecture": arch.name,
        "input": [arch.snippet_length, arch.height, arch.width],
        "weights": options.checkpoint.name if options.checkpoint else "random",
        "frames": "made up" if ranked is None else ranked.name,
        "repeats": options.repeats,
        "threads": options.threads,
        "tools": tool_versions(),
        "gflop_a_snippet": round(flop / 1e9, 2),
        "matrix_product_gflops": rates,
        "figures": [asdict(figure) for figure in figures],
        "rankings": ranking,
    }
    print(save(options.name, result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: random weights")
    parser.add_argument("--architecture", default=DEFAULT_NAME, help="without a checkpoint")
    parser.add_argument("--data", type=Path, help="folder of tracklets")
    parser.add_argument("--calibrated-on", type=Path, help="names of the people of --data that int8 is calibrated on")
    parser.add_argument("--ranked-on", type=Path, help="names of the people of --data that are ranked")
    parser.add_argument("--batches", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4, 8])
    parser.add_argument("--precisions", type=parse_precisions, default=None, help="default: all that can be had here")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", default="encoder", help="name of the file in benchmarks/results")
    options = parser.parse_args()
    if options.precisions is None:
        can = {"fp32", "w8"} | ({"bf16"} if processor_has_bf16() else set()) | ({"int8"} if options.data else set())
        options.precisions = parse_precisions(",".join(can))
    return options


def _data(options: argparse.Namespace, input: Input) -> tuple[Calibration | None, Tracklets | None]:
    if options.data is None:
        return None, None
    names = [options.calibrated_on, options.ranked_on]
    seen, ranked = (
        read_tracklets(options.data, input, None if path is None else datasets.read_identities(path)) for path in names
    )
    return calibration_of(seen.name, seen.snippets), ranked


def _peers(encoder: TrackletEncoder) -> dict[str, Encode]:
    reference = torch_reference(encoder)

    def autocast(snippets: NDArray[np.uint8]) -> Encoded:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            descriptors, _ = encoder(torch.from_numpy(normalise(snippets)))
        return Encoded(descriptors.float().numpy(), {})

    return {EAGER: reference, AUTOCAST: autocast} if processor_has_bf16() else {EAGER: reference}


def _encoder(checkpoint: Path | None, architecture: str) -> TrackletEncoder:
    if checkpoint is not None:
        return checkpoints.load(checkpoint).build().encoder.eval()
    torch.manual_seed(0)
    encoder = TrackletEncoder(Architecture.parse(architecture)).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # new residual branches are zero: nothing to be compared in them
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    return encoder


if __name__ == "__main__":
    main()
