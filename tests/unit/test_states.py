"""The balance of states."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechmill.errors import LedgerError
from speechmill.ranking.states import check_balance, check_batch, check_manifest, count_states
from speechmill.tables.schemas import LEDGER, RANKING

ROWS = [
    {"id": "a", "state": "accepted", "closeness": 0.8},
    {"id": "r", "state": "rejected", "criterion": "snr_db", "value": 1.0, "threshold": 5.0},
    {"id": "e", "state": "errored", "error_class": "unreadable", "message": "m"},
    {"id": "d", "state": "duplicate", "duplicate_of": "a"},
]


def check(rows: list[dict], manifest: list[str] | None = None, ledger: list[str] | None = None) -> None:
    ids = ["a", "r", "e", "d"]
    known = pa.Table.from_pylist([{"id": name, "state": "passed"} for name in ledger or ids], schema=LEDGER)
    check_batch(pa.chunked_array([manifest or ids]), known, pa.Table.from_pylist(rows, schema=RANKING), "b3")


def test_a_batch_in_balance_passes():
    check(ROWS)
    check(ROWS[::-1])


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, {"state": "passed"}, "1 clips have the state 'passed', which is none of"),
        (0, {"closeness": None}, "accepted without closeness: a"),
        (0, {"error_class": "x"}, "accepted but with error_class: a"),
        (1, {"threshold": None}, "rejected without threshold: r"),
        (1, {"criterion": None}, "rejected without criterion: r"),
        (2, {"error_class": None}, "errored without error_class: e"),
        (2, {"criterion": "snr_db"}, "errored but with criterion: e"),
        (3, {"duplicate_of": None}, "duplicate without duplicate_of: d"),
        (3, {"duplicate_of": "d"}, "repeat themselves: d"),
        (3, {"id": "a"}, "are lost: they are in the manifest but not in the ranking: d"),
        (3, {"id": "a"}, "are in the ranking twice: a"),
        (3, {"id": "x"}, "are in the ranking but not in the manifest: x"),
    ],
)
def test_imbalance_is_named(index, change, message):
    rows = [dict(row) for row in ROWS]
    rows[index] |= change
    with pytest.raises(LedgerError) as error:
        check(rows)
    assert message in str(error.value)
    assert "batch b3" in str(error.value)


def test_lost_clips_are_counted_and_the_first_named():
    with pytest.raises(LedgerError, match=r"7 clips are lost.*not in the ledger: n0, n1, n2, n3, n4, \.\.\."):
        check(ROWS, manifest=["a", "r", "e", "d", *(f"n{i}" for i in range(7))])
    with pytest.raises(LedgerError, match="are in the manifest twice: a"):
        check(ROWS, manifest=["a", "a", "r", "e", "d"])


@given(st.lists(st.sampled_from(["accepted", "rejected", "errored", "duplicate"]), max_size=50), st.booleans())
def test_counts_balance_unless_a_state_is_foreign(states, foreign):
    states = [*states, "passed"] if foreign else states
    counts = count_states(pa.table({"state": pa.array(states, pa.string())}))
    assert counts["input"] == len(states)
    if foreign:
        with pytest.raises(LedgerError, match="does not balance"):
            check_balance(counts, "batch b1")
    else:
        check_balance(counts)


def test_a_run_that_ranked_fewer_clips_than_the_manifest_lists_does_not_balance():
    counts = {"input": 3, "accepted": 1, "rejected": 1, "errored": 1, "duplicate": 0}
    check_manifest(3, counts)
    with pytest.raises(LedgerError, match="the manifest lists 4 clips, 3 were ranked"):
        check_manifest(4, counts)
    with pytest.raises(LedgerError):
        check_manifest(3, counts | {"accepted": 0})
