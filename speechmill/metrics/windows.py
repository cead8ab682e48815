"""Models with a fixed input size: every clip is cut into windows, and every call has the same number of windows.

Padding clips to a common length would change their scores (docs/metrics.md). Calls of different sizes would change
their last bits, because the size selects the kernel, and with it the order of summation. With a constant size, the
result of a window does not depend on the others in the call, and many short clips still keep a GPU busy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from speechmill.engine.memory import is_large
from speechmill.engine.tensors import exact_convolutions
from speechmill.metrics.base import ClipBatch

# (clips, rows (k,), starts (k,)) -> (k, W): the windows of clips rows[j] from sample starts[j], on the clips' device.
Cut = Callable[[ClipBatch, Tensor, Tensor], Tensor]


def windows_at_once(device: str) -> int:
    """Windows per call: enough to fill a GPU; one on a CPU, where more are not faster (docs/metrics.md)."""
    return (32 if is_large(device) else 8) if device.startswith("cuda") else 1


@torch.inference_mode()
def mean_over_windows(
    clips: ClipBatch,
    starts: Callable[[int], Sequence[int]],
    cut: Cut,
    model: Callable[[Tensor], Tensor],
    outputs: int,
    at_once: int,
    threads: int = 1,
) -> np.ndarray:
    """Run `model` over the windows of all clips, `at_once` windows per call, and average its outputs by clip.

    starts: samples of a clip -> first samples of its windows. model: (at_once, W) -> at_once times `outputs` values;
    the values of a window depend on its samples only. The last call repeats its last window to reach `at_once`.
    `threads` threads call the model at the same time; memory is that of one call per thread. Returns (B, outputs)
    float64, NaN for empty and all-zero clips, and where an output of the model is not finite.
    """
    audible = (clips.samples.abs().amax(1) > 0).cpu().numpy()
    lengths = clips.lengths.cpu().tolist()
    begins = [list(starts(length)) if length and heard else [] for length, heard in zip(lengths, audible, strict=True)]
    windows = [(row, start) for row, begin in enumerate(begins) for start in begin]
    means = np.full((len(lengths), outputs), np.nan)
    if not windows:
        return means
    filled = windows + windows[-1:] * (-len(windows) % at_once)
    rows, firsts = torch.tensor(filled, device=clips.samples.device).unbind(1)

    @torch.inference_mode()  # the mode is per thread
    def called(call: tuple[Tensor, Tensor]) -> Tensor:
        return model(cut(clips, *call)).reshape(at_once, outputs)

    calls = zip(rows.split(at_once), firsts.split(at_once), strict=True)
    with exact_convolutions(), ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(called, calls) if threads > 1 else map(called, calls))
    values = torch.cat(found).double().cpu().numpy()
    ends = np.cumsum([len(begin) for begin in begins])
    for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin:
            means[row] = values[end - len(begin) : end].mean(0)
    return np.where(np.isfinite(means), means, np.nan)


def window_products(windows: Tensor, matrix: Tensor) -> Tensor:
    """windows (N, frames, k) times a matrix (k, m), one product per window -> (N, frames, m).

    A single product over all frames may use another kernel for its last rows, which belong to the last window.
    """
    return torch.bmm(windows, matrix.expand(len(windows), -1, -1))


class SeparateSums(nn.Module):
    """A linear layer of few inputs: x (N, in) -> (N, out), one sum per output. weight: (out, in), bias: (out,).

    A matrix product does not sum all its N rows in the same order, so the last bit of a window's value would depend on
    its position in the call (on CPUs; no other layer of these models does this).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("weight", weight.detach().contiguous())
        self.register_buffer("bias", bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.weight).sum(-1) + self.bias
