"""From the feature maps of N frames to one descriptor: temporal pooling, attention, recurrence.

Source: jiyanggao/Video-Person-ReID (dfe9a02e), `models/ResNet.py`, which the COSAM authors build on. There is no BN
neck and no L2 normalisation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Aggregation = Literal["tp", "ta", "rnn"]

TA_HIDDEN = 256
RNN_HIDDEN = 512


class TemporalPooling(nn.Module):
    """TP: global average pool of each frame, then the mean over frames."""

    def __init__(self, channels: int, snippet_length: int) -> None:
        super().__init__()
        self.descriptor_size = channels
        self.snippet_length = snippet_length

    def forward(self, maps: Tensor) -> Tensor:
        """float (B*N, C, H, W) -> (B, C)."""
        return _pool(maps, self.snippet_length).mean(dim=1)


class TemporalAttention(nn.Module):
    """TA: a softmax weight for each frame from its whole map and its neighbours in time."""

    def __init__(self, channels: int, snippet_length: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.descriptor_size = channels
        self.snippet_length = snippet_length
        self.attention_conv = nn.Conv2d(channels, TA_HIDDEN, map_size)
        self.attention_tconv = nn.Conv1d(TA_HIDDEN, 1, 3, padding=1)

    def weights(self, maps: Tensor) -> Tensor:
        """float (B*N, C, H, W) -> (B, N), non-negative, each row sums to 1."""
        hidden = F.relu(self.attention_conv(maps)).reshape(-1, self.snippet_length, TA_HIDDEN)
        scores = F.relu(self.attention_tconv(hidden.transpose(1, 2)))  # (B, 1, N)
        return F.softmax(scores.squeeze(1), dim=1)

    def forward(self, maps: Tensor) -> Tensor:
        """float (B*N, C, H, W) -> (B, C)."""
        return (_pool(maps, self.snippet_length) * self.weights(maps).unsqueeze(-1)).sum(dim=1)


class TemporalRecurrence(nn.Module):
    """RNN: one LSTM layer over the pooled frames, mean of its outputs over time."""

    def __init__(self, channels: int, snippet_length: int) -> None:
        super().__init__()
        self.descriptor_size = RNN_HIDDEN
        self.snippet_length = snippet_length
        self.lstm = nn.LSTM(channels, RNN_HIDDEN, num_layers=1, batch_first=True)

    def forward(self, maps: Tensor) -> Tensor:
        """float (B*N, C, H, W) -> (B, 512)."""
        outputs: Tensor = self.lstm(_pool(maps, self.snippet_length))[0]
        return outputs.mean(dim=1)


def build(
    kind: Aggregation, channels: int, snippet_length: int, map_size: tuple[int, int]
) -> TemporalPooling | TemporalAttention | TemporalRecurrence:
    """The aggregation `kind` for maps (C, H, W) and snippets of N frames."""
    if kind == "ta":
        return TemporalAttention(channels, snippet_length, map_size)
    return (TemporalPooling if kind == "tp" else TemporalRecurrence)(channels, snippet_length)


def _pool(maps: Tensor, snippet_length: int) -> Tensor:
    pooled = torch.mean(maps, dim=(2, 3))
    return pooled.reshape(-1, snippet_length, maps.shape[1])  # (B, N, C)
