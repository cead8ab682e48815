"""Local Parquet files with a Hugging Face Audio column: struct {bytes, path}, or plain bytes, of any codec."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechmill.config import nearest
from speechmill.errors import ClipError, SourceError
from speechmill.shards import MANIFEST
from speechmill.sources import BatchPlan, Listing
from speechmill.sources.checksums import checksum_files
from speechmill.sources.columns import clip_columns, map_columns

READ_ROWS = 64  # rows decoded from Parquet at a time: bounds memory whatever the row groups' size
SPLIT = re.compile(r"^(train|validation|valid|dev|test)(?=[-_.]|$)")


class ParquetSource:
    """A clip per row of the Parquet files at `path`: one file, a folder (recursively) or a glob."""

    def __init__(self, section: dict[str, Any]):
        self.section = section
        path = section["path"]
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

    def list_files(self, checksums: Path) -> Listing:
        paths = self._paths()
        if not paths:
            raise SourceError(f"{self.section['path']}: no Parquet file found")
        problems = []
        for path in paths:
            try:
                self._audio_column(pq.read_schema(self.root / path), path)
            except SourceError as error:
                problems.append(str(error))
            except (pa.ArrowException, OSError) as error:
                problems.append(f"{self.root / path}: not a readable Parquet file: {str(error).splitlines()[0]}")
        if problems:
            raise SourceError("source files are not usable:\n  " + "\n  ".join(problems))
        return Listing(checksum_files(self.root, paths, checksums), [])

    def _audio_column(self, schema: pa.Schema, path: str) -> str:
        """Name of the column that holds encoded audio: configured, declared to `datasets`, or by its type."""

        def holds_audio(field: pa.Field) -> bool:
            if pa.types.is_struct(field.type):
                return any(child.name == "bytes" and _is_binary(child.type) for child in field.type)
            return _is_binary(field.type)

        configured = self.section["columns"].get("audio")
        if configured is not None:
            if configured not in schema.names:
                raise SourceError(f"{path}: no column {configured!r}; {nearest(configured, schema.names)}")
            if not holds_audio(schema.field(configured)):
                raise SourceError(f"{path}: column {configured!r} is {schema.field(configured).type}, not audio bytes")
            return configured
        declared = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = [
            n for n, f in declared.items() if isinstance(f, dict) and f.get("_type") == "Audio" and n in schema.names
        ]
        names += [field.name for field in schema if holds_audio(field) and field.name not in names]
        if not names:
            raise SourceError(
                f"{path}: no column with audio bytes among {', '.join(schema.names)}; set source.columns.audio"
            )
        return "audio" if "audio" in names else names[0]

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        """Ranges of `batch_size` rows of one file; their ids hold the file's name, so other files do not matter."""
        for file in listing.files:
            parquet = pq.ParquetFile(self.root / file.path)
            audio = self._audio_column(parquet.schema_arrow, file.path)
            # The audio itself is left out; the struct's path is a name that people know the clip by.
            names = [name for name in parquet.schema_arrow.names if name != audio]
            has_path = pa.types.is_struct(parquet.schema_arrow.field(audio).type)
            columns = names + ([f"{audio}.path"] if has_path else [])
            mapping = map_columns(names, self.section["columns"])
            split = SPLIT.match(Path(file.path).name)
            rows: list[dict[str, Any]] = []
            number = index = 0
            # Without columns iter_batches would yield no rows, so such files are counted instead.
            batches = (
                parquet.iter_batches(batch_size=1024, columns=columns) if columns else _empty(parquet.metadata.num_rows)
            )
            for chunk in batches:
                for row in chunk.to_pylist() if isinstance(chunk, pa.RecordBatch) else chunk:
                    known = (row.pop(audio, None) or {}).get("path") if has_path else None
                    values = clip_columns(row, mapping, self.section)
                    values["source_id"] = values["source_id"] or known or f"{file.path}#{index}"
                    values["source_split"] = values["source_split"] or (split.group(1) if split else None)
                    rows.append({"source_file": file.path, "source_row": index, **values})
                    index += 1
                    if len(rows) == batch_size:
                        yield BatchPlan(_batch_id(file.path, number), file.path, _table(rows))
                        rows, number = [], number + 1
            if rows:
                yield BatchPlan(_batch_id(file.path, number), file.path, _table(rows))

    def read(self, source_file: str | None, clips: pa.Table) -> Iterator[bytes | Path | ClipError]:
        assert source_file is not None
        parquet = pq.ParquetFile(self.root / source_file)
        audio = self._audio_column(parquet.schema_arrow, source_file)
        wanted = clips["source_row"].to_pylist()
        first, last, chosen = wanted[0], wanted[-1], set(wanted)
        groups, base, offset = [], 0, None
        for group in range(parquet.metadata.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if base <= last and base + count > first:
                groups.append(group)
                offset = base if offset is None else offset
            base += count
        leaf = f"{audio}.bytes" if pa.types.is_struct(parquet.schema_arrow.field(audio).type) else audio
        row = offset or 0
        for chunk in parquet.iter_batches(batch_size=READ_ROWS, row_groups=groups, columns=[leaf], use_threads=False):
            for value in chunk.column(0):
                if row in chosen:
                    data = value.as_py()
                    data = data.get("bytes") if isinstance(data, dict) else data
                    yield (
                        data
                        if data is not None
                        else ClipError("no_bytes", f"{source_file} row {row} holds no audio bytes")
                    )
                row += 1


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _empty(rows: int) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, rows, 1024):
        yield [{} for _ in range(min(1024, rows - start))]


def _batch_id(path: str, number: int) -> str:
    """A readable, safe and unique name: [A-Za-z0-9_-] of the file's stem, a hash of its path, the range's number."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(path).stem)[:32].strip("-") or "file"
    return f"{stem}-{hashlib.sha256(path.encode()).hexdigest()[:6]}-{number:03d}"


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([f for f in MANIFEST if f.name not in ("id", "source")]))
