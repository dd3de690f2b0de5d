"""Small training runs for tests: people of one colour each, a tiny network, and what a run left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from passerby_model import train_config, training
from passerby_model.train_config import TrainConfig
from PIL import Image


class Recorder:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[training.Step] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step(self, step: training.Step, total: int) -> None:
        self.steps.append(step)


def write_people(root: Path, count: int = 6, frames: int = 3) -> Path:
    """`count` people, each of one colour with a little noise, two cameras, one tracklet of 64 x 32 pixels in each."""
    generator = np.random.default_rng(0)
    for person in range(count):
        colour = generator.integers(0, 256, 3)
        for camera in ("c1", "c2"):
            folder = root / f"p{person}" / camera / "t1"
            folder.mkdir(parents=True)
            for frame in range(frames):
                noise = generator.integers(-20, 20, (64, 32, 3))
                Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(folder / f"{frame}.png")
    return root


def settings(people: Path, *overrides: str) -> list[str]:
    """key=value of a run of seconds; `overrides` win."""
    return [
        f"data.0.path={people}",
        "architecture=test_resnet+none+tp",
        "snippet_length=1",
        "height=64",
        "width=32",
        "identities_per_batch=3",
        "tracklets_per_identity=2",
        "iterations=4",
        "threads=1",
        "workers=1",
        "tensorboard=false",
        *overrides,
    ]


def config(people: Path, *overrides: str) -> TrainConfig:
    return train_config.load(None, settings(people, *overrides))


def run(config: TrainConfig, out: Path, **options: Any) -> tuple[training.TrainResult, Recorder]:
    recorder = Recorder()
    return training.train(config, out, reporter=recorder, **options), recorder


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Equal to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
