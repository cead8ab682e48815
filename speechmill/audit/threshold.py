"""The threshold at which decisions agree best with the listeners' answers, and its confidence interval."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
SEED = 0
MIN_ANSWERS = 10  # that advice needs
AT_END = 0.02  # maximum distance of a threshold from the clips, if all of them are on one side of it
TIE_TOLERANCE = 1e-9  # of the sum of weights: smaller differences are rounding errors


def best_threshold(
    closeness: ArrayLike, fit: ArrayLike, weights: ArrayLike, groups: ArrayLike, today: float
) -> dict[str, Any]:
    """The threshold that maximises the weighted share of clips (N,) that are accepted if and only if they are `fit`.

    All thresholds between two neighbouring audited clips agree equally. If the best such span contains `today`, then
    `threshold` is `today`, else it is the shortest number near the middle of the span. Of several best spans the one
    nearest to `today` counts. `low` and `high` are the 95 % bootstrap interval, from RESAMPLES draws with replacement
    within each of `groups` (N,). They include whole spans, because no clip within a span was judged.
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
    """Thresholds low < t <= high that agree best, for clips in ascending order of closeness; low is -1 below all."""
    # A threshold before clip k accepts it and all that follow.
    agree = np.concatenate([[0.0], np.cumsum(weight * ~fit)]) + np.concatenate(
        [np.cumsum((weight * fit)[::-1])[::-1], [0.0]]
    )
    ends = np.concatenate([[-1.0], value, [1.0]])
    possible = ends[1:] > ends[:-1]  # no threshold separates clips of equal closeness
    best = possible & (agree >= agree[possible].max() - TIE_TOLERANCE * weight.sum())
    spans: list[tuple[float, float]] = []
    for k in np.flatnonzero(best):
        low, high = float(ends[k]), float(ends[k + 1])
        if spans and low == spans[-1][1]:
            low = spans.pop()[0]
        spans.append((low, high))
    return min(spans, key=lambda span: max(span[0] - today, today - span[1], 0.0))


def _short(low: float, high: float) -> float:
    """The number with the fewest decimals near the middle of low < t <= high, or near the last clip at either end."""
    if low < 0:
        low = max(0.0, high - AT_END)
    elif high == 1:
        high = min(1.0, low + AT_END)
    for digits in range(2, 17):
        number = round((low + high) / 2, digits)
        if low < number <= high:
            return number
    return high
