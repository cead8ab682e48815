"""The threshold at which decisions agree most with what people said, and how sure that is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
SEED = 0
MIN_ANSWERS = 10  # fewer give no advice
AT_END = 0.02  # how far a threshold lies at the most from the clips that are all on its one side
EVEN = 1e-9  # of the sum of weights: closer sums differ by rounding alone


def best_threshold(
    closeness: ArrayLike, fit: ArrayLike, weights: ArrayLike, groups: ArrayLike, today: float
) -> dict[str, Any]:
    """The threshold that maximises the weighted share of clips (N,) that are accepted if and only if they are `fit`.

    Every threshold of a span between two audited clips agrees as well: `threshold` is `today` if that is in the span,
    else the shortest number near its middle; of several spans the nearest to `today` counts. `low` and `high` bound it
    in 95 % of `RESAMPLES` draws from each of `groups` (N,) with replacement, spans counted to their ends, for within
    them nothing was heard.
    """
    order = np.argsort(np.asarray(closeness, np.float64), kind="stable")
    value, right = np.asarray(closeness, np.float64)[order], np.asarray(fit, bool)[order]
    weight, group = np.asarray(weights, np.float64)[order], np.asarray(groups)[order]
    low, high = _span(value, right, weight, today)
    random = np.random.default_rng(SEED)
    drawn = np.zeros((RESAMPLES, len(value)))
    for name in np.unique(group):
        members = np.flatnonzero(group == name)
        picks = members[random.integers(len(members), size=(RESAMPLES, len(members)))]
        np.add.at(drawn, (np.arange(RESAMPLES)[:, None], picks), 1.0)
    spans = np.array([_span(value, right, weight * times, today) for times in drawn])
    return {
        "threshold": today if low < today <= high else _short(low, high),
        "low": max(0.0, float(np.quantile(spans[:, 0], 0.025, method="lower"))),
        "high": float(np.quantile(spans[:, 1], 0.975, method="higher")),
    }


def _span(value: np.ndarray, fit: np.ndarray, weight: np.ndarray, today: float) -> tuple[float, float]:
    """Thresholds low < t <= high that agree most, of clips in ascending order of closeness; low is -1 below all."""
    # A threshold before clip k accepts it and all that follow.
    agree = np.concatenate([[0.0], np.cumsum(weight * ~fit)]) + np.concatenate(
        [np.cumsum((weight * fit)[::-1])[::-1], [0.0]]
    )
    ends = np.concatenate([[-1.0], value, [1.0]])
    possible = ends[1:] > ends[:-1]  # none between clips that are equally close
    best = possible & (agree >= agree[possible].max() - EVEN * weight.sum())
    spans: list[tuple[float, float]] = []
    for k in np.flatnonzero(best):
        low, high = float(ends[k]), float(ends[k + 1])
        if spans and low == spans[-1][1]:
            low = spans.pop()[0]
        spans.append((low, high))
    return min(spans, key=lambda span: max(span[0] - today, today - span[1], 0.0))


def _short(low: float, high: float) -> float:
    """The number with the fewest decimals near the middle of low < t <= high, or near the last clip if all are beyond."""
    if low < 0:
        low = max(0.0, high - AT_END)
    elif high == 1:
        high = min(1.0, low + AT_END)
    for digits in range(2, 17):
        number = round((low + high) / 2, digits)
        if low < number <= high:
            return number
    return high
