"""What moves the ranking: against ranking a small corpus again with each moved weight."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from speechmill.ranking.advice import advise
from speechmill.ranking.decide import rank_batch
from speechmill.ranking.profile import Criterion, FrozenProfile, Gate
from speechmill.ranking.sensitivity import move, sensitivity
from speechmill.ranking.topsis import closeness
from speechmill.tables.schemas import LEDGER
from speechmill.utils.statistics import wilson

PROFILE = FrozenProfile(
    name="test",
    version=1,
    description="",
    threshold=0.55,
    min_coverage=0.7,
    gates=(Gate("snr", 4.0, None, ""),),
    criteria=(
        Criterion("snr", "noise", 0.0, 40.0, "benefit", 0.4),
        Criterion("mos", "quality", 1.0, 5.0, "benefit", 0.25),
        Criterion("ovrl", "quality", 1.0, 5.0, "benefit", 0.1),
        Criterion("clip", "level", 0.0, 1.0, "cost", 0.25),
    ),
    dropped_criteria=(),
    dropped_gates=(),
    sha256="",
)
RANGES = {"snr": (0, 40), "mos": (1, 5), "ovrl": (1, 5), "clip": (0, 1)}


def weighted(weights):
    criteria = tuple(dataclasses.replace(c, weight=w) for c, w in zip(PROFILE.criteria, weights, strict=True))
    return dataclasses.replace(PROFILE, criteria=criteria)


@pytest.fixture(scope="module")
def rank():
    """Ranks the same 700 clips by a profile; some values are missing, a few clips are duplicates or held out."""
    random = np.random.default_rng(4)
    ids = [f"{value:016x}" for value in random.permutation(10**6)[:700]]
    columns = {name: random.uniform(low, high, 700) for name, (low, high) in RANGES.items()}
    scores = {name: pa.array(values, mask=random.random(700) < 0.06) for name, values in columns.items()}
    nothing = pa.nulls(700, pa.string())
    ledger = pa.Table.from_pylist([{"id": i, "state": "passed", "input_duration": 3.0} for i in ids], schema=LEDGER)
    table = pa.table({"id": ids, "error_class": nothing, "message": nothing, **scores})
    duplicates = pa.table({"id": ids[:20], "duplicate_of": ids[20:40]})
    held_out = pa.table({"id": ids[30:60], "message": ["in a test split"] * 30})
    return lambda profile: rank_batch(ledger, ledger, table, duplicates, profile, "b0", held_out)


@pytest.fixture(scope="module")
def found(rank, tmp_path_factory):
    path = tmp_path_factory.mktemp("ranking") / "b0.parquet"
    pq.write_table(rank(PROFILE), path)
    return advise([path], PROFILE)["sensitivity"], advise([path], PROFILE, rows=200)["sensitivity"]


def by_hand(name, kind, factor):
    """The weights when one of them, or those of a group, is multiplied and the others fill up to 1."""
    new = [c.weight * factor if name == (c.group if kind == "group" else c.metric) else None for c in PROFILE.criteria]
    left = 1 - sum(weight for weight in new if weight is not None)
    rest = sum(c.weight for c, weight in zip(PROFILE.criteria, new, strict=True) if weight is None)
    return [c.weight * left / rest if w is None else w for c, w in zip(PROFILE.criteria, new, strict=True)]


def changes(rank, profile):
    """Decided clips, gained, lost and the rank correlation, from ranking anew."""
    before, after = rank(PROFILE).to_pylist(), rank(profile).to_pylist()
    decided = [
        (was["state"] == "accepted", became["state"] == "accepted")
        for was, became in zip(before, after, strict=True)
        if was["state"] in ("accepted", "rejected") and was["failed_gates"] == [] and was["criterion"] != "held_out"
    ]
    ranked = [
        (was["closeness"], closeness_of(became, profile))
        for was, became in zip(before, after, strict=True)
        if was["closeness"] is not None and was["state"] != "duplicate"
    ]
    gained, lost = (sum(pair == moved for pair in decided) for moved in ((False, True), (True, False)))
    return len(decided), gained, lost, spearmanr(*zip(*ranked, strict=True)).statistic


def closeness_of(row, profile):
    """Of a clip also where too few of its metrics are there to decide by it."""
    away = near = 0.0
    for criterion in profile.criteria:
        value = row[criterion.metric]
        if value is not None:
            score = (value - criterion.low) / (criterion.high - criterion.low)
            score = 1 - score if criterion.direction == "cost" else score
            away, near = away + (criterion.weight * (1 - score)) ** 2, near + (criterion.weight * score) ** 2
    return near**0.5 / (near**0.5 + away**0.5)


def test_each_weight_that_moves_flips_what_ranking_anew_flips(rank, found):
    rows = found[0]["weights"]
    names = [("group", "noise"), ("group", "quality"), ("group", "level")]
    assert [(row["kind"], row["name"]) for row in rows] == names + [("criterion", c.metric) for c in PROFILE.criteria]
    for row in rows:
        for side, factor in (("up", 1.2), ("down", 0.8)):
            weights = by_hand(row["name"], row["kind"], factor)
            total, gained, lost, correlation = changes(rank, weighted(weights))
            one = row[side]
            assert found[0]["clips"] == total
            assert one["to"] == pytest.approx(row["weight"] * factor, abs=1e-6)
            assert (one["gained"], one["lost"]) == pytest.approx((gained / total, lost / total), abs=1e-6)
            assert one["flipped"] == pytest.approx((gained + lost) / total, abs=1e-6)
            assert one["rank_correlation"] == pytest.approx(correlation, abs=1e-5)
    assert any(row["up"]["gained"] for row in rows)
    assert any(row["up"]["lost"] for row in rows)


def test_a_threshold_that_moves_flips_what_ranking_anew_flips(rank, found):
    for side, threshold in (("up", 0.6), ("down", 0.5)):
        total, gained, lost, _ = changes(rank, dataclasses.replace(PROFILE, threshold=threshold))
        one = found[0]["threshold"][side]
        assert one["to"] == pytest.approx(threshold)
        assert (one["gained"], one["lost"]) == pytest.approx((gained / total, lost / total), abs=1e-6)
        assert one["flipped"] > 0


def test_only_a_sample_has_an_interval(found):
    whole, sample = found
    assert (whole["whole"], sample["whole"]) == (True, False)
    assert whole["weights"][0]["up"]["low"] is None
    one, clips = sample["weights"][0]["up"], sample["clips"]
    assert clips < whole["clips"]
    assert (one["low"], one["high"]) == pytest.approx(wilson(round(one["flipped"] * clips), clips), abs=1e-6)


def test_a_clip_that_is_covered_too_little_by_the_moved_weights_is_lost():
    scaled = np.array([[np.nan, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    profile = dataclasses.replace(PROFILE, min_coverage=0.6)  # without the noise 0.6 are left, and 0.52 of the moved
    found = sensitivity(scaled, np.ones(2, bool), profile, True)
    noise = next(row for row in found["weights"] if row["name"] == "noise")
    assert (noise["up"]["lost"], noise["down"]["lost"]) == (0.5, 0.0)


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_to_say_of_hardly_any_clip(rows):
    found = sensitivity(np.full((rows, 4), 0.5), np.zeros(rows, bool), PROFILE, True)
    assert found["weights"][0]["up"]["flipped"] is None
    assert found["weights"][0]["up"]["rank_correlation"] is None


matrices = arrays(np.float64, (12, 4), elements=st.floats(0, 1) | st.just(np.nan))


@settings(max_examples=80)
@given(matrices, st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda w: sum(w) > 0.1), st.integers(0, 3))
def test_what_moves_by_nothing_flips_nothing(scaled, weights, index):
    weights = np.array(weights) / sum(weights)
    same = move(weights, np.arange(4) == index, 1.0)
    assert same == pytest.approx(weights, abs=1e-12)
    first, second = closeness(scaled, weights)[0], closeness(scaled, same)[0]
    assert first == pytest.approx(second, abs=1e-9, nan_ok=True)


@settings(max_examples=80)
@given(matrices, st.integers(-4, 4), st.integers(0, 3))
def test_weights_of_another_scale_flip_the_same(scaled, power, number):
    # The one group holds all of the weight: to move it is to scale all weights.
    one_group = tuple(dataclasses.replace(c, group="all") for c in PROFILE.criteria)
    profile = dataclasses.replace(PROFILE, criteria=one_group, threshold=number / 4)
    scored = ~np.isnan(scaled).all(1)
    found = sensitivity(scaled[scored], np.ones(scored.sum(), bool), profile, True)
    assert not found["weights"][0]["up"]["flipped"]
    assert not found["weights"][0]["down"]["flipped"]
    scaled_up = dataclasses.replace(
        profile, criteria=tuple(dataclasses.replace(c, weight=c.weight * 2.0**power) for c in one_group)
    )
    again = sensitivity(scaled[scored], np.ones(scored.sum(), bool), scaled_up, True)
    for row, other in zip(found["weights"][1:], again["weights"][1:], strict=True):
        assert row["up"]["flipped"] == other["up"]["flipped"]
        assert row["down"]["flipped"] == other["down"]["flipped"]
