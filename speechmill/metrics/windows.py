"""Models with a fixed input size: every clip is cut into its own windows, and every call has the same number of them.

Padding clips to a common length would change their scores (docs/metrics.md), and so would calls of different sizes, in
the last bits: a call's size chooses the kernel, and with it the order of summation. In calls of one size, each window
is computed in the same way whatever clips the others are of, and a GPU is kept busy by many short clips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from speechmill.engine import exact_convolutions
from speechmill.memory import is_large
from speechmill.metrics.base import ClipBatch

# (clips, rows (k,), starts (k,)) -> (k, W): of clip rows[j] the window from sample starts[j] on, made on the clips' device.
Cut = Callable[[ClipBatch, Tensor, Tensor], Tensor]


def windows_at_once(device: str) -> int:
    """Windows per call: enough to fill a GPU; one on a CPU, which is no faster with more (docs/metrics.md)."""
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
    """Run `model` over the windows of all clips, `at_once` of them in every call, and average its outputs by clip.

    starts: samples of a clip -> first samples of its windows. model: (at_once, W) -> at_once times `outputs` values,
    each window's from its own samples only. The last call is filled up with its last window again. Memory is that of
    one call per thread; `threads` call the model at the same time. Returns (B, outputs) float64; NaN for empty and all-zero clips, whose quality is nobody's guess, and
    where the model gives no finite value.
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

    @torch.inference_mode()  # of each thread
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

    One product over all frames may compute its last ones, those of the last window, by another kernel.
    """
    return torch.bmm(windows, matrix.expand(len(windows), -1, -1))


class SeparateSums(nn.Module):
    """A linear layer of few inputs: x (N, in) -> (N, out), each sum by itself. weight: (out, in), bias: (out,).

    A product of N rows does not sum all of them in one order, so that a window's value would show its place in the
    call: the only such place found in these models (on CPUs, in the last bit).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("weight", weight.detach().contiguous())
        self.register_buffer("bias", bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.weight).sum(-1) + self.bias
