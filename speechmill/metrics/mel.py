"""Mel filters on Slaney's scale: linear up to 1 kHz, logarithmic above."""

from __future__ import annotations

import math

import torch

LINEAR = 200 / 3  # Hz per mel up to 1 kHz
LOG_FROM = 1000.0 / LINEAR  # mel
LOG_STEP = math.log(6.4) / 27


def mel_filters(bins: int, low: float, high: float, bands: int, rate: int, equal_area: bool = False) -> torch.Tensor:
    """Triangles (bins, bands) float32 that turn a spectrum of `bins` frequencies up to rate / 2 into mel bands.

    `low` and `high` in Hz are the outer ends of the outermost bands. Each triangle's peak is 1, or 2 / its width in Hz
    with `equal_area`. To the last bit what torchaudio.functional.melscale_fbanks gives with mel_scale="slaney", and
    norm="slaney" with `equal_area`; torchaudio is not needed for it, and does not import beside every torch.
    """
    frequencies = torch.linspace(0, rate // 2, bins)
    edges = _hertz(torch.linspace(_mel(low), _mel(high), bands + 2))
    widths = edges[1:] - edges[:-1]
    distance = edges[None] - frequencies[:, None]
    rising, falling = -distance[:, :-2] / widths[:-1], distance[:, 2:] / widths[1:]
    filters = torch.minimum(rising, falling).clamp_min(0)
    return filters * (2 / (edges[2:] - edges[:-2])) if equal_area else filters


def _mel(hertz: float) -> float:
    return hertz / LINEAR if hertz < 1000 else LOG_FROM + math.log(hertz / 1000) / LOG_STEP


def _hertz(mel: torch.Tensor) -> torch.Tensor:
    return torch.where(mel < LOG_FROM, LINEAR * mel, 1000 * torch.exp(LOG_STEP * (mel - LOG_FROM)))
