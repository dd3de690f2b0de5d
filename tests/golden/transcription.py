"""The reference's models written down a second time, from the facts and by its tensor names, sharing nothing with ours.

Plain numpy in float64 with loops where an order of indices matters; torch only for its 2-d convolution and max pool.
Sources: the ICCV 2019 paper and the authors' code (InnovArul/vidreid_cosegmentation, e8b3d02b) for COSAM and the
aggregations, torchvision for ResNet50, Cadene's port of the SENet release for SE-ResNet50. It serves as the oracle for
variants of which no outputs of the reference are to hand; `test_transcription` first holds it against those that are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

Array = Any  # numpy, float64
State = Mapping[str, Array]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def below(state: State, prefix: str) -> dict[str, Array]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def conv(x: Array, state: State, name: str, stride: int = 1, padding: int = 0) -> Array:
    bias = torch.from_numpy(state[f"{name}.bias"]) if f"{name}.bias" in state else None
    weight = torch.from_numpy(state[f"{name}.weight"])
    return F.conv2d(torch.from_numpy(x), weight, bias, stride=stride, padding=padding).numpy()


def batch_norm(x: Array, state: State, name: str) -> Array:
    weight, bias, mean, variance = (
        state[f"{name}.{part}"].reshape(1, -1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def bottleneck(x: Array, state: State, stride: int, squeeze: bool) -> Array:
    """SE-ResNet50 strides in the first 1x1, ResNet50 in the 3x3."""
    first, second = (stride, 1) if squeeze else (1, stride)
    out = np.maximum(batch_norm(conv(x, state, "conv1", first), state, "bn1"), 0)
    out = np.maximum(batch_norm(conv(out, state, "conv2", second, padding=1), state, "bn2"), 0)
    out = batch_norm(conv(out, state, "conv3"), state, "bn3")
    if squeeze:
        gate = out.mean(axis=(2, 3), keepdims=True)
        gate = np.maximum(conv(gate, state, "se_module.fc1"), 0)
        out = out * sigmoid(conv(gate, state, "se_module.fc2"))
    if "downsample.0.weight" in state:
        x = batch_norm(conv(x, state, "downsample.0", stride), state, "downsample.1")
    return np.maximum(out + x, 0)


def stem(x: Array, state: State, squeeze: bool) -> Array:
    first, norm = ("layer0.conv1", "layer0.bn1") if squeeze else ("0", "1")
    x = np.maximum(batch_norm(conv(x, state, first, 2, padding=3), state, norm), 0)
    padding, ceil = (0, True) if squeeze else (1, False)
    return F.max_pool2d(torch.from_numpy(x), 3, 2, padding=padding, ceil_mode=ceil).numpy()


def stage(x: Array, state: State, number: int, stride: int, squeeze: bool) -> Array:
    """layer1 to layer4 of 3, 4, 6 and 3 blocks; the reference's ResNet50 is a list in which layer1 is the fifth."""
    name = f"layer{number}" if squeeze else str(number + 3)
    for place in range((3, 4, 6, 3)[number - 1]):
        x = bottleneck(x, below(state, f"{name}.{place}."), stride if place == 0 else 1, squeeze)
    return x


def cost_volume(reduced: Array) -> Array:
    """(N, D, h, w) of one snippet -> (N, (N-1)*h*w, h, w), place by place."""
    frames, depth, height, width = reduced.shape
    volume = np.zeros((frames, (frames - 1) * height * width, height, width))
    places = [(y, x) for y in range(height) for x in range(width)]

    def unit(n: int, place: tuple[int, int]) -> Array:
        vector = reduced[n, :, place[0], place[1]]
        return (vector - vector.mean()) / (vector.std(ddof=1) + 1e-4)

    units = {(n, place): unit(n, place) for n in range(frames) for place in places}
    for n in range(frames):
        others = [m for m in range(frames) if m != n]
        for index, m in enumerate(others):
            for y, x in places:
                channel = index * height * width + y * width + x
                for place in places:
                    volume[n, channel, place[0], place[1]] = units[n, place] @ units[m, (y, x)] / depth
    return volume


def cosam(x: Array, state: State, snippet_length: int, form: str = "code") -> tuple[Array, Array]:
    """(B*N, C, h, w) -> (the same, masks (B*N, h, w)), by the tensor names of one attention module."""
    outputs, masks = [], []
    for first in range(0, len(x), snippet_length):
        frames = x[first : first + snippet_length]
        reduced = np.maximum(batch_norm(conv(frames, state, "dim_reduction.0"), state, "dim_reduction.1"), 0)
        summary = conv(cost_volume(reduced), state, "spatial_mask_summary.0")
        if form == "code":
            summary = np.maximum(batch_norm(summary, state, "spatial_mask_summary.1"), 0)
            summary = conv(summary, state, "spatial_mask_summary.3")
        mask = sigmoid(summary)
        attended = frames * mask
        hidden = np.tanh(
            attended.mean(axis=(2, 3)) @ state["channelwise_attention.0.weight"].T
            + state["channelwise_attention.0.bias"]
        )
        importance = sigmoid(hidden @ state["channelwise_attention.2.weight"].T + state["channelwise_attention.2.bias"])
        shared = attended * importance.mean(axis=0)[None, :, None, None]
        outputs.append(attended + shared if form == "code" else shared)
        masks.append(mask[:, 0])
    return np.concatenate(outputs), np.concatenate(masks)


def pooled(x: Array, snippet_length: int) -> Array:
    return x.mean(axis=(2, 3)).reshape(-1, snippet_length, x.shape[1])


def temporal_pooling(x: Array, state: State, snippet_length: int) -> Array:
    return pooled(x, snippet_length).mean(axis=1)


def frame_weights(x: Array, state: State, snippet_length: int) -> Array:
    """(B, N): the weights that temporal attention gives to the frames of each snippet."""
    kernel, bias = state["attention_conv.weight"], state["attention_conv.bias"]
    hidden = np.maximum(np.einsum("mcyx,kcyx->mk", x, kernel) + bias, 0).reshape(-1, snippet_length, len(bias))
    taps, offset = state["attention_tconv.weight"][0], state["attention_tconv.bias"][0]  # (256, 3), ()
    scores = np.zeros(hidden.shape[:2])
    for b in range(len(hidden)):
        for n in range(snippet_length):
            near = [(tap, n + tap - 1) for tap in range(3) if 0 <= n + tap - 1 < snippet_length]
            scores[b, n] = max(offset + sum(hidden[b, m] @ taps[:, tap] for tap, m in near), 0)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def temporal_attention(x: Array, state: State, snippet_length: int) -> Array:
    weights = frame_weights(x, state, snippet_length)
    return np.einsum("bn,bnc->bc", weights, pooled(x, snippet_length))


def recurrence(x: Array, state: State, snippet_length: int) -> Array:
    """One LSTM layer; PyTorch keeps its gates in the order input, forget, cell, output."""
    sequence = pooled(x, snippet_length)
    size = state["lstm.weight_hh_l0"].shape[1]
    hidden = cell = np.zeros((len(sequence), size))
    total = np.zeros((len(sequence), size))
    for n in range(snippet_length):
        gates = sequence[:, n] @ state["lstm.weight_ih_l0"].T + state["lstm.bias_ih_l0"]
        gates = gates + hidden @ state["lstm.weight_hh_l0"].T + state["lstm.bias_hh_l0"]
        into, forget, new, out = (gates[:, i * size : (i + 1) * size] for i in range(4))
        cell = sigmoid(forget) * cell + sigmoid(into) * np.tanh(new)
        hidden = sigmoid(out) * np.tanh(cell)
        total = total + hidden
    return total / snippet_length


AGGREGATIONS = {"tp": temporal_pooling, "ta": temporal_attention, "rnn": recurrence}


def encode(
    state: State, frames: Array, *, squeeze: bool, blocks: tuple[int, ...], aggregation: str, form: str = "code"
) -> tuple[Array, dict[int, Array], Array]:
    """(B, N, 3, H, W) -> (descriptors (B, D), masks {block: (B, N, h, w)}, logits (B, classes)).

    `state` is in the reference's naming; `squeeze` says SE-ResNet50 instead of ResNet50.
    """
    count, length = frames.shape[:2]
    base = below(state, "base.")
    x = stem(frames.reshape(-1, *frames.shape[2:]), base, squeeze)
    masks = {}
    for number in (1, 2, 3, 4):
        last = 2 if aggregation == "ta" else 1
        x = stage(x, base, number, (1, 2, 2, last)[number - 1], squeeze)
        block = number + 1
        if block in blocks:
            place = block - (1 if squeeze else 2)
            x, mask = cosam(x, below(state, f"attention_modules.attention_modules.{place}."), length, form)
            masks[block] = mask.reshape(count, length, *mask.shape[1:])
    descriptor = AGGREGATIONS[aggregation](x, below(state, "aggregation."), length)
    return descriptor, masks, descriptor @ state["classifier.weight"].T + state["classifier.bias"]
