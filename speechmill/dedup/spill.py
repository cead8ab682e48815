"""Tables larger than memory: rows spilled to disk, cut into parts that are read one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MAX_PARTS = 500  # files open at once; with more than 500 times the rows of a part, parts become larger
TAKE_ROWS = 200_000  # cut into parts at once: many small pieces cost more than few large ones


def number_of_parts(rows: int, part_rows: int) -> int:
    """In how many parts to cut so many rows, that each has about `part_rows` or fewer."""
    return min(MAX_PARTS, rows // part_rows + 1)


class SpilledRows:
    """Rows spilled to an anonymous temporary file, which the OS removes when the process exits."""

    def __init__(self, schema: pa.Schema, folder: Path):
        self.rows = 0
        self._schema = schema
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)
        self._writer = pa.ipc.new_stream(self._file, schema)

    def write(self, table: pa.Table) -> None:
        if table.num_rows:
            self._writer.write_table(table, max_chunksize=TAKE_ROWS)
            self.rows += table.num_rows

    def tables(self) -> Iterator[pa.Table]:
        """What was written, piece by piece, once: nothing can be written any more."""
        self._writer.close()
        self._file.seek(0)
        for batch in pa.ipc.open_stream(self._file):
            yield pa.Table.from_batches([batch])

    def all(self) -> pa.Table:
        """What was written, as one table."""
        return pa.concat_tables([self._schema.empty_table(), *self.tables()])

    def __enter__(self) -> SpilledRows:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def parted(
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    parts: int,
    part_of: Callable[[pa.Table], NDArray[np.intp]],
    folder: Path,
    take_rows: int | None = None,
) -> Iterator[pa.Table]:
    """All rows of tables of a schema in so many tables, one after the other: `part_of` says which (N,).

    About `take_rows` rows are cut at once, by default `TAKE_ROWS`.
    """
    with ExitStack() as stack:
        spilled = [stack.enter_context(SpilledRows(schema, folder)) for _ in range(parts)]
        for table in _joined(tables, take_rows or TAKE_ROWS):
            part = part_of(table)
            order = np.argsort(part, kind="stable")
            ordered, ends = table.take(order), np.cumsum(np.bincount(part, minlength=parts))
            for file, start, end in zip(spilled, [0, *ends[:-1]], ends, strict=True):
                file.write(ordered.slice(start, end - start))
        for file in spilled:
            with file:
                yield file.all()


def _joined(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of so many or a few more."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(len(table) for table in held) >= rows:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def row_groups(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of a multiple of `size` rows, but for the last: how they came does not show."""
    left: pa.Table | None = None
    for table in tables:
        table = table if left is None else pa.concat_tables([left, table])
        whole = len(table) // size * size
        if whole:
            yield table.slice(0, whole).combine_chunks()
        left = table.slice(whole)
    if left is not None and len(left):
        yield left.combine_chunks()
