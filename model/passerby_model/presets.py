"""Named recipes: what each changes in the defaults of `TrainConfig` (no torch).

Sources: "cosam" and "cosam-paper", Subramaniam et al., ICCV 2019, and its authors' code
(InnovArul/vidreid_cosegmentation), which differ; "bag-of-tricks", Luo et al., CVPRW 2019 (arXiv 1903.07071), sections
3.1 to 3.6, as taken over to video by Pathak et al. (ppriyank/Video-Person-Re-ID-Fantastic-Techniques).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

PresetName = Literal["cosam", "cosam-paper", "bag-of-tricks"]


@dataclass(frozen=True)
class Preset:
    """summary: one line; values: keys of `TrainConfig` that are not at their defaults."""

    summary: str
    values: Mapping[str, Any] = field(default_factory=dict)


PRESETS: Mapping[str, Preset] = {
    "cosam": Preset("the recipe of the COSAM authors' code; all defaults (for RNN they took lr 1e-4)"),
    "cosam-paper": Preset(
        "the recipe that the COSAM paper states: plain cross-entropy, a lower rate, 60,000 iterations",
        {"lr": 1e-4, "label_smoothing": 0.0, "step_iterations": 15_000, "iterations": 60_000},
    ),
    "bag-of-tricks": Preset(
        "warm-up, milestones, random erasing, a batch norm before the classifier; 120 epochs",
        {
            "epochs": 120,
            "lr": 3.5e-4,
            "weight_decay": 5e-4,
            "warmup_epochs": 10,
            "milestones": [40, 70],
            "label_smoothing": 0.1,
            "neck": True,
            "augmentation": {"erase": 0.5},
        },
    ),
}
