"""The interval of a share against scipy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from speechmill.intervals import wilson


@given(st.integers(1, 5_000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_it_is_the_wilson_score_interval_and_holds_the_share(trials, share, confidence):
    successes = round(share * trials)
    low, high = wilson(successes, trials, confidence)
    expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= successes / trials <= high <= 1


def test_nothing_is_known_without_trials():
    assert wilson(0, 0) == (0.0, 1.0)
