"""A spectral gate without recursion: a noise floor per frequency and clip, and a smoothed Wiener-like gain.

It needs no weights. On stationary noise it is better than common gates, but it cannot remove babble or clicks; RNNoise
is better. Frames are 32 ms and hops 8 ms at any rate, so the size of the FFT is the rate times 0.032.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

FLOOR_DB = -24.0  # below the strongest level of `limit_attenuation`, which sets the actual limit
NOISE_QUANTILE = 0.25  # of a bin's frames: most bins have no speech for a quarter of the time
NOISE_BIAS = 1.25  # corrects for the quantile being below the mean of noise
OVERSUBTRACTION = 2.0
POWER_SMOOTHING = (3, 5)  # bins, frames
GAIN_SMOOTHING = (5, 9)
BLOCK = 256  # frames computed at a time: limits memory for clips of any length


class SpectralGate:
    """The gate as an `Enhancer`. It is masked, so padding has no influence.

    rate: Hz of its input and output, 8,000 or more. The default passes everything that RNNoise passes. Spectrograms
    are computed in overlapping blocks of frames. Only the smoothed powers of whole clips are in memory (0.4 MB per
    second at 48 kHz), because the noise floor is a quantile over a whole clip.
    """

    name = "spectral_gate"
    version = "1"
    weights_sha256: str | None = None

    def __init__(self, rate: int = 48_000, block: int = BLOCK):
        self.native_rate = rate
        self.hop = round(rate * 0.008)
        self.window_size = 4 * self.hop
        self.block = block

    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        size = batch.shape[1]
        half = self.window_size // 2
        inside = torch.arange(size, device=batch.device)[None] < lengths[:, None]
        # Frame t is centred on sample t * hop. All frames that overlap a clip are included, in a batch of any length.
        count = -(-(size + half) // self.hop) + 1
        padded = functional.pad(batch * inside, (half, (count - 1) * self.hop + half - size))
        valid = torch.arange(count, device=batch.device)[None] * self.hop < lengths[:, None]
        window = torch.hann_window(self.window_size, device=batch.device).sqrt()
        smooth = self._smooth_power(padded, valid, window)
        noise = self._noise(smooth, valid)
        out = torch.zeros_like(padded)
        weight = torch.zeros_like(padded[0])
        for first, last in self._blocks(count):
            frames = self._spectra(padded, first, last, window) * self._gain(smooth, noise, valid, first, last)
            pieces = torch.fft.irfft(frames, self.window_size) * window
            for offset in range(4):  # every fourth frame follows the one before it without a gap
                part = pieces[:, offset::4].flatten(1)
                start = (first + offset) * self.hop
                out[:, start : start + part.shape[1]] += part
                weight[start : start + part.shape[1]] += window.square().repeat(part.shape[1] // self.window_size)
        return out[:, half : half + size] / weight[half : half + size] * inside

    def _blocks(self, count: int) -> Iterator[tuple[int, int]]:
        """First and last frame (exclusive) of each block. They do not depend on the batch, because the ends of the
        blocks determine the order in which overlapping frames are summed."""
        for first in range(0, count, self.block):
            yield first, min(first + self.block, count)

    def _spectra(self, padded: torch.Tensor, first: int, last: int, window: torch.Tensor) -> torch.Tensor:
        """Spectra (B, last - first, F) of frames."""
        samples = padded[:, first * self.hop : (last - 1) * self.hop + self.window_size]
        return torch.fft.rfft(samples.unfold(1, self.window_size, self.hop) * window)

    def _smooth_power(self, padded: torch.Tensor, valid: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        """(B, T, F): mean power over a box of frames and bins."""
        count = valid.shape[1]
        parts = []
        for first, last in self._blocks(valid.shape[1]):
            begin, end = _around(first, last, count, POWER_SMOOTHING)
            spectra = self._spectra(padded, begin, end, window)
            power = spectra.real**2 + spectra.imag**2
            parts.append(_masked_mean(power, valid[:, begin:end], POWER_SMOOTHING)[:, first - begin : last - begin])
        return torch.cat(parts, 1)

    def _noise(self, smooth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """(B, 1, F): the noise floor of each bin, over the valid frames of each clip."""
        # One clip at a time: torch.quantile accepts at most 16 million values.
        floors = [
            row[:count].kthvalue(1 + int(NOISE_QUANTILE * (count - 1)), dim=0).values if count else row[0] * 0
            for row, count in zip(smooth, valid.sum(1).tolist(), strict=True)
        ]
        return torch.stack(floors)[:, None]

    def _gain(
        self, smooth: torch.Tensor, noise: torch.Tensor, valid: torch.Tensor, first: int, last: int
    ) -> torch.Tensor:
        """Gain (B, last - first, F) of frames."""
        begin, end = _around(first, last, valid.shape[1], GAIN_SMOOTHING)
        excess = (smooth[:, begin:end] / (NOISE_BIAS * noise + 1e-10) - OVERSUBTRACTION).clamp_min(0)
        gain = _masked_mean(excess / (excess + OVERSUBTRACTION), valid[:, begin:end], GAIN_SMOOTHING)
        return gain[:, first - begin : last - begin].clamp_min(10 ** (FLOOR_DB / 20))


def _around(first: int, last: int, count: int, box: tuple[int, int]) -> tuple[int, int]:
    """First and last (exclusive) of the frames that are within a box around a frame from `first` to `last`."""
    return max(0, first - box[1] // 2), min(count, last + box[1] // 2)


def _masked_mean(values: torch.Tensor, valid: torch.Tensor, box: tuple[int, int]) -> torch.Tensor:
    """Mean over the valid frames of a box (bins, frames) around each point of (B, T, F)."""
    mask = valid.to(values.dtype)
    bins, frames = box
    total = functional.avg_pool2d((values * mask[..., None])[:, None], (frames, bins), 1, (frames // 2, bins // 2))[
        :, 0
    ]
    # The valid share of the box is the product of the valid shares of its frames and of its bins.
    in_time = functional.avg_pool1d(mask[:, None], frames, 1, frames // 2)
    in_frequency = functional.avg_pool1d(mask.new_ones(1, 1, values.shape[2]), bins, 1, bins // 2)
    return total / (in_time.transpose(1, 2) * in_frequency).clamp_min(1e-6)
