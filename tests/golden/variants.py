"""The models of which golden outputs or key lists exist: their names, how they read in our naming, their inputs."""

from __future__ import annotations

import re

import numpy as np
from passerby_model.encoder import Architecture

NAMES = (
    *(
        f"{backbone}_{attention}_{aggregation}"
        for backbone in ("se_resnet50", "resnet50")
        for attention in ("cosam45", "nocosam")
        for aggregation in ("tp", "ta", "rnn")
    ),
    "se_resnet50_cosam45_tp_N2",
    "se_resnet50_cosam45_tp_N8",
)
_NAME = re.compile(r"(se_resnet50|resnet50)_(cosam\d+|nocosam)_(tp|ta|rnn)(?:_N(\d+))?")


def architecture(name: str) -> Architecture:
    """`se_resnet50_cosam45_tp_N2` -> SE-ResNet50 + COSAM_4,5 + TP with snippets of 2 frames."""
    match = _NAME.fullmatch(name)
    assert match, f"{name} is no name of a golden model"
    attention = "none" if match[2] == "nocosam" else match[2]
    return Architecture.parse(f"{match[1]}+{attention}+{match[3]}", snippet_length=int(match[4] or 4))


def golden_input(which: str, snippet_length: int) -> np.ndarray:
    """float32 (B, N, 3, 256, 128): input A or B of the four-frame models, or the only one of the others."""
    if snippet_length == 4 and which == "A":
        return np.random.RandomState(0).standard_normal((2, 4, 3, 256, 128)).astype(np.float32)
    if snippet_length == 4 and which == "B":
        small = np.random.RandomState(2).standard_normal((2, 4, 3, 16, 8)).astype(np.float32)
        return np.repeat(np.repeat(small, 16, axis=3), 16, axis=4)
    seed, count = {2: (12, 2), 8: (18, 1)}[snippet_length]
    return np.random.RandomState(seed).standard_normal((count, snippet_length, 3, 256, 128)).astype(np.float32)
