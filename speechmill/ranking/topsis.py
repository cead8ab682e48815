"""TOPSIS with fixed bounds and a fixed ideal: a clip's closeness depends on its own values and the profile alone.

Hwang & Yoon, Multiple Attribute Decision Making (Springer 1981), ch. III; the bounds that do not move are those of
R-TOPSIS (Aires & Ferreira, Computers & Industrial Engineering 132, 2019), the target intervals those of RIM
(Cables, Lamata & Verdegay, Information Sciences 337-338, 2016).

Everything is elementwise in float64 and sums run over the criteria in the profile's order. No BLAS, whose order of
summation changes with the number of rows: the same clip has the same bits in every batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechmill.ranking.profile import Criterion

Array = NDArray[np.float64]


def scale(values: ArrayLike, criterion: Criterion) -> Array:
    """Metric values (N,) to scores (N,) in [0, 1], 1 is best. NaN stays NaN; values beyond the bounds are clipped.

    benefit: (x - low) / (high - low); cost: one minus that; target [a, b] (RIM, eq. 2): 1 inside, falling
    linearly to 0 at the bounds. On a log10 scale all of them are logarithms.
    """
    x = np.clip(np.ascontiguousarray(values, dtype=np.float64), criterion.low, criterion.high)
    low, high = np.float64(criterion.low), np.float64(criterion.high)
    ideal = np.array(criterion.ideal or (low, high), dtype=np.float64)
    if criterion.scale == "log10":
        x, low, high, ideal = np.log10(x), np.log10(low), np.log10(high), np.log10(ideal)
    if criterion.direction == "benefit":
        return (x - low) / (high - low)
    if criterion.direction == "cost":
        return (high - x) / (high - low)
    scores = np.where(np.isnan(x), np.nan, 1.0)
    # Where the interval touches a bound, nothing lies beyond it.
    if low < ideal[0]:
        scores = np.where(x < ideal[0], (x - low) / (ideal[0] - low), scores)
    if ideal[1] < high:
        scores = np.where(x > ideal[1], (high - x) / (high - ideal[1]), scores)
    return scores


def scale_all(columns: Mapping[str, Array], criteria: tuple[Criterion, ...], rows: int) -> Array:
    """The scaled matrix (rows, criteria) of metric columns (rows,)."""
    scaled = np.empty((rows, len(criteria)), dtype=np.float64, order="F")
    for index, criterion in enumerate(criteria):
        scaled[:, index] = scale(columns[criterion.metric], criterion)
    return scaled


def closeness(scaled: Array, weights: ArrayLike) -> tuple[Array, Array]:
    """Closeness coefficient (N,) and coverage (N,) of a scaled matrix (N, C) with weights (C,) >= 0.

    With v = w * s, ideal w and anti-ideal 0: d+ = |w - v|, d- = |v| (Euclid), closeness = d- / (d+ + d-)
    in [0, 1]. NaN is a missing value: both distances are over what is there. That is the same as to renormalise
    the weights over what is there, since closeness does not change when all weights are multiplied by a number.
    Coverage is the share of the weight that is there; without any, closeness is NaN.
    """
    weights = np.asarray(weights, dtype=np.float64)
    rows = scaled.shape[0]
    to_ideal, to_anti, present, total = np.zeros(rows), np.zeros(rows), np.zeros(rows), np.float64(0)
    for column, weight in zip(scaled.T, weights, strict=True):
        there = ~np.isnan(column)
        to_ideal += np.where(there, (weight * (1.0 - column)) ** 2, 0.0)
        to_anti += np.where(there, (weight * column) ** 2, 0.0)
        present += np.where(there, weight, 0.0)
        total += weight
    with np.errstate(divide="ignore", invalid="ignore"):
        # Written so that rounding keeps the order: every operation is monotone in every score.
        value = 1.0 / (1.0 + np.sqrt(to_ideal) / np.sqrt(to_anti))
        return value, present / total


def distance_shares(scaled: Array, weights: ArrayLike) -> Array:
    """Share (N, C) of each criterion in the squared distance to the ideal, d+^2, of a scaled matrix (N, C).

    The shares of a clip add up to 1 over the criteria that it has values for; NaN marks the others. All shares of a
    clip at the ideal are 0.
    """
    parts = (np.asarray(weights, dtype=np.float64) * (1.0 - scaled)) ** 2
    total = np.zeros(scaled.shape[0])
    for column in parts.T:
        total += np.where(np.isnan(column), 0.0, column)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(total[:, None] > 0, parts / total[:, None], 0.0)
    return np.where(np.isnan(scaled), np.nan, shares)
