"""Intervals of shares, and ranks, against scipy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, rankdata

from speechmill.utils.statistics import average_ranks, newcombe, wilson


@given(st.integers(1, 5_000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_it_is_the_wilson_score_interval_and_holds_the_share(trials, share, confidence):
    successes = round(share * trials)
    low, high = wilson(successes, trials, confidence)
    expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= successes / trials <= high <= 1


def test_nothing_is_known_without_trials():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((0, 10, 0, 20), (-0.1611, 0.2775)),
        ((10, 10, 0, 10), (0.6075, 1.0)),
    ],
)
def test_differences_of_shares_are_those_of_the_published_table(counts, interval):
    # Newcombe 1998, Table II, method 10
    assert newcombe(*counts) == pytest.approx(interval, abs=6e-5)


@given(st.lists(st.sampled_from([-1.5, 0.0, 0.25, 2.0, 1e9]) | st.floats(-1, 1)))
def test_ranks_are_those_of_scipy(values):
    assert average_ranks(values).tolist() == rankdata(values).tolist()
