"""Source kind `gigaspeech2`: GigaSpeech 2 (Yang et al., ACL 2025) from the Hub, or a folder with the same layout.

The layout is that of speechcolab/gigaspeech2:

    data/{language}/train_raw.tsv, train_refined.tsv, dev.tsv, test.tsv     A-B-C<TAB>text, no header
    data/{language}/train/{N}.tar.gz, dev.tar.gz, test.tar.gz               .../A/B/A-B-C.wav

Both training tables name clips of the same archives. An archive is one batch, because it can only be read from its
start.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
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
from speechmill.sources.text_files import decoded_lines

SPLITS = ("train", "dev", "test")
SEGMENT = r"^(\d+)-(\d+)-(\d+)$"  # A-B-C


class GigaSpeech2Source(RepositorySource):
    """A clip per row of the tables of `source.splits`. `source.subset` (raw, refined) selects the training table."""

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
                    f"{self.where}: {self._table(split)} or the archives of split {split} are missing. Set "
                    f"source.language to one of {', '.join(there) or 'none (no language found)'}, and source.splits to "
                    f"some of {', '.join(SPLITS)}"
                )
            archives |= dict.fromkeys(found, split)
        files = self.repository.files(archives, self.work / CACHE)
        tables = self.repository.files([self._table(split) for split in splits], self.work / ".tables.parquet")
        if self.hub:
            self._fetch_tables(tables)
        listed = sorted((replace(f, split=archives[f.path]) for f in files), key=lambda file: _natural(file.path))
        return Listing(listed, [], self.repository.commit(), tables)

    def _fetch_tables(self, tables: list[SourceFile]) -> None:
        """Fetch the tables that are missing in `tables/`, and remove those of an earlier listing."""
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
            unusable: list[str] = []
            place = self.place(table.path, self._fetched_table(table) if self.hub else None)
            rows = read_table(place, self.section["encodings"], unusable)
            if unusable:
                some = "; ".join(unusable[:5]) + ("; ..." if len(unusable) > 5 else "")
                listing.notes.append(f"{table.path}: {len(unusable)} unusable rows were skipped ({some})")
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

    def clips(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        assert plan.clips is not None
        assert plan.source_file is not None
        unread = {row["source_id"]: row for row in plan.clips.to_pylist()}
        archive = TarStream(self.place(plan.source_file, file), self.max_bytes, passed_over)
        for name, data in archive:
            path = PurePosixPath(name)
            row = unread.pop(path.stem, None) if path.suffix == ".wav" else None
            if row is None:
                passed_over["audio without a row in the table"] += 1
            else:
                yield row, data
        if archive.problem:
            passed_over[f"{plan.source_file}: {archive.problem}"] += 1
        for row in unread.values():
            reason = archive.problem or "the archive has no such clip"
            yield row, ClipError("archive_cut" if archive.problem else "no_audio", f"{plan.source_file}: {reason}")


def read_table(path: Path, encodings: Sequence[str], unusable: list[str]) -> pa.Table:
    """Read a TSV without header and quoting, with the columns `segment` and `text`. A line without a tab has no text.

    Args:
        path: the file.
        encodings: tried for each line if the file is not UTF-8.
        unusable: receives why lines are left out, with their numbers.
    """
    options = pa.csv.ParseOptions(delimiter="\t", quote_char=False, escape_char=False, newlines_in_values=False)
    parts: list[pa.Table] = []
    bad: list[str] = []

    def keep_bad_row(row: Any) -> str:
        bad.append(row.text)
        return "skip"

    options.invalid_row_handler = keep_bad_row
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
            return _read_lines(path, encodings, unusable)
    schema = pa.schema([("segment", pa.large_string()), ("text", pa.large_string())])
    # The clip of a row counts even if its text contains a tab or is missing.
    bad_rows = [line.rstrip("\r\n").split("\t", 1) for line in bad]
    extra = pa.table(
        {"segment": [row[0] for row in bad_rows], "text": [row[1] if len(row) > 1 else None for row in bad_rows]},
        schema,
    )
    return pa.concat_tables([*parts, extra])


def _read_lines(path: Path, encodings: Sequence[str], unusable: list[str]) -> pa.Table:
    """As `read_table`, line by line: slower, but a line that is not text costs only itself."""
    segments: list[str] = []
    texts: list[str | None] = []
    with open(path, "rb") as handle:
        for number, (line, problem) in enumerate(decoded_lines(handle, encodings), 1):
            if problem:
                unusable.append(f"line {number}: {problem}")
            elif line:
                segment, tab, text = line.partition("\t")
                segments.append(segment)
                texts.append(text if tab else None)
    kind = pa.large_string()
    return pa.table({"segment": pa.array(segments, kind), "text": pa.array(texts, kind)})


def _by_archive(rows: pa.Table) -> dict[str, pa.Table]:
    """A of the segment A-B-C -> rows. Rows without such a segment are left out."""
    parts: dict[str, list[pa.Table]] = defaultdict(list)
    for batch in rows.to_batches():
        name = pc.struct_field(pc.extract_regex(batch["segment"], r"^(?P<a>\d+)-\d+-\d+$"), "a").dictionary_encode()
        for number, value in enumerate(name.dictionary.to_pylist()):
            if value is not None:
                mask = pc.fill_null(pc.equal(name.indices, number), False)
                parts[value].append(pa.Table.from_batches([batch.filter(mask)]))
    return {name: pa.concat_tables(tables) for name, tables in parts.items()}


def _first_of_each(rows: pa.Table) -> pa.Table:
    """The first row of every segment."""
    if pc.count_distinct(rows["segment"]).as_py() == len(rows):
        return rows
    seen: set[str] = set()
    keep = [not (name in seen or seen.add(name)) for name in rows["segment"].to_pylist()]  # type: ignore[func-returns-value]
    return rows.filter(pa.array(keep))


def _natural(path: str) -> list[object]:
    """Sort key that puts 10.tar.gz after 9.tar.gz."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
