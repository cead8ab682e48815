"""Models with a fixed input size: every clip is cut into its own windows, and only those of one clip share a call.

Padding clips to a common length would change their scores (docs/metrics.md), and so would windows of other clips in the
same call, in the last bits: the kernel, and with it the order of summation, is chosen by the size of the call.
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
    """Run `model` over the windows of each clip, at most `at_once` of them at a time, and average its outputs.

    starts: samples of a clip -> first samples of its windows. cut: (samples (n,) of one clip, start) -> window
    (W,). model: (k, W) -> k times `outputs` values. Returns (B, outputs) float64; NaN for empty and all-zero
    clips, whose quality is nobody's guess, and where the model gives no finite value.
    """
    audible = clips.samples.abs().amax(1).cpu().numpy() > 0
    means = np.full((len(audible), outputs), np.nan)
    for i, length in enumerate(clips.lengths.cpu().tolist()):
        if not length or not audible[i]:
            continue
        clip = clips.samples[i, :length]
        windows = starts(length)
        parts = [windows[first : first + at_once] for first in range(0, len(windows), at_once)]
        found = [model(torch.stack([cut(clip, start) for start in part])).reshape(len(part), outputs) for part in parts]
        means[i] = torch.cat(found).double().cpu().numpy().mean(0)
    return np.where(np.isfinite(means), means, np.nan)
