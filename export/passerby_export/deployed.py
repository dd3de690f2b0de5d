"""The encoder as it is served: pixels in, normalisation inside, and a few modules written so that runtimes keep them.

Every stand-in here computes what the module that it replaces computes; the parity gate proves it on each export.
"""

from __future__ import annotations

import copy

import torch
from passerby_model.cosam import MIN_VARIANCE, SIGMA_EPS, NormalisedCrossCorrelation
from passerby_model.encoder import TrackletEncoder
from passerby_model.preprocess import IMAGENET_MEAN, IMAGENET_STD
from torch import Tensor, nn


class DeployedEncoder(nn.Module):
    """An encoder, its classifier left behind, that takes pixels."""

    def __init__(self, encoder: TrackletEncoder) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        for cosam in self.encoder.cosam.values():
            if isinstance(cosam.ncc, NormalisedCrossCorrelation):
                cosam.ncc = PlainCorrelation(cosam.ncc)
        lstm = getattr(self.encoder.aggregation, "lstm", None)
        if isinstance(lstm, nn.LSTM):
            self.encoder.aggregation.lstm = UnrolledLstm(lstm, encoder.architecture.snippet_length)
        std = torch.tensor(IMAGENET_STD, dtype=torch.float64)
        mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64)
        # (pixel / 255 - mean) / std as one product and one sum.
        self.register_buffer("scale", (1 / (255 * std)).float().reshape(3, 1, 1))
        self.register_buffer("shift", (-mean / std).float().reshape(3, 1, 1))
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, snippets: Tensor) -> tuple[Tensor, ...]:
        """uint8 (B, N, H, W, 3) RGB -> descriptor float (B, D), then masks float (B, N, h, w) by rising CNN block."""
        # To float first: TensorRT takes uint8 as an input, but no operator other than Cast does.
        frames = snippets.float().permute(0, 1, 4, 2, 3) * self.scale + self.shift
        descriptor, masks = self.encoder(frames)
        return descriptor, *(masks[block] for block in sorted(masks))


class PlainCorrelation(nn.Module):
    """`NormalisedCrossCorrelation` in operators that runtimes leave as they are.

    OpenVINO rewrites subtraction, division and a transposed product into operators of its own making, which forget
    that they were to stay in float32. So: the mean is added with a minus in its weights, 1/sigma is (sigma^2)^-1/2,
    and channels come first, so that nothing has to be transposed right before the product.
    """

    def __init__(self, ncc: NormalisedCrossCorrelation) -> None:
        super().__init__()
        self.snippet_length = ncc.snippet_length
        self.register_buffer("others", ncc.others, persistent=False)
        self.others: Tensor

    def forward(self, reduced: Tensor) -> Tensor:
        """float32 (B*N, D, H, W) -> float32 (B*N, (N-1)*H*W, H, W), channels ordered as in the original."""
        _, depth, height, width = reduced.shape
        places, rivals = height * width, self.snippet_length - 1
        columns = reduced.reshape(-1, depth, places)
        centred = columns + (columns * (-1 / depth)).sum(dim=1, keepdim=True)
        variance = (centred * centred).sum(dim=1, keepdim=True) * (1 / (depth - 1))  # unbiased
        sigma = variance.clamp(min=MIN_VARIANCE).sqrt() + SIGMA_EPS
        unit = centred * (sigma * sigma).pow(-0.5)  # (B*N, D, HW)
        frames = unit.reshape(-1, self.snippet_length, depth, places)
        rest = frames.index_select(1, self.others).transpose(2, 3).reshape(-1, rivals * places, depth)
        return torch.matmul(rest, unit * (1 / depth)).reshape(-1, rivals * places, height, width)


class UnrolledLstm(nn.Module):
    """One-layer LSTM written out for N frames: torch.export makes a loop of nn.LSTM, which runtimes run badly."""

    def __init__(self, lstm: nn.LSTM, snippet_length: int) -> None:
        super().__init__()
        self.snippet_length, self.hidden_size = snippet_length, lstm.hidden_size
        self.into = nn.Linear(lstm.input_size, 4 * lstm.hidden_size)
        self.again = nn.Linear(lstm.hidden_size, 4 * lstm.hidden_size)
        named = dict(lstm.named_parameters())
        self.into.weight, self.into.bias = named["weight_ih_l0"], named["bias_ih_l0"]
        self.again.weight, self.again.bias = named["weight_hh_l0"], named["bias_hh_l0"]
        # A constant of the graph: zeros made while it runs are an operator whose int64 TensorRT's list does not have.
        self.register_buffer("start", torch.zeros(1, lstm.hidden_size), persistent=False)
        self.start: Tensor

    def forward(self, sequence: Tensor) -> tuple[Tensor, None]:
        """float (B, N, C) -> (outputs float (B, N, hidden), None), the first element as of nn.LSTM."""
        hidden = cell = self.start
        outputs = []
        for n in range(self.snippet_length):
            gates = self.into(sequence[:, n]) + self.again(hidden)
            enter, forget, new, leave = gates.chunk(4, dim=1)  # PyTorch's order: i, f, g, o
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
            hidden = torch.sigmoid(leave) * torch.tanh(cell)
            outputs.append(hidden)
        return torch.stack(outputs, dim=1), None
