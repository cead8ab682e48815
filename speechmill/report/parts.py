"""One pass over the ranking tables of a run: every row is read once, for all readers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from speechmill.ranking.decide import HELD_OUT
from speechmill.ranking.removals import REMOVED
from speechmill.ranking.states import STATES
from speechmill.tables.parquet_io import metadata_value
from speechmill.utils.threads import read_ahead

READ_ROWS = 100_000
NOT_JUDGED = (HELD_OUT, REMOVED)  # criteria that say nothing about how a clip sounds
MIN_HELD = 1_000  # rows that are collected before they are sorted
PREFIX = 8  # bytes
EVERY = np.iinfo(np.uint64).max


@dataclass(frozen=True)
class Piece:
    """So many rows of a file, and the metadata of the file."""

    path: Path
    rows: int
    metadata: Mapping[bytes, bytes] | None = None

    @property
    def criteria(self) -> list[str]:
        """The metrics of the profile by which the file was ranked, in its order."""
        return metadata_value(self.metadata, "criteria") or []


class Part:
    """Rows of one or more ranking tables, and what several readers derive from them; arrays are (N,).

    The rows of `pieces` follow one another. Their files have the same columns and were ranked by the same criteria.
    """

    def __init__(self, pieces: Sequence[Piece], table: pa.Table):
        self.pieces = tuple(pieces)
        self.table = table

    @cached_property
    def piece(self) -> NDArray[np.intp]:
        """The index of each row in `pieces`."""
        return np.repeat(np.arange(len(self.pieces)), [piece.rows for piece in self.pieces])

    def of_files(self, files: Collection[Path]) -> Part | None:
        """The rows of some files; None if it has none of them."""
        wanted = [piece.path in files for piece in self.pieces]
        if all(wanted):
            return self
        kept = [piece for piece, keep in zip(self.pieces, wanted, strict=True) if keep]
        return Part(kept, self.table.filter(pa.array(np.array(wanted)[self.piece]))) if kept else None

    @cached_property
    def state(self) -> NDArray[np.int8]:
        """Place of each state in `STATES`, -1 for another one."""
        places = pc.index_in(_one_chunk(self.table["state"]), value_set=pa.array(STATES))
        return pc.fill_null(places, -1).to_numpy(zero_copy_only=False).astype(np.int8)

    def has_state(self, name: str) -> NDArray[np.bool_]:
        return self.state == STATES.index(name)

    @cached_property
    def criterion(self) -> pa.DictionaryArray:
        return pc.dictionary_encode(_one_chunk(self.table["criterion"]))

    def has_criterion(self, *names: str) -> NDArray[np.bool_]:
        """Which rows have one of the criteria."""
        wanted = np.array([*(name in names for name in self.criterion.dictionary.to_pylist()), False])
        return wanted[pc.fill_null(self.criterion.indices, -1).to_numpy(zero_copy_only=False)]

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column, NaN for none."""
        return pc.cast(self.table[name], pa.float64()).to_numpy()

    @cached_property
    def closeness(self) -> NDArray[np.float64]:
        return self.numbers("closeness")

    @cached_property
    def has_closeness(self) -> NDArray[np.bool_]:
        return pc.is_valid(self.table["closeness"]).to_numpy()

    @cached_property
    def draw(self) -> pa.Array:
        """The ids, reversed. Ids are hashes, so the rows that come first in this order are a random sample."""
        return pc.utf8_reverse(_one_chunk(self.table["id"]))

    @cached_property
    def draw_prefix(self) -> NDArray[np.uint64]:
        """The first bytes of `draw` as numbers in the same order. Different ids may have the same number."""
        padded = pc.cast(pc.ascii_rpad(self.draw, PREFIX, padding="\0"), pa.binary())
        fixed = pc.cast(pc.binary_slice(padded, 0, PREFIX), pa.binary(PREFIX))
        if not len(fixed):
            return np.empty(0, np.uint64)
        numbers = np.frombuffer(fixed.buffers()[1], ">u8")[fixed.offset : fixed.offset + len(fixed)]
        return numbers.astype(np.uint64)

    def rows(self, places: NDArray[np.intp], columns: Sequence[str]) -> pa.Table:
        """Some rows with some columns, `key` (their `draw`) and `file`."""
        table = self.table.select(columns).take(places).append_column("key", self.draw.take(pa.array(places)))
        return table.append_column("file", self.files(places))

    def files(self, places: NDArray[np.intp]) -> pa.Array:
        """The path of the file of some rows."""
        return pa.array([str(piece.path) for piece in self.pieces], pa.string()).take(pa.array(self.piece[places]))


class Reader(Protocol):
    """What takes part in a pass."""

    def columns(self, names: Sequence[str]) -> Iterable[str]:
        """The columns that it needs, of a file that has those of `names`."""

    def add(self, part: Part) -> None:
        """Take in the next rows. A file without rows has a piece, too."""


class OfFiles:
    """Gives a reader only the rows of some files."""

    def __init__(self, files: Iterable[Path], reader: Reader):
        self._files, self._reader = frozenset(files), reader

    def columns(self, names: Sequence[str]) -> Iterable[str]:
        return self._reader.columns(names)

    def add(self, part: Part) -> None:
        if chosen := part.of_files(self._files):
            self._reader.add(chosen)


class BottomK:
    """Of all rows that were offered, the `count` with the smallest `key`; ties by `id`. Memory does not grow with offers.

    The result does not depend on the order of offers.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.rows: pa.Table | None = None  # smallest first; None before any row came

    @property
    def last(self) -> Any:
        """The largest key that is held, None while there is room for any: a row with a larger key need not be offered."""
        if self.rows is None or len(self.rows) < self._count:
            return None
        return self.rows["key"][-1].as_py()

    def offer(self, table: pa.Table) -> None:
        """Take in rows with `key` and `id`."""
        if not len(table) or not self._count:
            return
        known = [] if self.rows is None else [self.rows]
        ordered = pa.concat_tables([*known, table]).sort_by([("key", "ascending"), ("id", "ascending")])
        self.rows = ordered.slice(0, self._count)


class Draw:
    """Of each of some groups, the `count` rows that come first in the order of `Part.draw`.

    Rows that may be among them are collected until there are about twice as many as can be kept, and then sorted.
    """

    def __init__(self, groups: int, count: int):
        self.sizes = np.zeros(groups, np.int64)  # rows of each group
        self._pools = [BottomK(count) for _ in range(groups)]
        self._limits = np.full(groups, EVERY if count else 0, np.uint64)
        self._held: list[tuple[NDArray[np.integer[Any]], pa.Table]] = []
        self._most = max(MIN_HELD, groups * count)

    @property
    def pools(self) -> list[BottomK]:
        """The rows of each group."""
        self._sort()
        return self._pools

    def add(self, part: Part, groups: NDArray[np.integer[Any]], columns: Sequence[str]) -> None:
        """Take in rows by their group, -1 for none; `columns`, of which `id` is one, are kept of them."""
        inside = np.flatnonzero(groups >= 0)
        self.sizes += np.bincount(groups[inside], minlength=len(self.sizes))
        places = inside[part.draw_prefix[inside] <= self._limits[groups[inside]]]
        if len(places):
            self._held.append((groups[places], part.rows(places, columns)))
        if sum(len(rows) for _, rows in self._held) > self._most:
            self._sort()

    def _sort(self) -> None:
        if not self._held:
            return
        groups, tables = zip(*self._held, strict=True)
        self._held = []
        of, rows = np.concatenate(groups), pa.concat_tables(tables).combine_chunks()
        for number in np.unique(of):
            pool = self._pools[number]
            pool.offer(rows.filter(pa.array(of == number)))
            if pool.last is not None:
                self._limits[number] = prefix(pool.last)


def prefix(text: str) -> int:
    """The first bytes of a text as a number in the same order."""
    return int.from_bytes(text.encode()[:PREFIX].ljust(PREFIX, b"\0"), "big")


def read_parts(ranking_files: Iterable[Path], *readers: Reader) -> None:
    """Give all rows of the files to all readers, in their order, while a thread reads the next ones."""

    def wanted(names: Sequence[str]) -> Iterable[str]:
        return (name for reader in readers for name in reader.columns(names))

    with ThreadPoolExecutor(1) as pool:
        for part in read_ahead(pool, parts(ranking_files, wanted)):
            for reader in readers:
                reader.add(part)


def parts(ranking_files: Iterable[Path], wanted: Callable[[Sequence[str]], Iterable[str]]) -> Iterator[Part]:
    """All rows of the files; `wanted` gives the columns to read of those that a file has.

    Small files with the same columns share a part, because each step has a cost per part.
    """
    pieces: list[Piece] = []
    tables: list[pa.Table] = []

    def joined() -> Iterator[Part]:
        if pieces:
            yield Part(pieces, pa.concat_tables(tables).combine_chunks())
            pieces.clear()
            tables.clear()

    for piece, table in _pieces(ranking_files, wanted):
        if pieces and (
            sum(map(len, tables)) + len(table) > READ_ROWS
            or not table.schema.equals(tables[0].schema)
            or piece.criteria != pieces[0].criteria
        ):
            yield from joined()
        pieces.append(piece)
        tables.append(table)
    yield from joined()


def _pieces(
    ranking_files: Iterable[Path], wanted: Callable[[Sequence[str]], Iterable[str]]
) -> Iterator[tuple[Piece, pa.Table]]:
    for path in ranking_files:
        with pq.ParquetFile(path) as file:
            names, metadata = file.schema_arrow.names, file.metadata.metadata
            of_file = set(wanted(names))
            columns = [name for name in names if name in of_file]
            if not file.metadata.num_rows:
                yield Piece(path, 0, metadata), file.read(columns=columns).replace_schema_metadata()
            for batch in file.iter_batches(READ_ROWS, columns=columns, use_threads=False):
                table = pa.Table.from_batches([batch]).replace_schema_metadata()
                yield Piece(path, len(table), metadata), table


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
