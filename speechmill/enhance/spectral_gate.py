"""A spectral gate without recursion: a noise floor per frequency and clip, and a smoothed Wiener-like gain.

It needs no weights. It beats common gates on stationary noise and cannot touch babble or clicks; RNNoise is better.
Frames are 32 ms and hops 8 ms at any rate, so the size of the FFT is the rate times 0.032.
"""

from __future__ import annotations

import torch
from torch.nn import functional

FLOOR_DB = -24.0  # below the deepest level of `limit_attenuation`, which decides
NOISE_QUANTILE = 0.25  # of the frames of a bin: speech is absent from most bins for a quarter of the time
NOISE_BIAS = 1.25  # that quantile lies below the mean of noise
OVERSUBTRACTION = 2.0
POWER_SMOOTHING = (3, 5)  # bins, frames
GAIN_SMOOTHING = (5, 9)


class SpectralGate:
    """The gate as an `Enhancer`; masked, so that padding touches nothing.

    rate: Hz of what it takes and gives, 8,000 or more. The default passes everything that RNNoise passes.
    """

    name = "spectral_gate"
    version = "1"
    weights_sha256: str | None = None

    def __init__(self, rate: int = 48_000):
        self.native_rate = rate
        self.hop = round(rate * 0.008)
        self.window_size = 4 * self.hop

    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        size = batch.shape[1]
        window = torch.hann_window(self.window_size, device=batch.device).sqrt()
        inside = torch.arange(size, device=batch.device)[None] < lengths[:, None]
        # Zeros beyond a clip's end, whether the batch is longer or not: every frame that touches it is there.
        padded = functional.pad(batch * inside, (0, self.window_size))
        spectrum = torch.stft(
            padded, self.window_size, self.hop, window=window, pad_mode="constant", return_complex=True
        )
        frames = torch.arange(spectrum.shape[2], device=batch.device)[None] * self.hop < lengths[:, None]
        gain = self._gain(spectrum.real**2 + spectrum.imag**2, frames)
        out = torch.istft(spectrum * gain, self.window_size, self.hop, window=window, length=padded.shape[1])
        return out[:, :size] * inside

    def _gain(self, power: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """(B, F, T) power, (B, T) valid frames -> gain (B, F, T)."""
        smooth = _masked_mean(power, frames, POWER_SMOOTHING)
        # Clip by clip: torch.quantile takes no more than 16 million values.
        counts = frames.sum(1).tolist()
        noise = torch.stack(
            [
                row[:, :count].kthvalue(1 + int(NOISE_QUANTILE * (count - 1)), dim=1).values
                if count
                else row.new_zeros(len(row))
                for row, count in zip(smooth, counts, strict=True)
            ]
        )[..., None]
        excess = (smooth / (NOISE_BIAS * noise + 1e-10) - OVERSUBTRACTION).clamp_min(0)
        gain = _masked_mean(excess / (excess + OVERSUBTRACTION), frames, GAIN_SMOOTHING)
        return gain.clamp_min(10 ** (FLOOR_DB / 20))


def _masked_mean(values: torch.Tensor, frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Mean over a box of bins and valid frames around each point of (B, F, T)."""
    mask = frames.to(values.dtype)
    margin = (size[0] // 2, size[1] // 2)
    total = functional.avg_pool2d((values * mask[:, None])[:, None], size, 1, margin)[:, 0]
    # The share of the box that counts is that of its frames times that of its bins.
    in_time = functional.avg_pool1d(mask[:, None], size[1], 1, margin[1])
    in_frequency = functional.avg_pool1d(mask.new_ones(1, 1, values.shape[1]), size[0], 1, margin[0])
    return total / (in_frequency.transpose(1, 2) * in_time).clamp_min(1e-6)
