"""How sure a share is that was counted on a sample."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson, JASA 22, 1927); 0 to 1 without trials.

    It holds near 0 and 1 too, where the usual interval of a mean does not.
    """
    if not trials:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    share = successes / trials
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    # Rounding must not push a bound past the share itself.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def newcombe(first: int, first_trials: int, second: int, second_trials: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two shares, first - second, from the two Wilson intervals; trials > 0.

    Method 10 of Newcombe, Statistics in Medicine 17, 1998.
    """
    a, b = first / first_trials, second / second_trials
    (a_low, a_high), (b_low, b_high) = wilson(first, first_trials), wilson(second, second_trials)
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)
