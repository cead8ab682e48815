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


def differ(first: int, first_trials: int, second: int, second_trials: int, confidence: float = 0.95) -> bool:
    """Whether the interval of the difference of two shares is all on one side of 0; trials are above 0.

    Newcombe 1998 (Statistics in Medicine 17), method 10: from the two Wilson intervals.
    """
    a, b = first / first_trials, second / second_trials
    (a_low, a_high), (b_low, b_high) = (
        wilson(first, first_trials, confidence),
        wilson(second, second_trials, confidence),
    )
    low = a - b - ((a - a_low) ** 2 + (b_high - b) ** 2) ** 0.5
    high = a - b + ((a_high - a) ** 2 + (b - b_low) ** 2) ** 0.5
    return low > 0 or high < 0
