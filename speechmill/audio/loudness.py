"""Loudness and true peak (ITU-R BS.1770-5) of padded batches of mono clips."""

from __future__ import annotations

import math

import numpy as np
import scipy.signal
import torch
import torchaudio

ABSOLUTE_GATE = -70.0  # LUFS
RELATIVE_GATE = -10.0  # LU below the loudness of what passes the absolute gate
BLOCK_S, OVERLAP = 0.4, 0.75
MAX_GAIN_DB = 60.0


def k_weighting(rate: int) -> np.ndarray:
    """The K filter of BS.1770 Annex 1 as second-order sections (2, 6), derived anew for any rate.

    The parametrisation is that of De Man, "Evaluation of Implementations of the EBU R128 Loudness Measurement",
    AES 145 (2018); at 48 kHz it gives the coefficients that the recommendation prints.
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
    """Gated loudness of mono clips.

    batch: (B, S) float32, full scale 1. lengths: (B,) samples. Returns (B,) float64 LUFS; -inf for silence.
    A clip shorter than one block of 400 ms is one block.
    """
    # The filter is recursive: causal, so padding behind a clip cannot reach it, and exact in float64.
    filtered = scipy.signal.sosfilt(k_weighting(rate), batch.detach().cpu().numpy().astype(np.float64), axis=1)
    values = [_gated(row[:n], rate) for row, n in zip(filtered, lengths.tolist(), strict=True)]
    return torch.tensor(values, dtype=torch.float64, device=batch.device)


def _gated(samples: np.ndarray, rate: int) -> float:
    block = round(BLOCK_S * rate)
    hop = round(BLOCK_S * (1 - OVERLAP) * rate)
    if len(samples) == 0:
        return -math.inf
    if len(samples) <= block:
        power = np.array([np.mean(samples**2)])
    else:
        total = np.concatenate([[0.0], np.cumsum(samples**2)])
        starts = np.arange(0, len(samples) - block + 1, hop)
        power = (total[starts + block] - total[starts]) / block
    with np.errstate(divide="ignore"):
        loudness = -0.691 + 10 * np.log10(power)
    heard = power[loudness > ABSOLUTE_GATE]
    if len(heard) == 0:
        return -math.inf
    gate = -0.691 + 10 * math.log10(heard.mean()) + RELATIVE_GATE
    kept = power[loudness > max(gate, ABSOLUTE_GATE)]
    return -0.691 + 10 * math.log10(kept.mean())


def true_peak_dbtp(batch: torch.Tensor, lengths: torch.Tensor, rate: int) -> torch.Tensor:
    """Peak of the waveform between the samples, by fourfold oversampling (BS.1770 Annex 2).

    batch: (B, S), zeros after a clip's end. lengths: (B,). Returns (B,) float64 dBTP; -inf for silence.
    """
    valid = torch.arange(batch.shape[1], device=batch.device)[None] < lengths[:, None]
    batch = batch * valid
    oversampled = torchaudio.functional.resample(batch, 1, 4, lowpass_filter_width=12)
    # The ringing behind a clip's end belongs to it, so that padding or none gives the same value.
    sample_peak = batch.abs().amax(1)
    inside = torch.arange(oversampled.shape[1], device=batch.device)[None] < 4 * lengths[:, None]
    peak = torch.maximum((oversampled * inside).abs().amax(1), sample_peak)
    return 20 * torch.log10(peak.double())


def normalization_gain_db(
    lufs: torch.Tensor, peak_dbtp: torch.Tensor, target_lufs: float, ceiling_dbtp: float
) -> torch.Tensor:
    """Gain in dB (B,) that reaches the target, or less where the true peak would pass the ceiling.

    At most ±60 dB; 0 for silence, which no gain makes louder.
    """
    gain = torch.minimum(target_lufs - lufs, ceiling_dbtp - peak_dbtp).clamp(-MAX_GAIN_DB, MAX_GAIN_DB)
    return torch.where(torch.isfinite(lufs), gain, torch.zeros_like(gain))
