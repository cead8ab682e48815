"""Exact duplicates across batches, in memory that does not grow with the number of clips."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from speechmill.dedup.spill import SpilledRows, number_of_parts, parted, row_groups
from speechmill.errors import LedgerError
from speechmill.tables.parquet_io import table_writer
from speechmill.tables.rows_by_id import prefix_of
from speechmill.tables.splits import is_evaluation_split
from speechmill.utils.threads import bounded_map

DUPLICATES = pa.schema(
    [pa.field("id", pa.string(), nullable=False), pa.field("duplicate_of", pa.string(), nullable=False)]
)
PART_ROWS = 500_000  # that are held at once, about
ROW_GROUP = 100_000
READERS = 2  # threads
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
    parts = number_of_parts(sum(pq.read_metadata(path).num_rows for path in paths), PART_ROWS)
    twice: list[str] = []
    sample: list[str] = []
    with table_writer(DUPLICATES, out, row_group_size=ROW_GROUP) as writer, SpilledRows(_REPEATS, folder) as found:
        for part in parted(_passed(paths), _CLIPS, parts, lambda table: _part_of(table, parts), folder):
            repeats = _repeats(part)
            twice += repeats.filter(pc.equal(repeats["id"], repeats["duplicate_of"]))["id"].to_pylist()
            sample += repeats["id"].take(np.arange(0, repeats.num_rows, 100)).to_pylist()
            found.write(repeats)
        if twice:
            raise LedgerError(f"{len(twice)} clips are in the ledgers twice: {', '.join(sorted(twice)[:5])}")
        ranges = number_of_parts(found.rows, PART_ROWS)
        bounds = [sorted(sample)[len(sample) * number // ranges] for number in range(1, ranges)]
        ordered = parted(found.tables(), _REPEATS, ranges, lambda table: _range_of(table["id"], bounds), folder)
        for table in row_groups((part.sort_by("id") for part in ordered), ROW_GROUP):
            writer.write_table(table.cast(DUPLICATES))
    return found.rows


def _passed(paths: list[str | os.PathLike[str]]) -> Iterator[pa.Table]:
    """`_CLIPS`: the passed rows of each file that have a hash."""
    with ThreadPoolExecutor(READERS) as pool:
        yield from bounded_map(pool, _read_passed, paths, ahead=2 * READERS)


def _read_passed(path: str | os.PathLike[str]) -> pa.Table:
    with pq.ParquetFile(path) as file:
        table = file.read(columns=["id", "state", "pcm_sha256", "source_split"])
    table = table.filter(pc.equal(table["state"], "passed"))
    table = table.append_column("trained", pc.invert(is_evaluation_split(table["source_split"])))
    return table.select(_CLIPS.names).drop_null().cast(_CLIPS)


def _repeats(clips: pa.Table) -> pa.Table:
    """`_REPEATS` of clips (`_CLIPS`) in any order: each but the one that is kept of those with the same hash.

    Only rows whose 64-bit prefix is there twice are sorted and compared by the whole hash.
    """
    prefixes = prefix_of(clips["pcm_sha256"])
    ordered = np.sort(prefixes)
    clips = clips.filter(pa.array(np.isin(prefixes, ordered[1:][ordered[1:] == ordered[:-1]])))
    if clips.num_rows == 0:
        return _REPEATS.empty_table()
    clips = clips.sort_by([("pcm_sha256", "ascending"), ("trained", "ascending"), ("id", "ascending")]).combine_chunks()
    ids, hashes = clips["id"].chunk(0), clips["pcm_sha256"].chunk(0)
    first = np.concatenate([[True], pc.not_equal(hashes[1:], hashes[:-1]).to_numpy(zero_copy_only=False)])
    start = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    return pa.table({"id": ids, "duplicate_of": ids.take(pa.array(start))}, _REPEATS).filter(pa.array(~first))


def _part_of(clips: pa.Table, parts: int) -> NDArray[np.intp]:
    """Which part (N,) each clip belongs to, by its hash: multiplied once more, the high bits are even."""
    spread = prefix_of(clips["pcm_sha256"]) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)
    return (spread % np.uint64(parts)).astype(np.intp)


def _range_of(ids: pa.ChunkedArray, bounds: list[str]) -> NDArray[np.intp]:
    """Which of the ranges between ascending bounds (N,) each id is in; the lower bound belongs to it."""
    found = np.zeros(len(ids), np.intp)
    for bound in bounds:
        found += pc.greater_equal(ids, pa.scalar(bound, ids.type)).to_numpy(zero_copy_only=False)
    return found
