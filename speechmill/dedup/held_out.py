"""Clips of dev and test splits must not come into training data (decontamination).

A clip is held out if it has the same samples as a listed clip, or the same sentence by the same speaker. The lists are
other runs, tables, and the dev and test splits of the corpus itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from speechmill.dedup.exact import prefix_of
from speechmill.errors import SourceError
from speechmill.sources.columns import map_columns
from speechmill.sources.text_files import table_rows
from speechmill.sources.transcript import normalize, utterance_key
from speechmill.tables.parquet_io import table_writer
from speechmill.tables.splits import is_evaluation_split
from speechmill.utils.threads import bounded_map

HELD_OUT = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("message", pa.string(), nullable=False)])
READERS = 2
ROW_GROUP = 100_000
JOIN_ROWS = 500_000  # rows that are looked up at once: each look-up builds a hash table of all that is listed
READ_ROWS = 100_000
SAME_SAMPLES = "the same samples as a clip of {}"
SAME_SENTENCE = "the same sentence by the same speaker as in {}"
_LISTED = pa.schema([("value", pa.large_string()), ("where", pa.dictionary(pa.int32(), pa.string()))])
_ROWS = pa.schema([("pcm_sha256", pa.string()), ("utterance", pa.string())])
_FOUND = pa.schema([("id", pa.string()), ("message", pa.int32())])

Paths = Sequence[str | os.PathLike[str]]
Mask = NDArray[np.bool_]


class Listed:
    """Hashes or keys and where they are listed. Of a value that is listed twice, the first one counts."""

    def __init__(self, tables: Iterable[pa.Table], message: str):
        """`tables` have the columns of `_LISTED`; nulls and empty values are skipped. `message` is a template."""
        table = pa.concat_tables([_LISTED.empty_table(), *tables]).drop_null()
        table = table.filter(pc.not_equal(table["value"], ""))
        self._values, where = (column.combine_chunks() for column in table.unify_dictionaries().columns)
        self._where = where.indices
        self.messages = [message.format(one) for one in where.dictionary.to_pylist()]
        # Most rows are ruled out by one bit of a table with 8 to 16 times as many bits as values.
        self._bits = max(10, len(table).bit_length() + 3)
        self._seen = np.zeros(1 << self._bits if len(table) else 0, bool)
        self._seen[self._slots(table["value"])] = True

    def __len__(self) -> int:
        return len(self._values)

    def maybe(self, column: pa.ChunkedArray) -> Mask:
        """Which rows (N,) may be listed: all that are, and about one in ten of the others."""
        return self._seen[self._slots(column)] if len(self) else np.zeros(len(column), bool)

    def find(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """The index in `messages` of each value, null if it is not listed."""
        return self._where.take(
            pc.index_in(column.cast(_LISTED.field("value").type), value_set=self._values, skip_nulls=True)
        )

    def _slots(self, column: pa.ChunkedArray) -> NDArray[np.uint64]:
        return prefix_of(column) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - self._bits)


def find_held_out(ledgers: Paths, lists: Sequence[Mapping[str, Any]], out: str | os.PathLike[str]) -> int:
    """Write the passed clips that are held out (`HELD_OUT`, sorted by id) with the reason; return their number.

    `lists` are the entries of the setting `held_out`. Clips of the corpus's own dev and test splits hold out utterances
    of its other clips; clips with the same samples are duplicates (`speechmill.dedup.exact`). Memory grows with the
    listed and the found clips, about 250 bytes for each, and not with the corpus.

    Raises:
        SourceError: a list cannot be read, or has nothing to compare by.
    """
    entries = list(map(_read_list, lists))
    samples, sentences = (
        Listed(_columns(entries, name), message)
        for name, message in (("pcm_sha256", SAME_SAMPLES), ("utterance", SAME_SENTENCE))
    )
    own = Listed(_own_sentences(ledgers), SAME_SENTENCE)
    found = _FOUND.empty_table()
    messages = [*samples.messages, *sentences.messages, *own.messages]
    if messages:
        found = pa.concat_tables([found, *_matches(ledgers, samples, sentences, own)]).sort_by("id").combine_chunks()
        ids = found["id"]
        found = found.filter(pa.array(np.append(True, pc.not_equal(ids[1:], ids[:-1]))[: len(ids)]))
    with table_writer(HELD_OUT, out, row_group_size=ROW_GROUP) as writer:
        texts = pa.array(messages, pa.string()).take(found["message"].combine_chunks())
        writer.write_table(pa.table([found["id"], texts], HELD_OUT))
    return found.num_rows


def _matches(ledgers: Paths, samples: Listed, sentences: Listed, own: Listed) -> Iterator[pa.Table]:
    """`_FOUND`: the clips that are listed, and the index of their message, counted through all three."""
    columns = ["id", "source_split", "utterance", *(["pcm_sha256"] if len(samples) else [])]

    def candidates(path: str | os.PathLike[str]) -> pa.Table:
        table = _read_passed(path, columns)
        mask = sentences.maybe(table["utterance"]) | own.maybe(table["utterance"])
        if len(samples):
            mask |= samples.maybe(table["pcm_sha256"])
        return table.filter(pa.array(mask))

    held: list[pa.Table] = []
    rows = 0
    for table in _in_threads(candidates, ledgers):
        held.append(table)
        rows += len(table)
        if rows >= JOIN_ROWS:
            yield _exact_matches(pa.concat_tables(held), samples, sentences, own)
            held, rows = [], 0
    if held:
        yield _exact_matches(pa.concat_tables(held), samples, sentences, own)


def _exact_matches(table: pa.Table, samples: Listed, sentences: Listed, own: Listed) -> pa.Table:
    trained = pc.if_else(is_evaluation_split(table["source_split"]), None, table["utterance"])
    codes, start = pa.nulls(len(table), pa.int32()), 0
    for listed, column in (
        (samples, table["pcm_sha256"] if len(samples) else None),
        (sentences, table["utterance"]),
        (own, trained),
    ):
        if len(listed):
            codes = pc.coalesce(codes, pc.add(listed.find(column), pa.scalar(start, pa.int32())))
        start += len(listed.messages)
    return pa.table([table["id"], codes], _FOUND).filter(pc.is_valid(codes)).combine_chunks()


def _own_sentences(ledgers: Paths) -> Iterator[pa.Table]:
    """`_LISTED`: the utterances of the dev and test splits of the corpus."""

    def read(path: str | os.PathLike[str]) -> pa.Table:
        with pq.ParquetFile(path) as file:  # most files have none: read one column to know it
            if not pc.any(is_evaluation_split(file.read(columns=["source_split"])["source_split"])).as_py():
                return _LISTED.empty_table()
        table = _read_passed(path, ["source_split", "utterance"])
        table = table.filter(is_evaluation_split(table["source_split"]))
        where = pc.binary_join_element_wise("the split ", table["source_split"], " of this corpus", "")
        return pa.table([table["utterance"].cast(pa.large_string()), where.dictionary_encode()], _LISTED)

    yield from _in_threads(read, ledgers)


def _columns(entries: Iterable[tuple[str, list[pa.Table]]], name: str) -> Iterator[pa.Table]:
    """`_LISTED` of one column of the lists."""
    for where, tables in entries:
        for table in tables:
            place = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(table), np.int32)), [where])
            yield pa.table([table[name].cast(pa.large_string()), place], _LISTED)


def _read_list(entry: Mapping[str, Any]) -> tuple[str, list[pa.Table]]:
    """The path of a list, and `_ROWS` of its rows that are in one of the splits, or in no split."""
    path, splits = Path(entry["path"]), set(entry["splits"])
    tables = list(_rows_of_run(path, splits) if path.is_dir() else _rows_of_table(path, splits))
    if not any(table[name].null_count < len(table) for table in tables for name in _ROWS.names):
        raise SourceError(f"held_out: {path} lists no clip of the splits {', '.join(entry['splits'])}")
    return entry["path"], tables


def _rows_of_run(path: Path, splits: set[str]) -> Iterator[pa.Table]:
    ledgers = sorted((path / "ledger").glob("*.enhance.parquet"))
    if not ledgers:
        raise SourceError(f"held_out: {path} is not a run with enhanced batches: it has no ledger/*.enhance.parquet")

    def read(ledger: str | os.PathLike[str]) -> pa.Table:
        table = _read_passed(ledger, ["source_split", *_ROWS.names])
        wanted = pc.is_in(table["source_split"], value_set=pa.array([*splits, None], pa.string()))
        return table.filter(wanted).select(_ROWS.names).cast(_ROWS).combine_chunks()

    yield from _in_threads(read, ledgers)


def _rows_of_table(path: Path, splits: set[str]) -> Iterator[pa.Table]:
    """`_ROWS` of a table with hashes of samples, or with texts and speakers."""
    try:
        names, pieces = _open_table(path)
        mapping = map_columns(names, {})
        if "pcm_sha256" not in names and not {"text", "speaker_id"} <= mapping.keys():
            raise SourceError(
                f"held_out: {path} has neither a column pcm_sha256 nor one for the text and one for the speaker; it has "
                f"{', '.join(names) or 'no rows'}"
            )
        split, text, speaker = (mapping.get(name, "") for name in ("source_split", "text", "speaker_id"))
        for rows in pieces:
            wanted = [row for row in rows if row.get(split) is None or row.get(split) in splits]
            keys = [utterance_key(normalize(row.get(text)), row.get(speaker)) for row in wanted]
            yield pa.table([[row.get("pcm_sha256") or None for row in wanted], keys], _ROWS)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"held_out: {path} cannot be read: {error}") from error


def _open_table(path: Path) -> tuple[list[str], Iterator[list[dict[str, Any]]]]:
    """The names of the columns of a table, and its rows in lists, with the columns that a comparison needs."""
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
        mapping = map_columns(names, {})
        needed = {"pcm_sha256", *(mapping.get(name) for name in ("source_split", "text", "speaker_id"))}
        return names, _rows_of_parquet(path, [name for name in names if name in needed])
    rows = []
    for row in table_rows(path):
        if row.problem:  # the clip of this row would not be held out
            raise SourceError(f"held_out: {path}, line {row.line}: {row.problem}")
        rows.append(row.cells)
    return list(rows[0]) if rows else [], iter([rows])


def _rows_of_parquet(path: Path, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    with pq.ParquetFile(path) as file:
        for piece in file.iter_batches(READ_ROWS, columns=columns):
            yield piece.to_pylist()


def _in_threads(function: Any, paths: Paths) -> Iterator[pa.Table]:
    with ThreadPoolExecutor(READERS) as pool:
        yield from bounded_map(pool, function, paths, ahead=2 * READERS)


def _read_passed(path: str | os.PathLike[str], columns: list[str]) -> pa.Table:
    """The passed rows of a ledger."""
    with pq.ParquetFile(path) as file:
        table = file.read(columns=["state", *columns])
    return table.filter(pc.equal(table["state"], "passed")).drop(["state"])
