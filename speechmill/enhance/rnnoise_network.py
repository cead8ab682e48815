"""RNNoise's network (src/rnn.c of xiph/rnnoise): two convolutions and three GRUs, from frame features to band gains.

Copyright (c) 2008-2011 Octasic Inc., 2012-2017 Jean-Marc Valin; BSD-3-Clause, the notice is in rnnoise_torch.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from speechmill.engine.tensors import exact_convolutions
from speechmill.enhance.rnnoise_weights import BANDS, FEATURES, FIRST, TAPS, WIDTH, read_weights


@dataclass
class NetworkState:
    """State of the network after the last frames that were not silent. Time is the first axis, as in the GRUs."""

    features: torch.Tensor  # (2, B, 65)
    hidden: torch.Tensor  # (2, B, 128)
    units: list[torch.Tensor]  # three of (1, B, 384)

    @classmethod
    def at_rest(cls, clips: int, device: torch.device) -> NetworkState:
        """Before the first frame."""
        return cls(
            torch.zeros(TAPS - 1, clips, FEATURES, device=device),
            torch.zeros(TAPS - 1, clips, FIRST, device=device),
            [torch.zeros(1, clips, WIDTH, device=device) for _ in range(3)],
        )


class Network(torch.nn.Module):
    """The network. `sha256` is the checksum of the library that contains its weights."""

    conv1: torch.Tensor
    conv1_bias: torch.Tensor
    conv2: torch.Tensor
    conv2_bias: torch.Tensor
    gain: torch.Tensor  # (4, 384, 32), of the outputs of four layers
    gain_bias: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        weights, self.sha256 = read_weights()
        for name in ("conv1", "conv1_bias", "conv2", "conv2_bias", "gain_bias"):
            self.register_buffer(name, weights[name])
        self.register_buffer("gain", weights["gain"].reshape(4, WIDTH, BANDS))
        self.layers = torch.nn.ModuleList(torch.nn.GRU(WIDTH, WIDTH) for _ in range(3))
        self.requires_grad_(False)
        for number, layer in enumerate(self.layers, 1):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(layer, f"{name}_l0").copy_(weights[f"gru{number}_{name}"])

    def forward(self, features: torch.Tensor, active: torch.Tensor, state: NetworkState) -> torch.Tensor:
        """(B, T, 65), (B, T) -> gains (B, T, 32), undefined for inactive frames. Updates the state.

        The network skips silent frames: each clip's active frames are moved to the front, and back afterwards.
        """
        features, active = features.transpose(0, 1), active.T
        steps, clips = active.shape
        count = active.sum(0)
        place = active.cumsum(0) - 1
        # All silent frames are written to one place after the others.
        packed = features.new_zeros(steps + 1, clips, FEATURES)
        packed.scatter_(0, _wide(torch.where(active, place, steps), FEATURES), features)

        x, state.features = _convolve(packed[:-1], state.features, self.conv1, self.conv1_bias, count)
        x, state.hidden = _convolve(x, state.hidden, self.conv2, self.conv2_bias, count)
        logits = self.gain_bias + x @ self.gain[0]
        with exact_convolutions():
            for index, layer in enumerate(self.layers):
                before = state.units[index]
                x = layer(x, before)[0]
                state.units[index] = _latest(torch.cat([before, x]), 1, count)
                logits = logits + x @ self.gain[1 + index]
        return torch.sigmoid(logits).gather(0, _wide(place.clamp_min(0), BANDS)).transpose(0, 1)


def _convolve(
    x: torch.Tensor, past: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, count: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolution over three frames and tanh: (T, B, in) and the two frames before -> (T, B, out), the last two."""
    seen = torch.cat([past, x])
    stacked = torch.cat([seen[k : k + len(x)] for k in range(TAPS)], -1)
    return torch.tanh(stacked @ weight + bias), _latest(seen, TAPS - 1, count)


def _latest(seen: torch.Tensor, rows: int, count: torch.Tensor) -> torch.Tensor:
    """The last `rows` frames of (rows + T, B, n) after each clip's `count` (B,) active frames."""
    index = count + torch.arange(rows, device=seen.device)[:, None]
    return seen.gather(0, _wide(index, seen.shape[2]))


def _wide(index: torch.Tensor, size: int) -> torch.Tensor:
    return index[..., None].expand(-1, -1, size)
