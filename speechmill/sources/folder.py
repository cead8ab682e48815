"""Source kind `folder`: audio files of a folder and its subfolders, with optional metadata joined by path."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechmill.audio.containers import looks_like_audio
from speechmill.audio.decode import header_seconds
from speechmill.errors import ClipError, SourceError
from speechmill.sources import QUICK_LOOK_HEADERS, QUICK_LOOK_SECONDS, BatchPlan, Clip, Listing, Source, SourceFile
from speechmill.sources.boundary import check_row, read_row
from speechmill.sources.checksums import CACHE, checksum_files
from speechmill.sources.columns import clip_columns, clip_table, map_columns
from speechmill.sources.metadata import Metadata, check_match, normalize_path, read_metadata
from speechmill.sources.walk import walk_files
from speechmill.utils.text import plain

# The suffix decides which files are clips; the header decides the format. What cannot be read becomes errored with a
# reason instead of being skipped silently.
SUFFIXES = frozenset(
    (
        ".wav .wave .w64 .rf64 .flac .mp3 .mp2 .mpga .ogg .oga .opus .aiff .aif .aifc .au .snd .caf .sph .nist "
        ".m4a .m4b .mp4 .mov .aac .3gp .3ga .3g2 .amr .awb .wma .wmv .asf .webm .mka .mkv .avi .flv .m4v .mpg .mpeg .tta .wv .ape .ac3 .spx"
    ).split()
)
# Files beside audio that need no look inside; other files are clips if they begin like audio.
OTHER_SUFFIXES = frozenset(
    ".txt .lab .json .jsonl .ndjson .csv .tsv .md .html .xml .yaml .yml .textgrid .srt .vtt .pdf .png .jpg .py .sh .gz .zip "
    ".tar .parquet .arrow .npy .pt .ark .scp .log .lock".split()
)


class FolderSource(Source):
    """A clip per file with audio (by its suffix, else by its first bytes) below `source.path`. Hidden files and folders are skipped."""

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

    def _walk(self, passed_over: Counter[str] | None = None) -> Iterator[tuple[str, int, int]]:
        """Yield path relative to the root, size (bytes) and modification time (ns) of every audio file."""
        return walk_files(self.root, self._is_clip, passed_over)

    def _is_clip(self, path: str) -> bool:
        """Whether a file is a clip: by its suffix, or, where that says nothing, by how the file begins."""
        suffix = os.path.splitext(path)[1].lower()
        if suffix in SUFFIXES:
            return True
        if suffix in OTHER_SUFFIXES:
            return False
        try:
            with open(self.root / path, "rb") as handle:
                return looks_like_audio(handle.read(512))
        except OSError:
            return False  # a broken link; it is counted with the files passed over

    def quick_look(self, longest: float) -> tuple[int, float, int] | None:
        end = time.monotonic() + QUICK_LOOK_SECONDS
        paths = []
        for path, _, _ in self._walk():
            paths.append(path)
            if time.monotonic() > end:
                return None
        paths.sort()
        looked_at = paths[:: max(math.ceil(len(paths) / QUICK_LOOK_HEADERS), 1)]
        found = math.fsum(header_seconds(self.root / path, longest) for path in looked_at)
        return len(paths), found * len(paths) / max(len(looked_at), 1), len(looked_at)

    def list_files(self) -> Listing:
        passed_over: Counter[str] = Counter()
        paths = sorted(path for path, _, _ in self._walk(passed_over))
        if not paths:
            raise SourceError(f"{self.root}: no audio file found (looked for {', '.join(sorted(SUFFIXES))})")
        not_utf8 = [path for path in paths if not _is_utf8(path)]
        if not_utf8:
            raise SourceError(
                f"{self.root}: {len(not_utf8)} file names are not UTF-8, such as {os.fsencode(not_utf8[0])!r}; "
                "rename them, for example with convmv"
            )
        files = checksum_files(self.root, paths, self.work / CACHE)
        clips = set(paths)
        others = Counter(
            os.path.splitext(path)[1].lower() or "no suffix"
            for path, *_ in walk_files(self.root, lambda path: path not in clips and (self.root / path).exists())
        )
        notes = [f"{count} files passed over: {suffix}" for suffix, count in sorted(others.items())]
        notes += [f"{count} {what}" for what, count in sorted(passed_over.items())]
        return Listing(files, notes)

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        return stable_batches(self._rows(listing), batch_size, previous)

    def _rows(self, listing: Listing) -> dict[str, dict[str, Any]]:
        """Path -> manifest row, in the order of the listing. Metadata without a file become notes of the listing."""
        section = self.section
        files: dict[str, SourceFile] = {file.path: file for file in listing.files}
        normalized = {path: normalize_path(path) for path in files}
        metadata = Metadata(self.metadata or Path())
        if self.metadata:
            metadata = read_metadata(self.metadata, section["metadata_key"], section["encodings"])
            check_match(metadata, set(normalized.values()), section["metadata_match"])
        mapping = map_columns({name: None for row in metadata.rows.values() for name in row}, section["columns"])
        rows = {}
        for path, file in files.items():
            known = {"source_file": path, "size": file.size, "sha256": file.sha256}
            key = normalized[path]

            def read(key: str = key) -> Clip:
                return clip_columns(metadata.rows.get(key, {}), mapping, section), b""

            described, problem = check_row(read_row({}, str(self.metadata), read))
            if isinstance(problem, ClipError):
                metadata.skip(metadata.lines[key], problem.message)
                described = clip_columns({}, mapping, section)
            rows[path] = {**known, **described, "source_id": described["source_id"] or path}
        listing.notes.extend(metadata.notes())
        unmatched = set(metadata.rows) - set(normalized.values())
        if unmatched:
            listing.notes.append(f"{len(unmatched)} metadata rows name no file, such as {plain(min(unmatched))!r}")
        without = sum(key not in metadata.rows for key in normalized.values()) if self.metadata else 0
        if without:
            listing.notes.append(f"{without} files have no metadata row")
        return rows

    def clips(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        if not self.root.is_dir():
            raise SourceError(f"{self.root}: the folder does not exist on this machine; check that it is mounted")
        assert plan.clips is not None
        for row in plan.clips.to_pylist():
            yield row, self.root / row["source_file"]


def stable_batches(rows: dict[str, dict[str, Any]], batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
    """Cut files (path -> row) into batches that do not change when files are added.

    A file keeps the batch of `previous` that it is in. New files make new batches of `batch_size`. A file that no
    longer exists is removed from its batch.
    """
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


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
