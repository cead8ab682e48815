"""Clips that are in somebody's dev or test split must not come into training data.

A clip is held out where it has the same samples as a listed clip, or the same sentence by the same speaker, be the list
another run, a table, or the dev and test splits of the corpus itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.errors import SourceError
from speechmill.parallel import bounded_map
from speechmill.shards import table_writer
from speechmill.sources.columns import map_columns
from speechmill.sources.metadata import table_rows
from speechmill.splits import is_tested
from speechmill.transcript import normalize, utterance_key

HELD_OUT = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("message", pa.string(), nullable=False)])
READERS = 2
_COLUMNS = ["id", "state", "source_split", "pcm_sha256", "utterance"]

Paths = Sequence[str | os.PathLike[str]]


@dataclass
class Listed:
    """What is held out: hash of samples and key of utterance -> where it is listed."""

    samples: dict[str, str] = field(default_factory=dict)
    utterances: dict[str, str] = field(default_factory=dict)

    def add(self, samples: str | None, utterance: str | None, where: str) -> None:
        if samples:
            self.samples.setdefault(samples, where)
        if utterance:
            self.utterances.setdefault(utterance, where)


def find_held_out(ledgers: Paths, lists: Sequence[Mapping[str, Any]], out: str | os.PathLike[str]) -> int:
    """Write the passed clips that are held out (`HELD_OUT`, sorted by id), with the reason; returns their number.

    `lists` are the entries of the setting `held_out`. Of the corpus itself, clips of its dev and test splits hold out
    utterances of its other clips; clips with their samples are duplicates of them (speechmill.duplicates).
    Memory grows with what is listed, not with the corpus.

    Raises:
        SourceError: a list cannot be read or says nothing to compare by.
    """
    listed = Listed()
    for entry in lists:
        count = len(listed.samples) + len(listed.utterances)
        for row in _rows_of_list(Path(entry["path"]), set(entry["splits"])):
            listed.add(*row, entry["path"])
        if len(listed.samples) + len(listed.utterances) == count:
            raise SourceError(f"held_out: {entry['path']} lists no clip of the splits {', '.join(entry['splits'])}")
    own = Listed()
    for table in _read(ledgers):
        for utterance, where in _pairs(table.filter(is_tested(table["source_split"])), "utterance", "source_split"):
            own.add(None, utterance, f"the split {where} of this corpus")
    found: list[tuple[str, str]] = []
    for table in _read(ledgers):
        found += _among(table, "pcm_sha256", listed.samples, "the same samples as a clip of {}")
        found += _among(table, "utterance", listed.utterances, "the same sentence by the same speaker as in {}")
        trained = table.filter(pc.invert(is_tested(table["source_split"])))
        found += _among(trained, "utterance", own.utterances, "the same sentence by the same speaker as in {}")
    messages: dict[str, str] = {}
    for clip, message in found:
        messages.setdefault(clip, message)
    with table_writer(HELD_OUT, out, row_group_size=100_000) as writer:
        ids = sorted(messages)
        writer.write_table(pa.table({"id": ids, "message": [messages[clip] for clip in ids]}, HELD_OUT))
    return len(messages)


def _read(ledgers: Paths) -> Iterator[pa.Table]:
    """The passed rows of each ledger."""

    def read(path: str | os.PathLike[str]) -> pa.Table:
        with pq.ParquetFile(path) as file:
            table = file.read(columns=_COLUMNS)
        return table.filter(pc.equal(table["state"], "passed"))

    with ThreadPoolExecutor(READERS) as pool:
        yield from bounded_map(pool, read, ledgers, ahead=2 * READERS)


def _pairs(table: pa.Table, *columns: str) -> Iterable[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in columns), strict=True)


def _among(table: pa.Table, column: str, listed: Mapping[str, str], message: str) -> list[tuple[str, str]]:
    """(id, message) of the rows whose value is listed."""
    if not listed:
        return []
    hits = table.filter(pc.is_in(table[column], value_set=pa.array(listed, pa.string())))
    return [(clip, message.format(listed[value])) for clip, value in _pairs(hits, "id", column)]


def _rows_of_list(path: Path, splits: set[str]) -> Iterator[tuple[str | None, str | None]]:
    """Hash of samples and key of utterance of every row of a list that is of one of the splits, or of no split."""
    if path.is_dir():
        ledgers = sorted((path / "ledger").glob("*.enhance.parquet"))
        if not ledgers:
            raise SourceError(f"held_out: {path} is no run with enhanced batches: it has no ledger/*.enhance.parquet")
        for table in _read(ledgers):
            for split, samples, utterance in _pairs(table, "source_split", "pcm_sha256", "utterance"):
                if split is None or split in splits:
                    yield samples, utterance
        return
    try:
        rows = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else [r for _, r in table_rows(path)]
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"held_out: {path} cannot be read: {error}") from error
    names = rows[0].keys() if rows else []
    mapping = map_columns(names, {})
    if "pcm_sha256" not in names and not {"text", "speaker_id"} <= mapping.keys():
        raise SourceError(
            f"held_out: {path} has neither a column pcm_sha256 nor one for the text and one for the speaker; it has "
            f"{', '.join(names) or 'no rows'}"
        )
    for row in rows:
        split = row.get(mapping.get("source_split", ""))
        if split is None or split in splits:
            text, speaker = (row.get(mapping.get(name, "")) for name in ("text", "speaker_id"))
            yield row.get("pcm_sha256"), utterance_key(normalize(text), speaker)
