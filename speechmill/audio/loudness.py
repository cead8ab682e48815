"""Loudness and true peak (ITU-R BS.1770-5) of padded batches of mono clips.

Both are computed per clip on the CPU, so that a clip's value is the same to the last bit in any batch: it determines
the gain, and the gain determines published bytes. Of the exact ways to run the recursive K filter this is also the
fastest (one core, x real time at 16 and 48 kHz: 7,700 and 2,800; padded batch 3,500 and 1,400; FFT 3,000 and 500).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.linalg
import scipy.signal
import torch
from numpy.lib.stride_tricks import sliding_window_view

ABSOLUTE_GATE = -70.0  # LUFS
RELATIVE_GATE = -10.0  # LU relative to the loudness of the blocks that pass the absolute gate
BLOCK_S, OVERLAP = 0.4, 0.75
MAX_GAIN_DB = 60.0

# BS.1770-5 Annex 2: 48 taps in 4 phases. The other two phases are these two reversed.
_PHASES = np.array(
    [
        [
            *(0.0017089843750, 0.0109863281250, -0.0196533203125, 0.0332031250000, -0.0594482421875, 0.1373291015625),
            *(0.9721679687500, -0.1022949218750, 0.0476074218750, -0.0266113281250, 0.0148925781250, -0.0083007812500),
        ],
        [
            *(-0.0291748046875, 0.0292968750000, -0.0517578125000, 0.0891113281250, -0.1665039062500, 0.4650878906250),
            *(0.7797851562500, -0.2003173828125, 0.1015625000000, -0.0582275390625, 0.0330810546875, -0.0189208984375),
        ],
    ],
    np.float32,
)
OVERSAMPLING = np.concatenate([_PHASES, _PHASES[:, ::-1]])
TAPS = OVERSAMPLING.shape[1]
GROUP = 32  # outputs per phase from one row of samples
# (GROUP + TAPS - 1, 4 * GROUP): a row of samples times this matrix gives its four phases.
_INTERPOLATOR = np.concatenate(
    [
        scipy.linalg.toeplitz(np.r_[taps, np.zeros(GROUP - 1)], np.r_[taps[0], np.zeros(GROUP - 1)])
        for taps in OVERSAMPLING
    ],
    axis=1,
).astype(np.float32)
_MAX_RISE = float(np.abs(OVERSAMPLING).sum(axis=1).max())  # upper bound of an output over its largest sample
_ROWS = 8192  # interpolated at a time, to limit memory


def k_weighting(rate: int) -> np.ndarray:
    """The K filter of BS.1770 Annex 1 as second-order sections (2, 6), for any rate.

    Parametrisation: De Man, "Evaluation of Implementations of the EBU R128 Loudness Measurement", AES 145 (2018).
    At 48 kHz it gives the coefficients printed in the recommendation.
    """
    k = math.tan(math.pi * 1681.9744509555319 / rate)
    gain, q = 10 ** (3.99984385397 / 20), 0.7071752369554193
    boost = gain**0.499666774155
    norm = 1 + k / q + k * k
    shelf = [
        (gain + boost * k / q + k * k) / norm,
        2 * (k * k - gain) / norm,
        (gain - boost * k / q + k * k) / norm,
        1.0,
        2 * (k * k - 1) / norm,
        (1 - k / q + k * k) / norm,
    ]
    k = math.tan(math.pi * 38.13547087613982 / rate)
    q = 0.5003270373253953
    norm = 1 + k / q + k * k
    highpass = [1.0, -2.0, 1.0, 1.0, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm]
    return np.array([shelf, highpass])


def integrated_loudness(batch: torch.Tensor, lengths: torch.Tensor, rate: int) -> torch.Tensor:
    """Gated loudness of mono clips (BS.1770-5 Annex 1).

    batch: (B, S) float32, full scale 1. lengths: (B,) samples. Returns (B,) float64 LUFS, -inf if no block is
    above -70 LUFS. A clip shorter than a block of 400 ms counts as one block.
    """
    sections = k_weighting(rate)
    return _per_clip(lambda clip: _gated(scipy.signal.sosfilt(sections, clip.astype(np.float64)), rate), batch, lengths)


def loudest_block_lufs(samples: np.ndarray, rate: int) -> float:
    """Loudness in LUFS of the loudest block of 400 ms of one clip (S,), without a gate; -inf for silence or no samples."""
    if not samples.size:
        return -math.inf
    weighted = scipy.signal.sosfilt(k_weighting(rate), samples.astype(np.float64))
    return _loudness(_block_powers(weighted, rate).max(initial=0.0, keepdims=True))


def true_peak_dbtp(batch: torch.Tensor, lengths: torch.Tensor, rate: int) -> torch.Tensor:
    """Peak of the waveform between the samples, by fourfold oversampling (BS.1770-5 Annex 2).

    batch: (B, S). lengths: (B,). Returns (B,) float64 dBTP, never below the sample peak; -inf for silence. The clip
    is extended by zeros. The filter is defined per sample, so it is the same at every `rate`.
    """
    return _per_clip(lambda clip: _decibels(_true_peak(clip), 20), batch, lengths)


def normalization_gain_db(
    lufs: torch.Tensor, peak_dbtp: torch.Tensor, target_lufs: float, ceiling_dbtp: float
) -> torch.Tensor:
    """Gain in dB (B,) to the target, less where the true peak would exceed the ceiling.

    At most MAX_GAIN_DB, which limits clips just above the absolute gate; 0 for silence.
    """
    gain = torch.minimum(target_lufs - lufs, ceiling_dbtp - peak_dbtp).clamp(max=MAX_GAIN_DB)
    return torch.where(torch.isfinite(lufs), gain, torch.zeros_like(gain))


def _per_clip(measure: Callable[[np.ndarray], float], batch: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    rows = batch.detach().float().cpu().numpy()
    clips = [row[:size] for row, size in zip(rows, lengths.tolist(), strict=True)]

    def one(clip: np.ndarray) -> float:
        return measure(clip) if len(clip) else -math.inf

    if len(clips) == 1:
        values = [one(clips[0])]
    else:  # scipy and numpy release the GIL
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            values = list(pool.map(one, clips))
    return torch.tensor(values, dtype=torch.float64, device=batch.device)


def _decibels(value: float, factor: int) -> float:
    return factor * math.log10(value) if value > 0 else -math.inf


def _loudness(power: np.ndarray) -> float:
    """LUFS of the mean power of mono blocks; -inf without blocks."""
    return -0.691 + _decibels(float(power.mean()) if len(power) else 0.0, 10)


def _block_powers(weighted: np.ndarray, rate: int) -> np.ndarray:
    block, hop = round(BLOCK_S * rate), round(BLOCK_S * (1 - OVERLAP) * rate)
    energy = np.concatenate([[0.0], np.cumsum(np.square(weighted))])
    starts = np.arange(0, max(len(weighted) - block, 0) + 1, hop)
    ends = np.minimum(starts + block, len(weighted))
    return (energy[ends] - energy[starts]) / np.maximum(ends - starts, 1)


def _gated(weighted: np.ndarray, rate: int) -> float:
    power = _block_powers(weighted, rate)
    heard = power[power > _power(ABSOLUTE_GATE)]
    return _loudness(heard[heard > _power(_loudness(heard) + RELATIVE_GATE)])


def _power(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)


def _true_peak(clip: np.ndarray) -> float:
    peak = float(np.abs(clip).max())
    rows = -(-(len(clip) + TAPS - 1) // GROUP)
    padded = np.zeros((rows + 1) * GROUP, np.float32)
    padded[TAPS - 1 : TAPS - 1 + len(clip)] = clip
    # Skip the parts, most of a clip, that are too quiet to contain its peak for any phase of the filter.
    chunk = np.abs(padded).reshape(-1, GROUP).max(axis=1)
    loud = np.maximum(chunk[:-1], chunk[1:]) * _MAX_RISE > peak
    windows = sliding_window_view(padded, GROUP + TAPS - 1)[::GROUP][loud]
    for at in range(0, len(windows), _ROWS):
        peak = max(peak, float(np.abs(windows[at : at + _ROWS] @ _INTERPOLATOR).max()))
    return peak
