"""RNNoise's pitch search (src/pitch.c of xiph/rnnoise), for all frames of all clips together.

Copyright (c) 2007-2008 CSIRO, 2007-2009 Xiph.Org Foundation, written by Jean-Marc Valin; BSD-3-Clause, the notice is in
rnnoise_torch.py.

The search makes discrete decisions: between lags, and between a period and its fractions. Sums that differ in the last
bit can lead to different comb filters, and the last bit of a float32 depends on how many frames are computed together.
So all of this is float64, where decisions are hardly ever that close.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

BUFFER = 1728  # samples at 48 kHz, up to the end of a frame, that are searched
HISTORY = 384  # longest period; this and the following lags are at 24 kHz, the rate of the search
SHORTEST = 30  # shortest period
FINE_FROM = 91  # shortest lag of the fine search
COARSE_FROM = 46  # shortest lag of the coarse search, at 12 kHz
MOST_PARTS = 12  # a 13th of the longest period is below the shortest period

Last = tuple[torch.Tensor, torch.Tensor]  # a clip's last frame: period (B, 1) in samples at 48 kHz, gain (B, 1)


class _Candidates(NamedTuple):
    """Candidates of each frame: the best lag, then its half, third ... 12th. The choice depends on the frame before."""

    periods: torch.Tensor  # (B, T, 12) at 48 kHz
    gains: torch.Tensor  # (B, T, 12)
    fractions: torch.Tensor  # (B, T, 11) lags of all but the first
    needs: torch.Tensor  # (B, T, 11) support by the frame before that a fraction needs to be chosen
    reaches: torch.Tensor  # (B, T, 11) maximum distance of lags that gives support

    def choices(self, last: Last) -> torch.Tensor:
        """The choice of each frame for every possible choice of the frame before it, (B, T, 12)."""
        count = self.periods.shape[2]
        earlier_lags = torch.cat([last[0][..., None].expand(-1, -1, count), self.periods[:, :-1]], 1) // 2
        earlier_gains = torch.cat([last[1][..., None].expand(-1, -1, count), self.gains[:, :-1]], 1)
        distance = (self.fractions[..., None, :] - earlier_lags[..., None]).abs()
        share = (distance <= 1) + 0.5 * ((distance == 2) & (self.reaches[..., None, :] == 2))
        backed = share * earlier_gains[..., None] > self.needs[..., None, :]
        # The shortest supported fraction, which is the last, is chosen.
        return (backed * torch.arange(1, count, device=backed.device)).amax(-1)


def pitch_periods(signal: torch.Tensor, hop: int, last: Last) -> tuple[torch.Tensor, Last]:
    """The pitch period of every frame, and the state for the next call.

    signal: (B, BUFFER + (T - 1) * hop) float64 at 48 kHz; frame t ends at sample BUFFER + t * hop.
    Returns periods (B, T) int64 in samples at 48 kHz.
    """
    found = _candidates(_whiten(_half_rate(signal, hop)))
    chosen = _chain(found.choices(last))
    period, gain = found.periods.gather(2, chosen)[..., 0], found.gains.gather(2, chosen)[..., 0]
    return period, (period[:, -1:], gain[:, -1:])


def _half_rate(signal: torch.Tensor, hop: int) -> torch.Tensor:
    """(B, BUFFER + (T - 1) * hop) -> (B, T, BUFFER / 2) float64."""
    even, odd = signal[:, 0::2], signal[:, 1::2]
    half = 0.5 * even + 0.25 * odd
    frames = BUFFER // 2, hop // 2
    first = half.unfold(1, *frames)[..., 0].clone()  # the first sample of a frame has no left neighbour
    half[:, 1:] += 0.25 * odd[:, :-1]
    out = half.unfold(1, *frames).clone()
    out[..., 0] = first
    return out


def _whiten(frames: torch.Tensor) -> torch.Tensor:
    """Filter frames (B, T, n) by the residual of a 4th-order linear prediction, with another zero at 0.8."""
    size = frames.shape[-1]
    lags = torch.stack([(frames[..., k:] * frames[..., : size - k]).sum(-1) for k in range(5)])
    lags[0] *= 1.0001  # a noise floor at -40 dB
    for k in range(1, 5):
        lags[k] *= 1 - (0.008 * k) ** 2
    a, b, c, d = (0.9 ** (k + 1) * tap for k, tap in enumerate(_predictor(lags)))
    taps = (a + 0.8, b + 0.8 * a, c + 0.8 * b, d + 0.8 * c, 0.8 * d)
    padded = functional.pad(frames, (len(taps), 0))
    out = frames.clone()
    for k, tap in enumerate(taps):
        start = len(taps) - 1 - k
        out.addcmul_(tap[..., None], padded[..., start : start + size])
    return out


def _predictor(lags: torch.Tensor) -> list[torch.Tensor]:
    """Levinson-Durbin recursion, stopped at a gain of 30 dB: autocorrelation (5, B, T) -> four taps (B, T)."""
    error = lags[0]
    going = error != 0
    taps: list[torch.Tensor] = []
    for order in range(len(lags) - 1):
        unexplained = lags[order + 1].clone()
        for k, tap in enumerate(taps):
            unexplained += tap * lags[order - k]
        # After the recursion has stopped, zero leaves taps and error unchanged.
        reflection = torch.where(going, -unexplained / error, 0.0)
        taps = [tap + reflection * other for tap, other in zip(taps, reversed(taps), strict=True)] + [reflection]
        error = error * (1 - reflection**2)
        going = going & (error >= 0.001 * lags[0])
    return taps


def _correlate(frames: torch.Tensor, history: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Products of the part after `history` with the samples `lag` earlier, and the energies of the latter.

    frames: (B, T, n). Returns two (B, T, history + 1), by lag.
    """
    size = frames.shape[-1]
    current = functional.pad(frames[..., history:], (history, 0))
    spectrum = torch.fft.rfft(current) * torch.fft.rfft(frames).conj()
    product = torch.fft.irfft(spectrum, size)[..., : history + 1]  # no lag wraps around: current begins at `history`
    sums = functional.pad((frames**2).cumsum(-1), (1, 0))
    energy = (sums[..., size - history :] - sums[..., : history + 1]).flip(-1)
    return product, energy.clamp_min(0)


def _search(frames: torch.Tensor, product: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    """The lag (B, T, 1) of the highest correlation: a coarse search, then a fine one around its two best lags."""
    coarse_product, coarse_energy = _correlate(frames[..., ::2], HISTORY // 2)
    index = torch.arange(COARSE_FROM, HISTORY // 2 + 1, device=frames.device)
    coarse_product = coarse_product[..., COARSE_FROM:]
    score = coarse_product**2 / (1 + coarse_energy[..., COARSE_FROM:])
    # Among lags without correlation, the longest wins.
    score = torch.where(coarse_product > 0, score, -1.0 / index)
    near = 2 * (COARSE_FROM + score.topk(2).indices)

    lags = (near[..., None] + torch.arange(-2, 3, device=frames.device)).flatten(2)
    found = product.gather(2, lags.clamp_max(HISTORY))
    score = found**2 / (1 + energy.gather(2, lags.clamp_max(HISTORY)))
    score = torch.where((found > 0) & (lags >= FINE_FROM) & (lags <= HISTORY), score, 0.0)
    value, at = score.max(-1, keepdim=True)
    lag = torch.where(value > 0, lags.gather(2, at), HISTORY)

    def neighbour(offset: int) -> torch.Tensor:
        """What the fine search knows of it: zero where it did not look."""
        beside = (lag + offset).clamp(0, HISTORY)
        looked = ((beside - near).abs() <= 2).any(-1, keepdim=True)
        return torch.where(looked, product.gather(2, beside).clamp_min(-1), 0.0)

    lean = _lean(neighbour(1), neighbour(0), neighbour(-1))
    lean = torch.where((lag > FINE_FROM) & (lag < HISTORY), lean, 0)
    # The library's sign: a rise towards the shorter lag makes the period longer by half a sample, which is dropped.
    return ((2 * lag + lean) // 2).clamp_max(HISTORY - 1)


def _lean(before: torch.Tensor, peak: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """1 if the value after a peak is nearly as high, -1 if the value before it is, else 0."""
    forward = after - before > 0.7 * (peak - before)
    back = before - after > 0.7 * (peak - after)
    return forward.long() - (back & ~forward).long()


def _candidates(frames: torch.Tensor) -> _Candidates:
    """The best lag of whitened frames (B, T, 864), and its fractions."""
    product, energy = _correlate(frames, HISTORY)
    whole = _search(frames, product, energy)
    lags, checks = _fractions(whole)
    like = 0.5 * (product.gather(2, lags) + product.gather(2, checks))
    power = 0.5 * (energy.gather(2, lags) + energy.gather(2, checks))
    gains = like / torch.sqrt(1 + energy[..., :1] * power)

    # Short-time correlation resembles a very short period, so that needs a higher gain.
    short = lags[..., 1:] < 3 * SHORTEST
    least = torch.where(short, 0.4, 0.3)
    needs = torch.where(short, 0.85, 0.7) * gains[..., :1] - gains[..., 1:]
    possible = (lags[..., 1:] >= SHORTEST) & (gains[..., 1:] > least)
    needs = torch.where(possible, needs, torch.inf)
    parts = torch.arange(2, MOST_PARTS + 1, device=frames.device)
    reaches = 1 + (5 * parts**2 < whole).long()

    lean = _lean(*(product.gather(2, (lags + offset).clamp_min(0)) for offset in (-1, 0, 1)))
    periods = (2 * lags + lean).clamp_min(2 * SHORTEST)
    like = like.clamp_min(0)
    share = torch.where(power <= like, 1.0, like / (power + 1))
    return _Candidates(periods, torch.minimum(share, gains), lags[..., 1:], needs, reaches)


def _fractions(whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lags (B, T, 1) -> the lags with their halves, thirds ... 12ths (B, T, 12), and a second lag to check for each."""
    parts = torch.arange(2, MOST_PARTS + 1, device=whole.device)
    lags = (2 * whole + parts) // (2 * parts)
    # If a fraction is the true period, so are two, three or five times it: second_check in pitch.c.
    multiples = torch.where(parts % 6 == 0, 5, torch.where(parts % 2 == 0, 3, 2))
    checks = (2 * multiples * whole + parts) // (2 * parts)
    longer = whole + lags[..., :1]  # the half is checked with one and a half, unless that is too long
    checks[..., :1] = torch.where(longer > HISTORY, whole, longer)
    return torch.cat([whole, lags], -1), torch.cat([whole, checks], -1)


def _chain(maps: torch.Tensor) -> torch.Tensor:
    """Maps (B, T, 12) from the choice of the frame before to that of each frame -> choices (B, T, 1).

    Composition is associative, so each step doubles the number of joined frames. The map of the first frame is
    constant.
    """
    step = 1
    while step < maps.shape[1]:
        joined = maps[:, step:].gather(2, maps[:, :-step])
        maps = torch.cat([maps[:, :step], joined], 1)
        step *= 2
    return maps[..., :1]
