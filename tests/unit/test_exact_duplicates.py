"""Duplicates across batches: in parts that wait on disk as in one table, whatever the files and their order."""

import hashlib
import random
import tempfile
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechmill.dedup import exact, spill
from speechmill.dedup.exact import find_duplicates
from speechmill.errors import LedgerError
from speechmill.tables.rows_by_id import RowsById
from speechmill.tables.schemas import LEDGER


def find(folder, batches: list[list[dict]]) -> pa.Table:
    paths = []
    for index, rows in enumerate(batches):
        paths.append(folder / f"b{index}.enhance.parquet")
        pq.write_table(pa.Table.from_pylist(rows, schema=LEDGER), paths[-1])
    number = find_duplicates(paths, folder / "duplicates.parquet")
    table = pq.read_table(folder / "duplicates.parquet")
    assert table.num_rows == number
    return table


def passed(name: str, sound: str | None) -> dict:
    digest = None if sound is None else hashlib.sha256(sound.encode()).hexdigest()
    return {"id": name, "state": "passed", "pcm_sha256": digest}


def pairs(table: pa.Table) -> dict[str, str]:
    return dict(zip(table["id"].to_pylist(), table["duplicate_of"].to_pylist(), strict=True))


def naive(rows: list[dict]) -> dict[str, str]:
    first: dict[str, str] = {}
    found = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        if row["state"] == "passed" and row["pcm_sha256"] is not None:
            kept = first.setdefault(row["pcm_sha256"], row["id"])
            if kept != row["id"]:
                found[row["id"]] = kept
    return found


def test_duplicates_are_found_across_batches_and_the_smallest_id_is_kept(tmp_path):
    rows = [
        [passed("05", "x"), passed("03", "y"), passed("09", None), passed("11", "y")],
        [passed("01", "x"), passed("02", "z"), passed("08", None), passed("04", "x")],
        [passed("00", "z") | {"state": "rejected"}, passed("06", "z") | {"state": "errored"}],
        [],
    ]
    table = find(tmp_path, rows)
    assert pairs(table) == {"04": "01", "05": "01", "11": "03"}
    assert table["id"].to_pylist() == ["04", "05", "11"]


def test_no_duplicates_and_no_files(tmp_path):
    schema = find(tmp_path, []).schema
    assert schema.names == ["id", "duplicate_of"]
    table = find(tmp_path, [[passed("1", "x")], [passed("2", None)], []])
    assert table.num_rows == 0
    assert table.schema == schema


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["passed"] * 5 + ["errored"])), max_size=120),
    st.integers(1, 50),
    st.integers(1, 40),
    st.integers(1, 30),
    st.randoms(use_true_random=False),
)
def test_parts_of_any_size_find_what_one_dictionary_finds(sounds, size, part_rows, take_rows, order):
    rows = [passed(f"{n * 7919 % 997:03x}ก", str(sound)) | {"state": state} for n, (sound, state) in enumerate(sounds)]
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    shuffled = [order.sample(batch, len(batch)) for batch in order.sample(batches, len(batches))]
    small = mock.patch.multiple(exact, PART_ROWS=part_rows, ROW_GROUP=7)
    pieces = mock.patch.object(spill, "TAKE_ROWS", take_rows)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        with small, pieces:
            table = find(Path(one), shuffled)
        assert pairs(table) == naive(rows)
        assert table["id"].to_pylist() == sorted(naive(rows))
        # The same bytes, however many parts there are: a file that did not change makes nothing be ranked anew.
        with mock.patch.object(exact, "ROW_GROUP", 7):
            find(Path(other), batches)
        name = "duplicates.parquet"
        assert (Path(one) / name).read_bytes() == (Path(other) / name).read_bytes()
        assert sorted(p.suffix for p in Path(one).iterdir()) == [".parquet"] * (len(batches) + 1)


@pytest.mark.parametrize("seed", range(4))
def test_order_and_batching_change_nothing(tmp_path, seed):
    generator = random.Random(seed)
    rows = [passed(f"{i:04d}", str(generator.randrange(200))) for i in range(400)]
    expected = naive(rows)
    generator.shuffle(rows)
    size = generator.randrange(1, 150)
    assert pairs(find(tmp_path, [rows[i : i + size] for i in range(0, len(rows), size)])) == expected


def test_hashes_that_share_their_first_digits_are_told_apart(tmp_path):
    rows = [{"id": str(i), "state": "passed", "pcm_sha256": "ab" * 8 + tail} for i, tail in enumerate("ccd")]
    assert pairs(find(tmp_path, [rows])) == {"1": "0"}


def test_an_id_that_is_there_twice_is_no_duplicate_of_itself(tmp_path):
    with pytest.raises(LedgerError, match="1 clips are in the ledgers twice: 1"):
        find(tmp_path, [[passed("1", "x")], [passed("1", "x")]])
    assert not (tmp_path / "duplicates.parquet").exists()


def test_a_batch_sees_its_own_duplicates_alone(tmp_path):
    rows = [passed(f"{n:03d}", str(n % 50)) for n in range(200)]
    table = find(tmp_path, [rows[:120], rows[120:]])
    ids = pa.chunked_array([["001", "060"], ["199", "unknown"]])
    mine = RowsById(table).among(ids)
    assert pairs(mine) == {"060": "010", "199": "049"}
    assert mine.schema == table.schema
