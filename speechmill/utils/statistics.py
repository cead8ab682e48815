"""Confidence intervals of shares, and quantiles of large samples."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

MAX_DISTINCT = 65_536
PENDING = 524_288  # values that are buffered before a merge
MANTISSA = 52  # bits of a double
COUNTED_BITS = 12  # of the mantissa; with sign and exponent at most 2^23 bins for counting
QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95}


def wilson(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share, both bounds in 0..1; (0, 1) without trials.

    Unlike the normal approximation it is also valid near 0 and 1. Source: Wilson, JASA 22, 1927.
    """
    if not trials:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    share = successes / trials
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    # Rounding must not move a bound past the share.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def newcombe(first: int, first_trials: int, second: int, second_trials: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of the difference of two shares, first - second; trials > 0.

    It combines the two Wilson intervals. Source: method 10 of Newcombe, Statistics in Medicine 17, 1998.
    """
    a, b = first / first_trials, second / second_trials
    (a_low, a_high), (b_low, b_high) = wilson(first, first_trials), wilson(second, second_trials)
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks (N,) float64 of values (N,), from 1; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


class Distribution:
    """A histogram of values with at most `MAX_DISTINCT` steps.

    It is exact up to that number of distinct values. Beyond it, values are rounded toward zero to `bits` mantissa bits,
    the most that fit. Every value and quantile then has a relative error below 2^-bits; 65,536 steps over ten octaves
    are 12 bits, 0.03 %. The result depends only on the values, not on their order or grouping. NaN and infinite values
    are skipped.
    """

    def __init__(self) -> None:
        self.bits = MANTISSA
        self._values = np.empty(0)
        self._counts = np.empty(0, np.int64)
        self._pending: list[np.ndarray] = []
        self._waiting = 0

    def add(self, values: np.ndarray) -> None:
        """Add values (N,) of any float type."""
        values = np.asarray(values, np.float64)
        self._pending.append(values[np.isfinite(values)] + 0.0)  # -0.0 becomes 0.0
        self._waiting += len(self._pending[-1])
        if self._waiting >= PENDING:
            self._merge()

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct values, ascending, and their counts: float64 (D,), int64 (D,)."""
        if self._pending:
            self._merge()
        return self._values, self._counts

    @property
    def count(self) -> int:
        """Number of added values."""
        return int(self.steps()[1].sum())

    def quantile(self, share: float) -> float | None:
        """Return the quantile at `share` in 0..1 with linear interpolation, as numpy does; None without values."""
        values, counts = self.steps()
        if not len(values):
            return None
        position = share * (int(counts.sum()) - 1)
        below = int(position)
        last = np.cumsum(counts)
        low, high = (values[np.searchsorted(last, rank, side="right")] for rank in (below, int(np.ceil(position))))
        return float(low + (high - low) * (position - below))

    def _merge(self) -> None:
        # Counting the new values and inserting them is much faster than sorting all values again.
        new, counts = self._count(np.concatenate(self._pending))
        self._pending, self._waiting = [], 0
        at = np.searchsorted(self._values, new)
        known = np.zeros(len(new), bool)
        inside = at < len(self._values)
        known[inside] = self._values[at[inside]] == new[inside]
        self._counts[at[known]] += counts[known]
        self._values = np.insert(self._values, at[~known], new[~known])
        self._counts = np.insert(self._counts, at[~known], counts[~known])
        if len(self._values) > MAX_DISTINCT:
            self.bits = self._fitting_bits()
            self._values, runs = _runs(self._round(self._values))  # rounding preserves the order
            self._counts = np.add.reduceat(self._counts, np.cumsum(runs) - runs)

    def _count(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct rounded values, ascending, and their counts.

        Sorts for fine steps, counts bins for coarse ones.
        """
        if self.bits > COUNTED_BITS:
            return _runs(np.sort(self._round(values)))
        values = self._round(values)
        negative, below = _steps(-values[values < 0], MANTISSA - self.bits)
        positive, above = _steps(values[values > 0], MANTISSA - self.bits)
        zeros = len(values) - below.sum() - above.sum()
        return (
            np.concatenate([-negative[::-1], np.zeros(min(1, zeros)), positive]),
            np.concatenate([below[::-1], np.full(min(1, zeros), zeros), above]),
        )

    def _fitting_bits(self) -> int:
        """Return the most mantissa bits that leave at most `MAX_DISTINCT` distinct values."""
        differing = np.bitwise_xor(self._values.view(np.uint64)[1:], self._values.view(np.uint64)[:-1])
        highest = (
            np.frexp(differing.astype(np.float64))[1] - 1
        )  # highest bit that differs between neighbours; inexact above 52
        distinct = 1 + np.cumsum(np.bincount(highest, minlength=65)[::-1])[::-1]  # index: number of dropped bits
        return MANTISSA - int(np.flatnonzero(distinct <= MAX_DISTINCT)[0])

    def _round(self, values: np.ndarray) -> np.ndarray:
        drop = np.uint64(MANTISSA - self.bits)
        return ((values.view(np.uint64) >> drop) << drop).view(np.float64) + 0.0


def _runs(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct values of sorted values (N,), and their counts."""
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]]))
    return ordered[first], np.diff(np.append(first, len(ordered)))


def _steps(values: np.ndarray, drop: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_runs`, for positive values (N,) in any order whose last `drop` bits are zero."""
    if not len(values):
        return np.empty(0), np.empty(0, np.int64)
    keys = (values.view(np.uint64) >> np.uint64(drop)).astype(np.int64)
    first = keys.min()
    counts = np.bincount(keys - first)
    found = np.flatnonzero(counts)
    return ((found + first) << drop).view(np.float64), counts[found]
