"""Source kind `common_voice`: archives of Mozilla Common Voice, one tar.gz per language and release.

    cv-corpus-25.0-2026-03-09/th/clips/common_voice_th_1.mp3
    cv-corpus-25.0-2026-03-09/th/{validated,other,invalidated,train,dev,test,clip_durations}.tsv

The archive is read once, while the manifest is made. The clips are copied into one file, `raw/clips.bin`, from which
the jobs read them. It is removed when the last batch is enhanced. A clip is identified by its path below the folder of
the release, so that clips keep their ids and batches from release to release.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechmill.errors import ClipError, SourceError
from speechmill.sources import BatchPlan, Clip, Listing, Source
from speechmill.sources.archives import TarStream
from speechmill.sources.boundary import check_row, read_row
from speechmill.sources.checksums import CACHE, checksum_files
from speechmill.sources.columns import clip_columns, map_columns
from speechmill.sources.folder import SUFFIXES, stable_batches
from speechmill.sources.text_files import delimited_rows
from speechmill.storage.files import atomic_path, sha256_bytes
from speechmill.tables.parquet_io import write_table
from speechmill.utils.text import plain

BUCKETS = ("validated", "other", "invalidated")  # every clip is in one of these
HELD_OUT = ("dev", "test")  # subsets of validated for evaluation
SPOOLED = ("raw/clips.bin", "raw/clips.parquet")  # audio; index with member, offset, size, sha256
TABLE_BYTES = 1 << 32  # four times the largest table of the largest language


class CommonVoiceSource(Source):
    """A clip per row of the tables of the chosen `source.splits` (validated, other, invalidated, dev, test).

    Clips of dev and test are also rows of validated; their split is dev or test. Clips of `other` and `invalidated`
    have these names as their split.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.folder = PurePosixPath()  # folder of the language in the archive, found while it is read
        self.splits = self.section["splits"] or ["validated", "dev", "test"]
        unknown = sorted(set(self.splits) - {*BUCKETS, *HELD_OUT})
        if unknown:
            raise SourceError(f"source.splits: {', '.join(unknown)} is not one of {', '.join((*BUCKETS, *HELD_OUT))}")

    @cached_property
    def archive(self) -> Path:
        """Path of the archive: `source.path`, or the downloaded file.

        Raises:
            SourceError: the downloaded archive was removed.
        """
        if self.section["path"] is not None:
            return Path(self.section["path"])
        found = sorted((self.work / "raw" / "archive").glob("*.tar.gz"))
        if not found:
            raise SourceError(
                f"{self.work}/raw: the downloaded archive was removed when it was no longer needed; delete "
                f"{self.work}/source.json and run again to download it again"
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
            (self.work / name).unlink(missing_ok=True)  # may be of another archive
        return Listing(checksum_files(self.archive.parent, [self.archive.name], self.work / CACHE), [])

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        passed_over: Counter[str] = Counter()
        tables, problem = self._spool(passed_over)
        rows = self._rows(tables, _Members(self._index(["member"])), listing.notes)
        if not rows:
            raise SourceError(
                f"{self.archive}: the tables of the splits {', '.join(self.splits)} list no clip; change source.splits. "
                f"Tables of the archive: {', '.join(sorted(tables)) or 'none'}" + (f" ({problem})" if problem else "")
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
        """Read the archive: write its clips to `SPOOLED`, and keep its tables in memory (they may come after the clips).

        Returns:
            Table name without .tsv -> content; why the archive could not be read to its end, or None.
        """
        tables: dict[str, bytes] = {}
        index: dict[str, tuple[int, int, str]] = {}
        archive = TarStream(self.archive, self.max_bytes, passed_over, TABLE_BYTES)
        offset = 0
        with atomic_path(self.work / SPOOLED[0]) as temporary, open(temporary, "wb") as spool:
            for name, data in archive:
                path = _below_release(name)
                if isinstance(data, ClipError):
                    passed_over["members larger than enhance.max_bytes"] += 1
                elif path.suffix == ".tsv":
                    if path.stem in tables:
                        passed_over["tables with the name of another one"] += 1
                    else:
                        tables[path.stem] = data
                        self.folder = path.parent if path.stem in (*BUCKETS, *HELD_OUT) else self.folder
                elif path.suffix.lower() not in SUFFIXES:
                    passed_over[f"members that are neither clips nor tables ({path.suffix or 'no suffix'})"] += 1
                elif str(path) in index:
                    passed_over["clips with the path of another one"] += 1
                else:
                    spool.write(data)
                    index[str(path)] = offset, len(data), sha256_bytes(data)
                    offset += len(data)
        places = list(zip(*index.values(), strict=True)) or [(), (), ()]
        columns = {name: pa.array(values) for name, values in zip(("offset", "size", "sha256"), places, strict=True)}
        write_table(pa.table({"member": pa.array(index, pa.string()), **columns}), self.work / SPOOLED[1])
        return tables, archive.problem

    def _rows(self, tables: dict[str, bytes], members: _Members, notes: list[str]) -> dict[str, dict[str, Any]]:
        """Path -> manifest row of every clip of `source.splits`, in the order of the tables."""
        encodings = self.section["encodings"]
        held_out = {
            s: {row["path"] for row in _read(tables[s], s, "path", encodings, [])} for s in HELD_OUT if s in tables
        }
        durations = _read(tables.get("clip_durations", b"clip"), "clip_durations", "clip", encodings, [])
        seconds = {row["clip"]: row for row in durations}
        found: dict[str, dict[str, Any]] = {}
        for bucket in BUCKETS:
            if bucket not in tables:
                continue
            bad: list[str] = []
            for row in _read(tables[bucket], bucket, "path", encodings, bad):
                name, line = row.pop("path"), row.pop("")
                split = next((split for split, names in held_out.items() if name in names), bucket)
                if split not in self.splits:
                    continue
                path = members.path(name, self.folder)
                if path is None:
                    bad.append(f"line {line}: the path {plain(name, 80)!r} leads out of the archive")
                    continue
                described, problem = check_row(read_row({}, bucket, partial(self._described, row)))
                if isinstance(problem, ClipError):
                    bad.append(f"line {line}: {problem.message}")
                    continue
                found[path] = {
                    **described,
                    "source_id": name,
                    "source_split": split,
                    "source_file": path,
                    "header_duration": _seconds(seconds.get(name)),
                }
            if bad:
                some = "; ".join(bad[:5]) + ("; ..." if len(bad) > 5 else "")
                notes.append(f"{bucket}.tsv: {len(bad)} unusable rows were skipped ({some})")
        return found

    def _described(self, row: dict[str, Any]) -> Clip:
        return clip_columns(row, map_columns(row, self.section["columns"]), self.section), b""

    def clips(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        assert plan.clips is not None
        unread = {row["source_file"]: row for row in plan.clips.to_pylist()}
        spool, index = (self.work / name for name in SPOOLED)
        if spool.is_file() and index.is_file():
            places = {m: (at, size) for m, at, size in self._index(["member", "offset", "size"]) if m in unread}
            with open(spool, "rb") as handle:
                for member, (at, size) in sorted(places.items(), key=lambda item: item[1]):
                    handle.seek(at)
                    yield self._checked(unread.pop(member), handle.read(size))
        else:  # the batch is repeated after the spool was removed
            for name, data in TarStream(self.archive, self.max_bytes):
                row = unread.pop(str(_below_release(name)), None)
                if row is not None:
                    yield self._checked(row, data)
        for row in unread.values():
            yield row, ClipError("no_audio", f"{row['source_file']} is in a table, but not in the archive")

    def _checked(self, row: dict[str, Any], data: bytes | ClipError) -> Clip:
        if isinstance(data, bytes) and row["sha256"] not in (None, hashlib.sha256(data).hexdigest()):
            return row, ClipError("changed", "the archive was changed after it was listed; run again to list it again")
        return row, data


def _below_release(name: str) -> PurePosixPath:
    """Path below the folder of the release: `cv-corpus-25.0-2026-03-09/th/clips/x.mp3` -> `th/clips/x.mp3`."""
    parts = PurePosixPath(name).parts
    return PurePosixPath(*(parts[1:] if parts and re.match(r"cv-corpus-", parts[0]) else parts))


class _Members:
    """The clips of an archive, found by what the tables call them."""

    def __init__(self, paths: Iterable[tuple[str]]):
        self.paths = {path for (path,) in paths}
        self.by_name: dict[str, list[str]] = defaultdict(list)  # name, with and without its suffix
        for path in sorted(self.paths):
            name = PurePosixPath(path)
            for key in {name.name, name.stem}:
                self.by_name[key].append(path)

    def path(self, name: str, folder: PurePosixPath) -> str | None:
        """The path of a row's clip; where Mozilla would have it, if the archive has none. None for an unsafe name."""
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or parts[-1].startswith(".") or "\\" in name:
            return None
        usual = str(folder / "clips" / parts[-1])
        if usual in self.paths:
            return usual
        found = self.by_name.get(parts[-1]) or self.by_name.get(PurePosixPath(parts[-1]).stem, [])
        return found[0] if len(found) == 1 else usual


def _read(table: bytes, name: str, column: str, encodings: Sequence[str], bad: list[str]) -> list[dict[str, Any]]:
    """The usable rows of a table, each with its line under the name "". Mozilla writes without quotes.

    Args:
        bad: receives why other rows cannot be used, with their lines.

    Raises:
        SourceError: the table has no such column.
    """
    names, rows = delimited_rows(io.BytesIO(table), "\t", encodings, f"{name}.tsv")
    if column not in names:
        raise SourceError(f"{name}.tsv has no column {column}; check that the archive is one of Common Voice")
    usable = []
    for row in rows:
        if row.problem or not row.cells[column]:
            bad.append(f"line {row.line}: {row.problem or f'no {column}'}")
        else:
            usable.append(row.cells | {"": row.line})
    return usable


def _seconds(row: dict[str, Any] | None) -> float | None:
    """Seconds of a row of clip_durations.tsv; its column is called duration[ms]."""
    value = next((value for name, value in (row or {}).items() if name.startswith("duration")), None)
    try:
        return float(value) / 1000 if value is not None else None
    except ValueError:
        return None
