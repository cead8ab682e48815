"""Duplicates across batches, and the balance of states."""

import hashlib
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechmill.errors import LedgerError
from speechmill.ledger import check_balance, check_batch, check_manifest, count_states, find_duplicates
from speechmill.shards import LEDGER, RANKING


def write(folder, batches: list[list[dict]]) -> list:
    paths = []
    for index, rows in enumerate(batches):
        paths.append(folder / f"b{index}.enhance.parquet")
        pq.write_table(pa.Table.from_pylist(rows, schema=LEDGER), paths[-1])
    return paths


def passed(name: str, sound: str | None) -> dict:
    digest = None if sound is None else hashlib.sha256(sound.encode()).hexdigest()
    return {"id": name, "state": "passed", "pcm_sha256": digest}


def pairs(table: pa.Table) -> dict[str, str]:
    return dict(zip(table["id"].to_pylist(), table["duplicate_of"].to_pylist(), strict=True))


def test_duplicates_are_found_across_batches_and_the_smallest_id_is_kept(tmp_path):
    rows = [
        [passed("05", "x"), passed("03", "y"), passed("09", None), passed("11", "y")],
        [passed("01", "x"), passed("02", "z"), passed("08", None), passed("04", "x")],
        [passed("00", "z") | {"state": "rejected"}, passed("06", "z") | {"state": "errored"}],
        [],
    ]
    table = find_duplicates(write(tmp_path, rows))
    assert pairs(table) == {"04": "01", "05": "01", "11": "03"}
    assert table["id"].to_pylist() == ["04", "05", "11"]


def test_no_duplicates_and_no_files(tmp_path):
    schema = find_duplicates([]).schema
    assert schema.names == ["id", "duplicate_of"]
    table = find_duplicates(write(tmp_path, [[passed("1", "x")], [passed("2", None)], []]))
    assert table.num_rows == 0
    assert table.schema == schema


@pytest.mark.parametrize("seed", range(4))
def test_order_and_batching_change_nothing(tmp_path, seed):
    generator = random.Random(seed)
    rows = [passed(f"{i:04d}", str(generator.randrange(200))) for i in range(400)]
    expected: dict[str, str] = {}
    first: dict[str, str] = {}
    for row in rows:  # ids ascend
        if row["pcm_sha256"] in first:
            expected[row["id"]] = first[row["pcm_sha256"]]
        first.setdefault(row["pcm_sha256"], row["id"])
    generator.shuffle(rows)
    size = generator.randrange(1, 150)
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    assert pairs(find_duplicates(write(tmp_path, batches))) == expected


def test_hashes_that_share_their_first_digits_are_told_apart(tmp_path):
    rows = [{"id": str(i), "state": "passed", "pcm_sha256": "ab" * 8 + tail} for i, tail in enumerate("ccd")]
    assert pairs(find_duplicates(write(tmp_path, [rows]))) == {"1": "0"}


def test_an_id_that_is_there_twice_is_no_duplicate_of_itself(tmp_path):
    with pytest.raises(LedgerError, match="1 clips are in the ledgers twice: 1"):
        find_duplicates(write(tmp_path, [[passed("1", "x")], [passed("1", "x")]]))


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
