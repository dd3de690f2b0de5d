"""COSAM, the co-segmentation inspired attention module.

Source: Subramaniam, Nambiar, Mittal, "Co-segmentation Inspired Attention Networks for Video-based Person
Re-identification", ICCV 2019, section 3.2; where paper and the authors' code (InnovArul/vidreid_cosegmentation,
e8b3d02b) differ, `form="code"` follows the code, which produced the published numbers, and `form="paper"` the paper.

    x (B*N, C, H, W)
      -> reduce   Conv1x1 + BN + ReLU                      (B*N, D, H, W)
      -> ncc      cost volume against the other frames     (B*N, (N-1)*H*W, H, W)
      -> summary  Conv1x1 + BN + ReLU + Conv1x1, sigmoid   (B*N, 1, H, W) = spatial mask
      -> a = x * mask
      -> channels GAP, MLP, sigmoid, mean over N frames    (B, C) = c
      -> a + a*c  (paper: a*c)
"""

from __future__ import annotations

from typing import Literal

import torch
from passerby.errors import InvalidArgumentError
from torch import Tensor, nn

Form = Literal["code", "paper"]

# Added to sigma itself, outside the root, on both sides of the correlation.
SIGMA_EPS = 1e-4
# Variances below this count as this: sigma of 1e-8 is nothing beside SIGMA_EPS, and the root's gradient stays finite.
MIN_VARIANCE = 1e-16

# Reduced width D and hidden width of the channel MLP; narrow inputs (CNN block 2) get the narrow ones.
WIDE, NARROW, NARROW_INPUT = 256, 64, 256
SUMMARY_WIDTH = 64


class NormalisedCrossCorrelation(nn.Module):
    """Cost volume of every frame against the other frames of its snippet (paper, equation 1).

    Always in float32 or wider: sigma and its eps do not survive half precision. The exporter finds the nodes to keep
    in float32 by this module's name, `ncc`.
    """

    others: Tensor

    def __init__(self, snippet_length: int) -> None:
        super().__init__()
        self.snippet_length = snippet_length
        order = [m for n in range(snippet_length) for m in range(snippet_length) if m != n]
        self.register_buffer("others", torch.tensor(order, dtype=torch.int64), persistent=False)

    def forward(self, reduced: Tensor) -> Tensor:
        """Correlate.

        Args:
            reduced: float (B*N, D, H, W), frames of a snippet adjacent, D >= 2.

        Returns:
            float32 (float64 for float64 input) (B*N, (N-1)*H*W, H, W) in about [-1, 1]. Channel m*H*W + h*W + w is
            place (h, w) of the m-th other frame, in ascending order with the frame itself skipped.
        """
        if reduced.dtype in (torch.float16, torch.bfloat16):
            reduced = reduced.float()
        device = reduced.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._correlate(reduced)
        return self._correlate(reduced)

    def _correlate(self, reduced: Tensor) -> Tensor:
        _, depth, height, width = reduced.shape
        places, rivals = height * width, self.snippet_length - 1
        columns = reduced.permute(0, 2, 3, 1).reshape(-1, self.snippet_length, places, depth)
        centred = columns - columns.mean(dim=-1, keepdim=True)
        variance = centred.square().sum(dim=-1, keepdim=True) / (depth - 1)  # unbiased
        unit = centred / (variance.clamp(min=MIN_VARIANCE).sqrt() + SIGMA_EPS)
        own = unit.reshape(-1, places, depth).transpose(1, 2)  # (B*N, D, HW)
        rest = unit.index_select(1, self.others).reshape(-1, rivals * places, depth)  # (B*N, (N-1)*HW, D)
        return (torch.matmul(rest, own) / depth).reshape(-1, rivals * places, height, width)


class Cosam(nn.Module):
    """One COSAM after a CNN block with C channels and maps of H x W, for snippets of N frames.

    The first convolution of the summary has (N-1)*H*W input channels: the module works for exactly this N, H and W.

    Raises:
        InvalidArgumentError: fewer than two frames (there is nothing to correlate with).
    """

    def __init__(self, channels: int, snippet_length: int, map_size: tuple[int, int], form: Form = "code") -> None:
        super().__init__()
        if snippet_length < 2:
            raise InvalidArgumentError(
                f"COSAM compares the frames of a snippet: it needs at least 2 of them, not {snippet_length}"
            )
        width = NARROW if channels <= NARROW_INPUT else WIDE
        volume = (snippet_length - 1) * map_size[0] * map_size[1]
        self.channels, self.snippet_length, self.map_size = channels, snippet_length, map_size
        self.residual = form == "code"
        self.reduce = nn.Sequential(nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.ncc = NormalisedCrossCorrelation(snippet_length)
        self.summary = (
            nn.Sequential(
                nn.Conv2d(volume, SUMMARY_WIDTH, 1),
                nn.BatchNorm2d(SUMMARY_WIDTH),
                nn.ReLU(),
                nn.Conv2d(SUMMARY_WIDTH, 1, 1),
            )
            if form == "code"
            else nn.Sequential(nn.Conv2d(volume, 1, 1))
        )
        self.attend = nn.Sequential(nn.Linear(channels, width), nn.Tanh(), nn.Linear(width, channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            x: float (B*N, C, H, W), the CNN block's output; frames of a snippet adjacent.

        Returns:
            (features (B*N, C, H, W), spatial mask (B*N, 1, H, W) in (0, 1)).

        Raises:
            InvalidArgumentError: another C, H or W than it was built for.
        """
        expected = (self.channels, *self.map_size)
        if tuple(x.shape[1:]) != expected:
            raise InvalidArgumentError(
                f"this COSAM was built for feature maps of (C, H, W) = {expected}, not {tuple(x.shape[1:])}; "
                "its summary convolution fixes snippet length and map size"
            )
        mask = torch.sigmoid(self.summary(self.ncc(self.reduce(x)).to(x.dtype)))
        attended = x * mask
        importance = torch.sigmoid(self.attend(attended.mean(dim=(2, 3))))  # (B*N, C), per frame
        shared = importance.reshape(-1, self.snippet_length, self.channels).mean(dim=1, keepdim=True)
        shared = shared.expand(-1, self.snippet_length, -1).reshape(-1, self.channels, 1, 1)
        out = attended * shared
        return (attended + out if self.residual else out), mask
