"""How many clips a second does training reach, against a plain loop in the style of the reference, on this machine?

    python benchmarks/training.py                                    # CPU: fp32 and bf16
    python benchmarks/training.py --peak-tflops 989                  # GPU: and the share of its matrix peak

The plain loop does what the public training scripts of the field do: one process, each frame opened and transformed by
Pillow within the step, float32 NCHW tensors, Adam as PyTorch has it. (It is written for this comparison; it is not the
authors' program, whose decoding has worker processes.) Both train the same network on the same tracklets with the same
batches, losses and augmentation. Rounds are interleaved: each variant takes some steps, then the next one, so that a machine
that slows down slows all of them. Reported: medians over all steps but the first ones of a round, and ratios to the plain
loop. Work of a step is counted by PyTorch's own flop counter, forward and backward, multiply and add as two.

Writes benchmarks/results/training-DEVICE.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save
from passerby_model import environment, losses, training
from passerby_model.clips import clip_indices
from passerby_model.encoder import Architecture, Classifier, TrackletEncoder
from passerby_model.preprocess import IMAGENET_MEAN, IMAGENET_STD
from passerby_model.sampler import IdentitySampler
from passerby_model.street import StreetConfig
from passerby_model.street.writer import write
from passerby_model.train_config import DataSource, TrainConfig
from passerby_model.training_data import TrainingData, gather
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

PLAIN = "plain fp32"
DEFAULT = ("plain bf16", "passerby fp32", "passerby fp32 without cache", "passerby bf16")
# Of each round: the first steps allocate memory, choose algorithms and fill the queue of clips.
WARM_UP = 2


@dataclass(frozen=True)
class Figure:
    """One variant."""

    variant: str
    seconds: float
    """Median time of a step."""
    clips_per_second: float
    ratio: float
    """To the plain loop in fp32."""
    wait_share: float
    """Of the time, spent until the clips of a step are there: decoded, augmented, normalised."""
    tflops: float
    peak_share: float | None
    """tflops over --peak-tflops; None without it."""


Timed = list[tuple[float, float]]
"""(seconds of a step, of them spent on waiting for clips)."""


class Timer:
    """A reporter that keeps times."""

    def __init__(self) -> None:
        self.times: Timed = []

    def message(self, text: str) -> None:
        """Nothing: this is no place for news."""

    def step(self, step: training.Step, total: int) -> None:
        self.times.append((step.seconds, step.wait_seconds))


def ours(config: TrainConfig, steps: int) -> Timed:
    """Times of `steps` steps of `passerby train`."""
    timer, asked = Timer(), iter([False] * steps + [True])
    with tempfile.TemporaryDirectory() as folder:
        training.train(config, Path(folder) / "run", reporter=timer, stop=lambda: next(asked))
    return timer.times


def plain(config: TrainConfig, data: TrainingData, steps: int, *, bf16: bool = False) -> Timed:
    """Times of `steps` steps of the plain loop."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _model(config, len(data.names)).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    batches = _batches(config, data)
    generator = np.random.default_rng(0)
    times: Timed = []
    for _ in range(steps):
        began = time.perf_counter()
        members = next(batches)
        frames = torch.stack([_plain_clip(config, data, int(member), generator) for member in members]).to(device)
        labels = torch.from_numpy(data.labels[members]).to(device)
        waited = time.perf_counter() - began
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            descriptors, logits, _ = model(frames)
        loss = losses.cross_entropy(logits.float(), labels, config.label_smoothing)
        loss = loss + losses.batch_hard_triplet(descriptors.float(), labels, config.margin)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        loss.item()
        times.append((time.perf_counter() - began, waited))
    return times


def _plain_clip(config: TrainConfig, data: TrainingData, member: int, generator: np.random.Generator) -> Tensor:
    """float32 (N, 3, H, W): the frames of a clip, each opened, moved and normalised on its own."""
    paths = data.tracklets[member].frames
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    frames = []
    for index in clip_indices(len(paths), config.snippet_length, generator):
        with Image.open(paths[index]) as opened:
            image = opened.convert("RGB")
        if generator.random() < config.augmentation.crop:
            large = round(config.width * 9 / 8), round(config.height * 9 / 8)
            image = image.resize(large, Image.Resampling.BILINEAR)
            left, top = (
                int(generator.integers(0, a - b + 1)) for a, b in zip(large, (config.width, config.height), strict=True)
            )
            image = image.crop((left, top, left + config.width, top + config.height))
        else:
            image = image.resize((config.width, config.height), Image.Resampling.BILINEAR)
        if generator.random() < config.augmentation.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        frames.append((pixels - mean) / std)
    return torch.stack(frames)


def _batches(config: TrainConfig, data: TrainingData) -> Iterator[Any]:
    sampler = IdentitySampler(data.labels, config.identities_per_batch, config.tracklets_per_identity, config.seed)
    epoch = 0
    while True:
        yield from sampler.epoch(epoch)
        epoch += 1


def flops_of_a_clip(config: TrainConfig) -> float:
    """Floating-point operations of one clip, forward and backward."""
    clips = 2  # a batch norm over single values would refuse one
    model = _model(config, 2).train()
    frames = torch.zeros(clips, config.snippet_length, 3, config.height, config.width)
    with FlopCounterMode(display=False) as counter:
        descriptors, logits, _ = model(frames)
        (descriptors.sum() + logits.sum()).backward()
    return float(counter.get_total_flops()) / clips


def _model(config: TrainConfig, classes: int) -> Classifier:
    architecture = Architecture.parse(
        config.architecture, snippet_length=config.snippet_length, height=config.height, width=config.width
    )
    return Classifier(TrackletEncoder(architecture), classes)


def variants(config: TrainConfig, data: TrainingData, names: list[str], steps: int) -> dict[str, Callable[[], Timed]]:
    """What is compared, by name; the plain loop first."""

    def own(**changes: Any) -> Callable[[], Timed]:
        return lambda: ours(config.model_copy(update=changes), steps)

    known: dict[str, Callable[[], Timed]] = {
        PLAIN: lambda: plain(config, data, steps),
        "plain bf16": lambda: plain(config, data, steps, bf16=True),
        "passerby fp32": own(),
        "passerby fp32 without cache": own(cache_gib=0.0),
        "passerby bf16": own(amp="bf16"),
        "passerby bf16 compiled": own(amp="bf16", compile=True),
    }
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise SystemExit(f"unknown variants {unknown}; there are {', '.join(known)}")
    return {name: known[name] for name in known if name in {PLAIN, *names}}


def measure(compared: dict[str, Callable[[], Timed]], rounds: int) -> dict[str, Timed]:
    """All times but those of the warm-up, over interleaved rounds."""
    times: dict[str, Timed] = {name: [] for name in compared}
    for number in range(1, rounds + 1):
        for name, run in compared.items():
            times[name] += run()[WARM_UP:]
            median = statistics.median(seconds for seconds, _ in times[name])
            print(f"round {number}  {name:26} {median:8.3f} s a step so far", flush=True)
    return times


def figures(times: dict[str, Timed], clips: int, flops: float, peak: float | None) -> list[Figure]:
    """Medians and ratios. clips: of a step; flops: of a clip; peak: TFLOP/s of the device, if known."""
    medians = {name: statistics.median(seconds for seconds, _ in found) for name, found in times.items()}
    rows = []
    for name, seconds in medians.items():
        tflops = flops * clips / seconds / 1e12
        waited = sum(wait for _, wait in times[name]) / sum(passed for passed, _ in times[name])
        rows.append(
            Figure(
                variant=name,
                seconds=round(seconds, 4),
                clips_per_second=round(clips / seconds, 3),
                ratio=round(medians[PLAIN] / seconds, 3),
                wait_share=round(waited, 4),
                tflops=round(tflops, 4),
                peak_share=round(tflops / peak, 4) if peak else None,
            )
        )
    return rows


def main() -> None:
    """Parse flags, measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="tracklets to train on; default: a street written for it")
    parser.add_argument("--architecture", default="se_resnet50+cosam45+tp")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--identities", type=int, default=8, help="of a batch (P)")
    parser.add_argument("--tracklets", type=int, default=4, help="of each of them (K)")
    parser.add_argument("--variant", action="append", help=f"may be repeated; default: {', '.join(DEFAULT)}")
    parser.add_argument("--steps", type=int, default=6, help=f"of a round; the first {WARM_UP} are not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="threads that decode ahead")
    parser.add_argument("--threads", type=int, default=0, help="of torch on a CPU; 0 leaves its choice")
    parser.add_argument("--peak-tflops", type=float, help="of the device's matrix units, in the precision that counts")
    parser.add_argument("--name", help="of the result file; default: training-DEVICE")
    options = parser.parse_args()
    if options.steps <= WARM_UP:
        parser.error(f"--steps must be above {WARM_UP}")
    with tempfile.TemporaryDirectory() as folder:
        _compare(options, options.data or _street(Path(folder) / "street", options))


def _street(folder: Path, options: argparse.Namespace) -> Path:
    street = StreetConfig(
        2 * options.identities, options.tracklets, 8, height=options.height, width=options.width, occlusion=0.0
    )
    write(street, folder)
    return folder


def _compare(options: argparse.Namespace, data: Path) -> None:
    config = TrainConfig(
        data=(DataSource(path=data),),
        architecture=options.architecture,
        height=options.height,
        width=options.width,
        identities_per_batch=options.identities,
        tracklets_per_identity=options.tracklets,
        workers=options.workers,
        threads=options.threads,
        save_minutes=1e6,
        tensorboard=False,
    )
    if options.threads:
        torch.set_num_threads(options.threads)
    gathered, flops = gather(config), flops_of_a_clip(config)
    clips = config.identities_per_batch * config.tracklets_per_identity
    compared = variants(config, gathered, options.variant or list(DEFAULT), options.steps)
    rows = figures(measure(compared, options.rounds), clips, flops, options.peak_tflops)
    print(f"{clips} clips a step, {flops / 1e9:.1f} GFLOP a clip forward and backward")
    for row in rows:
        share = f"  {100 * row.peak_share:.1f} % of peak" if row.peak_share is not None else ""
        print(
            f"{row.variant:28} {row.clips_per_second:8.2f} clips/s  {row.ratio:5.2f}x  "
            f"waiting {100 * row.wait_share:4.1f} %  {row.tflops:.3f} TFLOP/s{share}"
        )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    result: dict[str, object] = {
        "architecture": config.architecture,
        "frames": f"{config.snippet_length} of {config.height}x{config.width}",
        "clips_per_step": clips,
        "gflop_per_clip": round(flops / 1e9, 2),
        "device": device,
        "peak_tflops": options.peak_tflops,
        "threads": torch.get_num_threads(),
        "workers": config.workers,
        "rounds": options.rounds,
        "steps": options.steps - WARM_UP,
        "environment": environment.describe(device),
        "figures": [asdict(row) for row in rows],
    }
    print(save(options.name or f"training-{'cuda' if torch.cuda.is_available() else 'cpu'}", result))


if __name__ == "__main__":
    main()
