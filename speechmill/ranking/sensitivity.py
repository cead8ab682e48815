"""What moves the ranking: how many decisions another weight or threshold would turn round."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechmill.ranking.profile import FrozenProfile
from speechmill.ranking.topsis import Array, closeness
from speechmill.utils.statistics import average_ranks, wilson

WEIGHT_MOVE = 0.2  # of a weight: up and down by a fifth
THRESHOLD_MOVE = 0.05
ROUNDING = 1e-9  # closeness that moved by less did not move
DIGITS = 6
Mask = NDArray[np.bool_]


def sensitivity(scaled: Array, decided: Mask, profile: FrozenProfile, whole: bool) -> dict[str, Any]:
    """What becomes of the decisions when one weight moves by 20 %, or the threshold by 0.05; ready for JSON.

    `scaled` (N, C) are the scaled criteria of clips that have a closeness (all of them if `whole`, else a random
    sample), duplicates aside. `decided` (N,) are those whose decision closeness makes: they pass all gates (their
    `failed_gates` are empty) and are neither held out nor removed. No weight changes that of the others.
    Of a weight that moves, the other ones take or give what it gives or takes, each in proportion; it ends at 1.
    A clip whose measured criteria have less than `min_coverage` of the weights that moved is not accepted by them.
    One that has no closeness with the profile's own weights is not in the sample, and so never gained.

    Returns `clips` (decided ones), `accepted` (share of them), `whole`, and of each change in `weights` {kind, name,
    weight, up, down} and `threshold` {up, down}: `to` (the new value), `flipped` (share of the decided clips), its
    Wilson interval `low`, `high` (None where the decisions of the whole corpus are known), `gained` and `lost`
    (shares, which add up to `flipped`), and for weights `rank_correlation`: Spearman's, of the closeness of all clips
    of the sample with the unchanged one. A figure that the data do not give is None.
    """
    weights = np.array([criterion.weight for criterion in profile.criteria])
    groups = np.array([criterion.group for criterion in profile.criteria])
    before, coverage = closeness(scaled, weights)
    covered = coverage >= profile.min_coverage - ROUNDING
    accepted = decided & covered & (before >= profile.threshold)
    ranks = average_ranks(before)

    def change(to: float, then: Mask) -> dict[str, Any]:
        total, gained, lost = (int(np.count_nonzero(mask)) for mask in (decided, then & ~accepted, accepted & ~then))
        low, high = (None, None) if whole or not total else wilson(gained + lost, total)
        shares = {"flipped": gained + lost, "gained": gained, "lost": lost}
        found = {name: count / total if total else None for name, count in shares.items()}
        return {name: _rounded(value) for name, value in {"to": to, **found, "low": low, "high": high}.items()}

    def moved_weight(members: Mask, factor: float) -> dict[str, Any]:
        new = move(weights, members, factor)
        after, coverage = closeness(scaled, new)
        # All weights times a number give the same closeness, but for its last digits.
        after = np.where(np.abs(after - before) <= ROUNDING, before, after)
        then = decided & (coverage >= profile.min_coverage - ROUNDING) & (after >= profile.threshold)
        correlation = _rounded(_spearman(before, ranks, after))
        return change(float(new[members].sum()), then) | {"rank_correlation": correlation}

    def moved_threshold(to: float) -> dict[str, Any]:
        return change(to, decided & covered & (before >= to))

    rows = [("group", group, groups == group) for group in dict.fromkeys(groups.tolist())]
    rows += [("criterion", c.metric, np.arange(len(weights)) == i) for i, c in enumerate(profile.criteria)]
    return {
        "clips": int(np.count_nonzero(decided)),
        "accepted": _rounded(np.count_nonzero(accepted) / np.count_nonzero(decided)) if decided.any() else None,
        "whole": whole,
        "weights": [
            {
                "kind": kind,
                "name": name,
                "weight": _rounded(float(weights[members].sum())),
                "up": moved_weight(members, 1 + WEIGHT_MOVE),
                "down": moved_weight(members, 1 - WEIGHT_MOVE),
            }
            for kind, name, members in rows
        ],
        "threshold": {
            "up": moved_threshold(profile.threshold + THRESHOLD_MOVE),
            "down": moved_threshold(profile.threshold - THRESHOLD_MOVE),
        },
    }


def move(weights: Array, members: Mask, factor: float) -> Array:
    """Weights (C,) with those of `members` (C,) multiplied by a factor, but at most to 1; the others fill up to 1."""
    weights = weights / weights.sum()
    own, rest = weights[members].sum(), weights[~members].sum()
    if not own or not rest:
        return weights  # closeness does not change when all weights do
    new = min(1.0, own * factor)
    return np.where(members, weights * (new / own), weights * ((1.0 - new) / rest))


def _spearman(before: Array, ranks: Array, after: Array) -> float | None:
    """Spearman's rank correlation of two columns (N,), the first of which has these ranks; over rows that have both."""
    there = np.isfinite(after)
    if not there.all():
        ranks = average_ranks(before[there])
    first, second = (one - np.mean(one) if len(one) else one for one in (ranks, average_ranks(after[there])))
    spread = np.sqrt(np.sum(first**2) * np.sum(second**2))
    return float(np.sum(first * second) / spread) if spread else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
