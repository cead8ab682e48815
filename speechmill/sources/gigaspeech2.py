"""GigaSpeech 2 (Yang et al., ACL 2025) as speechcolab/gigaspeech2 ships it, from the Hub or a folder of the same layout.

    data/{language}/train_raw.tsv, train_refined.tsv, dev.tsv, test.tsv     A-B-C<TAB>text, no header
    data/{language}/train/{N}.tar.gz, dev.tar.gz, test.tar.gz               .../A/B/A-B-C.wav

Both training tables name clips of the same archives. An archive is one batch: it can only be read from its start.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from speechmill.errors import ClipError, SourceError
from speechmill.sources import BatchPlan, Clip, Listing, SourceFile, batch_id
from speechmill.sources.archives import TarStream
from speechmill.sources.checksums import CACHE
from speechmill.sources.columns import CLIP
from speechmill.sources.repositories import RepositorySource

SPLITS = ("train", "dev", "test")
SEGMENT = r"^(\d+)-(\d+)-(\d+)$"


class GigaSpeech2Source(RepositorySource):
    """A clip per row of the tables of the chosen splits; `source.subset` (raw, refined) chooses the training table."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.folder = f"data/{self.section['language']}"

    def _table(self, split: str) -> str:
        return f"{self.folder}/train_{self.section['subset']}.tsv" if split == "train" else f"{self.folder}/{split}.tsv"

    def _fetched_table(self, table: SourceFile) -> Path:
        return self.work / "tables" / table.key

    def list_files(self) -> Listing:
        names = self.repository.names()
        splits = self.section["splits"] or SPLITS
        archives: dict[str, str] = {}
        for split in splits:
            pattern = rf"{re.escape(self.folder)}/" + (r"train/\d+" if split == "train" else split) + r"\.tar\.gz"
            found = [name for name in names if re.fullmatch(pattern, name)]
            if not found or self._table(split) not in names:
                there = sorted({name.split("/")[1] for name in names if re.match(r"data/[^/]+/", name)})
                raise SourceError(
                    f"{self.where}: {self._table(split)} or the archives of the split "
                    f"{split} are not there. source.language chooses one of {', '.join(there) or 'no language'}, "
                    f"source.splits some of {', '.join(SPLITS)}"
                )
            archives |= dict.fromkeys(found, split)
        files = self.repository.files(archives, self.work / CACHE)
        tables = self.repository.files([self._table(split) for split in splits], self.work / ".tables.parquet")
        if self.hub:
            self._fetch_tables(tables)
        listed = sorted((replace(f, split=archives[f.path]) for f in files), key=lambda file: _natural(file.path))
        return Listing(listed, [], self.repository.commit(), tables)

    def _fetch_tables(self, tables: list[SourceFile]) -> None:
        """Fetch what is not there yet, and remove what is of an earlier listing."""
        wanted = {self._fetched_table(table): table for table in tables}
        for path, table in wanted.items():
            if not path.exists():
                self.fetch(table, path)
        for path in (self.work / "tables").iterdir():
            if path not in wanted:
                path.unlink()

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        tables = {table.path: table for table in listing.tables}
        for split in dict.fromkeys(file.split for file in listing.files):
            assert split is not None
            table = tables[self._table(split)]
            rows = read_table(self.place(table.path, self._fetched_table(table) if self.hub else None))
            archives = {PurePosixPath(f.path).name.split(".")[0]: f for f in listing.files if f.split == split}
            parts = _by_archive(rows) if split == "train" else {split: rows}
            for name in sorted(parts.keys() - archives.keys()):
                listing.notes.append(f"{table.path}: {len(parts[name])} rows name clips of no archive ({name}.tar.gz)")
            for name, file in archives.items():
                if name in parts:
                    yield BatchPlan(batch_id(file.path, 0), file.path, self._clips(parts[name], file.path, split))
                else:
                    listing.notes.append(f"{file.path}: no row of {table.path} names a clip of it")
            bad = rows.num_rows - sum(map(len, parts.values()))
            if bad:
                listing.notes.append(f"{table.path}: {bad} rows do not begin with A-B-C")

    def _clips(self, rows: pa.Table, archive: str, split: str) -> pa.Table:
        rows = _first_of_each(rows)
        constant = {
            "source_id": rows["segment"],
            "source_split": split,
            "source_file": archive,
            "source_member": pc.replace_substring_regex(rows["segment"], SEGMENT, r"\1/\2/\1-\2-\3.wav"),
            "text": rows["text"],
            "language": self.section["language"],
            "license": self.section["license"],
        }
        columns = []
        for field in CLIP:
            value = constant.get(field.name)
            if isinstance(value, (pa.Array, pa.ChunkedArray)):
                columns.append(value.cast(field.type))
            else:
                columns.append(pa.repeat(pa.scalar(value, field.type), len(rows)))
        return pa.table(columns, schema=CLIP)

    def read(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        assert plan.clips is not None
        assert plan.source_file is not None
        waiting = {row["source_id"]: row for row in plan.clips.to_pylist()}
        archive = TarStream(self.place(plan.source_file, file), self.max_bytes, passed_over)
        for name, data in archive:
            path = PurePosixPath(name)
            row = waiting.pop(path.stem, None) if path.suffix == ".wav" else None
            if row is None:
                passed_over["audio without a row in the table"] += 1
            else:
                yield row, data
        if archive.problem:
            passed_over[f"{plan.source_file}: {archive.problem}"] += 1
        for row in waiting.values():
            reason = archive.problem or "the archive has no such clip"
            yield row, ClipError("archive_cut" if archive.problem else "no_audio", f"{plan.source_file}: {reason}")


def read_table(path: Path) -> pa.Table:
    """segment, text of a TSV without header and without quoting; a line without a tab has a null text.

    Raises:
        SourceError: it is not UTF-8 text.
    """
    options = pa.csv.ParseOptions(delimiter="\t", quote_char=False, escape_char=False, newlines_in_values=False)
    parts: list[pa.Table] = []
    bad: list[str] = []

    def odd(row: Any) -> str:
        bad.append(row.text)
        return "skip"

    options.invalid_row_handler = odd
    try:
        reader = pa.csv.open_csv(
            path,
            read_options=pa.csv.ReadOptions(column_names=["segment", "text"], block_size=1 << 24, use_threads=False),
            parse_options=options,
            convert_options=pa.csv.ConvertOptions(
                column_types={"segment": pa.large_string(), "text": pa.large_string()}, strings_can_be_null=False
            ),
        )
        parts = [pa.Table.from_batches([batch]) for batch in reader]
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):
            raise SourceError(f"{path}: not a table of segments and texts in UTF-8: {error}") from error
    schema = pa.schema([("segment", pa.large_string()), ("text", pa.large_string())])
    # A text with a tab in it, or none at all: the clip is there all the same.
    odd_rows = [line.rstrip("\r\n").split("\t", 1) for line in bad]
    extra = pa.table(
        {"segment": [row[0] for row in odd_rows], "text": [row[1] if len(row) > 1 else None for row in odd_rows]},
        schema,
    )
    return pa.concat_tables([*parts, extra])


def _by_archive(rows: pa.Table) -> dict[str, pa.Table]:
    """Rows by A of their A-B-C; rows without such a name are left out."""
    parts: dict[str, list[pa.Table]] = defaultdict(list)
    for batch in rows.to_batches():
        name = pc.struct_field(pc.extract_regex(batch["segment"], r"^(?P<a>\d+)-\d+-\d+$"), "a").dictionary_encode()
        for number, value in enumerate(name.dictionary.to_pylist()):
            if value is not None:
                mask = pc.fill_null(pc.equal(name.indices, number), False)
                parts[value].append(pa.Table.from_batches([batch.filter(mask)]))
    return {name: pa.concat_tables(tables) for name, tables in parts.items()}


def _first_of_each(rows: pa.Table) -> pa.Table:
    """Without the rows that repeat a segment."""
    if pc.count_distinct(rows["segment"]).as_py() == len(rows):
        return rows
    seen: set[str] = set()
    keep = [not (name in seen or seen.add(name)) for name in rows["segment"].to_pylist()]  # type: ignore[func-returns-value]
    return rows.filter(pa.array(keep))


def _natural(path: str) -> list[object]:
    """10.tar.gz after 9.tar.gz."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
