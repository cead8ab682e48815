"""Who is filtered out: against pandas and scipy on random corpora, and in bounded memory."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2_contingency
from scipy.stats.contingency import association as scipy_association

from speechmill.ranking.states import STATES
from speechmill.report.breakdown import BINS, CHANCE, COLUMNS, SHOWN, Breakdown, association, breakdown_of
from speechmill.report.parts import Part, Piece
from speechmill.report.summary import overview
from speechmill.tables.parquet_io import write_table
from speechmill.tables.schemas import RANKING

SCHEMA = pa.schema([field for field in RANKING if field.name in COLUMNS])
DOCUMENTED_BINS = [0, 1, 2, 3, 5, 8, 12, 20, 30, np.inf]


def corpus(clips=3_000, seed=1):
    """Many speakers, of whom some are accepted less often; a removed one; values that are missing."""
    random = np.random.default_rng(seed)
    speaker = random.zipf(1.4, clips) % 60
    accepted = random.random(clips) < np.where(speaker % 3 == 0, 0.35, 0.8)
    frame = pd.DataFrame(
        {
            "source": "corpus",
            "source_split": random.choice(["train", "dev", None], clips),
            "language": None,
            "speaker_id": [f"s{number}" for number in speaker],
            "gender": np.where(random.random(clips) < 0.2, None, np.where(speaker % 3, "female", "male")),
            "age": None,
            "input_duration": np.where(random.random(clips) < 0.05, np.nan, random.gamma(2, 4, clips)),
            "state": np.where(accepted, "accepted", random.choice(STATES[1:], clips)),
            "criterion": None,
        }
    )
    removed = frame["speaker_id"] == "s7"
    frame.loc[removed, ["state", "criterion"]] = "rejected", "removed"
    return frame


def filled(frame, parts=5, most=1_000):
    found = Breakdown(most)
    for part in np.array_split(np.arange(len(frame)), parts):
        table = pa.Table.from_pandas(frame.iloc[part], schema=SCHEMA, preserve_index=False)
        found.add(Part([Piece(Path("b"), len(table))], table))
    return found


@pytest.fixture(scope="module")
def frame():
    return corpus()


@pytest.fixture(scope="module")
def found(frame):
    return {one["column"]: one for one in breakdown_of(filled(frame))["dimensions"]}


def test_only_dimensions_with_several_values_are_there(found):
    assert list(found) == ["source_split", "speaker_id", "input_duration", "gender"]


@pytest.mark.parametrize("column", ["source_split", "speaker_id", "gender", "input_duration"])
def test_every_row_is_what_pandas_counts(frame, found, column):
    frame = frame[frame["criterion"] != "removed"].copy()
    frame["hours"] = frame["input_duration"].fillna(0) / 3600
    if column == "input_duration":
        frame[column] = pd.cut(frame[column], DOCUMENTED_BINS, right=False, labels=BINS).astype(object)
    frame[column] = frame[column].where(frame[column].notna(), None)
    rows = found[column]["rows"]
    named = [row["value"] for row in rows if row["kind"] == "value"]
    sizes = frame[column].value_counts()
    assert found[column]["values"] == len(sizes)
    expected = [one for one in BINS if one in sizes] if column == "input_duration" else None
    assert named == (expected or sorted(sizes.index, key=lambda one: (-sizes[one], one))[:SHOWN])
    for row in rows:
        inside = {
            "value": frame[column] == row["value"],
            "none": frame[column].isna(),
            "others": frame[column].notna() & ~frame[column].isin(named),
        }[row["kind"]]
        mine, rest = frame[inside], frame[~inside]
        states = mine["state"].value_counts()
        assert row["clips"] == {"input": len(mine), **{state: states.get(state, 0) for state in STATES}}
        hours = mine.groupby("state")["hours"].sum()
        assert row["hours"]["input"] == pytest.approx(mine["hours"].sum(), abs=1e-6)
        for state in STATES:
            assert row["hours"][state] == pytest.approx(hours.get(state, 0), abs=1e-6)
        accepted = states.get("accepted", 0)
        interval = binomtest(int(accepted), len(mine)).proportion_ci(0.95, method="wilson")
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high), abs=1e-6)
        others = (rest["state"] == "accepted").mean()
        assert row["accepted_share"] == pytest.approx(accepted / len(mine), abs=1e-6)
        assert row["difference"] == pytest.approx(accepted / len(mine) - others, abs=1e-6)
        of_others = binomtest(int((rest["state"] == "accepted").sum()), len(rest)).proportion_ci(0.95, method="wilson")
        difference = accepted / len(mine) - others
        least = difference - np.hypot(accepted / len(mine) - interval.low, of_others.high - others)
        most = difference + np.hypot(interval.high - accepted / len(mine), others - of_others.low)
        apart = min(len(mine), len(rest)) >= 10 and (least > 0 or most < 0) and found[column]["word"] != CHANCE
        assert row["stands_out"] == (apart and abs(difference) >= 0.1)
    assert sum(row["clips"]["input"] for row in rows) == len(frame)
    assert {row["kind"] for row in rows} >= ({"others"} if column == "speaker_id" else {"none"})


def test_speakers_are_told_as_a_whole(frame, found):
    frame = frame[frame["criterion"] != "removed"]
    accepted = frame[frame["state"] == "accepted"].groupby("speaker_id")["input_duration"].sum()
    speakers = frame["speaker_id"].nunique()
    assert found["speaker_id"]["with_accepted"] == len(accepted)
    largest = accepted.sort_values(ascending=False).head(int(np.ceil(speakers / 100))).sum()
    assert found["speaker_id"]["largest_share"] == pytest.approx(largest / accepted.sum(), abs=1e-6)


def bergsma(table):
    """Bias-corrected Cramér's V of a table (2, groups), by the paper's formula."""
    n, (r, k) = table.sum(), table.shape
    phi2 = scipy_association(table, method="cramer") ** 2 * (min(r, k) - 1)
    better = max(0, phi2 - (k - 1) * (r - 1) / (n - 1))
    return np.sqrt(better / (min(k - (k - 1) ** 2 / (n - 1), r - (r - 1) ** 2 / (n - 1)) - 1))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), min_size=2, max_size=30))
def test_the_effect_is_that_of_scipy_corrected_as_published(groups):
    accepted, left_out = (np.array(column) for column in zip(*groups, strict=True))
    effect, word = association(accepted, accepted + left_out)
    if accepted.any():
        table = np.array([accepted, left_out])
        assert effect == pytest.approx(min(1, bergsma(table)), abs=1e-9)
        assert (word == CHANCE) == (chi2_contingency(table, correction=False).pvalue >= 0.05)
    else:
        assert effect is None


def test_groups_that_differ_are_called_so_and_chance_is_not():
    assert association(np.array([90, 10]), np.array([100, 100]))[1] == "very different"
    assert association(np.array([70, 30]), np.array([100, 100]))[1] == "different"
    assert association(np.array([5_600, 4_400]), np.array([10_000, 10_000]))[1] == "slightly different"
    assert association(np.array([5_100, 4_900]), np.array([10_000, 10_000]))[1] == "alike"
    assert association(np.array([3, 1]), np.array([4, 4]))[1] == CHANCE
    random = np.random.default_rng(2)
    effect, word = association(random.binomial(4, 0.5, 5_000), np.full(5_000, 4))  # many speakers, all alike
    assert effect < 0.1
    assert word in (CHANCE, "alike")


def test_parts_of_any_size_in_any_order_give_the_same(frame):
    shuffled = frame.sample(frac=1, random_state=3)
    assert breakdown_of(filled(shuffled, 2)) == breakdown_of(filled(frame, 90))


def test_more_speakers_than_are_kept_are_sampled_whole_in_any_order():
    random = np.random.default_rng(5)
    frame = corpus(20_000)
    frame["speaker_id"] = [f"s{number}" for number in random.integers(0, 4_000, 20_000)]
    whole, few = filled(frame, most=10_000), filled(frame, most=500)
    groups = few.groups["speaker_id"]
    assert 250 <= len(groups.values) <= 500
    every = dict(zip(whole.groups["speaker_id"].values, whole.groups["speaker_id"].clips.tolist(), strict=True))
    assert dict(zip(groups.values, groups.clips.tolist(), strict=True)).items() <= every.items()
    told = {one["column"]: one for one in breakdown_of(few)["dimensions"]}["speaker_id"]
    assert told["sampled"] == groups.share < 0.2
    assert told["values"] == pytest.approx(len(every), rel=0.2)
    assert sum(row["clips"]["input"] for row in told["rows"]) == int((frame["criterion"] != "removed").sum())
    again = filled(frame.sample(frac=1, random_state=3), 17, most=500).groups["speaker_id"]
    assert sorted(again.values) == sorted(groups.values)


def test_the_summary_has_it_bounded_whatever_the_corpus_writes(tmp_path):
    long = "x" * 100_000
    rows = [
        {"id": f"{n:024x}", "state": "rejected", "criterion": "speech_s", "gender": f"{n}\n{long}", "age": "<b>\x00"}
        for n in range(100)
    ]
    write_table(pa.Table.from_pylist(rows, schema=RANKING), tmp_path / "b0.parquet")
    told = breakdown_of(overview([tmp_path / "b0.parquet"]).breakdown)
    assert [one["column"] for one in told["dimensions"]] == ["gender"]
    assert len(told["dimensions"][0]["rows"]) == SHOWN + 1
    assert len(json.dumps(told)) < 20_000


def test_nothing_is_told_of_nothing():
    assert breakdown_of(Breakdown())["dimensions"] == []


def test_one_clip_makes_nobody_stand_out():
    speakers = ["many"] * 1_000 + ["one"]
    frame = corpus(len(speakers)).assign(speaker_id=speakers, state=["accepted"] * 900 + ["rejected"] * 101)
    frame["criterion"] = None
    (dimension,) = [one for one in breakdown_of(filled(frame))["dimensions"] if one["column"] == "speaker_id"]
    assert [abs(row["difference"]) > 0.5 for row in dimension["rows"]] == [True, True]
    assert not any(row["stands_out"] for row in dimension["rows"])
