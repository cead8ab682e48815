"""Atomic writing of Parquet tables and shards, with row groups, dictionaries and page indexes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from speechmill.errors import ClipError, SpeechmillError
from speechmill.storage.files import atomic_path

ROW_GROUP_BYTES = (
    256_000_000  # of audio: limits the memory of writers and readers, and stays below Arrow's 2 GB per column
)
# Columns whose values are nearly all distinct.
DISTINCT = frozenset(
    [
        "id",
        "source_id",
        "source_row",
        "source_member",
        "fingerprint",
        "utterance",
        "sha256",
        "input_sha256",
        "pcm_sha256",
    ]
)


def metadata_value(metadata: Mapping[bytes, bytes] | None, name: str) -> Any:
    """Return a value that `TableWriter.add_metadata` wrote to a file's metadata; None if it is missing."""
    value = (metadata or {}).get(name.encode())
    return None if value is None else json.loads(value)


@contextmanager
def reading_shard(path: str | os.PathLike[str], clip_id: str | None = None) -> Iterator[None]:
    """Translate the errors of reading an enhanced shard, or one of its clips, into one message.

    Errors of the machine (memory, a failing disk) are not translated, because deleting the shard would not help.

    Raises:
        SpeechmillError: the shard is damaged. The message names the shard, the clip if known, and the fix.
    """
    try:
        yield
    except (pa.ArrowException, ClipError, OSError) as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise
        clip = f": clip {clip_id}" if clip_id else ""
        what = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise SpeechmillError(
            f"the enhanced shard {path} is damaged{clip}: {what}. "
            "Delete that file and run again: its batch is then enhanced again"
        ) from error


def conform(part: pa.Table | pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """Cast to `schema`. Columns that `part` lacks are null; columns that `schema` lacks are dropped."""
    names = part.schema.names
    columns = [part[f.name].cast(f.type) if f.name in names else pa.nulls(len(part), f.type) for f in schema]
    return pa.table(columns, schema=schema)


class TableWriter:
    """Writes a Parquet file from rows (`write`) or tables (`write_table`), never both.

    Row groups of `write` depend only on the number of rows and the bytes of their audio, so the same rows in the same
    order give the same file. Each call of `write_table` starts a new row group, so its files depend on the calls.
    """

    def __init__(
        self,
        where: Path | BinaryIO | pa.NativeFile,
        schema: pa.Schema,
        row_group_size: int,
        uncompressed: Sequence[str],
    ):
        compression = {name: ("none" if name in uncompressed else "zstd") for name in leaf_paths(schema)}
        self._schema = schema
        self._row_group_size = row_group_size
        self._rows: list[dict[str, Any]] = []
        self._audio_bytes = 0
        self._writer = pq.ParquetWriter(
            where,
            schema,
            compression=compression,
            use_dictionary=[name for name in compression if name not in uncompressed and _repeats(schema, name)],
            write_page_index=True,
        )

    def write(self, row: dict[str, Any]) -> None:
        """Add one row with a value per column; None if missing."""
        size = sum(len(value["bytes"] or b"") for value in row.values() if isinstance(value, dict))
        if self._audio_bytes + size > ROW_GROUP_BYTES:
            self._flush()
        self._rows.append(row)
        self._audio_bytes += size
        if len(self._rows) == self._row_group_size:
            self._flush()

    def write_table(self, table: pa.Table) -> None:
        """Add all rows of a table."""
        self._writer.write_table(table.cast(self._schema), row_group_size=self._row_group_size)

    def add_metadata(self, **values: Any) -> None:
        """Add JSON values to the file's metadata by name."""
        self._writer.add_key_value_metadata({k: json.dumps(v, sort_keys=True) for k, v in values.items()})

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._audio_bytes = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()


@contextmanager
def table_writer(
    schema: pa.Schema,
    final: str | os.PathLike[str],
    *,
    row_group_size: int = 10_000,
    uncompressed: Sequence[str] = (),
) -> Iterator[TableWriter]:
    """Yield a `TableWriter`. The file gets its final name only if the block ends without an exception.

    `uncompressed` names columns of already compressed bytes (struct columns by their dotted leaf paths). They are
    stored without compression, which the Hub's chunk de-duplication needs. All other columns use zstd.
    """
    with atomic_path(final) as temporary:
        writer = TableWriter(temporary, schema, row_group_size, uncompressed)
        try:
            yield writer
        finally:
            writer.close()


def write_table(
    table: pa.Table,
    final: str | os.PathLike[str],
    *,
    row_group_size: int = 10_000,
    uncompressed: Sequence[str] = (),
) -> None:
    """Write a whole table; see `table_writer`."""
    with table_writer(table.schema, final, row_group_size=row_group_size, uncompressed=uncompressed) as writer:
        writer.write_table(table)


def table_bytes(table: pa.Table, *, row_group_size: int = 10_000) -> bytes:
    """Return the bytes of the file that `write_table` writes."""
    sink = pa.BufferOutputStream()
    writer = TableWriter(sink, table.schema, row_group_size, ())
    writer.write_table(table)
    writer.close()
    return bytes(sink.getvalue().to_pybytes())


def _repeats(schema: pa.Schema, leaf: str) -> bool:
    """Whether the values of a leaf column repeat. For other columns a dictionary costs time and space."""
    return leaf not in DISTINCT and not (leaf in schema.names and pa.types.is_floating(schema.field(leaf).type))


def leaf_paths(schema: pa.Schema) -> list[str]:
    """Return the dotted paths of a schema's leaf columns, as Parquet names them."""

    def leaves(field: pa.Field, prefix: str) -> list[str]:
        name = f"{prefix}{field.name}"
        if pa.types.is_struct(field.type):
            return [leaf for child in field.type for leaf in leaves(child, f"{name}.")]
        if pa.types.is_list(field.type):
            return [f"{name}.list.element"]
        return [name]

    return [leaf for field in schema for leaf in leaves(field, "")]
