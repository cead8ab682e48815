"""Mix the channels of a recording to one, and measure whether they have opposite phases.

The mean of two channels of opposite phase (a wrongly wired cable, a "vocal remover") is silence. So channels that
correlate negatively are never averaged.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

MODES = ("mean", "first", "loudest")
OPPOSITE = -0.5  # correlation below which the mean of two equally loud channels loses more than 6 dB
MEASURED = 13  # every 13th sample is measured: enough for levels and correlation, and no common period of a signal


class Mixer:
    """Mixes the blocks (n, C) of one recording to mono (n,), and measures the channels meanwhile.

    mode: `mean`, `first` or `loudest`, or the number of a channel from 1. The loudest channel is known only at the end,
    so `mean` and `loudest` can need a second pass over the recording, with the mode that `second_pass` returns. Read the
    properties after the last block.
    """

    def __init__(self, mode: str | int = "mean"):
        self.mode = mode
        self._count = 0
        self._sums = np.zeros(0)
        self._products = np.zeros((0, 0))

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """A block (n, C) float32, n > 0, with the same C in all calls -> (n,) float32."""
        if block.shape[1] == 1:
            self._count += len(block)
            return _positive_zero(block[:, 0])
        if not self._count:
            self._sums, self._products = np.zeros(block.shape[1]), np.zeros((block.shape[1], block.shape[1]))
        measured = block[::MEASURED].T.astype(np.float64, order="C")
        self._count += measured.shape[1]
        self._sums += measured.sum(axis=1)
        self._products += measured @ measured.T
        if self.mode == "first" or isinstance(self.mode, int):
            return _positive_zero(block[:, 0 if self.mode == "first" else int(self.mode) - 1])
        if block.shape[1] == 2:
            return _positive_zero(np.float32(0.5) * (block[:, 0] + block[:, 1]))
        mean = block.mean(axis=1, dtype=np.float64)  # float64: exact if all channels are equal
        return _positive_zero(mean.astype(np.float32))

    @property
    def channel(self) -> str:
        """What the result is: `mean`, or the number of a channel from 1."""
        if len(self._sums) < 2 or self.mode == "first":
            return "1"
        return str(self.mode)

    @cached_property
    def correlation(self) -> float:
        """The lowest correlation of two channels, -1..1; NaN for one channel, or if fewer than two have sound."""
        if len(self._sums) < 2:
            return math.nan
        covariance = self._covariance
        levels = np.sqrt(np.diag(covariance))
        heard = levels > 0
        if heard.sum() < 2:
            return math.nan
        correlation = covariance[heard][:, heard] / np.outer(levels[heard], levels[heard])
        return float(np.clip(correlation, -1, 1).min())

    @property
    def second_pass(self) -> int | None:
        """The channel to read instead: the loudest one, if the mode asks for it or averaging would cancel speech."""
        if len(self._sums) < 2 or self.mode not in ("mean", "loudest"):
            return None
        if self.mode == "mean" and not self.correlation < OPPOSITE:
            return None
        return int(np.argmax(np.diag(self._covariance))) + 1

    @cached_property
    def _covariance(self) -> np.ndarray:
        if not self._count:
            return np.zeros((0, 0))
        mean = self._sums / self._count
        covariance = self._products / self._count - np.outer(mean, mean)
        # A constant channel leaves rounding errors.
        silent = np.diag(covariance) <= 1e-12 * np.diag(self._products) / self._count
        covariance[silent] = covariance[:, silent] = 0
        return covariance


def _positive_zero(samples: np.ndarray) -> np.ndarray:
    """Turn -0 into 0: some containers do not have -0, and equal sound must have equal hashes."""
    return samples + np.float32(0)
