"""Parquet files with a Hugging Face Audio column: struct {bytes, path}, or plain bytes, of any codec."""

from __future__ import annotations

import glob
import hashlib
import io
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

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from speechmill.audio.decode import header_seconds
from speechmill.config import nearest
from speechmill.errors import ClipError, SourceError
from speechmill.sources import GLANCE_HEADERS, GLANCE_SECONDS, BatchPlan, Clip, Listing, Source, SourceFile, batch_id
from speechmill.sources.checksums import CACHE, checksum_files
from speechmill.sources.columns import clip_columns, map_columns

GLANCE_FILES = 10
READ_ROWS = 64  # rows decoded from Parquet at a time: bounds memory whatever the row groups' size
SPLIT = re.compile(r"(train|validation|valid|dev|test|validated|invalidated|other)(?=[-_.]|$)")


class ParquetRows(Source):
    """The rows of Parquet files with audio, as clips: what a local and a fetched file have in common."""

    def audio_column(self, schema: pa.Schema, path: str) -> str:
        """Name of the column that holds encoded audio: configured, declared to `datasets`, or by its type."""

        configured = self.section["columns"].get("audio")
        if configured is not None:
            if configured not in schema.names:
                raise SourceError(f"{path}: no column {configured!r}; {nearest(configured, schema.names)}")
            if not _holds_audio(schema.field(configured).type):
                raise SourceError(f"{path}: column {configured!r} is {schema.field(configured).type}, not audio bytes")
            return configured
        declared = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = [
            n for n, f in declared.items() if isinstance(f, dict) and f.get("_type") == "Audio" and n in schema.names
        ]
        names += [field.name for field in schema if _holds_audio(field.type) and field.name not in names]
        if not names:
            raise SourceError(
                f"{path}: no column with audio bytes among {', '.join(schema.names)}; set source.columns.audio"
            )
        return "audio" if "audio" in names else names[0]

    def count_rows(self, path: str, open_file: Callable[[], Any]) -> int:
        """Rows of a usable file.

        Raises:
            SourceError: it is no Parquet file, or holds no audio.
        """
        try:
            with open_file() as handle:
                file = pq.ParquetFile(handle)
                self.audio_column(file.schema_arrow, path)
                return int(file.metadata.num_rows)
        except pa.ArrowException as error:
            raise SourceError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from error

    def ranges(self, files: list[SourceFile], batch_size: int) -> Iterator[BatchPlan]:
        """Ranges of `batch_size` rows of one file; their ids hold the file's path, so other files do not matter."""
        for file in files:
            assert file.rows is not None
            for number, first in enumerate(range(0, file.rows, batch_size)):
                rows = min(batch_size, file.rows - first)
                yield BatchPlan(batch_id(file.path, number), file.path, None, first, rows, file.split)

    def read_rows(self, plan: BatchPlan, file: Path) -> Iterator[Clip]:
        """The rows of a range, read row group by row group in small pieces."""
        path = plan.source_file
        assert path is not None
        assert plan.rows is not None
        parquet = pq.ParquetFile(file)
        audio = self.audio_column(parquet.schema_arrow, path)
        names = [name for name in parquet.schema_arrow.names if name != audio]
        mapping = map_columns(names, self.section["columns"])
        last = plan.first_row + plan.rows
        groups, row = row_groups(parquet.metadata, plan.first_row, last)
        for chunk in parquet.iter_batches(batch_size=READ_ROWS, row_groups=groups, use_threads=False):
            start, stop = max(0, plan.first_row - row), min(len(chunk), last - row)
            for offset, values in enumerate(chunk.slice(start, max(0, stop - start)).to_pylist(), row + start):
                data, known = _encoded(values.pop(audio))
                clip: dict[str, Any] = {"source_file": path, "source_row": offset}
                clip |= clip_columns(values, mapping, self.section)
                clip["source_id"] = clip["source_id"] or known or f"{path}#{offset}"
                clip["source_split"] = clip["source_split"] or plan.split
                if data is None:
                    yield clip, ClipError("no_bytes", f"{path} row {offset} holds no audio bytes")
                else:
                    yield clip | {"size": len(data)}, data
            row += len(chunk)


class ParquetSource(ParquetRows):
    """A clip per row of the Parquet files at `path`: one file, a folder (recursively) or a glob."""

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
            found = list(Path(path).rglob("*.parquet"))
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
            raise SourceError(f"{self.section['path']}: no Parquet file found")
        problems = []
        rows: dict[str, int] = {}
        for path in paths:
            try:
                rows[path] = self.count_rows(path, partial(open, self.root / path, "rb"))
            except SourceError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{self.root / path}: {error.strerror}")
        if problems:
            raise SourceError("source files are not usable:\n  " + "\n  ".join(problems))
        files = checksum_files(self.root, paths, self.work / CACHE)
        return Listing([replace(f, rows=rows[f.path], split=split_of(f.path)) for f in files], [])

    def glance(self, longest: float) -> tuple[int, float, int] | None:
        end = time.monotonic() + GLANCE_SECONDS
        rows: dict[str, int] = {}
        for path in self._paths():
            rows[path] = self.count_rows(path, partial(open, self.root / path, "rb"))
            if time.monotonic() > end:
                return None
        filled = [path for path in rows if rows[path]]
        looked_at = filled[:: max(math.ceil(len(filled) / GLANCE_FILES), 1)]
        seconds, read = 0.0, 0  # each file speaks for its rows
        for path in looked_at:
            wanted = min(rows[path], GLANCE_HEADERS // len(looked_at))
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

    def read(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        assert plan.source_file is not None
        return self.read_rows(plan, self.root / plan.source_file)


def split_of(path: str) -> str | None:
    """The split that a file's name begins with, or else one of its folders."""
    found = (SPLIT.match(part) for part in reversed(path.split("/")))
    return next((match[1] for match in found if match), None)


def row_groups(metadata: pq.FileMetaData, first: int, last: int) -> tuple[list[int], int]:
    """The row groups that hold rows from `first` to before `last`, and the number of the first row in them."""
    groups: list[int] = []
    start = base = 0
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if base < last and base + count > first:
            start = start if groups else base
            groups.append(group)
        base += count
    return groups, start


def _holds_audio(kind: pa.DataType) -> bool:
    """Encoded bytes, or a struct with them; or a struct of decoded samples, as `datasets` writes it without its type."""
    if not pa.types.is_struct(kind):
        return _is_binary(kind)
    fields = {child.name: child.type for child in kind}
    if "bytes" in fields:
        return _is_binary(fields["bytes"])
    samples = fields.get("array")
    if samples is None or not (pa.types.is_list(samples) or pa.types.is_large_list(samples)):
        return False
    return pa.types.is_floating(samples.value_type) and "sampling_rate" in fields


def _encoded(value: Any) -> tuple[bytes | None, str | None]:
    """Encoded audio, and the name that is stored with it. Decoded samples become a WAV file of 32-bit floats."""
    if not isinstance(value, dict):
        return value, None
    data, name = value.get("bytes"), value.get("path")
    if data is None and value.get("array") is not None and value.get("sampling_rate"):
        memory = io.BytesIO()
        samples = np.asarray(value["array"], np.float32)
        soundfile.write(memory, samples, int(value["sampling_rate"]), format="WAV", subtype="FLOAT")
        data = memory.getvalue()
    return data, name


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
