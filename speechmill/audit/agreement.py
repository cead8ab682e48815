"""How far judgements agree: shares of weighted samples with their intervals, and agreement beyond chance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from speechmill.intervals import wilson

HALF_WIDTH = 0.05  # of an interval that is narrow enough


def weighted_share(hits: ArrayLike, weights: ArrayLike) -> dict[str, Any]:
    """The share of `hits` (N,) bool under `weights` (N,) > 0, with its 95 % Wilson interval; None without any.

    The interval is that of `effective` equal answers, (sum w)^2 / sum w^2 (Kish, Survey Sampling, 1965). That counts what unequal
    weights cost and not what strata gain, and so is rather too wide than too narrow; and it holds where all agree.
    """
    hit, weight = np.asarray(hits, bool), np.asarray(weights, np.float64)
    if not len(hit):
        return {"answers": 0, "effective": 0.0, "share": None, "low": None, "high": None}
    effective = float(weight.sum() ** 2 / np.sum(weight**2))
    share = 1.0 if hit.all() else float(weight[hit].sum() / weight.sum())
    low, high = wilson(share * effective, effective)
    return {"answers": len(hit), "effective": effective, "share": share, "low": low, "high": high}


def answers_needed(estimate: dict[str, Any]) -> int:
    """How many more answers narrow the interval of a `weighted_share` to +-5 points, if the share stays what it is."""
    if not estimate["answers"]:
        share, cost = 0.5, 1.0
    else:
        share, cost = estimate["share"], estimate["answers"] / estimate["effective"]
    enough = 1
    while np.subtract(*wilson(share * enough, enough)[::-1]) > 2 * HALF_WIDTH:
        enough += 1
    return max(0, int(np.ceil(enough * cost)) - estimate["answers"])


def cohen_kappa(first: ArrayLike, second: ArrayLike) -> float | None:
    """Agreement of two raters beyond chance, of their labels (N,) of the same things; None where chance alone agrees.

    Cohen, Educational and Psychological Measurement 20(1), 1960.
    """
    a, b = np.asarray(first), np.asarray(second)
    if not len(a):
        return None
    chance = sum(float(np.mean(a == label) * np.mean(b == label)) for label in np.union1d(a, b))
    return _beyond(float(np.mean(a == b)), chance)


def fleiss_kappa(counts: ArrayLike) -> float | None:
    """The same for more raters: `counts` (N, K), how many of them gave each thing each label, as many for every thing.

    Fleiss, Psychological Bulletin 76(5), 1971.
    """
    table = np.asarray(counts, np.float64)
    if not len(table):
        return None
    raters = table[0].sum()
    observed = np.mean((np.sum(table**2, axis=1) - raters) / (raters * (raters - 1)))
    return _beyond(float(observed), float(np.sum((table.sum(axis=0) / table.sum()) ** 2)))


def _beyond(observed: float, chance: float) -> float | None:
    return None if chance >= 1 else (observed - chance) / (1 - chance)
