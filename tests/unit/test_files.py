"""What stands under its final name is complete."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechmill.storage.files import atomic_directory, atomic_path, sha256_file, sha256_json, write_json
from speechmill.tables import parquet_io
from speechmill.tables.parquet_io import leaf_paths, table_writer, write_table
from speechmill.tables.schemas import AUDIO, LEDGER


def test_a_failed_write_leaves_the_former_file_and_nothing_else(tmp_path):
    final = tmp_path / "a.txt"
    final.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(final) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert final.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_killed_processs_temporary_is_cleared_away(tmp_path):
    (tmp_path / ".a.txt.4242.tmp").write_text("torn")
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_two_writers_of_one_file_both_end_with_it(tmp_path):
    final = tmp_path / "a.txt"
    with atomic_path(final) as temporary:
        temporary.write_text("x")
        final.write_text("x")
        temporary.unlink()  # as the other writer does when it is done first
    assert final.read_text() == "x"


def test_folders_are_made_and_the_name_appears_at_the_end(tmp_path):
    final = tmp_path / "b" / "c.txt"
    with atomic_path(final) as temporary:
        temporary.write_text("x")
        assert not final.exists()
    assert final.read_text() == "x"


def test_a_directory_appears_with_all_its_files_and_replaces_the_former(tmp_path):
    final = tmp_path / "a" / "plots"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".plots.elsewhere-4242.new.tmp").mkdir()  # of a killed process
    for name in ("x", "y"):
        with atomic_directory(final) as temporary:
            (temporary / name).write_text(name)
            assert not (final / name).exists()
        assert [p.name for p in final.iterdir()] == [name]
    assert list(final.parent.iterdir()) == [final]


def test_a_failed_directory_leaves_the_former_and_nothing_else(tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "old").write_text("old")
    for error in (RuntimeError, FileNotFoundError):
        with pytest.raises(error), atomic_directory(tmp_path / "plots") as temporary:
            (temporary / "half").write_text("half")
            raise error
    assert [p.name for p in tmp_path.rglob("*")] == ["plots", "old"]


def test_two_writers_of_one_directory_both_end_with_it(tmp_path):
    final = tmp_path / "plots"
    with atomic_directory(final) as temporary:
        with atomic_directory(tmp_path / "other") as other:
            (other / "x").write_text("x")
        (tmp_path / "other").rename(final)
        shutil.rmtree(temporary)  # as the other writer does when it is done first
        (temporary / "x").write_text("x")
    assert [p.name for p in tmp_path.rglob("*")] == ["plots", "x"]


def test_json_is_canonical_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "ก"})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": "ก",\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()
    assert sha256_json({"a": 1, "b": 2}) == sha256_json(json.loads('{"b": 2, "a": 1}'))


def rows(count):
    for i in range(count):
        yield dict.fromkeys(LEDGER.names) | {"id": f"{i:04d}", "state": "passed", "value": i / 3}


def test_rows_and_tables_give_the_same_bytes(tmp_path):
    with table_writer(LEDGER, tmp_path / "rows.parquet", row_group_size=100) as writer:
        for row in rows(250):
            writer.write(row)
    write_table(pa.Table.from_pylist(list(rows(250)), schema=LEDGER), tmp_path / "table.parquet", row_group_size=100)
    assert sha256_file(tmp_path / "rows.parquet") == sha256_file(tmp_path / "table.parquet")
    assert pq.ParquetFile(tmp_path / "rows.parquet").num_row_groups == 3


def test_an_interrupted_table_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), table_writer(LEDGER, tmp_path / "x.parquet") as writer:
        writer.write(next(rows(1)))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_empty_table_keeps_its_schema(tmp_path):
    with table_writer(LEDGER, tmp_path / "x.parquet"):
        pass
    assert pq.read_table(tmp_path / "x.parquet").schema == LEDGER


def test_only_named_columns_are_uncompressed(tmp_path):
    schema = pa.schema(
        [pa.field("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), pa.field("n", pa.int64())]
    )
    table = pa.Table.from_pylist([{"audio": {"bytes": b"x" * 100, "path": "p"}, "n": 1}], schema=schema)
    write_table(table, tmp_path / "x.parquet", uncompressed=["audio.bytes"])
    columns = [pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0).column(i) for i in range(3)]
    assert {c.path_in_schema: c.compression for c in columns} == {
        "audio.bytes": "UNCOMPRESSED",
        "audio.path": "ZSTD",
        "n": "ZSTD",
    }
    assert leaf_paths(schema) == ["audio.bytes", "audio.path", "n"]


def test_row_groups_of_long_clips_are_bounded_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_io, "ROW_GROUP_BYTES", 100)
    schema = pa.schema([("id", pa.string()), ("audio", AUDIO), ("original", AUDIO)])
    with table_writer(schema, tmp_path / "x.parquet", row_group_size=3) as writer:
        for size in (60, 30, 40, 500, 1, 1, 1, 1):
            audio = {"bytes": bytes(size - 1), "path": None}
            writer.write({"id": str(size), "audio": audio, "original": {"bytes": b"1", "path": None}})
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    assert [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)] == [2, 1, 1, 3, 1]
