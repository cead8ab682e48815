"""Source kind `parquet`: Parquet files with audio of any codec, as a Hugging Face Audio column or plain bytes."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechmill.audio.decode import header_seconds
from speechmill.errors import ClipError, SourceError
from speechmill.sources import (
    QUICK_LOOK_HEADERS,
    QUICK_LOOK_SECONDS,
    BatchPlan,
    Clip,
    Listing,
    Source,
    SourceFile,
    batch_id,
)
from speechmill.sources.boundary import is_machine_error, read_row, reason
from speechmill.sources.checksums import CACHE, checksum_files
from speechmill.sources.columns import clip_columns, map_columns
from speechmill.sources.stored_audio import SAMPLE_COLUMNS, holds_audio, holds_samples, sample_bits, stored_audio
from speechmill.sources.walk import walk_files
from speechmill.utils.schema import nearest

QUICK_LOOK_FILES = 10  # files whose headers `quick_look` reads at most
READ_ROWS = 64  # rows decoded from Parquet at a time; limits memory if row groups are large
READ_BYTES = 1 << 27  # what these may have, if a dictionary has the values
RATIOS = {"UNCOMPRESSED": 1, "SNAPPY": 24}  # how far a codec can unpack a page, if not EXPANSION times
EXPANSION = 200  # largest ratio of unpacked to packed bytes of a column
SMALL = 1 << 26  # unpacked bytes that are allowed whatever the ratio
SPLIT = re.compile(r"(train|validation|valid|dev|test|validated|invalidated|other)(?=[-_.]|$)")


class ParquetRows(Source):
    """Clips from the rows of Parquet files: the base of the sources with local and with fetched files."""

    def audio_column(self, schema: pa.Schema, path: str) -> str:
        """Name of the column with audio: `source.columns.audio`, else declared as Audio for `datasets`, else by type.

        Raises:
            SourceError: there is no such column, or it does not contain audio.
        """
        configured = self.section["columns"].get("audio")
        if configured is not None:
            if configured not in schema.names:
                raise SourceError(f"{path}: no column {configured!r}; {nearest(configured, schema.names)}")
            if not (holds_audio(kind := schema.field(configured).type) or holds_samples(kind)):
                raise SourceError(f"{path}: column {configured!r} is {kind}, not audio bytes")
            return configured
        declared = _declared_features(schema)
        names = [
            n for n, f in declared.items() if isinstance(f, dict) and f.get("_type") == "Audio" and n in schema.names
        ]
        names += [field.name for field in schema if holds_audio(field.type) and field.name not in names]
        if not names and "sampling_rate" in schema.names:
            names = [n for n in SAMPLE_COLUMNS if n in schema.names and holds_samples(schema.field(n).type)]
        if not names:
            raise SourceError(
                f"{path}: no column with audio bytes among {', '.join(schema.names)}; set source.columns.audio"
            )
        return "audio" if "audio" in names else names[0]

    def count_rows(self, path: str, open_file: Callable[[], Any]) -> int:
        """Number of rows of a file that has audio.

        Raises:
            SourceError: the file is not readable as Parquet, or has no column with audio.
        """
        try:
            with open_file() as handle:
                file = pq.ParquetFile(handle)
                self.audio_column(file.schema_arrow, path)
                return int(file.metadata.num_rows)
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
            if is_machine_error(error) or (isinstance(error, OSError) and type(error) is not OSError):
                raise  # a server, which is asked again
            raise SourceError(f"{path}: not a readable Parquet file: {reason(error)}") from error

    def ranges(self, files: list[SourceFile], batch_size: int) -> Iterator[BatchPlan]:
        """Batches of at most `batch_size` rows of one file. Their ids depend on the path of their file only."""
        for file in files:
            assert file.rows is not None
            for number, first in enumerate(range(0, file.rows, batch_size)):
                rows = min(batch_size, file.rows - first)
                yield BatchPlan(batch_id(file.path, number), file.path, None, first, rows, file.split)

    def read_rows(self, plan: BatchPlan, file: Path) -> Iterator[Clip]:
        """Yield the clips of a range of rows, read in pieces of `READ_ROWS`."""
        path = plan.source_file
        assert path is not None
        assert plan.rows is not None
        try:
            parquet = pq.ParquetFile(file)
        except Exception as error:
            if is_machine_error(error):
                raise
            raise SourceError(f"{path}: not a readable Parquet file: {reason(error)}") from error
        reader = _RowReader(self, parquet, plan, self.audio_column(parquet.schema_arrow, path), file.parent)
        last = plan.first_row + plan.rows
        groups, row = row_groups(parquet.metadata, plan.first_row, last)
        for group in groups:
            rows = parquet.metadata.row_group(group).num_rows
            yield from reader.read(group, row, max(plan.first_row, row), min(last, row + rows))
            row += rows


class _RowReader:
    """Reads the rows of one Parquet file, row group by row group."""

    def __init__(self, source: ParquetRows, parquet: pq.ParquetFile, plan: BatchPlan, audio: str, folder: Path):
        self.parquet, self.plan, self.audio = parquet, plan, audio
        self.path = str(plan.source_file)
        self.section, self.max_bytes = source.section, source.max_bytes
        self.root = Path(self.section["audio_folder"] or folder)
        names = [name for name in parquet.schema_arrow.names if name != audio]
        self.mapping = map_columns(names, self.section["columns"])
        self.bits = sample_bits(parquet.schema_arrow.field(audio).type)
        self.has_rate = "sampling_rate" in names

    def read(self, group: int, base: int, first: int, last: int) -> Iterator[Clip]:
        """The rows `first` <= row < `last` of a row group that starts at row `base`.

        Rows that damage hides come with a ClipError each.
        """
        row = first
        error: ClipError | None = None
        try:
            size = _rows_at_once(self.parquet.metadata.row_group(group), self.max_bytes)
            place = base
            for chunk in self.parquet.iter_batches(batch_size=size, row_groups=[group], use_threads=False):
                start, stop = max(0, first - place), min(len(chunk), last - place)
                if start < stop:
                    for offset, values in enumerate(_values(chunk.slice(start, stop - start)), place + start):
                        yield self._clip(offset, values)
                        row = offset + 1
                place += len(chunk)
        except ClipError as found:
            error = found
        except Exception as found:
            if is_machine_error(found):
                raise
            error = ClipError("unreadable", f"{self.path}: row group {group} is damaged: {reason(found)}")
        error = error or ClipError("unreadable", f"{self.path}: row group {group} has fewer rows than it claims")
        for offset in range(row, last):
            yield self._place(offset), error

    def _place(self, row: int) -> dict[str, Any]:
        return {
            "source_file": self.path,
            "source_row": row,
            "source_id": f"{self.path}#{row}",
            "source_split": self.plan.split,
            "language": self.section["language"],
            "license": self.section["license"],
        }

    def _clip(self, row: int, values: Callable[[], dict[str, Any]]) -> Clip:
        place = self._place(row)

        def read() -> Clip:
            columns = values()
            rate = columns.get("sampling_rate") if self.has_rate else None
            clip = {
                **place,
                **clip_columns({k: v for k, v in columns.items() if k != self.audio}, self.mapping, self.section),
            }
            named = clip["source_id"]
            data: bytes | Path | ClipError
            known: str | None
            try:
                data, known = stored_audio(columns[self.audio], rate, self.bits, self.root)
                size = data.stat().st_size if isinstance(data, Path) else len(data)
            except ClipError as error:
                data, known, size = ClipError(error.error_class, f"{self.path} row {row}: {error.message}"), None, None
            clip["source_id"] = named or known or place["source_id"]
            clip["source_split"] = clip["source_split"] or self.plan.split
            return clip | ({} if size is None else {"size": size}), data

        return read_row(place, f"{self.path} row {row}", read)


def _values(chunk: pa.RecordBatch) -> Iterator[Callable[[], dict[str, Any]]]:
    """For each row, what returns its values; it raises if a value has none in Python, such as a date of the year 10000."""
    try:
        rows = chunk.to_pylist()
    except Exception as error:
        if is_machine_error(error):
            raise
        for number in range(len(chunk)):
            yield partial(_row_values, chunk, number)
    else:
        for row in rows:
            yield partial(dict, row)


def _row_values(chunk: pa.RecordBatch, number: int) -> dict[str, Any]:
    row = {}
    for name in chunk.schema.names:
        try:
            row[name] = chunk.column(name)[number].as_py()
        except Exception as error:
            if is_machine_error(error):
                raise
            raise ClipError("bad_row", f"column {name}: {reason(error)}") from None
    return row


def _rows_at_once(group: Any, max_bytes: int) -> int:
    """How many rows of a row group are decoded at a time, by what its metadata says before anything is read.

    Raises:
        ClipError: `too_large`: the group unpacks to far more than it has, or to more than `max_bytes` per row.
    """
    most = 1
    for number in range(group.num_columns):
        column = group.column(number)
        unpacked, packed = column.total_uncompressed_size, column.total_compressed_size
        if unpacked > max(EXPANSION * packed, SMALL) or unpacked > max(max_bytes * group.num_rows, SMALL):
            raise ClipError(
                "too_large",
                f"column {column.path_in_schema} of its row group unpacks from {packed} to {unpacked} bytes; "
                f"{EXPANSION} times, and enhance.max_bytes ({max_bytes}) per row, are allowed",
            )
        if any("DICTIONARY" in encoding for encoding in column.encodings):  # a value may be in every row
            start = column.dictionary_page_offset or column.data_page_offset
            dictionary = (column.data_page_offset - start) * RATIOS.get(column.compression, EXPANSION)
            most = max(most, min(unpacked, dictionary) if dictionary > 0 else unpacked)
    return max(1, min(READ_ROWS, READ_BYTES // most))


class ParquetSource(ParquetRows):
    """A clip per row of the Parquet files at `source.path`: a file, a folder with its subfolders, or a glob pattern."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        path = self.section["path"]
        if any(letter in path for letter in "*?["):
            self.root = Path(re.split(r"[*?\[]", path, maxsplit=1)[0]).parent if "/" in path else Path()
        else:
            self.root = Path(path).parent if Path(path).is_file() else Path(path)

    def _paths(self) -> list[str]:
        path = self.section["path"]
        if any(letter in path for letter in "*?["):
            found = [Path(name) for name in glob.glob(path, recursive=True)]
        elif Path(path).is_file():
            found = [Path(path)]
        else:
            found = [self.root / name for name, *_ in walk_files(self.root, lambda name: name.endswith(".parquet"))]
        return sorted(p.relative_to(self.root).as_posix() for p in found if p.is_file() and not p.name.startswith("."))

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self._paths():
            stat = (self.root / path).stat()
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def list_files(self) -> Listing:
        paths = self._paths()
        if not paths:
            saved = _names_of_save_to_disk(self.root)
            raise SourceError(f"{self.section['path']}: no Parquet file found" + (f". {saved}" if saved else ""))
        problems = []
        rows: dict[str, int] = {}
        for path in paths:
            try:
                rows[path] = self.count_rows(path, partial(open, self.root / path, "rb"))
            except SourceError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{self.root / path}: {error.strerror or reason(error)}")
        if problems:
            raise SourceError("source files are not usable:\n  " + "\n  ".join(problems))
        files = checksum_files(self.root, paths, self.work / CACHE)
        return Listing([replace(f, rows=rows[f.path], split=split_of(f.path)) for f in files], [])

    def quick_look(self, longest: float) -> tuple[int, float, int] | None:
        end = time.monotonic() + QUICK_LOOK_SECONDS
        rows: dict[str, int] = {}
        for path in self._paths():
            rows[path] = self.count_rows(path, partial(open, self.root / path, "rb"))
            if time.monotonic() > end:
                return None
        filled = [path for path in rows if rows[path]]
        looked_at = filled[:: max(math.ceil(len(filled) / QUICK_LOOK_FILES), 1)]
        seconds, read = 0.0, 0  # the mean of each file is weighted by its rows
        for path in looked_at:
            wanted = min(rows[path], QUICK_LOOK_HEADERS // len(looked_at))
            clips = (data for _, data in self.read_rows(BatchPlan("", path, None, 0, wanted), self.root / path))
            seconds += (
                math.fsum(0.0 if isinstance(c, ClipError) else header_seconds(c, longest) for c in clips)
                * rows[path]
                / wanted
            )
            read += wanted
        count = sum(rows.values())
        return count, seconds * count / max(sum(rows[path] for path in looked_at), 1), read

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        return self.ranges(listing.files, batch_size)

    def clips(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        assert plan.source_file is not None
        return self.read_rows(plan, self.root / plan.source_file)


def split_of(path: str) -> str | None:
    """The split that the name of a file, or else of one of its folders, starts with; None if there is none."""
    found = (SPLIT.match(part) for part in reversed(path.split("/")))
    return next((match[1] for match in found if match), None)


def row_groups(metadata: pq.FileMetaData, first: int, last: int) -> tuple[list[int], int]:
    """The row groups that contain rows `first` <= row < `last`, and the row number at which the first group starts."""
    groups: list[int] = []
    start = base = 0
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if base < last and base + count > first:
            start = start if groups else base
            groups.append(group)
        base += count
    return groups, start


def _declared_features(schema: pa.Schema) -> dict[str, Any]:
    """The features that `datasets` wrote to the metadata of a file; empty if there are none, or of another form."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = found["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _names_of_save_to_disk(root: Path) -> str | None:
    """What to do with a folder that `datasets.save_to_disk` wrote; None for any other folder."""
    states = [path for path in (root, *(p for p in root.glob("*") if p.is_dir())) if (path / "state.json").is_file()]
    if not states:
        return None
    load = f"from datasets import load_from_disk; load_from_disk({str(states[0])!r})"
    return (
        f"{root} was written by Dataset.save_to_disk, in Arrow files. Convert it: "
        f'python -c "{load}.to_parquet({str(root) + ".parquet"!r})", and set source.path to the result'
    )
