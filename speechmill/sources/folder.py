"""A folder of audio files, recursively, with optional metadata joined by path."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechmill.audio.decode import header_seconds
from speechmill.errors import SourceError
from speechmill.sources import GLANCE_HEADERS, GLANCE_SECONDS, BatchPlan, Clip, Listing, Source, SourceFile
from speechmill.sources.checksums import CACHE, checksum_files
from speechmill.sources.columns import clip_columns, clip_table, map_columns
from speechmill.sources.metadata import normalize_path, read_metadata

# Names only decide what is looked at; what a file is, its header decides. Formats that libsndfile cannot read
# are listed too, so that such clips end as errored with a reason instead of being passed over in silence.
SUFFIXES = frozenset(
    [
        ".wav",
        ".wave",
        ".w64",
        ".rf64",
        ".flac",
        ".mp3",
        ".mp2",
        ".ogg",
        ".oga",
        ".opus",
        ".aiff",
        ".aif",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
        ".sph",
        ".nist",
        ".m4a",
        ".mp4",
        ".aac",
        ".wma",
        ".webm",
        ".amr",
    ]
)


class FolderSource(Source):
    """Every file with an audio suffix below `path` is a clip."""

    reads_headers = True

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.root = Path(self.section["path"])
        self.metadata = Path(self.section["metadata"]) if self.section["metadata"] else None

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        entries = sorted(self._walk())
        if self.metadata and self.metadata.is_file():
            stat = self.metadata.stat()
            entries.append((os.fspath(self.metadata), stat.st_size, stat.st_mtime_ns))
        for path, size, mtime in entries:
            digest.update(f"{path}\0{size}\0{mtime}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _walk(self) -> Iterator[tuple[str, int, int]]:
        """Path below the root, size and modification time of every audio file; hidden ones are passed over."""
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                    full = os.path.join(folder, name)
                    try:
                        stat = os.stat(full)
                    except OSError as error:
                        raise SourceError(f"{full}: {error.strerror}; remove it or mend the link") from error
                    yield os.path.relpath(full, self.root).replace(os.sep, "/"), stat.st_size, stat.st_mtime_ns

    def glance(self, longest: float) -> tuple[int, float, int] | None:
        end = time.monotonic() + GLANCE_SECONDS
        paths = []
        for path, _, _ in self._walk():
            paths.append(path)
            if time.monotonic() > end:
                return None
        paths.sort()
        looked_at = paths[:: max(math.ceil(len(paths) / GLANCE_HEADERS), 1)]
        found = math.fsum(header_seconds(self.root / path, longest) for path in looked_at)
        return len(paths), found * len(paths) / max(len(looked_at), 1), len(looked_at)

    def list_files(self) -> Listing:
        paths = sorted(path for path, _, _ in self._walk())
        if not paths:
            raise SourceError(f"{self.root}: no audio file found (looked for {', '.join(sorted(SUFFIXES))})")
        odd = [path for path in paths if not _is_utf8(path)]
        if odd:
            raise SourceError(
                f"{self.root}: {len(odd)} file names are not UTF-8, such as {os.fsencode(odd[0])!r}; "
                "rename them, for example with convmv"
            )
        files = checksum_files(self.root, paths, self.work / CACHE)
        others: Counter[str] = Counter()
        for _, _, names in os.walk(self.root):
            others.update(
                s or "no suffix" for s in (os.path.splitext(n)[1].lower() for n in names) if s not in SUFFIXES
            )
        notes = [f"{count} files passed over: {suffix}" for suffix, count in sorted(others.items())]
        return Listing(files, notes)

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        return stable_batches(self._rows(listing), batch_size, previous)

    def _rows(self, listing: Listing) -> dict[str, dict[str, Any]]:
        """One manifest row per file, by path, in the order of the listing; unmatched metadata become notes."""
        metadata: dict[str, dict[str, Any]] = {}
        if self.metadata:
            metadata, notes = read_metadata(self.metadata, self.section["metadata_key"])
            listing.notes.extend(notes)
        columns = {name: None for row in metadata.values() for name in row}
        mapping = map_columns(columns, self.section["columns"])
        files: dict[str, SourceFile] = {file.path: file for file in listing.files}
        unmatched = set(metadata) - {normalize_path(path) for path in files}
        if unmatched:
            listing.notes.append(f"{len(unmatched)} metadata rows name no file, such as {min(unmatched)!r}")
        without = sum(normalize_path(path) not in metadata for path in files) if self.metadata else 0
        if without:
            listing.notes.append(f"{without} files have no metadata row")
        return {
            path: {
                "source_file": path,
                "size": file.size,
                "sha256": file.sha256,
                **_with_name(clip_columns(metadata.get(normalize_path(path), {}), mapping, self.section), path),
            }
            for path, file in files.items()
        }

    def read(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        if not self.root.is_dir():
            raise SourceError(f"{self.root}: the folder is not there on this machine; is it mounted?")
        assert plan.clips is not None
        for row in plan.clips.to_pylist():
            yield row, self.root / row["source_file"]


def stable_batches(rows: dict[str, dict[str, Any]], batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
    """Files, by path, keep the batch they were first put in; new ones make new batches; a removed one leaves its batch."""
    numbers = [int(plan.batch.rsplit("-", 1)[1]) for plan in previous]
    rows = dict(rows)
    for old in sorted(previous, key=lambda plan: plan.batch):
        assert old.clips is not None
        kept = [path for path in old.clips["source_file"].to_pylist() if path in rows]
        if kept:
            yield BatchPlan(old.batch, None, clip_table([rows.pop(path) for path in kept]))
    new = list(rows.values())
    first = max(numbers, default=-1) + 1
    for number, start in enumerate(range(0, len(new), batch_size), first):
        yield BatchPlan(f"clips-{number:05d}", None, clip_table(new[start : start + batch_size]))


def _with_name(values: dict[str, str | None], path: str) -> dict[str, str | None]:
    return {**values, "source_id": values["source_id"] or path}


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
