"""Exact duplicates across batches, in memory that does not grow with the number of clips."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from speechmill.errors import LedgerError
from speechmill.parallel import bounded_map
from speechmill.shards import table_writer
from speechmill.splits import is_tested

DUPLICATES = pa.schema(
    [pa.field("id", pa.string(), nullable=False), pa.field("duplicate_of", pa.string(), nullable=False)]
)
PART_ROWS = 500_000  # that are held at once, about
MAX_PARTS = 500  # files open at once; with more than 250 million clips, parts become larger
TAKE_ROWS = 200_000  # cut into parts at once: many small pieces cost more than few large ones
ROW_GROUP = 100_000
READERS = 2  # threads
READ_ROWS = 1_000_000  # of duplicates, at once
_CLIPS = pa.schema(
    [("id", pa.large_string()), ("pcm_sha256", pa.large_string()), ("trained", pa.bool_())]
)  # one chunk may pass 2 GB
_REPEATS = pa.schema([("id", pa.large_string()), ("duplicate_of", pa.large_string())])


def find_duplicates(ledgers: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str]) -> int:
    """Write the clips that repeat another one, sample by sample: `DUPLICATES`, sorted by id. Returns their number.

    Of the passed clips with the same `pcm_sha256`, one is kept and the others are listed with it: one of a dev or test
    split if there is any (what others measure with must not be trained on), then the smallest id; however the clips are cut into files. The same ledgers in any order give the same bytes. Rows wait in files without a name
    beside `out`, about 100 bytes per clip: parts that hold all clips of a hash, then of a range of ids.

    Raises:
        LedgerError: an id is there twice.
    """
    paths = list(ledgers)
    folder = Path(out).parent
    folder.mkdir(parents=True, exist_ok=True)
    parts = _parts(sum(pq.read_metadata(path).num_rows for path in paths))
    twice: list[str] = []
    sample: list[str] = []
    with table_writer(DUPLICATES, out, row_group_size=ROW_GROUP) as writer, _Waiting(_REPEATS, folder) as found:
        for part in _parted(_passed(paths), _CLIPS, parts, lambda table: _part_of(table, parts), folder):
            repeats = _repeats(part)
            twice += repeats.filter(pc.equal(repeats["id"], repeats["duplicate_of"]))["id"].to_pylist()
            sample += repeats["id"].take(np.arange(0, repeats.num_rows, 100)).to_pylist()
            found.write(repeats)
        if twice:
            raise LedgerError(f"{len(twice)} clips are in the ledgers twice: {', '.join(sorted(twice)[:5])}")
        ranges = _parts(found.rows)
        bounds = [sorted(sample)[len(sample) * number // ranges] for number in range(1, ranges)]
        ordered = _parted(found.tables(), _REPEATS, ranges, lambda table: _range_of(table["id"], bounds), folder)
        for table in _row_groups(part.sort_by("id") for part in ordered):
            writer.write_table(table.cast(DUPLICATES))
    return found.rows


def rows_among(ids: pa.ChunkedArray, found: str | os.PathLike[str]) -> pa.Table:
    """The rows of a file of findings about clips whose id is among `ids`: those of one batch, read piece by piece."""
    with pq.ParquetFile(found) as file:
        schema = file.schema_arrow
        pieces = [
            piece.filter(pc.is_in(piece["id"], value_set=ids.combine_chunks()))
            for piece in file.iter_batches(READ_ROWS)
        ]
    return pa.Table.from_batches(pieces, schema)


def _passed(paths: list[str | os.PathLike[str]]) -> Iterator[pa.Table]:
    """`_CLIPS`: the passed rows of each file that have a hash."""
    with ThreadPoolExecutor(READERS) as pool:
        yield from bounded_map(pool, _read_passed, paths, ahead=2 * READERS)


def _read_passed(path: str | os.PathLike[str]) -> pa.Table:
    with pq.ParquetFile(path) as file:
        table = file.read(columns=["id", "state", "pcm_sha256", "source_split"])
    table = table.filter(pc.equal(table["state"], "passed"))
    table = table.set_column(3, "trained", pc.invert(is_tested(table["source_split"])))
    return table.drop(["state"]).drop_null().cast(_CLIPS)


def _repeats(clips: pa.Table) -> pa.Table:
    """`_REPEATS` of clips (`_CLIPS`) in any order: each but the one that is kept of those with the same hash.

    Only rows whose 64-bit prefix is there twice are sorted and compared by the whole hash.
    """
    prefixes = _prefix(clips["pcm_sha256"])
    ordered = np.sort(prefixes)
    clips = clips.filter(pa.array(np.isin(prefixes, ordered[1:][ordered[1:] == ordered[:-1]])))
    if clips.num_rows == 0:
        return _REPEATS.empty_table()
    clips = clips.sort_by([("pcm_sha256", "ascending"), ("trained", "ascending"), ("id", "ascending")]).combine_chunks()
    ids, hashes = clips["id"].chunk(0), clips["pcm_sha256"].chunk(0)
    first = np.concatenate([[True], pc.not_equal(hashes[1:], hashes[:-1]).to_numpy(zero_copy_only=False)])
    start = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    return pa.table({"id": ids, "duplicate_of": ids.take(pa.array(start))}, _REPEATS).filter(pa.array(~first))


def _prefix(hashes: pa.ChunkedArray) -> NDArray[np.uint64]:
    """64 bits of each hash (N,): its first 16 hex digits, folded. A collision costs a comparison, nothing else."""
    digits = pc.binary_slice(pc.cast(pc.ascii_rpad(hashes, 16), pa.large_binary()), 0, 16)
    fixed = pc.cast(digits, pa.binary(16)).combine_chunks()
    if len(fixed) == 0:
        return np.empty(0, np.uint64)
    words = np.frombuffer(fixed.buffers()[1], np.uint64).reshape(-1, 2)[fixed.offset : fixed.offset + len(fixed)]
    # A digit uses few of its 8 bits: multiply, so that the two halves do not fold onto each other.
    return words[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ words[:, 1]


def _parts(rows: int) -> int:
    return min(MAX_PARTS, rows // PART_ROWS + 1)


def _part_of(clips: pa.Table, parts: int) -> NDArray[np.intp]:
    """Which part (N,) each clip belongs to, by its hash: multiplied once more, the high bits are even."""
    spread = _prefix(clips["pcm_sha256"]) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)
    return (spread % np.uint64(parts)).astype(np.intp)


def _range_of(ids: pa.ChunkedArray, bounds: list[str]) -> NDArray[np.intp]:
    """Which of the ranges between ascending bounds (N,) each id is in; the lower bound belongs to it."""
    found = np.zeros(len(ids), np.intp)
    for bound in bounds:
        found += pc.greater_equal(ids, pa.scalar(bound, ids.type)).to_numpy(zero_copy_only=False)
    return found


class _Waiting:
    """Rows that wait on disk, in a file without a name: it is gone with the process, however that ends."""

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

    def __enter__(self) -> _Waiting:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _parted(
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    parts: int,
    part_of: Callable[[pa.Table], NDArray[np.intp]],
    folder: Path,
) -> Iterator[pa.Table]:
    """All rows of tables of a schema in so many tables, one after the other: `part_of` says which (N,)."""
    with ExitStack() as stack:
        waiting = [stack.enter_context(_Waiting(schema, folder)) for _ in range(parts)]
        for table in _joined(tables):
            part = part_of(table)
            order = np.argsort(part, kind="stable")
            ordered, ends = table.take(order), np.cumsum(np.bincount(part, minlength=parts))
            for file, start, end in zip(waiting, [0, *ends[:-1]], ends, strict=True):
                file.write(ordered.slice(start, end - start))
        for file in waiting:
            with file:
                yield file.all()


def _joined(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `TAKE_ROWS` or a few more."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(len(table) for table in held) >= TAKE_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of a multiple of `ROW_GROUP`, but for the last: how they came does not show."""
    left: pa.Table | None = None
    for table in tables:
        table = table if left is None else pa.concat_tables([left, table])
        whole = len(table) // ROW_GROUP * ROW_GROUP
        if whole:
            yield table.slice(0, whole).combine_chunks()
        left = table.slice(whole)
    if left is not None and len(left):
        yield left.combine_chunks()
