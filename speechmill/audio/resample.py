"""Sampling-rate conversion."""

from __future__ import annotations

import numpy as np
import soxr


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """float32 (n,) at `from_rate` -> float32 (round(n * to / from),) at `to_rate`, by soxr's HQ filter.

    Returns the array itself if the rates are equal.
    """
    if from_rate == to_rate:
        return samples
    size = round(len(samples) * to_rate / from_rate)
    if size == 0:
        return np.empty(0, np.float32)
    out = soxr.resample(samples, from_rate, to_rate, quality="HQ")[:size]
    return np.pad(out, (0, size - len(out)))
