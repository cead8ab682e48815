"""Agreement of judgements: weighted shares with confidence intervals, and agreement beyond chance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from speechmill.utils.statistics import wilson

HALF_WIDTH = 0.05  # target half-width of a confidence interval


def weighted_share(hits: ArrayLike, weights: ArrayLike) -> dict[str, Any]:
    """The share of `hits` (N,) bool under `weights` (N,) > 0, with its 95 % Wilson interval; None if N is 0.

    The interval is that of `effective` answers of equal weight, (sum w)^2 / sum w^2 (Kish, Survey Sampling, 1965).
    It includes the loss by unequal weights but not the gain by strata, so it is too wide rather than too narrow. It
    is also valid if all answers agree.
    """
    hit, weight = np.asarray(hits, bool), np.asarray(weights, np.float64)
    if not len(hit):
        return {"answers": 0, "effective": 0.0, "share": None, "low": None, "high": None}
    effective = float(weight.sum() ** 2 / np.sum(weight**2))
    share = 1.0 if hit.all() else float(weight[hit].sum() / weight.sum())
    low, high = wilson(share * effective, effective)
    return {"answers": len(hit), "effective": effective, "share": share, "low": low, "high": high}


def answers_needed(estimate: dict[str, Any]) -> int:
    """Additional answers that narrow the interval of a `weighted_share` to +-5 points, if the share does not change."""
    if not estimate["answers"]:
        share, cost = 0.5, 1.0
    else:
        share, cost = estimate["share"], estimate["answers"] / estimate["effective"]
    enough = 1
    while np.subtract(*wilson(share * enough, enough)[::-1]) > 2 * HALF_WIDTH:
        enough += 1
    return max(0, int(np.ceil(enough * cost)) - estimate["answers"])


def cohen_kappa(first: ArrayLike, second: ArrayLike) -> float | None:
    """Agreement of two raters beyond chance, by their labels (N,) of the same items; None if chance agreement is 1.

    Cohen, Educational and Psychological Measurement 20(1), 1960.
    """
    a, b = np.asarray(first), np.asarray(second)
    if not len(a):
        return None
    chance = sum(float(np.mean(a == label) * np.mean(b == label)) for label in np.union1d(a, b))
    return _beyond_chance(float(np.mean(a == b)), chance)


def fleiss_kappa(counts: ArrayLike) -> float | None:
    """The same for more raters. `counts` (N, K): raters who gave item n label k; the row sums are equal.

    Fleiss, Psychological Bulletin 76(5), 1971.
    """
    table = np.asarray(counts, np.float64)
    if not len(table):
        return None
    raters = table[0].sum()
    observed = np.mean((np.sum(table**2, axis=1) - raters) / (raters * (raters - 1)))
    return _beyond_chance(float(observed), float(np.sum((table.sum(axis=0) / table.sum()) ** 2)))


def _beyond_chance(observed: float, chance: float) -> float | None:
    return None if chance >= 1 else (observed - chance) / (1 - chance)
