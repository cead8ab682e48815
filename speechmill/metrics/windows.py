"""Models with a fixed input size: every clip is cut into its own windows, and only windows are batched.

Padding clips to a common length instead would change their scores (docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from speechmill.metrics.base import ClipBatch


def mean_over_windows(
    clips: ClipBatch,
    starts: Callable[[int], Sequence[int]],
    cut: Callable[[Tensor, int], Tensor],
    model: Callable[[Tensor], Tensor],
    outputs: int,
    at_once: int,
) -> np.ndarray:
    """Run `model` over windows of all clips, `at_once` of them at a time, and average its outputs per clip.

    starts: samples of a clip -> first samples of its windows. cut: (samples (n,) of one clip, start) -> window
    (W,). model: (k, W) -> k times `outputs` values. Returns (B, outputs) float64; NaN for empty and all-zero
    clips, whose quality is nobody's guess.
    """
    audible = clips.samples.abs().amax(1).cpu().numpy() > 0
    lengths = clips.lengths.cpu().tolist()
    windows = [(i, start) for i, n in enumerate(lengths) if n and audible[i] for start in starts(n)]
    sums = np.zeros((len(lengths), outputs))
    counts = np.zeros(len(lengths))
    for first in range(0, len(windows), at_once):
        part = windows[first : first + at_once]
        owners = np.array([i for i, _ in part])
        batch = torch.stack([cut(clips.samples[i, : lengths[i]], start) for i, start in part])
        np.add.at(sums, owners, model(batch).reshape(len(part), outputs).double().cpu().numpy())
        np.add.at(counts, owners, 1)
    with np.errstate(invalid="ignore"):
        means = sums / counts[:, None]
    return np.where(np.isfinite(means), means, np.nan)
