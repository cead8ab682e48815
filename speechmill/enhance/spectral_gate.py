"""A spectral gate without recursion: a noise floor per frequency and clip, and a smoothed Wiener-like gain.

It needs no weights. It beats common gates on stationary noise and cannot touch babble or clicks; RNNoise is better.
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
    """The gate as an `Enhancer`; frames of 32 ms, hop 8 ms, masked so that padding touches nothing."""

    name = "spectral_gate"
    version = "1"
    native_rate = 16_000
    weights_sha256: str | None = None
    window_size = 512
    hop = 128

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
        noise = torch.nanquantile(
            torch.where(frames[:, None], smooth, torch.nan), NOISE_QUANTILE, dim=2, keepdim=True
        ).nan_to_num()
        excess = (smooth / (NOISE_BIAS * noise + 1e-10) - OVERSUBTRACTION).clamp_min(0)
        gain = _masked_mean(excess / (excess + OVERSUBTRACTION), frames, GAIN_SMOOTHING)
        return gain.clamp_min(10 ** (FLOOR_DB / 20))


def _masked_mean(values: torch.Tensor, frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Mean over a box of bins and valid frames around each point of (B, F, T)."""
    mask = frames[:, None].expand_as(values).to(values.dtype)
    margin = (size[0] // 2, size[1] // 2)
    total = functional.avg_pool2d((values * mask)[:, None], size, 1, margin)[:, 0]
    weight = functional.avg_pool2d(mask[:, None], size, 1, margin)[:, 0]
    return total / weight.clamp_min(1e-6)
