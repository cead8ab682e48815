"""The state rules of the rank stage."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechmill.errors import ConfigError, LedgerError
from speechmill.ranking.decide import rank_batch
from speechmill.ranking.profile import Criterion, FrozenProfile, Gate
from speechmill.ranking.states import STATES, check_balance, check_batch, count_states
from speechmill.tables.schemas import LEDGER, RANKING

PROFILE = FrozenProfile(
    name="test",
    version=1,
    description="",
    threshold=0.5,
    min_coverage=0.8,
    gates=(Gate("duration", 1.0, 30.0, "odd length"), Gate("snr", 0.0, None, ""), Gate("clip", None, 0.5, "")),
    criteria=(
        Criterion("snr", "a", 0.0, 40.0, "benefit", 0.7),
        Criterion("mos", "b", 1.0, 5.0, "benefit", 0.2),
        Criterion("clip", "b", 0.0, 1.0, "cost", 0.1),
    ),
    dropped_criteria=(),
    dropped_gates=(),
    sha256="",
)
METRICS = ("snr", "mos", "clip")
GOOD = {"snr": 30.0, "mos": 4.0, "clip": 0.0, "duration": 5.0}


def ledger_of(states: dict[str, dict]) -> pa.Table:
    rows = [{"id": name, "source": "s", "input_duration": 6.0, "state": "passed"} | row for name, row in states.items()]
    return pa.Table.from_pylist(rows, schema=LEDGER)


def scores_of(values: dict[str, dict]) -> pa.Table:
    schema = pa.schema(
        [pa.field(name, pa.string()) for name in ("id", "error_class", "message", "variant")]
        + [pa.field(name, pa.float64()) for name in ("duration", *METRICS)]
    )
    return pa.Table.from_pylist(
        [{"id": name, "variant": "original"} | row for name, row in values.items()], schema=schema
    )


def duplicates_of(pairs: dict[str, str]) -> pa.Table:
    return pa.table(
        {"id": pa.array(list(pairs), pa.string()), "duplicate_of": pa.array(list(pairs.values()), pa.string())}
    )


def manifest_of(ids: list[str]) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.string()), "text": pa.array([f"text of {i}" for i in ids], pa.string())})


def rank(
    scores: dict[str, dict], states: dict[str, dict] | None = None, pairs: dict[str, str] | None = None, **changes
):
    states = {name: {} for name in scores} if states is None else states
    profile = dataclasses.replace(PROFILE, **changes)
    ledger = ledger_of(states)
    table = rank_batch(
        ledger, manifest_of(list(states)[::-1]), scores_of(scores), duplicates_of(pairs or {}), profile, "b7"
    )
    check_batch(list(states), ledger, table, "b7")
    return {row["id"]: row for row in table.to_pylist()}


def test_columns_order_and_descriptions():
    states = {"c": {}, "a": {"state": "errored", "error_class": "truncated", "message": "m"}, "b": {}}
    table = rank_batch(
        ledger_of(states),
        manifest_of(["a", "b", "c"]),
        scores_of({"b": GOOD, "c": GOOD}).replace_schema_metadata({"models": "those that measured"}),
        duplicates_of({}),
        PROFILE,
        "b7",
    )
    assert table.schema.metadata == {b"models": b"those that measured", b"criteria": b'["snr", "mos", "clip"]'}
    assert table.column_names == [*RANKING.names, "clip", "mos", "snr"]
    assert table.schema.field("state").nullable is False
    assert table["id"].to_pylist() == ["c", "a", "b"]
    assert table["text"].to_pylist() == ["text of c", "text of a", "text of b"]
    assert table["variant"].to_pylist() == ["original", None, "original"]
    assert table["duration"].to_pylist() == [5.0, None, 5.0]
    assert table["input_duration"].to_pylist() == [6.0] * 3
    assert table["batch"].to_pylist() == ["b7"] * 3
    assert table["snr"].to_pylist() == [30.0, None, 30.0]


def test_gender_and_age_are_those_of_the_ledger_and_unknown_in_one_of_an_earlier_version():
    ledger = ledger_of({"a": {"gender": "female", "age": "fifties"}, "b": {"state": "errored", "gender": "male"}})
    for of, expected in ((ledger, ["female", "male"]), (ledger.drop(["gender", "age"]), [None, None])):
        table = rank_batch(of, of, scores_of({"a": GOOD}), duplicates_of({}), PROFILE, "b7")
        assert table["gender"].to_pylist() == expected
        assert table.schema.names[: len(RANKING)] == RANKING.names
    assert table["age"].type == pa.string()


def test_accepted_and_rejected_by_closeness():
    rows = rank({"good": GOOD, "bad": GOOD | {"snr": 5.0}})
    assert rows["good"]["state"] == "accepted"
    assert rows["good"]["failed_gates"] == []
    assert rows["good"]["coverage"] == 1
    # v = w s: snr 0.75, mos 0.75, clip 1
    away, near = np.hypot(0.7 * 0.25, 0.2 * 0.25), np.sqrt((0.7 * 0.75) ** 2 + (0.2 * 0.75) ** 2 + 0.1**2)
    assert rows["good"]["closeness"] == pytest.approx(near / (near + away))
    bad = rows["bad"]
    assert (bad["state"], bad["criterion"], bad["threshold"]) == ("rejected", "closeness", 0.5)
    assert bad["value"] == bad["closeness"] < 0.5
    at = rank({"good": GOOD}, threshold=rows["good"]["closeness"])["good"]
    assert at["state"] == "accepted", "the threshold itself is enough"


def test_a_decision_is_explained_by_the_scaled_criteria_and_their_shares_of_the_distance():
    rows = rank(
        {
            "far": GOOD | {"snr": 4.0, "mos": 2.0},
            "part": GOOD | {"mos": None},
            "ideal": GOOD | {"snr": 90.0, "mos": 5.0},
        }
    )
    far = rows["far"]
    assert far["scaled"] == pytest.approx([0.1, 0.25, 1.0], abs=1e-4)
    parts = [(0.7 * 0.9) ** 2, (0.2 * 0.75) ** 2, 0.0]
    assert far["distance_share"] == pytest.approx([part / sum(parts) for part in parts], abs=1e-4)
    start = f"closeness is {far['closeness']:.6g}, below 0.5 (profile test); "
    assert far["message"] == start + "mostly snr: scaled 0.10, 95% of the distance to the ideal"
    assert rows["part"]["scaled"] == pytest.approx([0.75, None, 1.0])
    assert rows["part"]["distance_share"] == pytest.approx([1.0, None, 0.0])
    assert rows["ideal"]["distance_share"] == [0.0, 0.0, 0.0]
    assert rows["part"]["message"] is rows["ideal"]["message"] is None
    unranked = rank({"x": {"error_class": "score_failed", "message": "boom"}})["x"]
    assert unranked["scaled"] is unranked["distance_share"] is None


def test_gates_dominate_and_the_first_is_the_reason():
    row = rank({"x": {"snr": -1.0, "mos": 5.0, "clip": 0.9, "duration": 31.0}}, threshold=0.0)["x"]
    assert (row["state"], row["criterion"], row["value"], row["threshold"]) == ("rejected", "duration", 31.0, 30.0)
    assert row["message"] == "duration is 31, above 30 (odd length)"
    assert row["failed_gates"] == ["duration", "snr", "clip"]
    assert row["closeness"] is not None
    low = rank({"x": GOOD | {"snr": -0.5}}, threshold=0.0)["x"]
    assert (low["criterion"], low["value"], low["threshold"]) == ("snr", -0.5, 0.0)
    assert rank({"x": GOOD | {"duration": 30.0, "clip": 0.5}})["x"]["state"] == "accepted", "bounds are inclusive"


def test_missing_metrics_are_errors_never_rejections():
    rows = rank({"few": GOOD | {"snr": None}, "nan": GOOD | {"snr": float("nan")}, "enough": GOOD | {"mos": None}})
    for name in ("few", "nan"):
        assert rows[name]["state"] == "errored"
        assert rows[name]["error_class"] == "too_few_metrics"
        assert rows[name]["message"].endswith("missing: snr")
        assert rows[name]["closeness"] is None
        assert rows[name]["coverage"] == pytest.approx(0.3)
    assert rows["enough"]["state"] == "accepted", "0.8 of the weight is there, whatever floating point makes of it"
    gate = rank({"x": GOOD | {"clip": None}})["x"]
    assert (gate["state"], gate["error_class"]) == ("errored", "missing_metric")
    assert "clip" in gate["message"]


def test_failed_scoring_and_duplicates():
    failed = {"error_class": "score_failed", "message": "boom"}
    rows = rank(
        {"a": failed, "b": GOOD, "c": failed, "d": GOOD | {"snr": -9.0}},
        pairs={"b": "a", "c": "a", "d": "0", "zz": "a"},
    )
    assert (rows["a"]["state"], rows["a"]["error_class"], rows["a"]["message"]) == ("errored", "score_failed", "boom")
    assert rows["a"]["coverage"] is None
    for name, kept in (("b", "a"), ("c", "a"), ("d", "0")):
        assert (rows[name]["state"], rows[name]["duplicate_of"]) == ("duplicate", kept)
        assert rows[name]["criterion"] is rows[name]["error_class"] is None
    assert rows["d"]["failed_gates"] == ["snr"]


def test_what_did_not_pass_keeps_its_reason():
    rejected = {"state": "rejected", "criterion": "duration_s", "value": 0.1, "threshold": 0.5, "message": "too short"}
    errored = {"state": "errored", "error_class": "unreadable", "message": "no audio"}
    rows = rank({}, {"r": rejected, "e": errored})
    for name, known in (("r", rejected), ("e", errored)):
        assert rows[name] | known == rows[name]
        assert rows[name]["closeness"] is rows[name]["coverage"] is rows[name]["failed_gates"] is None


def test_empty_batch():
    assert rank({}, {}) == {}


def test_lost_and_unknown_clips_stop_the_batch():
    with pytest.raises(LedgerError, match=r"b7: 2 clips passed but were not scored: a, b"):
        rank({"c": GOOD}, {"a": {}, "b": {}, "c": {}})
    with pytest.raises(LedgerError, match=r"b7: 1 scored clips did not pass: x"):
        rank({"x": GOOD}, {})
    scores = pa.concat_tables([scores_of({"a": GOOD})] * 2)
    with pytest.raises(LedgerError, match="twice"):
        rank_batch(ledger_of({"a": {}}), manifest_of(["a"]), scores, duplicates_of({}), PROFILE, "b7")


def test_a_profile_frozen_for_other_metrics_is_refused():
    scores = scores_of({"a": GOOD}).drop(["mos"])
    with pytest.raises(ConfigError, match=r"ranks by mos, which the scores of batch b7 do not have"):
        rank_batch(ledger_of({"a": {}}), manifest_of(["a"]), scores, duplicates_of({}), PROFILE, "b7")


number = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True, width=32), st.floats(-5, 45))
clip = st.fixed_dictionaries({"duration": st.floats(0.1, 40), "snr": number, "mos": number, "clip": st.floats(0, 1)})
fate = st.one_of(
    clip,
    clip,
    st.just({"error_class": "score_failed", "message": "boom"}),
    st.just({"state": "rejected", "criterion": "duration_s", "value": 0.1, "threshold": 0.5, "message": "short"}),
    st.just({"state": "errored", "error_class": "unreadable", "message": "no audio"}),
)


@settings(max_examples=60)
@given(st.lists(fate, max_size=25), st.sets(st.integers(0, 24)), st.integers(0, 25))
def test_states_always_balance_and_batching_changes_no_row(fates, repeats, cut):
    names = [f"{i:02d}" for i in range(len(fates))]
    states = {name: (row if "state" in row else {}) for name, row in zip(names, fates, strict=True)}
    scores = {name: row for name, row in zip(names, fates, strict=True) if "state" not in row}
    pairs = {f"{i:02d}": "elsewhere" for i in repeats}

    def table(part: list[str]) -> pa.Table:
        ledger = ledger_of({name: states[name] for name in part})
        ranked = rank_batch(
            ledger,
            manifest_of(part),
            scores_of({name: scores[name] for name in reversed(part) if name in scores}),
            duplicates_of(pairs),
            PROFILE,
            "b7",
        )
        check_batch(part, ledger, ranked, "b7")
        return ranked

    whole = table(names)
    counts = count_states(whole)
    check_balance(counts)
    assert counts["input"] == len(fates) == sum(counts[state] for state in STATES)
    split = pa.concat_tables([table(names[:cut]), table(names[cut:])])
    assert split.to_pylist() == whole.to_pylist() or str(split.to_pylist()) == str(whole.to_pylist())  # NaN
    for row in whole.to_pylist():
        if row["failed_gates"]:
            assert row["state"] in ("rejected", "duplicate"), "no virtue makes up for a gate"
        if row["closeness"] is not None:
            assert 0 <= row["closeness"] <= 1
            assert row["coverage"] >= PROFILE.min_coverage - 1e-9
