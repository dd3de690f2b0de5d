"""Does it pay to run the trunk once for each distinct frame of a padded snippet?

    python benchmarks/repeated_frames.py --threads 1 --name repeated-frames

A lone image, or the tail of a tracklet, is padded to a snippet by repeating frames. COSAM compares the maps of all N
frames, so its graph takes whole snippets; up to the first COSAM each frame goes its own way. Here the network is cut
there: `trunk` (k distinct frames -> maps), then `rest` (the maps, repeated to N -> descriptor, masks), against the whole
graph, on OpenVINO, calls in turn, medians. Time is that of the processor, which other work on the machine hardly
changes. Random weights: they do not change it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save
from numpy.typing import NDArray
from passerby_export.deployed import DeployedEncoder
from passerby_export.onnx_export import OPSET
from passerby_export.samples import sample_snippets
from passerby_model.backends.openvino_package import openvino_core
from passerby_model.bundle import Input
from passerby_model.encoder import DEFAULT_NAME, Architecture, TrackletEncoder
from torch import Tensor, nn


class Trunk(nn.Module):
    """uint8 (F, H, W, 3) -> maps float32 (F, C, h, w), the input of the first COSAM."""

    def __init__(self, deployed: DeployedEncoder) -> None:
        super().__init__()
        self.deployed, self.first = deployed, min(deployed.encoder.architecture.cosam)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.float().permute(0, 3, 1, 2) * self.deployed.scale + self.deployed.shift
        for number, block in self.deployed.encoder.backbone.blocks():
            if number > self.first:
                break
            x = block(x)
        return x


class Rest(nn.Module):
    """maps float32 (B*N, C, h, w) -> descriptor float32 (B, D), and the masks."""

    def __init__(self, deployed: DeployedEncoder) -> None:
        super().__init__()
        self.encoder = deployed.encoder
        self.first = min(deployed.encoder.architecture.cosam)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        masks = []
        for number, block in self.encoder.backbone.blocks():
            if number < self.first:
                continue
            if number > self.first:
                x = block(x)
            if str(number) in self.encoder.cosam:
                x, mask = self.encoder.cosam[str(number)](x)
                masks.append(mask)
        return self.encoder.aggregation(x), *masks


def compiled(module: nn.Module, example: Tensor, path: Path, threads: int, step: int = 1) -> Any:
    """An infer request of `module` on OpenVINO in float32; `step`: what the first size of its input is a multiple of."""
    first = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        module.eval(), (example,), path, opset_version=OPSET, dynamo=True, verbose=False,
        dynamic_shapes=({0: step * first},), external_data=False,
    )  # fmt: skip
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    return openvino_core().compile_model(str(path), "CPU", settings).create_infer_request()


def descriptor(request: Any, value: NDArray[Any]) -> NDArray[np.float32]:
    """The first output for `value`."""
    request.infer([value], share_inputs=True)
    return np.array(request.get_output_tensor(0).data)


def main() -> None:
    """Parse flags, measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default=DEFAULT_NAME)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", help="also write benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    arch = Architecture.parse(options.architecture)
    length = arch.snippet_length
    deployed = DeployedEncoder(TrackletEncoder(arch).eval()).eval()
    frames = sample_snippets(1, Input(snippet_length=length, height=arch.height, width=arch.width), "smooth")[0]
    example = torch.from_numpy(frames)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        root, threads = Path(folder), options.threads
        maps = Trunk(deployed)(example)
        trunk = compiled(Trunk(deployed), example, root / "trunk.onnx", threads)
        rest = compiled(Rest(deployed), torch.cat([maps, maps]), root / "rest.onnx", threads, step=length)
        whole = compiled(deployed, torch.stack([example, example]), root / "whole.onnx", threads)
    rows: list[dict[str, Any]] = []
    for distinct in range(1, length + 1):
        index = np.arange(length) % distinct

        def at_once(index: NDArray[np.int64] = index) -> NDArray[np.float32]:
            return descriptor(whole, frames[index][None])

        def cut(index: NDArray[np.int64] = index, distinct: int = distinct) -> NDArray[np.float32]:
            return descriptor(rest, descriptor(trunk, frames[:distinct])[index])

        ways: dict[str, Callable[[], NDArray[np.float32]]] = {"whole": at_once, "cut": cut}
        answers = {name: way() for name, way in ways.items()}
        off = float(np.abs(answers["whole"] - answers["cut"]).max() / np.abs(answers["whole"]).max())
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, way in ways.items():
                start = time.process_time()
                way()
                times[name].append(time.process_time() - start)
        whole_s, cut_s = (statistics.median(times[name]) for name in ("whole", "cut"))
        ratio = statistics.median(w / c for w, c in zip(times["whole"], times["cut"], strict=True))
        rows.append(
            {"distinct": distinct, "of": length, "whole_ms": round(1e3 * whole_s, 1), "cut_ms": round(1e3 * cut_s, 1)}
            | {"speed_up": round(ratio, 3), "relative_difference": float(f"{off:.1e}")}
        )
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()))
    if options.name:
        result: dict[str, object] = {"architecture": arch.name, "threads": options.threads, "rows": rows}
        print(save(options.name, result | {"repeats": options.repeats}))


if __name__ == "__main__":
    main()
