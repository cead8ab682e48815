"""Mozilla Common Voice as the Mozilla Data Collective ships it: one tar.gz per language and release.

    cv-corpus-25.0-2026-03-09/th/clips/common_voice_th_1.mp3
    cv-corpus-25.0-2026-03-09/th/{validated,other,invalidated,train,dev,test,clip_durations}.tsv

The archive is streamed once, while the manifest is made: the clips go into one plain file (`raw/clips.bin`), from which
the jobs read theirs; it is removed when the last batch is enhanced. Clips are known by their path below the release's
folder, so that they keep ids and batches from release to release.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechmill.errors import ClipError, SourceError
from speechmill.files import atomic_path, sha256_bytes
from speechmill.shards import write_table
from speechmill.sources import BatchPlan, Clip, Listing, Source
from speechmill.sources.archives import TarStream
from speechmill.sources.checksums import CACHE, checksum_files
from speechmill.sources.columns import clip_columns, map_columns
from speechmill.sources.folder import SUFFIXES, stable_batches

BUCKETS = ("validated", "other", "invalidated")  # every clip is in one of these
HELD_OUT = ("dev", "test")  # parts of validated that others measure with
SPOOLED = ("raw/clips.bin", "raw/clips.parquet")
TABLE_BYTES = 1 << 32  # the largest table of the largest language has not a quarter of it


class CommonVoiceSource(Source):
    """A clip per row of the tables of the chosen `source.splits` (validated, other, invalidated, dev, test).

    Clips of dev and test are also in validated; they belong to dev and test alone. `other` and `invalidated` are
    carried with their name as the split, so that a profile or a reader can tell them.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.folder = "unknown"  # of the language in the archive
        self.splits = self.section["splits"] or ["validated", "dev", "test"]
        unknown = sorted(set(self.splits) - {*BUCKETS, *HELD_OUT})
        if unknown:
            raise SourceError(f"source.splits: {', '.join(unknown)} is none of {', '.join((*BUCKETS, *HELD_OUT))}")

    @cached_property
    def archive(self) -> Path:
        """The archive: the file named, or the one that was downloaded."""
        if self.section["path"] is not None:
            return Path(self.section["path"])
        found = sorted((self.work / "raw" / "archive").glob("*.tar.gz"))
        if not found:
            raise SourceError(
                f"{self.work}/raw: the downloaded archive is gone, as it was no longer needed; delete "
                f"{self.work}/source.json and run again, to fetch it once more"
            )
        return found[-1]

    def fingerprint(self) -> str:
        if self.section["path"] is None:
            from speechmill.sources.mozilla import release

            return release(self.section["datacollective"], self.patience_minutes)
        stat = self.archive.stat()
        return f"{self.archive.name} {stat.st_size} {stat.st_mtime_ns}"

    def list_files(self) -> Listing:
        if self.section["path"] is None:
            from speechmill.sources.mozilla import download

            download(self.section["datacollective"], self.work / "raw" / "archive", self.patience_minutes)
        for name in SPOOLED:
            (self.work / name).unlink(missing_ok=True)  # of another archive, perhaps
        return Listing(checksum_files(self.archive.parent, [self.archive.name], self.work / CACHE), [])

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        passed_over: Counter[str] = Counter()
        tables, problem = self._spool(passed_over)
        rows = self._rows(tables, listing.notes)
        if not rows:
            raise SourceError(
                f"{self.archive}: no clip is in the tables of the splits {', '.join(self.splits)}; it has the tables "
                f"{', '.join(sorted(tables)) or 'none'}" + (f" ({problem})" if problem else "")
            )
        members = {member: (size, sha256) for member, size, sha256 in self._index(["member", "size", "sha256"])}
        for path, row in rows.items():
            row["size"], row["sha256"] = members.pop(path, (None, None))
        missing = sum(row["sha256"] is None for row in rows.values())
        if problem:
            listing.notes.append(f"{self.archive.name}: {problem}")
        if missing:
            listing.notes.append(f"{missing} rows of the tables name no clip of the archive")
        if members:
            listing.notes.append(f"{len(members)} clips of the archive are in no table of the chosen splits")
        listing.notes.extend(f"{count} {what}" for what, count in sorted(passed_over.items()))
        yield from stable_batches(rows, batch_size, previous)

    def _index(self, columns: list[str]) -> Iterator[tuple[Any, ...]]:
        table = pq.read_table(self.work / SPOOLED[1], columns=columns)
        return zip(*(table[name].to_pylist() for name in columns), strict=True)

    def _spool(self, passed_over: Counter[str]) -> tuple[dict[str, bytes], str | None]:
        """Stream the archive: clips into the spool, its tables into memory. Tables may come before or after clips."""
        tables: dict[str, bytes] = {}
        index: dict[str, tuple[int, int, str]] = {}
        archive = TarStream(self.archive, self.max_bytes, passed_over, TABLE_BYTES)
        offset = 0
        with atomic_path(self.work / SPOOLED[0]) as temporary, open(temporary, "wb") as spool:
            for name, data in archive:
                path = _below_release(name)
                if isinstance(data, ClipError):
                    passed_over["members that are larger than enhance.max_bytes"] += 1
                elif path.suffix == ".tsv":
                    tables.setdefault(path.stem, data)
                    self.folder = str(path.parent)
                elif path.suffix.lower() in SUFFIXES and str(path) not in index:
                    spool.write(data)
                    index[str(path)] = offset, len(data), sha256_bytes(data)
                    offset += len(data)
        places = list(zip(*index.values(), strict=True)) or [(), (), ()]
        columns = {name: pa.array(values) for name, values in zip(("offset", "size", "sha256"), places, strict=True)}
        write_table(pa.table({"member": pa.array(index, pa.string()), **columns}), self.work / SPOOLED[1])
        return tables, archive.problem

    def _rows(self, tables: dict[str, bytes], notes: list[str]) -> dict[str, dict[str, Any]]:
        """Path -> row of each clip that belongs to a chosen split, in the order of the tables."""
        held_out = {s: {row["path"] for row in _read(tables[s], s, "path")[0]} for s in HELD_OUT if s in tables}
        durations = _read(tables.get("clip_durations", b"clip"), "clip_durations", "clip")[0]
        seconds = {row["clip"]: row for row in durations}
        found: dict[str, dict[str, Any]] = {}
        for bucket in BUCKETS:
            if bucket not in tables:
                continue
            rows, bad = _read(tables[bucket], bucket, "path")
            if bad:
                notes.append(f"{bucket}.tsv: {bad} rows with more or fewer cells than the header were skipped")
            for row in rows:
                name = row.pop("path")
                split = next((split for split, names in held_out.items() if name in names), bucket)
                if split not in self.splits or not _is_plain(name):
                    continue
                path = f"{self.folder}/clips/{name}"
                described = clip_columns(row, map_columns(row, self.section["columns"]), self.section)
                found[path] = {
                    **described,
                    "source_id": name,
                    "source_split": split,
                    "source_file": path,
                    "header_duration": _seconds(seconds.get(name)),
                }
        return found

    def read(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        assert plan.clips is not None
        waiting = {row["source_file"]: row for row in plan.clips.to_pylist()}
        spool, index = (self.work / name for name in SPOOLED)
        if spool.is_file() and index.is_file():
            places = {m: (at, size) for m, at, size in self._index(["member", "offset", "size"]) if m in waiting}
            with open(spool, "rb") as handle:
                for member, (at, size) in sorted(places.items(), key=lambda item: item[1]):
                    handle.seek(at)
                    yield self._checked(waiting.pop(member), handle.read(size))
        else:  # a batch that is made again, long after the others
            for name, data in TarStream(self.archive, self.max_bytes):
                row = waiting.pop(str(_below_release(name)), None)
                if row is not None:
                    yield self._checked(row, data)
        for row in waiting.values():
            yield row, ClipError("no_audio", f"{row['source_file']} is in a table, but not in the archive")

    def _checked(self, row: dict[str, Any], data: bytes | ClipError) -> Clip:
        if isinstance(data, bytes) and row["sha256"] not in (None, hashlib.sha256(data).hexdigest()):
            return row, ClipError("changed", "the archive was changed after it was listed; run again to list it anew")
        return row, data


def _below_release(name: str) -> PurePosixPath:
    """`th/clips/x.mp3` of `cv-corpus-25.0-2026-03-09/th/clips/x.mp3`."""
    parts = PurePosixPath(name).parts
    return PurePosixPath(*(parts[1:] if parts and re.match(r"cv-corpus-", parts[0]) else parts))


def _read(table: bytes, name: str, column: str) -> tuple[list[dict[str, Any]], int]:
    """Rows of a TSV without quoting, as Mozilla writes it, and how many could not be used.

    Raises:
        SourceError: it has no such column.
    """
    text = io.StringIO(table.decode("utf-8-sig", errors="replace"), newline="")
    csv.field_size_limit(1 << 26)
    rows, bad = [], 0
    reader = csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    if column not in (reader.fieldnames or ()):
        raise SourceError(f"{name}.tsv has no column {column}; is this an archive of Common Voice?")
    for row in reader:
        if None in row or None in row.values():
            bad += 1
        else:
            rows.append(row)
    return rows, bad


def _is_plain(name: str) -> bool:
    return bool(name) and "/" not in name and not name.startswith(".")


def _seconds(row: dict[str, Any] | None) -> float | None:
    """Of a row of clip_durations.tsv, whose second column is called duration[ms]."""
    value = next((value for name, value in (row or {}).items() if name.startswith("duration")), None)
    try:
        return float(value) / 1000 if value is not None else None
    except ValueError:
        return None
