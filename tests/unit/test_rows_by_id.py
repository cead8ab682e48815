"""Rows of a table by clip id: those that a batch asks for, as a comparison with every row finds them."""

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from speechmill.tables.rows_by_id import RowsById

IDS = st.text("ab0ก", min_size=0, max_size=20) | st.integers(0, 99).map(lambda number: f"{'a' * 16}{number}")


def table_of(ids: list[str]) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.string()), "row": pa.array(range(len(ids)), pa.int64())})


@settings(max_examples=200)
@given(listed=st.lists(IDS, max_size=40), asked=st.lists(IDS, max_size=20), more=st.data())
def test_it_finds_what_a_comparison_with_every_row_finds(listed, asked, more):
    asked += more.draw(st.lists(st.sampled_from(listed), max_size=10)) if listed else []
    cut = len(asked) // 2
    ids = pa.chunked_array([asked[:cut], asked[cut:]], pa.string())
    found = RowsById(table_of(listed)).among(ids)
    assert found["row"].to_pylist() == [row for row, name in enumerate(listed) if name in asked]
    assert found.schema == table_of([]).schema


def test_ids_that_share_their_first_characters_are_told_apart():
    rows = RowsById(table_of([f"{'f' * 16}{tail}" for tail in ("0", "1", "2")]))
    assert rows.among(pa.chunked_array([["f" * 16 + "1", "f" * 16]]))["row"].to_pylist() == [1]
